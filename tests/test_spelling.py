"""Tests of what an unknown name is taken to mean."""

from __future__ import annotations

import pytest

from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.spelling import did_you_mean


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("--learning-rate", ["--lr", "--training_tokens"], "--lr"),
        ("learning_rate", ["lr", "training_tokens"], "lr"),
        ("--layer", ["--hook_name", "--latents"], "--hook_name"),
        ("--output_dir", ["--output"], "--output"),
        ("--loss_evry", ["--loss_every"], "--loss_every"),
        ("--dataset_name", ["--dataset", "--dataset_path"], "--dataset"),
    ],
)
def test_what_is_meant(name: str, known: list[str], expected: str) -> None:
    assert did_you_mean(name, known) == f"; did you mean {expected}?"


def test_only_what_there_is_is_suggested() -> None:
    assert did_you_mean("--learning_rate", ["--k", "--output"]) == ""
    assert did_you_mean("--expansion_factor", ["d_sae"]) == ""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--learning_rate=1e-3", "--lr"),
        ("--batch_size=64", "--train_batch_size_tokens"),
        ("--tokens=100", "--training_tokens"),
        ("--expansion-factor=8", "--d_sae"),
        ("--sae_type=topk", "--architecture"),
        ("--seq_len=64", "--context_size"),
        ("--use_wandb", "--logger"),
    ],
)
def test_what_is_typed_by_habit_finds_the_option(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--preset", "bundled", typed]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"; did you mean {meant}?")


def test_another_commands_options_are_not_suggested(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["quickstart", "--learning_rate", "1"])
    assert "did you mean" not in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["sweep", "sae", "--k=1", "--tokens", "1"])
    assert "did you mean --contexts?" in capsys.readouterr().err
