"""Training runs of a few steps, for the tests' processes."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import wandb
from datasets import Dataset
from sae_lens import LoggingConfig
from torch import Tensor

from sae_lens_hierarchical import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    TrainingInterrupted,
)
from sae_lens_hierarchical.data import (
    load_bundled_dataset,
)
from sae_lens_hierarchical.training.distributed import (
    DistributedSAETrainingRunner,
    Mesh,
    PeerFailedError,
)
from sae_lens_hierarchical.training.trainer import ResumableSAETrainer
from tests.helpers import make_run_config


def make_cfg(folder: Path, **changes: Any) -> LanguageModelSAERunnerConfig:
    """Return the config of a run of ten steps; d_sae fits no W evenly."""
    settings: dict[str, Any] = {"d_sae": 67, "unit_norm_decoder": True}
    settings |= {"train_batch_size_tokens": 96, "training_tokens": 960}
    settings["n_checkpoints"] = 1
    settings |= changes
    if settings.get("architecture") == "topk":
        del settings["unit_norm_decoder"]
    return make_run_config(folder, **settings)


def _texts() -> Dataset:
    return load_bundled_dataset("train").select(range(40))


def train(_: Mesh, folder: Path, changes: dict[str, Any]) -> None:
    """Train on all processes."""
    DistributedSAETrainingRunner(make_cfg(folder, **changes), _texts()).run()


def train_on_one(_: Mesh, folder: Path, changes: dict[str, Any]) -> None:
    """Train on one process."""
    LanguageModelSAETrainingRunner(make_cfg(folder, **changes), _texts()).run()


def state_after_loading(
    mesh: Mesh, folder: Path, changes: dict[str, Any]
) -> dict[str, Any]:
    """Return the whole state with which a run resumes, without a step of it."""
    found: dict[str, Any] = {}

    def fit(trainer: ResumableSAETrainer) -> Any:
        sae: Any = trainer.sae
        whole = sae.whole_state_dict() if mesh.size > 1 else sae.state_dict()
        found.update({name: value.clone() for name, value in whole.items()})
        store: Any = trainer.data_provider
        store = getattr(store, "source", store)
        found["n_sequences"] = store.n_sequences
        found["n_training_samples"] = torch.tensor(trainer.n_training_samples)
        found["firings"] = trainer.n_forward_passes_since_fired
        for name, parameter in sae.named_parameters():
            own = getattr(sae, "slices", {}).get(name, ...)
            moments = trainer.optimizer.state[parameter]
            for moment in ("exp_avg", "exp_avg_sq"):
                found[f"{name} {moment}"] = (own, moments[moment].clone())
        raise TrainingInterrupted(None)

    runner = DistributedSAETrainingRunner
    if mesh.size == 1:
        runner = LanguageModelSAETrainingRunner
    with (
        patch.object(ResumableSAETrainer, "fit", fit),
        suppress(TrainingInterrupted),
    ):
        runner(make_cfg(folder, **changes), _texts()).run()
    return found


def stopped(
    mesh: Mesh, folder: Path, changes: dict[str, Any], rank: int, step: int
) -> Path | None:
    """Send one process SIGTERM within a step; return where each left off."""
    one_step = ResumableSAETrainer.step

    def step_and_signal(trainer: Any, batch: Tensor) -> Any:
        if mesh.rank == rank and trainer.n_training_steps == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return one_step(trainer, batch)

    with patch.object(ResumableSAETrainer, "step", step_and_signal):
        try:
            train(mesh, folder, changes)
        except TrainingInterrupted as interrupt:
            return interrupt.checkpoint
    raise AssertionError("nothing was stopped")


def logged(mesh: Mesh, folder: Path, changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a process gives to W&B, of which there is none here."""
    rows: list[dict[str, Any]] = []
    start = wandb.init

    def init(**options: Any) -> Any:
        rows.append(options)
        run = start(mode="disabled")
        wandb.log = log  # which a start replaces
        return run

    def log(row: dict[str, Any], **_: Any) -> None:
        rows.append(row)

    logger = LoggingConfig(
        log_to_wandb=True,
        log_activations_store_to_wandb=False,
        wandb_log_frequency=2,
        eval_every_n_wandb_logs=2,
    )
    with (
        patch.object(wandb, "log", log),
        patch.object(wandb, "init", init),
        patch.object(LoggingConfig, "log", lambda *_, **__: None),
    ):
        train(mesh, folder, {**changes, "logger": logger, "n_eval_batches": 1})
    return rows


def refusal(
    mesh: Mesh, folder: Path, changes: dict[str, Any], of_last: dict[str, Any]
) -> str | None:
    """Return what a process says of a config; None where another process says it.

    Args:
        mesh: The processes.
        folder: Of the run.
        changes: To the config of all.
        of_last: And to that of the last process.
    """
    if mesh.rank == mesh.size - 1:
        changes = {**changes, **of_last}
    try:
        train(mesh, folder, changes)
    except ValueError as error:
        return str(error)
    except PeerFailedError:
        return None
    raise AssertionError("nothing was refused")
