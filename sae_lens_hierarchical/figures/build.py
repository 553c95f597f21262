"""Builds figures, panels and series from rows of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sae_lens_hierarchical.eval.table import BudgetMetrics
from sae_lens_hierarchical.figures.captions import bands, cut_off
from sae_lens_hierarchical.figures.seeds import SeedMetrics
from sae_lens_hierarchical.figures.spec import Figure, Panel, Series, Style

__all__ = [
    "curve",
    "decimal_ticks",
    "difference",
    "difference_limits",
    "log2_panel",
    "make_figure",
    "nonempty_figure",
    "share_limits",
]

# Shares such as explained variance are at most 1. One far below 0 would leave no room
# for the others: it is cut off there, and the caption says so.
_FAR_BELOW = -0.25


def curve(
    rows: Sequence[BudgetMetrics],
    metric: str,
    style: Style,
    label: str,
    *,
    x: str = "k",
) -> Series:
    """Return a line of a metric, with markers where an SAE is at its trained k.

    A row alone has a marker too: of its line nothing would be seen.
    """
    return Series(
        label=label,
        x=tuple(getattr(row, x) for row in rows),
        y=tuple(getattr(row, metric) for row in rows),
        style=style,
        marked=tuple(
            n for n, row in enumerate(rows) if len(rows) == 1 or row.k == row.trained_k
        ),
        names=tuple(row.sae for row in rows),
        band=_band(rows, metric),
    )


def _band(
    rows: Sequence[BudgetMetrics], metric: str
) -> tuple[tuple[float, float], ...]:
    if not any(isinstance(row, SeedMetrics) for row in rows):
        return ()
    return tuple(
        row.limits(metric)
        if isinstance(row, SeedMetrics)
        else (getattr(row, metric), getattr(row, metric))
        for row in rows
    )


def difference(
    pairs: Sequence[tuple[BudgetMetrics, BudgetMetrics]],
    metric: str,
    style: Style,
    label: str,
) -> Series:
    """Return a line of how much larger a metric is in each row than in its base."""
    more, less = (
        curve([pair[n] for pair in pairs], metric, style, label) for n in (0, 1)
    )
    y = tuple(a - b for a, b in zip(more.y, less.y, strict=True))
    return replace(more, y=y, band=())  # seeds' differences are not known


def log2_panel(
    y_label: str,
    series: Sequence[Series],
    *,
    x_label: str = "k, active features per token",
    **options: Any,
) -> Panel:
    """Return a panel whose x is logarithmic, with powers of two for ticks."""
    values = [x for one in series for x in one.x if x > 0]
    ticks: tuple[float, ...] = ()
    if values:
        # Somewhat less than 128 active features are at 128 for the eye.
        lowest = math.ceil(math.log2(min(values)) - 0.1)
        highest = math.floor(math.log2(max(values)) + 0.1)
        step = 1 if highest - lowest <= 8 else 2
        ticks = tuple(2.0**n for n in range(lowest, highest + 1, step))
    return Panel(
        x_label=x_label,
        y_label=y_label,
        series=tuple(series),
        x_ticks=ticks,
        **options,
    )


def decimal_ticks(series: Iterable[Series]) -> tuple[float, ...]:
    """Return round numbers in the range of all positive y, some to each power of 10."""
    values = [y for one in series for y in one.y if y > 0]
    if not values:
        return ()
    lowest, highest = min(values), max(values)
    powers = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)))
    digits = (1, 1.5, 2, 3, 4, 6, 10) if highest < 30 * lowest else (1, 3, 10)
    ticks = {float(f"{digit}e{n}") for n in powers for digit in digits}
    return tuple(tick for tick in sorted(ticks) if lowest <= tick <= highest)


def share_limits(series: Iterable[Series]) -> tuple[float, float] | None:
    """Return limits that show all y and bands but what is far below 0."""
    values = [y for one in series for ys in (one.y, *one.band) for y in ys]
    shown = [max(value, _FAR_BELOW) for value in values if math.isfinite(value)]
    return _with_margin(shown)


def difference_limits(
    pairs: Iterable[tuple[BudgetMetrics, BudgetMetrics]], metric: str
) -> tuple[float, float] | None:
    """Return limits that show all differences but of shares far below 0."""
    values = [tuple(getattr(row, metric) for row in pair) for pair in pairs]
    shown = [a - b for a, b in values if min(a, b) >= _FAR_BELOW]
    return _with_margin([0.0, *shown])  # "no change" is in sight


def _with_margin(values: Sequence[float]) -> tuple[float, float] | None:
    lowest, highest = min(values, default=0), max(values, default=0)
    if lowest >= highest:
        return None
    margin = 0.05 * (highest - lowest)
    return lowest - margin, highest + margin


def make_figure(
    key: str, title: str, sentences: Iterable[str], panels: Iterable[Panel]
) -> Figure:
    """Return a figure without the panels and series that have nothing to show.

    Its caption has the sentences, and what there is to say of bands and of what is cut
    off.
    """
    shown = _with_values(panels)
    said = (*sentences, bands(shown), cut_off(shown))
    return Figure(key, title, " ".join(filter(None, said)), shown)


def nonempty_figure(
    key: str, title: str, sentences: Iterable[str], panels: Iterable[Panel]
) -> Figure | None:
    """Return what ``make_figure`` does, or None where no panel has anything to show."""
    figure = make_figure(key, title, sentences, panels)
    return figure if figure.panels else None


def _with_values(panels: Iterable[Panel]) -> tuple[Panel, ...]:
    shown = []
    for panel in panels:
        series = tuple(one for one in panel.series if any(map(math.isfinite, one.y)))
        if series:
            shown.append(replace(panel, series=series))
    return tuple(shown)
