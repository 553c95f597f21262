"""Selects the SAEs and rows of a table that figures show."""

from __future__ import annotations

from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable

__all__ = [
    "at_trained_k",
    "compared",
    "families",
    "ours",
    "threshold_pairs",
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
    """Return an SAE's rows with the k largest features of each token."""
    return table.select(sae=sae, activation="topk")


def at_trained_k(table: MetricsTable, sae: str) -> list[BudgetMetrics]:
    """Return the row of an SAE as it was trained, if there is one.

    That is with thresholds of its own, or else at its k.
    """
    topk = [row for row in topk_rows(table, sae) if row.k == row.trained_k]
    return table.select(sae=sae, activation="own") or topk


def threshold_pairs(
    table: MetricsTable, sae: str
) -> list[tuple[BudgetMetrics, BudgetMetrics]]:
    """Return an SAE's rows with one threshold and with top-k, at the same k.

    An SAE that was trained for one k has one pair, the nearest to it. A BatchTopK or
    JumpReLU SAE has one with its own thresholds, where it was evaluated at that k.
    """
    jumprelu = {row.k: row for row in table.select(sae=sae, activation="jumprelu")}
    for row in table.select(sae=sae, activation="own"):
        if row.architecture in ("batchtopk", "jumprelu"):
            jumprelu[row.k] = row
    topk = [row for row in topk_rows(table, sae) if row.k in jumprelu]
    if topk and not topk[0].ours:
        topk = [min(topk, key=lambda row: abs(row.k - row.trained_k))]
    return [(jumprelu[row.k], row) for row in topk]
