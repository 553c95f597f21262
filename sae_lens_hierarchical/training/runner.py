"""SAELens's training runner, made to survive being killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import sae_lens
import torch
import wandb
from sae_lens import TrainingSAE, logger
from sae_lens.config import HfDataset
from sae_lens.constants import RUNNER_CFG_FILENAME
from torch import Tensor
from transformer_lens import HookedRootModule
from typing_extensions import Self, override

from sae_lens_hierarchical.training.activations_store import (
    ResumableActivationsStore,
    TrackedPrefetch,
)
from sae_lens_hierarchical.training.checkpoint import (
    check_unfinished,
    find_checkpoint,
    whole_folder,
)
from sae_lens_hierarchical.training.config import LanguageModelSAERunnerConfig
from sae_lens_hierarchical.training.hook import check_hook
from sae_lens_hierarchical.training.signals import stopping_on_signals
from sae_lens_hierarchical.training.trainer import ResumableSAETrainer

__all__ = ["LanguageModelSAETrainingRunner"]


class LanguageModelSAETrainingRunner(sae_lens.LanguageModelSAETrainingRunner):
    """SAELens's runner for any architecture, with these differences.

    - A checkpoint appears whole or not at all, and so does the trained SAE.
    - A resumed run equals an uninterrupted one, bit for bit on one machine, and goes on
      in the same run of W&B.
    - ``seed`` fixes torch's random numbers from here on.
    - SIGINT and SIGTERM end training after the step under way, with a checkpoint (a
      second one at once, without).
    - ``hook_name`` and ``d_in`` are checked against the model before training.
    - The progress bar moves with every step.

    Raises:
        ValueError: If ``hook_name``, ``d_in`` or ``resume_from_checkpoint`` does not
            fit, naming it and what is allowed.
    """

    # Holds back the prefetching thread, where there is one.
    _store_at_rest: Callable[[], AbstractContextManager[None]] = nullcontext

    def __init__(
        self,
        cfg: sae_lens.LanguageModelSAERunnerConfig[Any],
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        override_sae: TrainingSAE[Any] | None = None,
    ) -> None:
        if cfg.resume_from_checkpoint is not None:
            cfg.resume_from_checkpoint = str(
                find_checkpoint(cfg.resume_from_checkpoint)
            )
        torch.manual_seed(cfg.seed)
        super().__init__(cfg, override_dataset, override_model, override_sae)
        if not cfg.use_cached_activations:
            check_hook(
                self.model, cfg, cfg.hook_name, cfg.hook_head_index, cfg.sae.d_in
            )
        self.activations_store = ResumableActivationsStore.from_config(
            self.model, cfg, override_dataset=self.activations_store.dataset
        )
        self.evaluator.activations_store = self.activations_store

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path,
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
    ) -> Self:
        """Return a runner that goes on with the run that wrote ``checkpoint``.

        Args:
            checkpoint: A checkpoint's folder, or one with checkpoints in it, of which
                the newest is taken.
            override_dataset: What the run was given, if it was given one.
            override_model: Likewise.

        Raises:
            ValueError: If there is no whole checkpoint.
        """
        folder = find_checkpoint(checkpoint)
        text = (folder / RUNNER_CFG_FILENAME).read_text(encoding="utf-8")
        cfg = LanguageModelSAERunnerConfig.from_dict(json.loads(text))
        cfg.resume_from_checkpoint = str(folder)
        return cls(cfg, override_dataset, override_model)

    @override
    def run(self) -> TrainingSAE[Any]:
        """Train, write the SAE to ``output_path`` and return it.

        Raises:
            TrainingInterrupted: If a signal ended the run early.
        """
        self._set_sae_metadata()
        log = self.cfg.logger
        if log.log_to_wandb:
            run = wandb.init(
                project=log.wandb_project,
                entity=log.wandb_entity,
                config=self.cfg.to_dict(),
                name=log.run_name,
                id=log.wandb_id,
                resume="allow",
            )
            log.wandb_id = run.id  # a resumed run goes on in it
        trainer = ResumableSAETrainer(
            cfg=self.cfg.to_sae_trainer_config(),
            sae=self.sae,
            data_provider=self.activations_store,
            evaluator=self.evaluator,
            save_checkpoint_fn=self.save_checkpoint,
        )
        if self.cfg.resume_from_checkpoint is not None:
            checkpoint = self.cfg.resume_from_checkpoint
            logger.info(f"Resuming from {checkpoint}")
            check_unfinished(Path(checkpoint), self.cfg.sae.normalize_activations)
            trainer.load_trainer_state(checkpoint)
            self.sae.load_weights_from_checkpoint(checkpoint)
            self.activations_store.load_from_checkpoint(checkpoint)
        self._compile_sae_if_needed()
        with self._prefetching(trainer), stopping_on_signals(trainer):
            sae = trainer.fit()
        if self.cfg.output_path is not None:
            self.save_final_sae(sae, self.cfg.output_path, trainer.log_feature_sparsity)
        if log.log_to_wandb:
            wandb.finish()
        return sae

    @contextmanager
    def _prefetching(self, trainer: ResumableSAETrainer) -> Iterator[None]:
        size = int(self.cfg.prefetch_llm_batches)
        if not size:
            yield
            return
        store = cast("ResumableActivationsStore", self.activations_store)
        trainer.data_provider = TrackedPrefetch(store, size)
        self._store_at_rest = trainer.data_provider.paused
        try:
            yield
        finally:
            self._store_at_rest = nullcontext
            trainer.data_provider.close()

    @override
    def save_checkpoint(self, checkpoint_path: Path | None) -> None:
        with self._store_at_rest():
            super().save_checkpoint(checkpoint_path)

    @override
    def save_final_sae(
        self,
        sae: TrainingSAE[Any],
        output_path: str,
        log_feature_sparsity: Tensor | None = None,
    ) -> None:
        with whole_folder(Path(output_path)) as staging:
            super().save_final_sae(sae, str(staging), log_feature_sparsity)
