"""Metrics for people to read, in the terminal and on a model card."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from rich.markup import escape
from rich.table import Table

from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable

__all__ = [
    "BY_RANK",
    "BY_THRESHOLD",
    "COLUMNS",
    "OWN",
    "terminal_tables",
    "threshold_rows",
    "topk_rows",
]

COLUMNS = (
    "SAE",
    "k",
    "L0",
    "explained variance",
    "FVU",
    "CE loss recovered",
    "dead features",
)
OWN = "own"  # in the column k
BY_RANK = "The k largest features of each token"
BY_THRESHOLD = "All features above a threshold"
# Short names: a terminal may have no more than 80 columns.
_SHORT_COLUMNS = ("SAE", "k", "L0", "EV", "FVU", "CE recovered", "dead")


def topk_rows(rows: Iterable[BudgetMetrics]) -> list[tuple[str, ...]]:
    """Return cells for each SAE with the k largest features of a token, by k.

    They are in the order of ``COLUMNS``; "-" is a metric that was not measured.
    """
    by_rank = [row for row in rows if row.activation == "topk"]
    return [_cells(row) for row in sorted(by_rank, key=lambda row: row.k)]


def threshold_rows(rows: Iterable[BudgetMetrics]) -> list[tuple[str, ...]]:
    """Return cells for each SAE with the features above a threshold.

    First those with thresholds of their own, whose k is ``OWN``; then by the k of the
    one threshold for all features. They are in the order of ``COLUMNS``.
    """
    others = [row for row in rows if row.activation != "topk"]
    others.sort(key=lambda row: 0 if row.activation == "own" else row.k)
    return [_cells(row) for row in others]


def _cells(row: BudgetMetrics) -> tuple[str, ...]:
    ce_loss_score = row.ce_loss_score
    return (
        row.sae,
        OWN if row.activation == "own" else str(row.k),
        f"{row.l0:.1f}",
        f"{row.explained_variance:.3f}",
        f"{row.fvu:.3f}",
        "-" if math.isnan(ce_loss_score) else f"{ce_loss_score:.3f}",
        str(row.dead_features),
    )


def terminal_tables(table: MetricsTable, ks: Collection[int]) -> list[Table]:
    """Return tables for the terminal with a section for each k of ``ks``.

    The first has the k largest features of each token. A second one, where the table
    has such rows, has the features above a threshold. SAEs trained at all k stand out,
    those away from the one k of theirs are dim.
    """
    counts = [row.tokens for row in table.rows]
    tokens = " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
    caption = (
        "L0: features active on a token, on average. "
        "EV: explained variance. FVU: 1 - EV. CE recovered: of the loss "
        "that zeros in place of the activations cost. dead: features never active, on "
        f"{tokens} tokens."
        f"{_left_out(table)}"
    )
    by_rank = _at(ks, topk_rows(table.rows))
    tables = [_terminal_table(table, by_rank, BY_RANK, caption)]
    if by_threshold := _at(ks, threshold_rows(table.rows)):
        caption = (
            "Some tokens have more features than others. "
            "own: the SAE as it is, with thresholds of its own. A number k: one "
            "threshold for all features, k of which are above it on average."
        )
        tables.append(_terminal_table(table, by_threshold, BY_THRESHOLD, caption))
    return tables


def _at(ks: Collection[int], rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [row for row in rows if row[1] == OWN or int(row[1]) in ks]


def _terminal_table(
    table: MetricsTable, rows: Sequence[tuple[str, ...]], title: str, caption: str
) -> Table:
    shown = Table(*_SHORT_COLUMNS, title=title, caption=caption)
    for column in shown.columns[1:]:
        column.justify = "right"
    ours = {row.sae for row in table.rows if row.ours}
    trained_k = {row.sae: str(row.trained_k) for row in table.rows}
    for n, (name, k, *_) in enumerate(rows, start=1):
        at_trained_k = k in (OWN, trained_k[name])
        style = "bold" if name in ours else None if at_trained_k else "dim"
        ends_k = n < len(rows) and rows[n][1] != k
        # A name in brackets is no markup.
        cells = map(escape, rows[n - 1])
        shown.add_row(*cells, style=style, end_section=ends_k)
    return shown


def _left_out(table: MetricsTable) -> str:
    most = max(row.outlier_tokens or 0 for row in table.rows)
    return f" {most:,} more were left out for their norms." if most else ""
