"""SAELens's training runner, which resumes exactly after being killed."""

from __future__ import annotations

from collections.abc import Callable, Generator
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

from sae_lens_hierarchical.files.atomic_directory import atomic_directory
from sae_lens_hierarchical.loading.false_warnings import without_false_warnings
from sae_lens_hierarchical.loading.models import (
    load_untrusted_model,
    no_remote_code_prompt,
)
from sae_lens_hierarchical.training.activations_store import (
    ResumableActivationsStore,
    TrackedPrefetch,
)
from sae_lens_hierarchical.training.checkpoint import (
    Checkpoint,
    check_unfinished,
    find_checkpoint,
    read_runner_cfg,
)
from sae_lens_hierarchical.training.config import (
    LanguageModelSAERunnerConfig,
    check_new_run,
    check_trainable,
)
from sae_lens_hierarchical.training.fine_tuning import sae_from_pretrained
from sae_lens_hierarchical.training.hook import check_hook
from sae_lens_hierarchical.training.metrics_log import (
    MetricsLog,
    check_can_log,
    open_metrics_log,
)
from sae_lens_hierarchical.training.precision import (
    matmul_precision,
)
from sae_lens_hierarchical.training.resume import (
    check_model_kwargs,
    checkpoint_to_resume,
    is_where_it_was_written,
    make_paths_absolute,
)
from sae_lens_hierarchical.training.run_data import model_and_dataset
from sae_lens_hierarchical.training.run_folders import reserve_folders
from sae_lens_hierarchical.training.saving import save_with_fallback
from sae_lens_hierarchical.training.signals import stopping_on_signals
from sae_lens_hierarchical.training.trainer import ResumableSAETrainer

__all__ = ["LanguageModelSAETrainingRunner"]


