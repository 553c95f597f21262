"""SAELens's trainer, with checkpoints that a killed run leaves whole."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from torch import Tensor
from tqdm import tqdm
from typing_extensions import override

from sae_lens_hierarchical.files.atomic_directory import atomic_directory
from sae_lens_hierarchical.training.checkpoint import Checkpoint
from sae_lens_hierarchical.training.manifest import write_manifest
from sae_lens_hierarchical.training.metrics_log import MetricsLog
from sae_lens_hierarchical.training.saving import WRITE_ERRORS
from sae_lens_hierarchical.training.step import FastSAETrainer

__all__ = [
    "ResumableSAETrainer",
    "ResumableTrainerMixin",
    "TrainingDivergedError",
    "TrainingInterrupted",
]

# Reading a loss makes the host wait for the device, which a CPU need not.
_STEPS_BETWEEN_CHECKS = 16


class TrainingInterrupted(KeyboardInterrupt):
    """Training was asked to stop, and has written a checkpoint if it writes any.

    Attributes:
        checkpoint: Where, or None if the run writes no checkpoints.
    """

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        super().__init__(
            "interrupted, without a checkpoint: checkpoint_path is None. Give "
            "--checkpoint_path FOLDER to be able to resume a run"
            if checkpoint is None
            else f"interrupted; resume with resume_from_checkpoint={str(checkpoint)!r}"
        )


class TrainingDivergedError(ValueError):
    """A loss or a weight has become NaN or infinite; nothing was written since.

    Attributes:
        checkpoint: The last one before, or None if there is none.
    """

    def __init__(self, what: str, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        super().__init__(f"training diverged: {what}; {_last(checkpoint)}")


class _Loss(NamedTuple):
    sae: str
    step: int
    samples: int
    value: Tensor


class ResumableTrainerMixin:
    """Gives a trainer of SAELens whole checkpoints, checks for divergence, a live bar.

    Attributes:
        stop_requested: Set it to end training after the step under way, with a
            checkpoint.
        run_id: Goes into the checkpoints' manifests.
        last_checkpoint: The last whole one of the run.
        metrics_log: Where metrics go beside W&B; None for nowhere.
    """

    cfg: Any
    n_training_samples: int
    n_training_steps: int
    checkpoint_thresholds: list[int]
    save_checkpoint: Callable[..., None]
    metrics_log: MetricsLog | None = None
    stop_requested: bool
    run_id: str
    last_checkpoint: Path | None

    def prepare(self, resumed_from: Checkpoint | None) -> None:
        """Get ready to train; call it once a checkpoint, if any, is loaded."""
        if resumed_from is None:
            self.run_id, self.last_checkpoint = uuid.uuid4().hex, None
        else:
            self.run_id = resumed_from.run_id
            self.last_checkpoint = resumed_from.folder
        self.stop_requested = False
        self._losses_shown_at = 0.0
        self._metrics: dict[str, float] = {}  # of the step under way
        self._unchecked_losses: list[_Loss] = []
        # SAELens saves within a step, before it counts that step.
        batch_size = self.cfg.train_batch_size_samples
        self.n_training_steps = self.n_training_samples // batch_size
        self.checkpoint_thresholds = [
            t for t in self.checkpoint_thresholds if t >= self.n_training_samples
        ]

    def saes_by_name(self) -> Mapping[str, TrainingSAE[Any]]:
        """Return the SAEs in training by name; a run's only SAE is called ``""``."""
        raise NotImplementedError

    def record_loss(self, loss: Tensor, samples: int, sae: str = "") -> None:
        """Record a step's loss, and stop where one so far was not finite.

        Raises:
            TrainingDivergedError: If one was not.
        """
        step = self.n_training_steps + 1
        self._unchecked_losses.append(_Loss(sae, step, samples, loss.detach()))
        since = step - self._unchecked_losses[0].step
        on_host = loss.device.type == "cpu"
        if on_host or since >= _STEPS_BETWEEN_CHECKS or self._is_logging_step():
            self._check_losses()

    def _is_logging_step(self) -> bool:
        """Tell whether the step under way is one whose metrics are logged."""
        log = self.cfg.logger
        if not log.log_to_wandb and self.metrics_log is None:
            return False
        return (self.n_training_steps + 1) % log.wandb_log_frequency == 0

    def log_step(self, trainer: Any, output: TrainStepOutput, sae: str = "") -> None:
        """Write a step's metrics to disk, if they go there, once all SAEs took it.

        Args:
            trainer: The SAE's own.
            output: What its step gave.
            sae: Its name.
        """
        if self.metrics_log is None or not self._is_logging_step():
            return
        samples = trainer.n_training_samples
        metrics = trainer.build_train_step_log_dict(output, samples)
        prefix = f"{sae}/" if sae else ""
        self._metrics |= {f"{prefix}{name}": value for name, value in metrics.items()}
        if sae == [*self.saes_by_name()][-1]:
            self.metrics_log.write(self.n_training_steps, self._metrics)
            self._metrics = {}

    def check_finite(self) -> None:
        """Raise TrainingDivergedError if a loss or a weight is NaN or infinite."""
        self._check_losses()
        step = self.n_training_samples // self.cfg.train_batch_size_samples
        for name, sae in self.saes_by_name().items():
            for weight, value in sae.named_parameters():
                if not value.isfinite().all():
                    raise TrainingDivergedError(
                        f"{weight}{_of(name)} is not finite after step {step} "
                        f"({self.n_training_samples:,} samples seen)",
                        self.last_checkpoint,
                    )

    def _check_losses(self) -> None:
        unchecked, self._unchecked_losses = self._unchecked_losses, []
        if not unchecked:
            return
        values = torch.stack([loss.value.float() for loss in unchecked]).tolist()
        for loss, value in zip(unchecked, values, strict=True):
            if value - value != 0:  # NaN and infinity alone
                raise TrainingDivergedError(
                    f"the loss{_of(loss.sae)} was {value} at step {loss.step} "
                    f"({loss.samples:,} samples seen)",
                    self.last_checkpoint,
                )

    @contextmanager
    def checkpoint_folder(self, checkpoint: Path) -> Generator[Path]:
        """Yield a folder to write a checkpoint to, which appears when it is complete.

        Raises:
            OSError: If it cannot be written, naming the checkpoint before it.
        """
        try:
            with atomic_directory(checkpoint) as staging:
                yield staging
                write_manifest(staging, self.run_id, self.n_training_samples)
        except WRITE_ERRORS as error:
            raise OSError(
                f"the checkpoint {checkpoint} could not be written: {error}; "
                f"{_last(self.last_checkpoint)}"
            ) from error
        self.last_checkpoint = checkpoint

    def after_step(self, bar: tqdm[Any], losses: Mapping[str, Tensor | float]) -> None:
        """Update the progress bar, and stop the run if that was asked for.

        Raises:
            TrainingInterrupted: If it is.
        """
        if time.monotonic() - self._losses_shown_at >= 1:
            self._losses_shown_at = time.monotonic()
            shown = {name: f"{float(loss):.4g}" for name, loss in losses.items()}
            bar.set_postfix(shown, refresh=False)  # the bar knows when it is time
        bar.update(self.n_training_samples - bar.n)
        if not self._must_stop():
            return
        if self.cfg.checkpoint_path is None:
            raise TrainingInterrupted(None)
        checkpoint = Path(self.cfg.checkpoint_path) / str(self.n_training_samples)
        if self.last_checkpoint != checkpoint:
            self.save_checkpoint(checkpoint.name)
        raise TrainingInterrupted(checkpoint)

    def _must_stop(self) -> bool:
        return self.stop_requested


