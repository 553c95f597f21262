"""Tests of what needs no SAEBench: its results, and the word that it is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.eval.table import MetricsTable, write_table
from sae_lens_hierarchical.saebench.results import (
    NOTE,
    autointerp_scores,
    read_results,
    results_table,
)
from tests.helpers import make_metrics


def write(
    path: Path, sae: str, k: int | None, metrics: dict[str, Any], **others: Any
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "datetime_epoch_millis": 0,
        "sae_lens_release_id": sae,
        "sae_cfg_dict": {} if k is None else {"k": k},
        "eval_result_metrics": metrics,
        **others,
    }
    path.write_text(json.dumps(result))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for k in (16, 2):
        core = {
            "sparsity": {"l0": k - 0.5, "l1": 9.0},
            "reconstruction_quality": {"explained_variance": 0.625},
        }
        write(tmp_path / "core" / f"ours_k_{k}_eval_results.json", "ours", k, core)
    scored = {"autointerp": {"autointerp_score": 0.75, "autointerp_std_dev": 0.1}}
    folder = tmp_path / "autointerp"
    write(folder / "ours_k_2_eval_results.json", "ours", 2, scored)
    write(folder / "relu_custom_sae_eval_results.json", "relu", None, scored)
    others = {
        "absorption": {"mean": {"mean_absorption_fraction_score": 0.111}},
        "scr": {"scr_metrics": {"scr_metric_threshold_20": 0.222}},
        "tpp": {
            "tpp_metrics": {
                "tpp_threshold_20_total_metric": 0.333,
                "tpp_threshold_500_total_metric": None,  # not asked for
            }
        },
    }
    for name, metrics in others.items():
        path = tmp_path / name / "ours_k_2_eval_results.json"
        write(path, "ours", 2, metrics)
    (folder / "ours_k_16_eval_results.partial").write_text('{"half": ')
    return tmp_path


def test_results_come_together_by_sae_and_k(results: Path) -> None:
    found = read_results(results)

    assert [(r.sae, r.k, len(r.metrics)) for r in found] == [
        ("ours", 2, 8),
        ("ours", 16, 3),
        ("relu", None, 2),
    ]
    assert autointerp_scores(results) == [("ours", 2, 0.75), ("relu", None, 0.75)]


def test_other_folders_are_not_read(results: Path) -> None:
    scored = {"autointerp": {"autointerp_score": 0.25}}
    for folder in ("autointerp_before", "autointerp/before", "before/autointerp"):
        write(results / folder / "ours_k_2_eval_results.json", "ours", 2, scored)

    assert autointerp_scores(results) == [("ours", 2, 0.75), ("relu", None, 0.75)]
    before = autointerp_scores(results / "autointerp_before")
    assert before == [("ours", 2, 0.25)]


def test_results_of_one_name_are_of_the_newest_sae(results: Path) -> None:
    # By eval and k: when it was made, and of which SAE.
    made = {
        ("core", 2): (3, "new"),
        ("core", 4): (2, "new"),
        ("core", 8): (1, "old"),
        ("autointerp", 2): (1, "old"),
    }
    for (name, k), (time, checksum) in made.items():
        path = results / name / f"again_k_{k}_eval_results.json"
        others = {"datetime_epoch_millis": time, NOTE: {"SAE": checksum}}
        write(path, "again", k, {name: {"metric": 0.5}}, **others)

    with pytest.warns(UserWarning, match="newer results of again are of") as warned:
        found = read_results(results)

    (message,) = (str(warning.message) for warning in warned)
    assert message.count("again_k_") == 2
    for file in ("core/again_k_8", "autointerp/again_k_2"):
        assert str(results / f"{file}_eval_results.json") in message
    again = [(r.k, r.metrics) for r in found if r.sae == "again"]
    assert again == [(k, {("core", "metric"): 0.5}) for k in (2, 4)]
    # Others stay as they are.
    assert len([r for r in found if r.sae != "again"]) == 3


def test_the_table_shows_what_was_measured(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Console(width=100).print(results_table(read_results(results)))

    table = capsys.readouterr().out
    words = ("ours", "16", "15.500", "AutoInterp", "0.750", "relu")
    words += ("absorption", "0.111", "SCR", "0.222", "TPP", "0.333")
    # Not a sweep's.
    for word in (*words, "explained_variance", "(SAEBench)", "0.625"):
        assert word in table
    assert "probing" not in table


def test_without_saebench_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        if name.startswith(("sae_bench", "sae_lens_hierarchical.saebench.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sae_bench", None)

    assert main(["saebench", "nowhere", "--k", "2"]) == 2

    error = capsys.readouterr().err
    assert "SAEBench cannot be imported" in error
    assert "docs/saebench.md" in error


def test_scores_become_figure_6(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [make_metrics(k, 0.5, sae="ours") for k in (2, 16)]
    provenance = {"checkpoints": {"ours": {"path": "/some/where/ours"}}}
    write_table(results / "metrics.parquet", MetricsTable(rows, provenance))
    output = results / "figures"
    command = ["figures", str(results / "metrics.parquet"), "--output", str(output)]

    assert main(command) == 0
    assert not (output / "figure_6.png").exists()
    push = f"push /some/where/ours USER/NAME --metrics {results / 'metrics.parquet'}"
    assert f"Next: sae-lens-hierarchical {push}\n" in capsys.readouterr().out
    command.append("--force")
    assert main([*command, "--autointerp", str(results)]) == 0

    assert (output / "figure_6.png").read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--autointerp", str(results / "core")]) == 2
    assert "core has no AutoInterp scores of ours" in capsys.readouterr().err
