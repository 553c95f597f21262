"""Tests of a run's config in a file, and of the command that reads and writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sae_lens import LoggingConfig

from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.training.config_file import (
    changed_fields,
    read_config,
    to_yaml,
)
from tests.helpers import MakeConfig

CHANGES: dict[str, Any] = {
    "budgets": [1, 4, 8],
    "budget_weights": [0.5, 0.25, 0.25],
    "lr": 8e-4,
    "dtype": "float32",
    "decoder_init_norm": None,
    "exclude_special_tokens": [0],
    "seqpos_slice": (1, None),
    "model_kwargs": {"attention_mask": None},
    "sequence_separator_token": None,
    "log_to": ["csv"],
    "max_norm_ratio": 3.5,
}


def without_id(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a config's fields without the id that SAELens adds to a folder."""
    folder = fields["checkpoint_path"]
    return json.loads(
        json.dumps(fields | {"checkpoint_path": str(Path(folder).parent)})
    )


@pytest.mark.parametrize("kind", ["fields", "runner_cfg.json"])
def test_a_file_makes_the_run_that_it_came_from(
    kind: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    log = LoggingConfig(log_to_wandb=False, wandb_project="mine")
    cfg = make_config(logger=log, **CHANGES)
    source, again = tmp_path / kind, tmp_path / "again.yaml"
    if kind == "fields":
        source.write_text(to_yaml(changed_fields(cfg)))
        assert "wandb_log_frequency" not in source.read_text()  # it is the default
    else:
        source.write_text(json.dumps(cfg.to_dict()))

    assert main(["train", "--config", str(source), "--save-config", str(again)]) == 0

    assert read_config(again) == json.loads(json.dumps(changed_fields(cfg)))


def test_command_line_options_win(make_config: MakeConfig, tmp_path: Path) -> None:
    source, again = tmp_path / "run.yaml", tmp_path / "again.yaml"
    source.write_text(to_yaml(changed_fields(make_config(**CHANGES))))
    options = ["--lr", "0.5", "--budgets", "1", "8", "--budget_weights", "1", "2"]
    options += ["--max-norm-ratio", "9", "--logger", "none", "--training_tokens", "99"]

    command = ["train", "--config", str(source), "--save-config", str(again)]
    assert main([*command, *options]) == 0

    fields = read_config(again)
    assert (fields["lr"], fields["budgets"]) == (0.5, [1, 8])
    assert (fields["max_norm_ratio"], fields["training_tokens"]) == (9, 99)
    assert "log_to" not in fields or fields["log_to"] == []
    assert fields["dataset_path"] == "bundled"
    assert main(command) == 2  # it is there already


def saved(tmp_path: Path, *options: str) -> dict[str, Any]:
    """Return the fields that ``train`` with these options would train with."""
    file = tmp_path / "saved.yaml"
    assert main(["train", *options, "--save-config", str(file), "--force"]) == 0
    return read_config(file)


def test_a_presets_schedule_fits_the_run(tmp_path: Path) -> None:
    shorter = ["--training_tokens=20480", "--train_batch_size_tokens=1024"]

    bundled = saved(tmp_path, "--preset=bundled", *shorter)
    assert (bundled["lr_warm_up_steps"], bundled["lr_decay_steps"]) == (4, 5)
    gemma = saved(tmp_path, "--preset=gemma-2-2b-layer-12", *shorter)
    assert (gemma["lr_warm_up_steps"], gemma["lr_decay_steps"]) == (1, 4)
    asked = saved(tmp_path, "--preset=bundled", *shorter, "--lr_decay=7")
    assert (asked["lr_warm_up_steps"], asked["lr_decay_steps"]) == (4, 7)


@pytest.mark.parametrize("option", ["--architecture", "--sae"])
def test_presets_train_other_architectures(option: str, tmp_path: Path) -> None:
    fields = saved(tmp_path, "--preset=bundled", option, "topk")

    assert (fields["architecture"], fields["k"], fields["d_in"]) == ("topk", 16, 128)


@pytest.mark.parametrize(
    ("in_file", "options", "loss"),
    [
        (
            {"budgets": [1, 4, 8], "budget_weights": [0.5, 0.25, 0.25]},
            ["--loss_every", "1"],
            {"loss_every": 1},
        ),
        ({"loss_every": 4}, ["--budgets", "1", "8"], {"budgets": [1, 8]}),
        (
            {"budgets": [1, 8], "budget_weights": [3.0, 1.0]},
            ["--budgets", "2", "8"],
            {"budgets": [2, 8], "budget_weights": [3.0, 1.0]},
        ),
    ],
)
def test_another_loss_replaces_the_files(
    in_file: dict[str, Any],
    options: list[str],
    loss: dict[str, Any],
    make_config: MakeConfig,
    tmp_path: Path,
) -> None:
    source, again = tmp_path / "run.yaml", tmp_path / "again.yaml"
    source.write_text(to_yaml(changed_fields(make_config(**in_file))))

    command = ["train", "--config", str(source), "--save-config", str(again)]
    assert main([*command, *options]) == 0

    names = ("loss_every", "budgets", "budget_weights")
    assert {n: v for n, v in read_config(again).items() if n in names} == loss


def test_a_run_trains_from_a_file(make_config: MakeConfig, tmp_path: Path) -> None:
    source = tmp_path / "run.yaml"
    bundled = make_config(dataset_path="bundled text", training_tokens=128)
    source.write_text(to_yaml(changed_fields(bundled)))

    assert main(["train", "--config", str(source)]) == 0

    ran = json.loads((tmp_path / "output" / "runner_cfg.json").read_text())
    assert without_id(ran)["checkpoint_path"] == str(tmp_path / "checkpoints")
    assert ran["sae"]["k"] == 8
    assert ran["dataset_trust_remote_code"] is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainig_tokens: 5", "unknown field 'trainig_tokens'; did you mean training_"),
        ("loss_evry: 5", "unknown field 'loss_evry'; did you mean loss_every"),
        ("architecture: topkk", "architecture must be one of"),
        ("[1, 2]", "must hold a run's fields by name"),
        ("run_name: 2026-01-01", "run_name cannot be datetime.date(2026, 1, 1)"),
        ("sae.dtype: null", "sae.dtype cannot be None"),
        ("k: [1", "cannot be read"),
        ("k: abc", "argument -k/--k: invalid int value: 'abc'"),
        ("!!python/object/apply:os.system ['false']", "cannot be read"),
        (
            "model_from_pretrained_kwargs: {trust_remote_code: true}",
            "asks to load its language model with",
        ),
    ],
)
def test_bad_files_are_one_clear_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(text)

    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