class ResumableSAETrainer(ResumableTrainerMixin, FastSAETrainer):
    """An ``SAETrainer`` that can be killed at any moment.

    A checkpoint's folder appears under its name when all of its files are written.
    """

    @override
    def saes_by_name(self) -> Mapping[str, TrainingSAE[Any]]:
        return {"": self.sae}

    @override
    def step(self, batch: Tensor) -> TrainStepOutput:
        output = super().step(batch)
        self.record_loss(output.loss, self.n_training_samples)
        self.log_step(self, output)
        return output

    @override
    def save_checkpoint(
        self,
        checkpoint_name: str,
        base_path: Path | str | None = None,
        wandb_aliases: list[str] | None = None,
    ) -> None:
        base = base_path if base_path is not None else self.cfg.checkpoint_path
        self.check_finite()
        if base is None:
            super().save_checkpoint(checkpoint_name, None, wandb_aliases)
            return
        with self.checkpoint_folder(Path(base) / checkpoint_name) as staging:
            self._save_files(staging, wandb_aliases)

    def _save_files(self, folder: Path, wandb_aliases: list[str] | None = None) -> None:
        super().save_checkpoint(folder.name, folder.parent, wandb_aliases)

    @override
    @torch.no_grad()
    def _update_pbar(
        self, step_output: TrainStepOutput, pbar: tqdm[Any], update_interval: int = 100
    ) -> None:
        self.after_step(pbar, step_output.losses)


def _of(sae: str) -> str:
    return f" of the SAE {sae!r}" if sae else ""


def _last(checkpoint: Path | None) -> str:
    if checkpoint is None:
        return "there is no checkpoint before it"
    return f"the checkpoint before it is whole: {checkpoint}"
