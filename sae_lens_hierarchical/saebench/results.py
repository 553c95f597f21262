"""Loads SAEBench's result files, which needs no SAEBench."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

__all__ = [
    "NOTE",
    "RESULT_FOLDERS",
    "SAEBenchResult",
    "autointerp_scores",
    "read_results",
    "results_table",
]

# The key of the note in SAEBench's result files: what a result was made from.
NOTE = "sae_lens_hierarchical"
# The folders of each eval's results. Any other one, such as a backup, is not read.
RESULT_FOLDERS = {
    "core": ("core",),
    "autointerp": ("autointerp",),
    "sparse_probing": ("sparse_probing",),
    "absorption": ("absorption",),
    "scr_and_tpp": ("scr", "tpp"),
}

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

    Where files of one name are of different SAEs, those of the SAE of the newest file
    are read. A warning says which are left out.

    Returns:
        A result for each SAE and k, by name and ascending k.
    """
    folder = Path(folder)
    places = [folder / name for names in RESULT_FOLDERS.values() for name in names]
    contents: dict[Path, dict[str, Any]] = {
        path: json.loads(path.read_text(encoding="utf-8"))
        for place in (folder, *places)
        for path in sorted(place.glob("*_eval_results.json"))
    }
    results: dict[tuple[str, int | None], SAEBenchResult] = {}
    for content in _of_newest_saes(contents):
        sae, k = content["sae_lens_release_id"], content["sae_cfg_dict"].get("k")
        result = results.setdefault((sae, k), SAEBenchResult(sae, k))
        for group, metrics in content["eval_result_metrics"].items():
            # SAEBench has None for what it did not measure.
            known = {n: v for n, v in metrics.items() if v is not None}
            result.metrics.update({(group, name): v for name, v in known.items()})
    return sorted(results.values(), key=lambda result: (result.sae, result.k or 0))


def _of_newest_saes(contents: dict[Path, dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out, with a warning, results of other SAEs than each name's newest."""
    newest: dict[str, str] = {}
    for content in sorted(contents.values(), key=lambda c: c["datetime_epoch_millis"]):
        if checksum := _checksum(content):
            newest[content["sae_lens_release_id"]] = checksum
    kept: list[dict[str, Any]] = []
    left_out: dict[str, list[str]] = {}
    for path, content in contents.items():
        name, checksum = content["sae_lens_release_id"], _checksum(content)
        # SAEBench's own files note none.
        if checksum is None or checksum == newest[name]:
            kept.append(content)
        else:
            left_out.setdefault(name, []).append(str(path))
    for name, paths in left_out.items():
        warnings.warn(
            f"left out, for newer results of {name} are of another SAE: "
            f"{', '.join(paths)}",
            stacklevel=3,
        )
    return kept


def _checksum(content: dict[str, Any]) -> str | None:
    """Return the checksum of the SAE that a result notes, if it does."""
    return content.get(NOTE, {}).get("SAE")


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
