"""Metrics as a CSV file: one row for each SAE and k."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from sae_lens_hierarchical.eval.sweep import BudgetMetrics

__all__ = ["Curve", "read_curves", "write_curves"]

_METRICS = [field.name for field in fields(BudgetMetrics)]
_INTEGERS = ("k", "tokens", "dead_features", "almost_dead_features")


@dataclass(frozen=True)
class Curve:
    """One SAE's metrics at several k.

    Attributes:
        trained_k: The k that a fixed-k SAE was trained at; None for one trained at all.
        metrics: By ascending k.
    """

    trained_k: int | None
    metrics: list[BudgetMetrics]


def write_curves(path: Path, curves: Mapping[str, Curve]) -> None:
    """Write the metrics of SAEs, given by name."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sae", "trained_k", *_METRICS])
        for name, curve in curves.items():
            trained_k = "" if curve.trained_k is None else curve.trained_k
            for metrics in curve.metrics:
                values = [getattr(metrics, metric) for metric in _METRICS]
                writer.writerow([name, trained_k, *values])


def read_curves(path: Path) -> dict[str, Curve]:
    """Read what ``write_curves`` wrote.

    Raises:
        ValueError: If a column is missing, naming it.
    """
    curves: dict[str, Curve] = {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        columns = ["sae", "trained_k", *_METRICS]
        if missing := set(columns) - set(rows.fieldnames or ()):
            raise ValueError(f"{path} lacks the columns {sorted(missing)}")
        for row in rows:
            trained_k = int(row["trained_k"]) if row["trained_k"] else None
            curve = curves.setdefault(row["sae"], Curve(trained_k, []))
            values = {
                name: int(row[name]) if name in _INTEGERS else float(row[name])
                for name in _METRICS
            }
            curve.metrics.append(BudgetMetrics(**values))  # type: ignore[arg-type]
    return curves
