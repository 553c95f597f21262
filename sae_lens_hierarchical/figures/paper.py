"""Says what each of the paper's figures shows of a table of metrics.

Where architectures are compared, the table's first HierarchicalTopK SAE stands for
ours; figure 4 has all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain

import numpy as np

from sae_lens_hierarchical.defaults import ARCHITECTURE, METHOD
from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable
from sae_lens_hierarchical.figures.build import (
    curve,
    decimal_ticks,
    difference,
    difference_limits,
    log2_panel,
    make_figure,
    nonempty_figure,
    share_limits,
)
from sae_lens_hierarchical.figures.captions import (
    CENTERED_FVU_DEFINITION,
    EV_DEFINITION,
    first_seed,
    listed,
    markers,
)
from sae_lens_hierarchical.figures.palette import (
    BASELINE,
    OPTIMAL,
    family_name,
    family_style,
    muted,
    sae_styles,
)
from sae_lens_hierarchical.figures.seeds import SeedMetrics, merge_seeds
from sae_lens_hierarchical.figures.select import (
    at_trained_k,
    compared,
    families,
    ours,
    threshold_pairs,
    topk_rows,
)
from sae_lens_hierarchical.figures.spec import Figure, Panel, Series, Style

__all__ = [
    "Scores",
    "all_figures",
    "almost_dead",
    "autointerp",
    "changing_k",
    "decoder_cosines",
    "distributions",
    "overview",
    "pareto",
    "pointwise_loss",
    "table_2",
    "topk_and_jumprelu",
]

# By an SAE's name and k; None for one that has no k and was evaluated as it is.
Scores = Mapping[tuple[str, int | None], float]

_EV = "explained variance"
_BINS = 30

# Of more lines than these in a panel, nobody can tell which is which by their looks.
_MOST_NAMES = 8
# How the paper and ``compare`` call the losses at fewer budgets.
_J_X = re.compile(r"J_?\d+")


def all_figures(table: MetricsTable, scores: Scores | None = None) -> list[Figure]:
    """Return the figures that the table has rows for.

    SAEs of one name and several seeds are one, as ``merge_seeds`` makes them.

    Args:
        table: The metrics.
        scores: AutoInterp scores for figure 6, by an SAE's name and k.
    """
    each, table = table, merge_seeds(table)
    figures = [
        overview(table),
        pareto(table),
        changing_k(table),
        pointwise_loss(table),
        almost_dead(table),
        autointerp(each, scores or {}),
        decoder_cosines(table),
        distributions(table),
        topk_and_jumprelu(table),
    ]
    return [figure for figure in figures if figure is not None and figure.panels]


def overview(table: MetricsTable) -> Figure:
    """Return EV, CE loss recovered and dead features of every SAE at every k.

    Of many SAEs the first HierarchicalTopK one stands out, and the others have one name
    and look for each architecture.
    """
    saes = table.saes()
    many = len(saes) > _MOST_NAMES
    panels = []
    for metric, label in {
        "explained_variance": _EV,
        "ce_loss_score": "CE loss recovered",
        "dead_features": "dead features",
    }.items():
        series = _topk_curves(table, saes, metric)
        limits = None if metric == "dead_features" else share_limits(series)
        series = _by_architecture(table, series) if many else series
        panels.append(log2_panel(label, series, y_limits=limits))
    return make_figure(
        "overview",
        "Every SAE at every k",
        [
            "Each SAE with the k largest features of a token.",
            "All SAEs of an architecture have one name here." if many else "",
            markers(table, saes),
            EV_DEFINITION,
        ],
        panels,
    )


def pareto(table: MetricsTable) -> Figure | None:
    """Return figure 2: one HierarchicalTopK SAE, and others each at its trained k."""
    lines = {
        ARCHITECTURE: [row for sae in ours(table)[:1] for row in topk_rows(table, sae)]
    }
    for architecture, saes in families(table).items():
        lines[architecture] = [row for sae in saes for row in at_trained_k(table, sae)]

    def curves(metric: str) -> list[Series]:
        return [
            curve(
                sorted(rows, key=lambda row: row.l0),
                metric,
                family_style(architecture),
                family_name(architecture),
                x="l0",
            )
            for architecture, rows in lines.items()
        ]

    others = {name: rows for name, rows in lines.items() if name != ARCHITECTURE}
    own = [
        family_name(architecture)
        for architecture, rows in others.items()
        if any(row.activation == "own" for row in rows)
    ]
    first = [
        f"{sae} with its k largest features"
        f"{', the marker at K' if at_trained_k(table, sae) else ''}."
        for sae in ours(table)[:1]
    ]
    thresholds = f", {listed(own)} with their own thresholds" if own else ""
    alone = f"SAEs for one k at that k, a marker each{thresholds}."
    explained, unexplained = curves("explained_variance"), curves("fvu_centered")
    l0 = "L0, active features per token"
    return nonempty_figure(
        "figure_2",
        "Figure 2. Pareto frontier",
        [
            *first,
            alone if any(others.values()) else "",
            EV_DEFINITION,
            CENTERED_FVU_DEFINITION,
        ],
        [
            log2_panel(_EV, explained, x_label=l0, y_limits=share_limits(explained)),
            log2_panel(
                "centered FVU",
                unexplained,
                x_label=l0,
                y_ticks=decimal_ticks(unexplained),
            ),
        ],
    )


def changing_k(table: MetricsTable) -> Figure | None:
    """Return figure 3: SAEs trained for one k at others, a panel for each family."""
    first = ours(table)[:1]
    lines = {
        family_name(architecture): _topk_curves(
            table, first + saes, "explained_variance"
        )
        for architecture, saes in families(table).items()
    }
    limits = share_limits(chain(*lines.values()))
    beside = [f", beside {sae}, which was trained for all k up to K" for sae in first]
    return nonempty_figure(
        "figure_3",
        "Figure 3. Changing k at inference",
        [
            f"SAEs that were trained for one k, at other k{''.join(beside)}.",
            markers(table, first + list(chain(*families(table).values()))),
            EV_DEFINITION,
        ],
        [
            log2_panel(
                _EV, series, title=title, y_limits=limits, x_mark=_largest_k(table)
            )
            for title, series in lines.items()
        ],
    )


def pointwise_loss(table: MetricsTable) -> Figure | None:
    """Return figure 4: HierarchicalTopK SAEs against each other, such as some J_x."""
    saes = ours(table)
    if len(saes) < 2:
        return None
    styles = sae_styles(table)
    first = {row.k: row for row in topk_rows(table, saes[0])}
    pairs = {
        sae: [(row, first[row.k]) for row in topk_rows(table, sae) if row.k in first]
        for sae in saes
    }
    curves = _topk_curves(table, saes, "explained_variance")
    differences = [
        difference(pairs[sae], "explained_variance", styles[sae], sae) for sae in saes
    ]
    losses = "J_x: the loss is taken at the budget 1 and every x-th."
    return nonempty_figure(
        "figure_4",
        "Figure 4. HierarchicalTopK SAEs against each other",
        [
            "SAEs that were all trained for every k up to K.",
            losses if any(map(_J_X.search, saes)) else "",
            markers(table, saes),
            EV_DEFINITION,
        ],
        [
            log2_panel(_EV, curves, y_limits=share_limits(curves)),
            log2_panel(
                f"EV minus that of {saes[0]}",
                differences,
                y_limits=difference_limits(
                    chain(*pairs.values()), "explained_variance"
                ),
            ),
        ],
    )


def almost_dead(table: MetricsTable) -> Figure | None:
    """Return figure 5: features active on less than one token in 10⁵.

    Of fewer than 10⁵ tokens, these are just the dead ones: there is no figure then.
    """
    tokens = min((row.tokens for row in table.rows), default=0)
    if tokens < 10**5:
        return None
    metric = "almost_dead_features"
    saes = compared(table)
    series = _topk_curves(table, saes, metric)
    others = families(table)
    architecture = "batchtopk" if "batchtopk" in others else "topk"
    own = [
        row for sae in others.get(architecture, []) for row in at_trained_k(table, sae)
    ]
    series.append(curve(own, metric, OPTIMAL, "optimal scaling"))
    optimal = (
        f"Optimal scaling: {family_name(architecture)} SAEs, each at the k that it was "
        "trained for."
    )
    return nonempty_figure(
        "figure_5",
        "Figure 5. Almost-dead features",
        [
            f"Features active on less than one token in 10⁵, over {tokens:,} tokens.",
            "Of fewer than 10⁶ tokens, the number means little."
            if tokens < 10**6
            else "",
            markers(table, saes),
            optimal if own else "",
        ],
        [log2_panel("almost-dead features", series)],
    )


def autointerp(table: MetricsTable, scores: Scores) -> Figure | None:
    """Return figure 6: AutoInterp scores of each SAE and k."""
    trained_k = {row.sae: row.trained_k for row in table.rows}
    placed = {
        (sae, trained_k[sae] if k is None else k): score
        for (sae, k), score in scores.items()
        if sae in trained_k
    }

    def line(points: list[tuple[str, int]], style: Style, label: str) -> Series:
        return Series(
            label=label,
            x=tuple(k for _, k in points),
            y=tuple(placed[point] for point in points),
            style=style,
            marked=tuple(range(len(points))),
            names=tuple(sae for sae, _ in points),
        )

    styles = sae_styles(table)
    series = [
        line(sorted(point for point in placed if point[0] == sae), styles[sae], sae)
        for sae in ours(table)
    ]
    for architecture, saes in families(table).items():
        own = [(sae, trained_k[sae]) for sae in saes]
        points = [point for point in own if point in placed]
        style, name = family_style(architecture), family_name(architecture)
        series.append(line(points, style, name))
    return nonempty_figure(
        "figure_6",
        "Figure 6. Interpretability",
        [
            "AutoInterp's detection score: how often a language model tells from the",
            "explanation of a feature where it is active.",
            "SAEs that were trained for one k are at that k, or have their own "
            "thresholds."
            if {sae for sae, _ in placed} - {*ours(table)}
            else "",
        ],
        [log2_panel("AutoInterp score", series)],
    )


def decoder_cosines(table: MetricsTable) -> Figure | None:
    """Return figure 8: the cosine of decoder rows of features next in rank."""
    styles = sae_styles(table)
    shown: list[BudgetMetrics] = []
    for sae in compared(table):
        # Few tokens have more features than their SAE was trained for: that is noise.
        rows = [row for row in topk_rows(table, sae) if row.k <= row.trained_k]
        shown += rows[-1:]
    series = [
        Series(
            label=row.sae,
            x=tuple(range(1, len(row.cosine_to_next) + 1)),
            y=tuple(row.cosine_to_next.tolist()),
            style=styles[row.sae],
        )
        for row in shown
    ]
    return nonempty_figure(
        "figure_8",
        "Figure 8. Neighbours in rank",
        [
            "The mean cosine of the decoder rows of a token's i-th largest feature",
            "and the next. Where features get finer with rank, it falls.",
            first_seed(shown),
        ],
        [
            log2_panel(
                "cosine of decoder rows i and i + 1",
                series,
                x_label="i, rank of the feature",
            )
        ],
    )


def distributions(table: MetricsTable) -> Figure | None:
    """Return figure 9: how often, and how strongly, features are active."""
    rows = [row for sae in compared(table) for row in at_trained_k(table, sae)]
    panels = [
        Panel(
            x_label=label,
            y_label="number of features",
            series=_histograms(rows, metric, sae_styles(table)),
        )
        for metric, label in {
            "frequency": "log₁₀ frequency",
            "mean_squared_activation": "log₁₀ mean squared activation",
        }.items()
    ]
    at_k = f", {METHOD} at K" if any(row.ours for row in rows) else ""
    return nonempty_figure(
        "figure_9",
        "Figure 9. Distribution of features",
        [
            "Features by the share of tokens they are active on, and by how strongly",
            f"they are there: every SAE at the k that it was trained for{at_k}.",
            "The legend counts those that are never active; they are on neither scale.",
            first_seed(rows),
        ],
        panels,
    )


def topk_and_jumprelu(table: MetricsTable) -> Figure | None:
    """Return figure 10: a token's k largest features, or all above one threshold."""
    pairs = {
        architecture: [pair for sae in saes for pair in threshold_pairs(table, sae)]
        for architecture, saes in {
            ARCHITECTURE: ours(table)[:1],
            **families(table),
        }.items()
    }
    rows = [row for row, _ in chain(*pairs.values())]
    if not rows:
        return None
    series = []
    for architecture, some in pairs.items():
        style, name = family_style(architecture), family_name(architecture)
        line = difference(some, "explained_variance", style, name)
        marked = () if architecture == ARCHITECTURE else tuple(range(len(some)))
        series.append(replace(line, marked=marked))
    ks = [row.k for row in rows]
    ends = (min(ks), max(ks))
    unchanged = Series(label="no change", x=ends, y=(0, 0), style=BASELINE)
    return nonempty_figure(
        "figure_10",
        "Figure 10. All features above a threshold",
        [
            (
                "Explained variance with all features above a threshold, k of them on "
                "average, minus that with the k largest features of each token."
            ),
            "The threshold is one for all features; of JumpReLU, one for each."
            if pairs.get("jumprelu")
            else "The threshold is one for all features.",
            "SAEs that were trained for one k are at the evaluated k nearest to it."
            if any(not row.ours for row in rows)
            else "",
            "Lines are means over seeds."
            if any(isinstance(row, SeedMetrics) for row in rows)
            else "",
            EV_DEFINITION,
        ],
        [
            log2_panel(
                "EV, threshold minus k largest",
                [unchanged, *series],
                x_label="k, active features per token on average",
                y_limits=difference_limits(
                    chain(*pairs.values()), "explained_variance"
                ),
            )
        ],
    )


