"""Metrics for people to read in the terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rich.table import Table

from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable

__all__ = ["COLUMNS", "table_rows", "terminal_table"]

COLUMNS = (
    "SAE",
    "k",
    "explained variance",
    "FVU",
    "CE loss recovered",
    "dead features",
)


def table_rows(rows: Iterable[BudgetMetrics]) -> list[tuple[str, ...]]:
    """Return cells for each SAE and k, grouped by k, in the order of ``COLUMNS``.

    Other ways of reading an SAE than by its k largest features are left out.
    """
    by_rank = [row for row in rows if row.activation == "topk"]
    return [
        (
            row.sae,
            str(row.k),
            f"{row.explained_variance:.3f}",
            f"{row.fvu:.3f}",
            f"{row.ce_loss_score:.3f}",
            str(row.dead_features),
        )
        for row in sorted(by_rank, key=lambda row: row.k)
    ]


def terminal_table(table: MetricsTable, ks: Collection[int]) -> Table:
    """Return a table for the terminal with a section for each k of ``ks``.

    SAEs trained at all k stand out, those away from the one k of theirs are dim.
    """
    # Short names: a terminal may have no more than 80 columns.
    counts = [row.tokens for row in table.rows]
    tokens = " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
    columns = ("SAE", "k", "EV", "FVU", "CE recovered", "dead")
    caption = (
        "EV: explained variance. FVU: 1 - EV. CE recovered: of the loss "
        "that zeros in place of the activations cost. dead: features never active, on "
        f"{tokens} tokens."
        f"{_left_out(table)}"
    )
    shown = Table(*columns, caption=caption)
    for column in shown.columns[1:]:
        column.justify = "right"
    ours = {row.sae for row in table.rows if row.ours}
    trained_k = {row.sae: str(row.trained_k) for row in table.rows}
    cells = [row for row in table_rows(table.rows) if int(row[1]) in ks]
    for row, following in zip(cells, [*cells[1:], None], strict=True):
        name, k, *_ = row
        style = "bold" if name in ours else None if trained_k[name] == k else "dim"
        ends_k = following is not None and following[1] != k
        shown.add_row(*row, style=style, end_section=ends_k)
    return shown


def _left_out(table: MetricsTable) -> str:
    most = max(row.outlier_tokens or 0 for row in table.rows)
    return f" {most:,} more were left out for their norms." if most else ""