class LanguageModelSAETrainingRunner(sae_lens.LanguageModelSAETrainingRunner):
    """Trains an SAE of any architecture: SAELens's runner, with these differences.

    - A checkpoint appears whole or not at all, and so does the trained SAE. Where they
      go is found fit to be written at once, and is this run's alone while it runs.
    - A resumed run equals an uninterrupted one, bit for bit on one machine (on a GPU
      only with deterministic algorithms), and goes on in the same run of W&B. A damaged
      checkpoint or another run's is refused.
    - With ``from_pretrained_path`` the SAE's fields are those asked for.
    - ``seed`` fixes torch's random numbers from here on.
    - SIGINT and SIGTERM end training after the step under way, with a checkpoint (a
      second one at once, without). So does a loss that is not finite, without.
    - ``hook_name`` and ``d_in`` are checked against the model before training.
    - The progress bar moves with every step.

    Raises:
        ValueError: If ``hook_name``, ``d_in``, the dataset, a folder,
            ``from_pretrained_path`` or ``resume_from_checkpoint`` does not fit, naming
            it and what is allowed.
    """

    _trainer_class: type[ResumableSAETrainer] = ResumableSAETrainer
    # Holds back the prefetching thread, where there is one.
    _pause_prefetching: Callable[[], AbstractContextManager[None]] = nullcontext

    def __init__(
        self,
        cfg: sae_lens.LanguageModelSAERunnerConfig[Any],
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        override_sae: TrainingSAE[Any] | None = None,
    ) -> None:
        self.cfg = cfg
        check_trainable("sae", cfg.sae)
        if cfg.resume_from_checkpoint is None:
            check_new_run(cfg)
        make_paths_absolute(cfg)
        check_can_log(cfg)
        self._checkpoint = self._find_checkpoint()
        with self._reserve_folders():
            pass  # they can be written: the run itself holds them
        torch.manual_seed(cfg.seed)
        sae = self._make_sae(override_sae)
        self._load(override_dataset, override_model, sae)
        self.activations_store = self._make_store()

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path,
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        *,
        output: str | Path | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """Return a runner that goes on with the run that wrote ``checkpoint``.

        Args:
            checkpoint: A checkpoint's folder, or one with one run's checkpoints in it,
                of which the one with the most trained samples is taken.
            override_dataset: What the run was given, if it was given one.
            override_model: Likewise.
            output: Where the SAE goes, in place of where the run says. A checkpoint
                that is not where its run wrote it, as after a download, needs it; new
                checkpoints then go to its sub-folder ``checkpoints``, and nothing to
                W&B.
            trust_remote_code: Let the model's and the dataset's own code run, if the
                run's config says so.

        Raises:
            ValueError: If there is no whole checkpoint, it is not where it was written
                and ``output`` is None, or its config would run code.
        """
        folder = find_checkpoint(checkpoint)
        source, fields = folder / RUNNER_CFG_FILENAME, read_runner_cfg(folder)
        check_model_kwargs(
            source, fields.get("model_from_pretrained_kwargs"), trust_remote_code
        )
        if "sae" not in fields:
            raise ValueError(
                f"{folder} is of several SAEs: set it as resume_from_checkpoint in the "
                "config of a MultiSAERunner"
            )
        in_place = is_where_it_was_written(folder, fields)
        if output is None and not in_place:
            raise ValueError(
                f"{folder} is not where its run wrote it, "
                f"{fields.get('checkpoint_path')}: say where to write with "
                "output=FOLDER (--output FOLDER)"
            )
        try:
            cfg = LanguageModelSAERunnerConfig.from_dict(fields)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{source} is no config of one SAE: {error}") from error
        cfg.resume_from_checkpoint = str(folder)
        if output is not None:
            cfg.output_path = str(output)
        if not in_place:
            cfg.checkpoint_path = str(Path(str(output)) / "checkpoints")
            cfg.logger.log_to_wandb = False
        return cls.of_untrusted(
            cfg,
            override_dataset,
            override_model,
            trust_remote_code=trust_remote_code,
        )

    @classmethod
    def of_untrusted(
        cls,
        cfg: sae_lens.LanguageModelSAERunnerConfig[Any],
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        *,
        trust_remote_code: bool = False,
    ) -> Self:
        """Return the runner of a config that somebody else wrote, which runs no code.

        Args:
            cfg: The config, after ``check_model_kwargs``.
            override_dataset: A dataset to take instead of the one that it names.
            override_model: Likewise.
            trust_remote_code: Let the model's and the dataset's own code run after all.

        Raises:
            ValueError: If the model needs code of its own, and may not run it, or may
                not be loaded as the config asks.
        """
        if trust_remote_code:
            return cls(cfg, override_dataset, override_model)
        cfg.dataset_trust_remote_code = False
        by_name = override_model is None
        if by_name and not cfg.use_cached_activations:
            override_model = load_untrusted_model(cfg)
        with (
            no_remote_code_prompt(),
            without_false_warnings(model=by_name, dataset=False),
        ):
            return cls(cfg, override_dataset, override_model)

    @override
    def run(self) -> TrainingSAE[Any]:
        """Train, write the SAE to ``output_path`` and return it.

        Raises:
            ValueError: If another run writes to one of this one's folders.
            TrainingInterrupted: If a signal ended the run early.
            TrainingDivergedError: If a loss or a weight became NaN or infinite.
            OSError: If something could not be written, naming what is whole and where.
        """
        with self._reserve_folders(), matmul_precision(self.cfg):
            return self._run()

    def make_trainer(self) -> ResumableSAETrainer:
        """Return the trainer of the run, which has to be prepared."""
        return self._trainer_class(
            cfg=self.cfg.to_sae_trainer_config(),
            sae=self.sae,
            data_provider=self.activations_store,
            evaluator=self.evaluator,
            save_checkpoint_fn=self.save_checkpoint,
        )

    def _run(self) -> TrainingSAE[Any]:
        self._set_sae_metadata()
        self._start_wandb()
        trainer = self.make_trainer()
        if self._checkpoint is not None:
            folder = self._checkpoint.folder
            logger.info(f"Resuming from {folder}")
            self._restore(trainer, folder)
        trainer.prepare(self._checkpoint)
        store = cast("ResumableActivationsStore", self.activations_store)
        self.sae.cfg.metadata.max_norm = store.max_norms().get(self.cfg.hook_name)
        self._compile_sae_if_needed()
        with (
            self._open_metrics_log(trainer.n_training_steps) as trainer.metrics_log,
            self._prefetching(trainer),
            stopping_on_signals(trainer),
        ):
            sae = trainer.fit()
        store.report_outliers()
        trainer.check_finite()
        if self.cfg.output_path is not None:
            self.save_final_sae(sae, self.cfg.output_path, trainer.log_feature_sparsity)
        if self.cfg.logger.log_to_wandb:
            wandb.finish()
        return sae

    # A runner over several processes gives these another meaning.

    def _find_checkpoint(self) -> Checkpoint | None:
        """Find and check the checkpoint to resume from; None for a new run."""
        checkpoint = checkpoint_to_resume(self.cfg)
        if checkpoint is not None:
            normalization = self.cfg.sae.normalize_activations
            check_unfinished(checkpoint.folder, normalization)
        return checkpoint

    def _reserve_folders(self) -> AbstractContextManager[None]:
        return reserve_folders(self.cfg)

    def _make_sae(self, override_sae: TrainingSAE[Any] | None) -> Any:
        """Return the SAE to train; None for a new one, which SAELens makes."""
        cfg = self.cfg
        if override_sae is not None or cfg.from_pretrained_path is None:
            return override_sae
        if self._checkpoint is not None:  # whose weights they will be
            return TrainingSAE.from_dict(cfg.get_training_sae_cfg_dict())
        return sae_from_pretrained(cfg.sae, cfg.from_pretrained_path, cfg.device)

    def _load(
        self,
        override_dataset: HfDataset | None,
        override_model: HookedRootModule | None,
        override_sae: TrainingSAE[Any] | None,
    ) -> None:
        """Load model and dataset, and check that they fit."""
        cfg = self.cfg
        given = model_and_dataset(cfg, override_model, override_dataset)
        with given as (model, dataset):
            super().__init__(cfg, dataset, model, override_sae)
        if not cfg.use_cached_activations:
            check_hook(
                self.model, cfg, cfg.hook_name, cfg.hook_head_index, cfg.sae.d_in
            )

    def _make_store(self) -> ResumableActivationsStore:
        return ResumableActivationsStore.convert(
            self.activations_store, getattr(self.cfg, "max_norm_ratio", None)
        )

    def _restore(self, trainer: ResumableSAETrainer, checkpoint: Path) -> None:
        trainer.load_trainer_state(checkpoint)
        self.sae.load_weights_from_checkpoint(checkpoint)
        self.activations_store.load_from_checkpoint(checkpoint)

    def _start_wandb(self) -> None:
        log = self.cfg.logger
        if not log.log_to_wandb:
            return
        run = wandb.init(
            project=log.wandb_project,
            entity=log.wandb_entity,
            config=self.cfg.to_dict(),
            name=log.run_name,
            id=log.wandb_id,
            resume="allow",
        )
        log.wandb_id = run.id  # a resumed run goes on in it

    def _open_metrics_log(self, step: int) -> AbstractContextManager[MetricsLog | None]:
        return open_metrics_log(self.cfg, step)

    @contextmanager
    def _prefetching(self, trainer: ResumableSAETrainer) -> Generator[None]:
        size = int(self.cfg.prefetch_llm_batches)
        if not size:
            yield
            return
        store = cast("ResumableActivationsStore", self.activations_store)
        prefetch = TrackedPrefetch(store, size)
        trainer.data_provider = prefetch
        self._pause_prefetching = prefetch.paused
        try:
            yield
        finally:
            self._pause_prefetching = nullcontext
            prefetch.close()

    @override
    def save_checkpoint(self, checkpoint_path: Path | None) -> None:
        with self._pause_prefetching():
            super().save_checkpoint(checkpoint_path)

    @override
    def save_final_sae(
        self,
        sae: TrainingSAE[Any],
        output_path: str,
        log_feature_sparsity: Tensor | None = None,
    ) -> None:
        save = super().save_final_sae
        with atomic_directory(Path(output_path)) as staging:
            save_with_fallback(
                lambda folder: save(sae, str(folder), log_feature_sparsity), staging
            )
