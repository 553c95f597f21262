"""Tests of train --dry-run, on the bundled model."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from sae_lens import HookedSAETransformer

from sae_lens_hierarchical import LanguageModelSAETrainingRunner
from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.cli.dry_run import dry_run
from sae_lens_hierarchical.training.checkpoint import find_checkpoint
from sae_lens_hierarchical.training.dry_run import sizes
from tests.helpers import MakeConfig

DRY = ["train", "--preset", "bundled", "--dry-run", "--training_tokens", "4096"]
SMALL = ["--d_sae", "64", "--k", "4", "--train_batch_size_tokens", "128"]


def run(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main([*DRY, *SMALL, *args])
    return status, capsys.readouterr().out


def test_it_shows_what_a_run_takes_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    status, shown = run(["--logger", "csv", "--checkpoint_path", "saved"], capsys)

    assert status == 0
    assert "\n  k: 4\n" in shown
    for line in (
        f"parameters of the SAE   {2 * 128 * 64 + 128 + 64:,}",
        "steps                   32 of 128 tokens",
        "free disk   ",
        "tokens/s over ten steps (model ",
        "ok      model, dataset, hook and d_in",
    ):
        assert line in shown
    assert not [*tmp_path.iterdir()]


def test_each_check_that_fails_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "cfg.json").write_text("{}")
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)

    status, shown = run(["--hook_name", "blocks.9.hook_resid_post"], capsys)

    assert status == 1
    assert "FAILED  no output is replaced: output/cfg.json is there already" in shown
    assert "FAILED  free disk: the run may write" in shown
    assert "'blocks.9.hook_resid_post' is no hook of the model; did you mean" in shown
    assert "tokens/s" not in shown


def test_a_gated_model_says_what_to_do(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    def gated() -> Any:
        raise OSError("You are trying to access a gated repo.")

    assert dry_run(make_config(), {}, gated) == 1
    assert "then `hf auth login`" in capsys.readouterr().out


def test_the_sizes_are_those_of_a_run(
    make_config: MakeConfig, model: HookedSAETransformer, text: Dataset
) -> None:
    cfg = make_config(n_checkpoints=1)
    expected = sizes(cfg)

    sae = LanguageModelSAETrainingRunner(cfg, text, model).run()

    parameters = [*sae.parameters()]
    assert expected.parameters == sum(p.numel() for p in parameters)
    assert expected.weights == sum(p.numel() * p.element_size() for p in parameters)
    files = find_checkpoint(str(cfg.checkpoint_path)).iterdir()
    written = sum(file.stat().st_size for file in files)
    assert 0.6 * expected.checkpoint < written < 1.5 * expected.checkpoint


def test_it_is_for_a_new_run_on_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", "/nowhere", "--dry-run"]) == 2
    assert "got ['--dry-run']" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "--preset", "bundled", "--dry-run"]) == 2
    assert "start it without torchrun" in capsys.readouterr().err
