"""Tests of train --dry-run, on the bundled model."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features
from sae_lens import HookedSAETransformer

from sae_lens_hierarchical import LanguageModelSAETrainingRunner
from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.cli.dry_run import dry_run
from sae_lens_hierarchical.data import BUNDLED_HOOK_NAME
from sae_lens_hierarchical.training.activations_store import ResumableActivationsStore
from sae_lens_hierarchical.training.checkpoint import find_checkpoint
from sae_lens_hierarchical.training.dry_run import measure_speed, sizes
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


@pytest.mark.parametrize("cached", [False, True])
def test_the_buffer_of_a_run_in_bfloat16(
    cached: bool,
    make_config: MakeConfig,
    model: HookedSAETransformer,
    text: Dataset,
    tmp_path: Path,
) -> None:
    shape = (32, 128)
    rows = {BUNDLED_HOOK_NAME: np.ones((12, *shape), np.float32)}
    features = Features({BUNDLED_HOOK_NAME: Array2D(shape, "float32")})
    Dataset.from_dict(rows, features).save_to_disk(tmp_path / "cache")
    cfg = make_config(
        dtype="bfloat16",
        store_batch_size_prompts=4,  # three times fill it exactly
        use_cached_activations=cached,
        cached_activations_path=str(tmp_path / "cache"),
    )
    store = LanguageModelSAETrainingRunner(cfg, text, model).activations_store
    assert isinstance(store, ResumableActivationsStore)

    for _ in range(3):
        store.buffer.refill()

    assert store.buffer.stored is not None
    assert store.buffer.serving is not None
    held = store.buffer.stored.nbytes + store.buffer.serving.nbytes
    assert sizes(cfg).buffer == held


def test_the_speed_is_measured_at_the_runs_precision(
    make_config: MakeConfig, model: HookedSAETransformer, text: Dataset
) -> None:
    cfg = make_config(matmul_precision="medium")
    runner = LanguageModelSAETrainingRunner(cfg, text, model)
    of_model: set[str] = set()
    of_sae: set[str] = set()
    runner.sae.b_dec.register_post_accumulate_grad_hook(
        lambda _: of_sae.add(torch.get_float32_matmul_precision())
    )
    before = torch.get_float32_matmul_precision()

    def look(activations: torch.Tensor, hook: object) -> None:
        of_model.add(torch.get_float32_matmul_precision())

    with model.hooks(fwd_hooks=[(cfg.hook_name, look)]):
        measure_speed(runner)

    assert of_model == of_sae == {"medium"}
    assert torch.get_float32_matmul_precision() == before != "medium"


def test_the_speed_is_that_of_the_compiled_sae(
    make_config: MakeConfig,
    model: HookedSAETransformer,
    text: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = LanguageModelSAETrainingRunner(make_config(compile_sae=True), text, model)
    steps: list[int] = []

    def compiled(forward: Any, **_: Any) -> Any:
        def call(step_input: Any) -> Any:
            steps.append(step_input.n_training_steps)
            return forward(step_input)

        return call

    monkeypatch.setattr(torch, "compile", compiled)

    measure_speed(runner)

    assert steps == [*range(12)]  # ten, after two that torch compiles in


def test_it_is_for_a_new_run_on_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", "/nowhere", "--dry-run"]) == 2
    assert "got ['--dry-run']" in capsys.readouterr().err
    assert main([*DRY, "--save-config", "run.yaml"]) == 2
    assert "--dry-run and --save-config each stand for" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "--preset", "bundled", "--dry-run"]) == 2
    assert "start it without torchrun" in capsys.readouterr().err
