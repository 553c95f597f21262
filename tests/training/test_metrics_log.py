"""Tests of a run's metrics on disk."""

from __future__ import annotations

import csv
import importlib.util
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sae_lens import LoggingConfig, TopKTrainingSAEConfig

from sae_lens_hierarchical import LanguageModelSAETrainingRunner
from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.training.metrics_log import logs_in, open_metrics_log
from sae_lens_hierarchical.training.multi_sae import MultiSAERunner, multi_sae_config
from tests.helpers import MakeConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sae_lens")


def config(make_config: MakeConfig, several: bool, **changes: Any) -> Any:
    log = LoggingConfig(log_to_wandb=False, wandb_log_frequency=2)
    cfg = make_config(logger=log, log_to=["csv"], n_checkpoints=2, **changes)
    if not several:
        return cfg
    saes = {"a": cfg.sae, "b": TopKTrainingSAEConfig(d_in=128, d_sae=32, k=3)}
    together = multi_sae_config(cfg, saes, Path(str(cfg.output_path)))
    together.checkpoint_path = cfg.checkpoint_path
    return together


def train(cfg: Any, data: dict[str, Any]) -> None:
    one = hasattr(cfg, "sae")
    (LanguageModelSAETrainingRunner if one else MultiSAERunner)(cfg, **data).run()


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


@pytest.mark.parametrize("several", [False, True])
def test_a_resumed_run_writes_the_table_of_an_uninterrupted_one(
    several: bool, make_config: MakeConfig, data: dict[str, Any], tmp_path: Path
) -> None:
    cfg = config(make_config, several)
    train(cfg, data)

    table = tmp_path / "output" / "training_metrics.csv"
    whole = table.read_text()
    assert [row["step"] for row in rows(table)] == ["1", "3", "5", "7", "9"]
    prefix = "a/" if several else ""
    for k in (1, 2, 4, 8):
        name = f"{prefix}metrics/explained_variance_k{k}"
        assert all(float(row[name]) < 1 for row in rows(table))
    assert ("b/metrics/l0" in whole) == several
    # As a kill leaves it: with rows that come again, the last of them cut off.
    table.write_text(whole[: -len(whole.splitlines()[-1]) // 2])
    again = config(make_config, several)
    again.resume_from_checkpoint = str(
        min(Path(cfg.checkpoint_path).iterdir(), key=lambda path: int(path.name))
    )
    train(again, data)
    assert table.read_text() == whole


def log_of(folder: Path, step: int, *log_to: str) -> Any:
    cfg = SimpleNamespace(output_path=str(folder), log_to=log_to)
    return open_metrics_log(cfg, step)


def test_a_metric_that_comes_later_gets_a_column(tmp_path: Path) -> None:
    with log_of(tmp_path, 0, "csv") as log:
        log.write(0, {"a": 1.5})
        log.write(1, {"a": 2.5, "b": 3.0})
        log.write(2, {"b": 4.0})
        table = (tmp_path / "training_metrics.csv").read_text()

    assert table.split() == ["step,a,b", "0,1.5,", "1,2.5,3.0", "2,,4.0"]


def test_a_new_run_begins_a_new_table(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with log_of(tmp_path, 0, "csv") as log:
            log.write(0, {"a": value})

    assert rows(tmp_path / "training_metrics.csv") == [{"step": "0", "a": "2.0"}]


def test_a_row_whose_step_was_cut_off_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "training_metrics.csv").write_text("step,a\n0,1.0\n1")
    with log_of(tmp_path, 9, "csv") as log:
        log.write(9, {"a": 2.0})

    table = (tmp_path / "training_metrics.csv").read_text()
    assert table.split() == ["step,a", "0,1.0", "9,2.0"]


def test_tensorboard(tmp_path: Path) -> None:
    events: Any = import_module(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    with log_of(tmp_path, 0, "tensorboard") as log:
        log.write(0, {"metrics/l0": 1.5})
        log.write(1, {"metrics/l0": 7.0})
    with log_of(tmp_path, 1, "tensorboard") as log:
        log.write(1, {"metrics/l0": 2.5})

    read = events.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    scalars = read.Scalars("metrics/l0")
    assert [(event.step, event.value) for event in scalars] == [(0, 1.5), (1, 2.5)]


def test_tensorboard_does_not_draw_two_runs_as_one(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with log_of(tmp_path, 0, "tensorboard") as log:
            log.write(0, {"a": value})
    mine = tmp_path / "tensorboard" / "notes.txt"
    mine.write_text("not a log")

    (events,) = logs_in(tmp_path)
    assert events.parent == mine.parent
    with log_of(tmp_path, 0, "csv"):
        assert logs_in(tmp_path) == [tmp_path / "training_metrics.csv", events]
    assert mine.is_file()


@pytest.mark.parametrize("several", [False, True])
def test_what_cannot_be_written_is_refused_before_the_model_is_loaded(
    several: bool, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="log_to must be a list of some of"):
        make_config(log_to="csv")
    cfg = config(make_config, several)
    cfg.output_path = None
    with pytest.raises(ValueError, match="log_to needs output_path"):
        train(cfg, {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    cfg = config(make_config, several)
    cfg.log_to = ["tensorboard"]
    with pytest.raises(ImportError, match="pip install tensorboard"):
        train(cfg, {})


def test_a_run_that_does_not_start_leaves_the_logs_of_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "training_metrics.csv"
    log.write_text("step\n1\n")
    command = ["train", "--preset", "bundled", "--output_path", str(tmp_path)]

    assert main([*command, "--force", "--logger", "csv", "--d_in", "64"]) == 2

    assert "d_in" in capsys.readouterr().err
    assert log.read_text() == "step\n1\n"
