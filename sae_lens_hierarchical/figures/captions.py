"""Sentences of captions, each empty where the figure has nothing that it is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sae_lens_hierarchical.defaults import METHOD
from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable
from sae_lens_hierarchical.figures.seeds import SeedMetrics
from sae_lens_hierarchical.figures.select import at_trained_k, ours, topk_rows
from sae_lens_hierarchical.figures.spec import Panel

__all__ = [
    "CENTERED_FVU_DEFINITION",
    "EV_DEFINITION",
    "bands",
    "cut_off",
    "first_seed",
    "listed",
    "markers",
]

# No line ends within a formula, as it may after a hyphen or a space.
_EV, _CENTERED_FVU, _BIAS = (
    formula.replace(" ", "\N{NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")
    for formula in (
        "1 - E‖x - x̂‖² / Var(x)",
        "Var(x - x̂) / Var(x)",
        "‖E(x - x̂)‖² / Var(x)",
    )
)
EV_DEFINITION = f"Explained variance (EV): {_EV}. The mean activation has 0."
CENTERED_FVU_DEFINITION = (
    f"Centered FVU, the paper's: {_CENTERED_FVU}. It leaves out the mean error, the "
    f"bias: EV + centered FVU + {_BIAS} = 1."
)
_NAMED = 3


def markers(table: MetricsTable, saes: Sequence[str]) -> str:
    """Say what the markers on the lines of SAEs at several k are."""
    marked = {sae: rows for sae in saes if (rows := at_trained_k(table, sae))}
    if not marked:
        return ""
    largest = f", K for {METHOD}" if {*ours(table)} & {*marked} else ""
    beside = any(
        row.k not in [one.k for one in topk_rows(table, sae)]
        for sae, rows in marked.items()
        for row in rows
    )
    own = " One beside its line is the SAE with its own thresholds." if beside else ""
    return f"Markers are at the k that an SAE was trained for{largest}.{own}"


def bands(panels: Iterable[Panel]) -> str:
    """Say what the bands of SAEs of several seeds are."""
    if any(series.band for panel in panels for series in panel.series):
        return "Lines are means over seeds, bands go from the lowest to the highest."
    return ""


def first_seed(rows: Iterable[BudgetMetrics]) -> str:
    """Say which of several seeds is shown where that is one."""
    if any(isinstance(row, SeedMetrics) for row in rows):
        return "Of several seeds the first is shown."
    return ""


def cut_off(panels: Iterable[Panel]) -> str:
    """Name the lines that go on beyond what a panel shows of y, and how far."""
    furthest: dict[str, dict[str, float]] = {}
    for panel in panels:
        if panel.y_limits is None:
            continue
        low, high = panel.y_limits
        names = furthest.setdefault(panel.y_label, {})
        for series in panel.series:
            of_points = series.names or [series.label] * len(series.y)
            for name, y in zip(of_points, series.y, strict=True):
                if y < low or y > high:
                    names[name] = max(names.get(name, y), y, key=abs)
    return " ".join(
        f"Cut off on the axis “{label}”: {_extremes(names)}."
        for label, names in furthest.items()
        if names
    )


def _extremes(names: dict[str, float]) -> str:
    ordered = sorted(names.items(), key=lambda pair: -abs(pair[1]))
    shown = [
        f"{name} ({'down' if y < 0 else 'up'} to {y:.3g})"
        for name, y in ordered[:_NAMED]
    ]
    if len(ordered) > _NAMED:
        shown.append(f"{len(ordered) - _NAMED} more")
    return listed(shown)


def listed(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: ``A, B and C``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
