"""The smallest k at which an SAE explains as much variance as is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable

__all__ = ["SmallestK", "smallest_ks"]

_STANDARD_ERRORS = 2  # on either side: an interval of some 95 %


@dataclass(frozen=True)
class SmallestK:
    """Between which of the evaluated k an SAE first reaches a target.

    Each pair has the largest k that does not reach it, 0 if all do, and the smallest
    one that does, None if none does.

    Attributes:
        sae: The SAE's name.
        between: By its explained variance.
        interval: The first with two standard errors more of it, the second with two
            less: the k that may be meant, some 95 %; None where these are not known.
    """

    sae: str
    between: tuple[int, int | None]
    interval: tuple[int, int | None] | None

    def __str__(self) -> str:
        before, k = self.between
        found = f"none up to k = {before}" if k is None else _in_words(before, k)
        if self.interval is None:
            return found
        return f"{found} (95 % interval: {_in_words(*self.interval)})"


def smallest_ks(table: MetricsTable, target_ev: float) -> list[SmallestK]:
    """Return where each SAE of a table first reaches an explained variance.

    Its k largest features are what counts (``activation`` ``topk``).

    Args:
        table: Of ``sweep``; tables of a version without standard errors give no
            intervals.
        target_ev: The explained variance, below 1.
    """
    found: list[SmallestK] = []
    for name in table.saes():
        rows = table.select(sae=name, activation="topk")
        between, interval = _first(rows, target_ev, 0), None
        if all(row.explained_variance_se is not None for row in rows):
            least, _ = _first(rows, target_ev, _STANDARD_ERRORS)
            _, most = _first(rows, target_ev, -_STANDARD_ERRORS)
            interval = least, most
        found.append(SmallestK(name, between, interval))
    return found


def _first(
    rows: Sequence[BudgetMetrics], target: float, standard_errors: float
) -> tuple[int, int | None]:
    before = 0
    for row in rows:
        error = standard_errors * (row.explained_variance_se or 0)
        if row.explained_variance + error >= target:
            return before, row.k
        before = row.k
    return before, None


def _in_words(before: int, k: int | None) -> str:
    if k is None:
        return f"above k = {before}" if before else "any k"
    if k == before + 1:
        return f"k = {k}"
    return f"between k = {before} and k = {k}" if before else f"k = {k} or below"
