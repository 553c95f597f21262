"""The training runner of one SAE over several processes."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
)
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import sae_lens
import torch
import wandb
from sae_lens import TrainingSAE
from sae_lens.config import HfDataset
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.prefetch import PrefetchingIterator
from torch import Tensor
from transformer_lens import HookedRootModule
from typing_extensions import override

from sae_lens_hierarchical.saes import HierarchicalTopKTrainingSAEConfig
from sae_lens_hierarchical.training.activations_store import ResumableActivationsStore
from sae_lens_hierarchical.training.checkpoint import Checkpoint
from sae_lens_hierarchical.training.distributed.data import (
    GatheredBatches,
    shard_store,
)
from sae_lens_hierarchical.training.distributed.mesh import Mesh
from sae_lens_hierarchical.training.distributed.processes import (
    all_or_none,
    broadcast_object,
    check_same_config,
)
from sae_lens_hierarchical.training.distributed.sharded_sae import ShardedTrainingSAE
from sae_lens_hierarchical.training.distributed.trainer import DistributedSAETrainer
from sae_lens_hierarchical.training.metrics_log import MetricsLog
from sae_lens_hierarchical.training.runner import LanguageModelSAETrainingRunner
from sae_lens_hierarchical.training.trainer import ResumableSAETrainer

__all__ = ["DistributedSAETrainingRunner"]


class DistributedSAETrainingRunner(LanguageModelSAETrainingRunner):
    """Trains one SAE over all processes of torch.distributed, which has to be there.

    The config is that of one process, the same on all: ``train_batch_size_tokens`` and
    ``training_tokens`` are those of all processes together. Each runs the language
    model on its own part of the dataset, ``store_batch_size_prompts`` contexts at once.
    Process 0 writes, logs and evaluates, for which it holds the whole SAE.

    Raises:
        ValueError: On one process, naming a field that does not fit.
        PeerFailedError: On the others, then.
    """

    _trainer_class = DistributedSAETrainer

    def __init__(
        self,
        cfg: sae_lens.LanguageModelSAERunnerConfig[Any],
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        override_sae: TrainingSAE[Any] | None = None,
    ) -> None:
        self.mesh = Mesh.of(cfg.device)
        with all_or_none(self.mesh):
            _check_fits(cfg, self.mesh)
        check_same_config(self.mesh, cfg)
        super().__init__(cfg, override_dataset, override_model, override_sae)
        # SAELens keeps what it is to call in a type of its own.
        self.evaluator = cast("Any", _WholeEvaluator(self.evaluator, self.mesh))

    @override
    def _find_checkpoint(self) -> Checkpoint | None:
        checkpoint = None
        with all_or_none(self.mesh):
            if self.mesh.rank == 0:
                checkpoint = super()._find_checkpoint()
        checkpoint = broadcast_object(self.mesh, checkpoint)
        if checkpoint is not None:
            self.cfg.resume_from_checkpoint = str(checkpoint.folder)
        return checkpoint

    @override
    def _reserve_folders(self) -> AbstractContextManager[None]:
        return _on_first(self.mesh, super()._reserve_folders())

    @override
    def _make_sae(self, override_sae: TrainingSAE[Any] | None) -> TrainingSAE[Any]:
        with all_or_none(self.mesh):
            whole = super()._make_sae(override_sae)
        if whole is None:
            return ShardedTrainingSAE(deepcopy(self.cfg.sae), self.mesh)
        return ShardedTrainingSAE.from_whole(whole, self.mesh)

    @override
    def _load(
        self,
        override_dataset: HfDataset | None,
        override_model: HookedRootModule | None,
        override_sae: TrainingSAE[Any] | None,
    ) -> None:
        with all_or_none(self.mesh):
            super()._load(override_dataset, override_model, override_sae)

    @override
    def _make_store(self) -> ResumableActivationsStore:
        with all_or_none(self.mesh):
            return shard_store(self.activations_store, self.mesh)

    @override
    def _start_wandb(self) -> None:
        with all_or_none(self.mesh):
            if self.mesh.rank == 0:
                super()._start_wandb()
            elif self.cfg.logger.log_to_wandb:
                wandb.init(mode="disabled")

    @override
    @contextmanager
    def _open_metrics_log(self, step: int) -> Generator[MetricsLog | None]:
        with ExitStack() as stack:
            # All take part in what process 0 writes.
            log = MetricsLog() if getattr(self.cfg, "log_to", ()) else None
            with all_or_none(self.mesh):
                if self.mesh.rank == 0:
                    log = stack.enter_context(super()._open_metrics_log(step))
            yield log

    @override
    def _restore(self, trainer: ResumableSAETrainer, checkpoint: Path) -> None:
        with all_or_none(self.mesh):
            super()._restore(trainer, checkpoint)

    @override
    @contextmanager
    def _prefetching(self, trainer: ResumableSAETrainer) -> Generator[None]:
        with super()._prefetching(trainer):
            trainer.data_provider = GatheredBatches(trainer.data_provider, self.mesh)
            yield

    @override
    def save_final_sae(
        self,
        sae: TrainingSAE[Any],
        output_path: str,
        log_feature_sparsity: Tensor | None = None,
    ) -> None:
        whole = cast("ShardedTrainingSAE", sae).whole_on_first()
        with all_or_none(self.mesh):
            if whole is not None:
                super().save_final_sae(whole, output_path, log_feature_sparsity)


@dataclass
class _WholeEvaluator:
    """Evaluates the whole SAE on process 0, while the others wait."""

    evaluator: Any
    mesh: Mesh

    def __call__(
        self,
        sae: ShardedTrainingSAE,
        data_provider: GatheredBatches,
        activation_scaler: ActivationScaler,
    ) -> dict[str, Any]:
        source, metrics = data_provider.source, {}
        # A thread that reads the store draws random numbers, too.
        pause = nullcontext()
        if isinstance(source, PrefetchingIterator):
            pause = source.paused()
        with pause:
            whole = sae.whole_on_first()
            with all_or_none(self.mesh):
                if whole is not None:
                    store = self.evaluator.activations_store
                    metrics = self.evaluator(whole, store, activation_scaler)
        return metrics


@contextmanager
def _on_first(mesh: Mesh, context: AbstractContextManager[None]) -> Generator[None]:
    """Enter ``context`` on process 0 alone."""
    with ExitStack() as stack:
        with all_or_none(mesh):
            if mesh.rank == 0:
                stack.enter_context(context)
        yield


def _check_fits(cfg: Any, mesh: Mesh) -> None:
    if not isinstance(cfg.sae, HierarchicalTopKTrainingSAEConfig):
        raise ValueError(
            "architecture must be hierarchical_topk to train one SAE over several "
            f"processes, got {cfg.sae.architecture()}"
        )
    mesh.features(cfg.sae.d_sae)
    mesh.columns(cfg.sae.d_in)
    if cfg.train_batch_size_tokens % mesh.size:
        raise ValueError(
            "train_batch_size_tokens must be a multiple of the number of processes, "
            f"{mesh.size}, got {cfg.train_batch_size_tokens}"
        )
    for field, why in (
        ("compile_sae", "torch.compile does not know what processes send"),
        ("use_cached_activations", "processes make their own activations"),
    ):
        if getattr(cfg, field):
            raise ValueError(f"{field} must be False over several processes: {why}")
    if getattr(cfg, "max_norm_ratio", None) is not None:
        raise ValueError(
            "max_norm_ratio must be None over several processes, each of which would "
            f"take another median, got {cfg.max_norm_ratio}"
        )
    for field in ("device", "llm_device", "act_store_device"):
        if (device := str(getattr(cfg, field))) not in ("cpu", "cuda"):
            raise ValueError(
                f"{field} must be cpu or cuda over several processes, each of which "
                f"takes its own GPU, got {device}"
            )
    here = int(os.environ.get("LOCAL_RANK", "0"))
    if cfg.device == "cuda" and here >= torch.cuda.device_count():
        raise ValueError(
            "there must be a GPU for each process of a machine, but process "
            f"{here} of this one finds {torch.cuda.device_count()}"
        )