def table_2(table: MetricsTable) -> list[BudgetMetrics]:
    """Return table 2: the rows at k = 1 and 2 of the SAEs of the largest trained k."""
    return [
        row
        for k in (1, 2)
        for sae in compared(table)
        for row in topk_rows(table, sae)
        if row.k == k
    ]


def _topk_curves(table: MetricsTable, saes: Iterable[str], metric: str) -> list[Series]:
    """Return lines of a metric of SAEs with the k largest features of each token.

    Where one with thresholds of its own was not evaluated so at the k that it was
    trained for, its marker is at its metric with those.
    """
    styles = sae_styles(table)
    series = []
    for sae in saes:
        rows = topk_rows(table, sae)
        ks = [row.k for row in rows]
        own = [row for row in at_trained_k(table, sae) if row.k not in ks]
        series += [curve(part, metric, styles[sae], sae) for part in (rows, own)]
    return series


def _by_architecture(table: MetricsTable, series: Iterable[Series]) -> list[Series]:
    """Give all but the first HierarchicalTopK SAE their architecture's name and look.

    That one comes last, and so lies on top.
    """
    architectures = {row.sae: row.architecture for row in table.rows}
    first = ours(table)[:1]
    others, on_top = [], []
    for one in series:
        kind = architectures[one.label]
        name = f"other {METHOD}" if kind == ARCHITECTURE else family_name(kind)
        if one.label in first:
            on_top.append(one)
        else:
            others.append(replace(one, label=name, style=muted(kind)))
    return [*others, *on_top]


def _largest_k(table: MetricsTable) -> tuple[float, str] | None:
    """Return a mark at K, where there are k beyond it."""
    for sae in ours(table)[:1]:
        largest = table.select(sae=sae)[0].trained_k
        if any(row.k > largest for row in table.rows):
            return largest, f"K = {largest}"
    return None


def _histograms(
    rows: Iterable[BudgetMetrics], metric: str, styles: Mapping[str, Style]
) -> tuple[Series, ...]:
    """Return the distributions of log₁₀ of a metric of living features."""
    living = {
        row.sae: np.log10(values[values > 0])
        for row in rows
        for values in [getattr(row, metric)]
    }
    edges = np.histogram_bin_edges(np.concatenate([*living.values(), []]), _BINS)
    series = []
    for row in rows:
        counts, _ = np.histogram(living[row.sae], edges)
        never = int((row.frequency == 0).sum())
        series.append(
            Series(
                label=f"{row.sae} ({never:,} never active)",
                x=(float(edges[0]), *edges.tolist()),
                y=(0, *counts.tolist(), 0),
                style=styles[row.sae],
                shape="steps",
            )
        )
    return tuple(series)
