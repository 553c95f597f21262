"""SAELens's trainer with whole checkpoints, exact resumption and a live bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAETrainer
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from sae_lens_hierarchical.training.checkpoint import whole_folder

__all__ = ["LiveTrainer", "ResumableSAETrainer", "TrainingInterrupted"]


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


class LiveTrainer:
    """What a trainer of SAELens is to do besides training; mixed into one.

    Attributes:
        stop_requested: Set it to end training after the step under way, with a
            checkpoint.
    """

    cfg: Any
    n_training_samples: int
    n_training_steps: int
    checkpoint_thresholds: list[int]
    save_checkpoint: Callable[..., None]
    stop_requested = False
    _losses_shown_at = 0.0

    def after_loading(self) -> None:
        """Set right what SAELens has in a checkpoint or leaves to its reader."""
        # SAELens saves within a step, before it counts that step.
        batch_size = self.cfg.train_batch_size_samples
        self.n_training_steps = self.n_training_samples // batch_size
        self.checkpoint_thresholds = [
            t for t in self.checkpoint_thresholds if t >= self.n_training_samples
        ]

    def after_step(self, bar: tqdm, losses: Mapping[str, Tensor | float]) -> None:
        """Move the bar, show losses once a second, and stop if that is wanted.

        Raises:
            TrainingInterrupted: If it is.
        """
        bar.update(self.n_training_samples - bar.n)
        # Reading a loss makes the host wait for the device.
        if time.monotonic() - self._losses_shown_at >= 1:
            self._losses_shown_at = time.monotonic()
            shown = {name: f"{float(loss):.4g}" for name, loss in losses.items()}
            bar.set_postfix(shown)
        if not self.stop_requested:
            return
        if self.cfg.checkpoint_path is None:
            raise TrainingInterrupted(None)
        checkpoint = Path(self.cfg.checkpoint_path) / str(self.n_training_samples)
        if not checkpoint.exists():
            self.save_checkpoint(checkpoint.name)
        raise TrainingInterrupted(checkpoint)


class ResumableSAETrainer(LiveTrainer, SAETrainer[TrainingSAE[Any], Any]):
    """An ``SAETrainer`` that can be killed at any moment.

    A checkpoint's folder appears under its name when all of its files are written.
    """

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
        self.after_loading()

    @override
    @torch.no_grad()
    def _update_pbar(
        self, step_output: TrainStepOutput, pbar: tqdm, update_interval: int = 100
    ) -> None:
        self.after_step(pbar, step_output.losses)
