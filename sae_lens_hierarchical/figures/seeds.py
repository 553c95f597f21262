"""Takes SAEs that differ in their seed alone together, as one with a band."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable

__all__ = ["SeedMetrics", "merge_seeds"]

_NAME = re.compile(r"(.+)[-_]seed[-_]?\d+")


@dataclass(frozen=True, kw_only=True)
class SeedMetrics(BudgetMetrics):
    """The means of metrics over seeds; what is there for each feature is the first's.

    Attributes:
        seeds: The row of each seed.
    """

    seeds: tuple[BudgetMetrics, ...]

    def limits(self, metric: str) -> tuple[float, float]:
        """Return the smallest and the largest value over seeds."""
        values = [getattr(row, metric) for row in self.seeds]
        return min(values), max(values)


def merge_seeds(table: MetricsTable) -> MetricsTable:
    """Make SAEs called ``NAME-seed0``, ``NAME-seed1``, ... one SAE called ``NAME``.

    Rows of the same activation and k are averaged; those that not all seeds have are
    left out. Rows of seeds with thresholds of their own belong together, though their
    k, which is their L0, differ. Other SAEs, and those of one seed, stay as they are.
    """
    groups: dict[str, list[str]] = {}
    for sae in table.saes():
        found = _NAME.fullmatch(sae)
        groups.setdefault(found[1] if found else sae, []).append(sae)
    rows: list[BudgetMetrics] = []
    for name, saes in groups.items():
        if len(saes) == 1 or name in table.saes():
            rows += [row for sae in saes for row in table.select(sae=sae)]
        else:
            rows += _merge(name, [table.select(sae=sae) for sae in saes])
    return replace(table, rows=rows)


def _merge(
    name: str, of_seeds: Sequence[Sequence[BudgetMetrics]]
) -> list[BudgetMetrics]:
    by_mode = [{_mode(row): row for row in rows} for rows in of_seeds]
    return [
        _mean(name, [rows[mode] for rows in by_mode])
        for mode in by_mode[0]
        if all(mode in rows for rows in by_mode)
    ]


def _mode(row: BudgetMetrics) -> tuple[str, int | None]:
    # Without a k of its own an SAE has its L0 for one, which is another for each seed.
    return row.activation, None if row.activation == "own" else row.k


def _mean(name: str, seeds: Sequence[BudgetMetrics]) -> SeedMetrics:
    values: dict[str, Any] = {}
    for column in fields(BudgetMetrics):
        of_seeds = [getattr(row, column.name) for row in seeds]
        means = isinstance(of_seeds[0], float) and None not in of_seeds
        values[column.name] = float(np.mean(of_seeds)) if means else of_seeds[0]
    for counted in ("k", "trained_k", "dead_features", "almost_dead_features"):
        values[counted] = round(np.mean([getattr(row, counted) for row in seeds]))
    values["sae"] = name
    return SeedMetrics(**values, seeds=tuple(seeds))
