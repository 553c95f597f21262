"""Loads SAEBench's result files, which needs no SAEBench."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

__all__ = ["SAEBenchResult", "autointerp_scores", "read_results", "results_table"]

# The main metrics: SAEBench's group and name of each, and a name for the terminal.
_MAIN = {
    ("sparsity", "l0"): "L0",
    ("model_performance_preservation", "ce_loss_score"): "CE recovered",
    # By a formula of its own: not to be taken for a sweep's.
    ("reconstruction_quality", "explained_variance"): "explained_variance (SAEBench)",
    ("reconstruction_quality", "cossim"): "cosine",
    ("autointerp", "autointerp_score"): "AutoInterp",
    ("sae", "sae_top_1_test_accuracy"): "probing, 1 feature",
    ("mean", "mean_absorption_fraction_score"): "absorption",
    ("scr_metrics", "scr_metric_threshold_20"): "SCR (20 ablated)",
    ("tpp_metrics", "tpp_threshold_20_total_metric"): "TPP (20 ablated)",
}


@dataclass(frozen=True)
class SAEBenchResult:
    """SAEBench's metrics of one SAE at one k.

    Attributes:
        sae: The SAE's name.
        k: The number of features; None for an SAE without k.
        metrics: Those of all evals that were run, by SAEBench's group and name.
    """

    sae: str
    k: int | None
    metrics: dict[tuple[str, str], float] = field(default_factory=dict)


def read_results(folder: str | Path) -> list[SAEBenchResult]:
    """Load all result files in a folder, and in the evals' folders within it.

    Returns:
        A result for each SAE and k, by name and ascending k.
    """
    results: dict[tuple[str, int | None], SAEBenchResult] = {}
    for path in sorted(Path(folder).rglob("*_eval_results.json")):
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        sae, k = content["sae_lens_release_id"], content["sae_cfg_dict"].get("k")
        result = results.setdefault((sae, k), SAEBenchResult(sae, k))
        for group, metrics in content["eval_result_metrics"].items():
            # SAEBench has None for what it did not measure.
            known = {n: v for n, v in metrics.items() if v is not None}
            result.metrics.update({(group, name): v for name, v in known.items()})
    return sorted(results.values(), key=lambda result: (result.sae, result.k or 0))


def autointerp_scores(folder: str | Path) -> list[tuple[str, int | None, float]]:
    """Return (SAE's name, k, AutoInterp score) of each result, by name and k."""
    found = read_results(folder)
    name = ("autointerp", "autointerp_score")
    return [(r.sae, r.k, r.metrics[name]) for r in found if name in r.metrics]


def results_table(results: list[SAEBenchResult]) -> Table:
    """Return a table for the terminal of the main metrics that results have."""
    names = [name for name in _MAIN if any(name in r.metrics for r in results)]
    table = Table("SAE", "k")
    for name in names:
        table.add_column(_MAIN[name].replace(" (", "\n("), overflow="fold")
    for column in table.columns[1:]:
        column.justify = "right"
    for result in results:
        values = [result.metrics.get(name) for name in names]
        cells = ["" if value is None else f"{value:.3f}" for value in values]
        table.add_row(result.sae, "" if result.k is None else str(result.k), *cells)
    return table
