"""The SAEs and rows of a table that figures are about."""

from __future__ import annotations

from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable

__all__ = [
    "at_home",
    "compared",
    "families",
    "ours",
    "reading_pairs",
    "topk_rows",
]


def ours(table: MetricsTable) -> list[str]:
    """Return the HierarchicalTopK SAEs, in the table's order."""
    return list(dict.fromkeys(row.sae for row in table.rows if row.ours))


def families(table: MetricsTable) -> dict[str, list[str]]:
    """Return the SAEs of each other architecture, those of smaller trained k first."""
    others = {row.sae: row for row in table.rows if not row.ours}.values()
    found: dict[str, list[str]] = {row.architecture: [] for row in others}
    for row in sorted(others, key=lambda row: row.trained_k):
        found[row.architecture].append(row.sae)
    return found


def compared(table: MetricsTable) -> list[str]:
    """Return the first HierarchicalTopK SAE, and each other family's of largest k."""
    return ours(table)[:1] + [saes[-1] for saes in families(table).values()]


def topk_rows(table: MetricsTable, sae: str) -> list[BudgetMetrics]:
    """Return a SAE's rows, read by its k largest features."""
    return table.select(sae=sae, activation="topk")


def at_home(table: MetricsTable, sae: str) -> list[BudgetMetrics]:
    """Return the row of a SAE as it was trained, if there is one.

    That is with the thresholds that it has, or at its k.
    """
    by_rank = [row for row in topk_rows(table, sae) if row.k == row.trained_k]
    return table.select(sae=sae, activation="own") or by_rank


def reading_pairs(
    table: MetricsTable, sae: str
) -> list[tuple[BudgetMetrics, BudgetMetrics]]:
    """Return a SAE's rows by threshold and by its k largest features, at the same k.

    A SAE that was trained for one k has one pair, the nearest to it; of a BatchTopK or
    JumpReLU SAE with its own thresholds, where it was measured with them at that k.
    """
    by_threshold = {row.k: row for row in table.select(sae=sae, activation="jumprelu")}
    for row in table.select(sae=sae, activation="own"):
        if row.architecture in ("batchtopk", "jumprelu"):
            by_threshold[row.k] = row
    by_rank = [row for row in topk_rows(table, sae) if row.k in by_threshold]
    if by_rank and not by_rank[0].ours:
        by_rank = [min(by_rank, key=lambda row: abs(row.k - row.trained_k))]
    return [(by_threshold[row.k], row) for row in by_rank]
