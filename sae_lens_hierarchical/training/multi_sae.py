"""Training several SAEs on the same activations, with SAELens's multi-SAE runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import sae_lens
import torch
from sae_lens import (
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.config import HfDataset
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedRootModule
from typing_extensions import override

from sae_lens_hierarchical.files.atomic_directory import atomic_directory
from sae_lens_hierarchical.training.activations_store import (
    ResumableActivationsStore,
    TrackedPrefetch,
)
from sae_lens_hierarchical.training.checkpoint import Checkpoint, check_unfinished
from sae_lens_hierarchical.training.config import (
    check_new_run,
    check_trainable,
    without_additions,
)
from sae_lens_hierarchical.training.hook import check_hook
from sae_lens_hierarchical.training.metrics_log import check_can_log, open_metrics_log
from sae_lens_hierarchical.training.precision import (
    SAELENS_PRECISION,
    MatmulPrecision,
    matmul_precision,
)
from sae_lens_hierarchical.training.resume import (
    checkpoint_to_resume,
    make_paths_absolute,
)
from sae_lens_hierarchical.training.run_data import model_and_dataset
from sae_lens_hierarchical.training.run_folders import reserve_folders
from sae_lens_hierarchical.training.saving import save_with_fallback
from sae_lens_hierarchical.training.signals import stopping_on_signals
from sae_lens_hierarchical.training.step import FastSAETrainer
from sae_lens_hierarchical.training.trainer import ResumableTrainerMixin

__all__ = ["MultiSAERunner", "multi_sae_config"]


@dataclass
class MultiSAERunnerConfig(MultiSAETrainingRunnerConfig):
    """SAELens's config of a run of several SAEs.

    Args:
        matmul_precision: As in ``LanguageModelSAERunnerConfig``.
        max_norm_ratio: Likewise; a token that is left out at one hook is at all.
        log_to: Likewise; a metric's name begins with its SAE's.
    """

    matmul_precision: MatmulPrecision = SAELENS_PRECISION
    max_norm_ratio: float | None = None
    log_to: Sequence[str] = ()


def multi_sae_config(
    cfg: sae_lens.LanguageModelSAERunnerConfig[Any],
    saes: Mapping[str, TrainingSAEConfig],
    output: Path,
) -> MultiSAERunnerConfig:
    """Return the config that trains ``saes``, by name, as ``cfg`` would train one.

    Args:
        cfg: A config for one SAE; its own SAE is left out.
        saes: The SAEs' configs; the names are those of their folders.
        output: Where the folders of the trained SAEs go.

    Raises:
        ValueError: If ``cfg`` asks for what SAELens does for one SAE alone, or an SAE
            cannot be trained.
    """
    if cfg.resume_from_checkpoint is None:
        check_new_run(cfg)
    for name, sae in saes.items():
        check_trainable(name, sae)
    for name in ("compile_sae", "use_cached_activations", "from_pretrained_path"):
        if getattr(cfg, name):
            raise ValueError(f"{name} is for one SAE: several are trained without it")
    shared = {f.name for f in fields(MultiSAERunnerConfig) if f.init}
    settings = {f.name: getattr(cfg, f.name) for f in fields(cfg) if f.name in shared}
    settings["output_path"] = str(output)
    # SAELens adds its id and its name again, those of several SAEs.
    given = without_additions(cfg.to_dict())
    settings["checkpoint_path"] = given["checkpoint_path"]
    settings["logger"] = replace(cfg.logger, run_name=given["logger"]["run_name"])
    # SAELens holds all of these batches at once here, and 1,000 might not fit.
    settings["n_batches_for_norm_estimate"] = min(32, cfg.n_batches_for_norm_estimate)
    return MultiSAERunnerConfig(
        **settings,
        saes=saes,
        hook_names=cfg.hook_name,
        hook_head_indices=cfg.hook_head_index,
    )


class MultiSAERunner(MultiSAETrainingRunner):
    """Trains several SAEs on the same activations: SAELens's runner, with differences.

    - A checkpoint appears whole or not at all, and so do the trained SAEs. Where they
      go is found fit to be written at once, and is this run's alone while it runs.
    - A resumed run equals an uninterrupted one, bit for bit on one machine (on a GPU
      only with deterministic algorithms), with ``prefetch_llm_batches`` too. A damaged
      checkpoint or another run's is refused.
    - ``seed`` fixes torch's random numbers from here on.
    - SIGINT and SIGTERM end training after the step under way, with a checkpoint. So
      does a loss that is not finite, without.
    - Hooks and ``d_in`` are checked against the model before training.
    - The progress bar moves with every step.

    Raises:
        ValueError: If the dataset, a folder or ``resume_from_checkpoint`` does not fit,
            naming it.
    """

    # Holds back the prefetching thread, where there is one.
    _pause_prefetching: Callable[[], AbstractContextManager[None]] = nullcontext

    def __init__(
        self,
        cfg: MultiSAETrainingRunnerConfig,
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        override_saes: dict[str, TrainingSAE[Any]] | None = None,
    ) -> None:
        make_paths_absolute(cfg)
        check_can_log(cfg)
        self._checkpoint = checkpoint_to_resume(cfg)
        if self._checkpoint is not None:
            for name, sae in cfg.saes.items():
                part = self._checkpoint.folder / name
                check_unfinished(part, sae.normalize_activations)
        with reserve_folders(cfg):
            pass  # they can be written: the run itself holds them
        given = model_and_dataset(cfg, override_model, override_dataset)
        with given as (model, dataset):
            torch.manual_seed(cfg.seed)  # whoever loaded the model
            super().__init__(cfg, dataset, model, override_saes)
        self.activations_store = ResumableActivationsStore.convert(
            self.activations_store, getattr(cfg, "max_norm_ratio", None)
        )

    @override
    def run(self) -> dict[str, TrainingSAE[Any]]:
        """Train the SAEs, write them to ``output_path`` and return them by name.

        Raises:
            ValueError: If a hook or ``d_in`` does not fit the model, or another run
                writes to one of this one's folders.
            TrainingInterrupted: If a signal ended the run early.
            TrainingDivergedError: If a loss or a weight became NaN or infinite.
            OSError: If something could not be written, naming what is whole and where.
        """
        for name, sae in self.cfg.saes.items():
            hook_name = self.cfg.hook_names_per_sae[name]
            head = self.cfg.hook_head_indices_per_sae[name]
            check_hook(self.model, self.cfg, hook_name, head, sae.d_in)
        # SAELens would read ahead before it is at a checkpoint's place in the text.
        self._prefetch = self.cfg.prefetch_llm_batches
        self.cfg.prefetch_llm_batches = False
        with reserve_folders(self.cfg), matmul_precision(self.cfg):
            return super().run()

    @override
    def _run_with_interruption_handling(
        self, trainer: MultiSAETrainer
    ) -> dict[str, TrainingSAE[Any]]:
        # SAELens's run names its trainer's class, and leaves no other place to change.
        trainer.__class__ = ResumableMultiSAETrainer
        resumable = cast("ResumableMultiSAETrainer", trainer)
        resumable.prepare(self._checkpoint)
        store = cast("ResumableActivationsStore", self.activations_store)
        max_norms = store.max_norms()
        for name, sae in self.saes.items():
            hook_name = self.cfg.hook_names_per_sae[name]
            sae.cfg.metadata.max_norm = max_norms.get(hook_name)
        self.cfg.prefetch_llm_batches = self._prefetch
        with ExitStack() as stack:
            if self._prefetch:
                ahead = TrackedPrefetch(store, int(self._prefetch))
                stack.callback(ahead.close)
                trainer.data_provider = ahead
                self._pause_prefetching = ahead.paused
            log = open_metrics_log(self.cfg, resumable.n_training_steps)
            resumable.metrics_log = stack.enter_context(log)
            stack.enter_context(stopping_on_signals(resumable))
            saes = trainer.fit()
        store.report_outliers()
        return saes

    @override
    def _save_runner_checkpoint_files(self, checkpoint_path: Path | None) -> None:
        with self._pause_prefetching():
            super()._save_runner_checkpoint_files(checkpoint_path)

    @override
    def _save_final_outputs(
        self, saes: dict[str, TrainingSAE[Any]], trainer: MultiSAETrainer
    ) -> None:
        cast("ResumableMultiSAETrainer", trainer).check_finite()
        output, save = str(self.cfg.output_path), super()._save_final_outputs

        def save_to(folder: Path) -> None:
            self.cfg.output_path = str(folder)
            try:
                save(saes, trainer)
            finally:
                self.cfg.output_path = output

        with atomic_directory(Path(output)) as staging:
            save_with_fallback(save_to, staging)


class ResumableMultiSAETrainer(ResumableTrainerMixin, MultiSAETrainer):
    """A ``MultiSAETrainer`` that can be killed at any moment."""

    @override
    def prepare(self, resumed_from: Checkpoint | None) -> None:
        super().prepare(resumed_from)
        for name, trainer in self.trainers.items():
            trainer.__class__ = FastSAETrainer  # SAELens names the class, too
            cast("FastSAETrainer", trainer).prepare_optimizer()
            trainer.n_training_steps = self.n_training_steps
            trainer._is_logging_step = self._is_logging_step  # pyright: ignore[reportPrivateUsage]
            trainer.step = partial(self._step, name, trainer.step)

    @override
    def saes_by_name(self) -> Mapping[str, TrainingSAE[Any]]:
        return self.saes

    def _step(
        self, name: str, step: Callable[[Tensor], TrainStepOutput], batch: Tensor
    ) -> TrainStepOutput:
        output = step(batch)
        trainer = self.trainers[name]
        self.record_loss(output.loss, trainer.n_training_samples, name)
        self.log_step(trainer, output, name)
        # SAELens holds the outputs of all SAEs at once, [batch, d_sae] each.
        output.hidden_pre = batch.new_empty(0)
        if not self._is_logging_step():
            output.feature_acts, output.metrics = batch.new_empty(0), {}
        return output

    @override
    def save_checkpoint(
        self, checkpoint_name: str, wandb_aliases: list[str] | None = None
    ) -> None:
        self.check_finite()
        if self.cfg.checkpoint_path is None:
            super().save_checkpoint(checkpoint_name, wandb_aliases)
            return
        checkpoint = Path(self.cfg.checkpoint_path) / checkpoint_name
        with self.checkpoint_folder(checkpoint) as staging:
            # An absolute name is that folder, whatever SAELens puts before it.
            super().save_checkpoint(str(staging), wandb_aliases)

    @override
    @torch.no_grad()
    def _update_pbar(
        self,
        step_outputs: dict[str, TrainStepOutput],
        pbar: tqdm[Any],
        update_interval: int = 100,
    ) -> None:
        self.after_step(pbar, {name: o.loss for name, o in step_outputs.items()})
