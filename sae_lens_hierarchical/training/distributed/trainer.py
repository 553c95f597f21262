"""The trainer of an SAE over several processes, with whole checkpoints."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATION_WHITENING_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor
from typing_extensions import override

from sae_lens_hierarchical.training.distributed.collectives import (
    all_reduce,
    broadcast,
)
from sae_lens_hierarchical.training.distributed.mesh import Mesh
from sae_lens_hierarchical.training.distributed.parts import (
    merge_parts,
    own_trainer_state,
    part_folder,
)
from sae_lens_hierarchical.training.distributed.processes import (
    PeerFailedError,
    all_or_none,
    broadcast_object,
)
from sae_lens_hierarchical.training.distributed.step import ShardedSAETrainer
from sae_lens_hierarchical.training.trainer import (
    ResumableSAETrainer,
    TrainingDivergedError,
)

__all__ = ["DistributedSAETrainer"]

# Asking all processes makes a GPU's host wait.
_STEPS_BETWEEN_STOPS = 16


class DistributedSAETrainer(ShardedSAETrainer, ResumableSAETrainer):
    """A ``ResumableSAETrainer`` of this process's part of an SAE.

    Its checkpoints are those of one process. What a signal asks of one process, or an
    error ends on one, all do at the same step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation_scaler = _SharedScaler(self.sae.mesh)

    @override
    def _check_losses(self) -> None:
        try:
            super()._check_losses()
        except TrainingDivergedError:  # on all at once: losses are the same bits
            if self.sae.mesh.rank:
                raise PeerFailedError(1) from None
            raise

    @override
    def check_finite(self) -> None:
        self._check_losses()  # which ends all processes by itself
        with all_or_none(self.sae.mesh):
            super().check_finite()

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
            return
        mesh, cfg, log = self.sae.mesh, self.cfg, self.cfg.logger
        with self._writing(Path(base) / checkpoint_name) as staging:
            # It would log a part.
            self.cfg = replace(cfg, logger=replace(log, log_to_wandb=False))
            try:
                with all_or_none(mesh):
                    self._save_files(part_folder(staging, mesh.rank))
            finally:
                self.cfg = cfg
            with all_or_none(mesh):
                if mesh.rank == 0:
                    merge_parts(staging, mesh.size, self._parameters())
                    if log.log_to_wandb:
                        log.log(
                            self,
                            staging / SAE_WEIGHTS_FILENAME,
                            staging / SAE_CFG_FILENAME,
                            sparsity_path=staging / SPARSITY_FILENAME,
                            wandb_aliases=wandb_aliases,
                        )

    @override
    def load_trainer_state(self, checkpoint_path: Path | str) -> None:
        source = Path(checkpoint_path)
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder)
            state = own_trainer_state(source, self.sae.slices, self._parameters())
            torch.save(state, own / TRAINER_STATE_FILENAME)
            for name in (ACTIVATION_SCALER_CFG_FILENAME, ACTIVATION_WHITENING_FILENAME):
                if (source / name).exists():
                    copyfile(source / name, own / name)
            super().load_trainer_state(own)

    def _parameters(self) -> list[str]:
        """Return the SAE's parameters in the optimizer's order."""
        return [name for name, _ in self.sae.named_parameters()]

    @override
    def _must_stop(self) -> bool:
        mesh = self.sae.mesh
        if mesh.device.type != "cpu" and self.n_training_steps % _STEPS_BETWEEN_STOPS:
            return False
        asked = torch.tensor([float(self.stop_requested)], device=mesh.device)
        return bool(all_reduce(mesh, asked) > 0)

    @contextmanager
    def _writing(self, checkpoint: Path) -> Generator[Path]:
        """Yield process 0's ``checkpoint_folder`` on all processes."""
        mesh, staging = self.sae.mesh, None
        with ExitStack() as stack:
            with all_or_none(mesh):
                if mesh.rank == 0:
                    folder = self.checkpoint_folder(checkpoint)
                    staging = stack.enter_context(folder)
            staging = broadcast_object(mesh, staging)
            with all_or_none(mesh):
                if not staging.is_dir():
                    raise ValueError(
                        "checkpoint_path must be on a file system that all processes "
                        f"share, but process {mesh.rank} does not see {staging}"
                    )
            yield staging
            with all_or_none(mesh):
                stack.close()
        self.last_checkpoint = checkpoint


class _SharedScaler(ActivationScaler):
    """SAELens's estimates of normalizations, which are process 0's on all.

    Eigenvectors may differ between processors though the activations are the same.
    """

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self._mesh = mesh

    @override
    def estimate_scaling_factor(self, *args: Any, **kwargs: Any) -> None:
        super().estimate_scaling_factor(*args, **kwargs)
        self.scaling_factor = broadcast_object(self._mesh, self.scaling_factor)

    @override
    def estimate_whitening(self, *args: Any, **kwargs: Any) -> None:
        super().estimate_whitening(*args, **kwargs)
        own = self.whitening
        assert own is not None  # noqa: S101 - it was estimated
        names = [field.name for field in fields(own)]
        self.whitening = replace(
            own, **{n: self._first(getattr(own, n)) for n in names}
        )

    def _first(self, tensor: Tensor) -> Tensor:
        return broadcast(self._mesh, tensor.to(self._mesh.device)).to(tensor.device)
