"""SAELens's trainer with whole checkpoints, exact resumption and a live bar."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from sae_lens import SAETrainer
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from tqdm import tqdm
from typing_extensions import override

from sae_lens_hierarchical.training.checkpoint import whole_folder

__all__ = ["ResumableSAETrainer", "TrainingInterrupted", "interrupt"]


class TrainingInterrupted(KeyboardInterrupt):
    """Training was asked to stop and has written a checkpoint.

    Attributes:
        checkpoint: Where, or None if the run writes no checkpoints.
    """

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        super().__init__(
            "interrupted, without a checkpoint: checkpoint_path is None"
            if checkpoint is None
            else f"interrupted; resume with resume_from_checkpoint={str(checkpoint)!r}"
        )


def interrupt(trainer: SAETrainer[Any, Any] | MultiSAETrainer) -> NoReturn:
    """End training after a step, with a checkpoint unless there is one of it.

    Raises:
        TrainingInterrupted: Always.
    """
    if trainer.cfg.checkpoint_path is None:
        raise TrainingInterrupted(None)
    checkpoint = Path(trainer.cfg.checkpoint_path) / str(trainer.n_training_samples)
    if not checkpoint.exists():
        trainer.save_checkpoint(checkpoint.name)
    raise TrainingInterrupted(checkpoint)


class ResumableSAETrainer(SAETrainer[TrainingSAE[Any], Any]):
    """An ``SAETrainer`` that can be killed at any moment.

    A checkpoint's folder appears under its name when all of its files are written.
    Set ``stop_requested`` to end training after the step under way, with a checkpoint.
    """

    stop_requested = False
    _bar_updated_at = 0.0

    @override
    def save_checkpoint(
        self,
        checkpoint_name: str,
        base_path: Path | str | None = None,
        wandb_aliases: list[str] | None = None,
    ) -> None:
        base = base_path if base_path is not None else self.cfg.checkpoint_path
        if base is None:
            super().save_checkpoint(checkpoint_name, None, wandb_aliases)
            return
        with whole_folder(Path(base) / checkpoint_name) as staging:
            super().save_checkpoint(staging.name, staging.parent, wandb_aliases)

    @override
    def load_trainer_state(self, checkpoint_path: Path | str) -> None:
        super().load_trainer_state(checkpoint_path)
        # SAELens saves within a step, before it counts that step.
        batch_size = self.cfg.train_batch_size_samples
        self.n_training_steps = self.n_training_samples // batch_size
        self.checkpoint_thresholds = [
            t for t in self.checkpoint_thresholds if t >= self.n_training_samples
        ]

    @override
    @torch.no_grad()
    def _checkpoint_if_needed(self) -> None:
        super()._checkpoint_if_needed()
        if self.stop_requested:
            interrupt(self)

    @override
    @torch.no_grad()
    def _update_pbar(
        self, step_output: TrainStepOutput, pbar: tqdm, update_interval: int = 100
    ) -> None:
        pbar.update(self.cfg.train_batch_size_samples)
        # Reading a loss makes the host wait for the device: once a second is enough.
        if time.monotonic() - self._bar_updated_at >= 1:
            self._bar_updated_at = time.monotonic()
            losses = step_output.losses.items()
            pbar.set_postfix({name: f"{float(loss):.4g}" for name, loss in losses})
