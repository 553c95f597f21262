"""Several SAEs trained on the same activations, by SAELens's runner for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import sae_lens
import torch
from sae_lens import (
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.prefetch import PrefetchingIterator
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import override

from sae_lens_hierarchical.training.checkpoint import check_unfinished, whole_folder
from sae_lens_hierarchical.training.hook import check_hook
from sae_lens_hierarchical.training.signals import stopping_on_signals
from sae_lens_hierarchical.training.trainer import LiveTrainer

__all__ = ["SideBySideRunner", "side_by_side"]


def side_by_side(
    cfg: sae_lens.LanguageModelSAERunnerConfig[Any],
    saes: Mapping[str, TrainingSAEConfig],
    output: Path,
) -> MultiSAETrainingRunnerConfig:
    """Return the config that trains ``saes``, by name, as ``cfg`` would train one.

    Args:
        cfg: A config for one SAE; its own SAE is left out.
        saes: The SAEs' configs; the names are those of their folders.
        output: Where the folders of the trained SAEs go.

    Raises:
        ValueError: If ``cfg`` asks for what SAELens does for one SAE alone.
    """
    for name in ("compile_sae", "use_cached_activations", "from_pretrained_path"):
        if getattr(cfg, name):
            raise ValueError(f"{name} is for one SAE: several are trained without it")
    shared = {f.name for f in fields(MultiSAETrainingRunnerConfig) if f.init}
    settings = {f.name: getattr(cfg, f.name) for f in fields(cfg) if f.name in shared}
    settings["output_path"] = str(output)
    # SAELens holds all of these batches at once here, and 1,000 might not fit.
    settings["n_batches_for_norm_estimate"] = min(32, cfg.n_batches_for_norm_estimate)
    return MultiSAETrainingRunnerConfig(
        **settings,
        saes=saes,
        hook_names=cfg.hook_name,
        hook_head_indices=cfg.hook_head_index,
    )


class SideBySideRunner(MultiSAETrainingRunner):
    """SAELens's runner, with these differences.

    - A checkpoint appears whole or not at all, and so does each trained SAE.
    - SIGINT and SIGTERM end training after the step under way, with a checkpoint.
    - Hooks and ``d_in`` are checked against the model before training.
    - With ``prefetch_llm_batches`` a run can be resumed too.
    - The progress bar moves with every step.
    """

    @override
    def run(self) -> dict[str, TrainingSAE[Any]]:
        """Train the SAEs, write them to ``output_path`` and return them by name.

        Raises:
            ValueError: If a hook or ``d_in`` does not fit the model.
            TrainingInterrupted: If a signal ended the run early.
        """
        for name, sae in self.cfg.saes.items():
            hook_name = self.cfg.hook_names_per_sae[name]
            head = self.cfg.hook_head_indices_per_sae[name]
            check_hook(self.model, self.cfg, hook_name, head, sae.d_in)
            if self.cfg.resume_from_checkpoint is not None:
                checkpoint = Path(self.cfg.resume_from_checkpoint) / name
                check_unfinished(checkpoint, sae.normalize_activations)
        # SAELens would read ahead before it is at a checkpoint's place in the text.
        self._prefetch = self.cfg.prefetch_llm_batches
        self.cfg.prefetch_llm_batches = False
        return super().run()

    @override
    def _run_with_interruption_handling(
        self, trainer: MultiSAETrainer
    ) -> dict[str, TrainingSAE[Any]]:
        # SAELens's run names its trainer's class, and leaves no other place to change.
        trainer.__class__ = SideBySideTrainer
        live = cast("SideBySideTrainer", trainer)
        live.prepare()
        self.cfg.prefetch_llm_batches = self._prefetch
        with ExitStack() as stack:
            if self._prefetch:
                ahead = PrefetchingIterator(
                    trainer.data_provider, prefetch=int(self._prefetch)
                )
                stack.callback(ahead.close)
                trainer.data_provider = ahead
            stack.enter_context(stopping_on_signals(live))
            return trainer.fit()

    @override
    def _save_final_outputs(
        self, saes: dict[str, TrainingSAE[Any]], trainer: MultiSAETrainer
    ) -> None:
        output = Path(str(self.cfg.output_path))
        output.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=output) as staging:
            self.cfg.output_path = staging
            try:
                super()._save_final_outputs(saes, trainer)
            finally:
                self.cfg.output_path = str(output)
            for name in saes:
                with whole_folder(output / name) as folder:
                    for file in Path(staging, name).iterdir():
                        file.replace(folder / file.name)
            Path(staging, RUNNER_CFG_FILENAME).replace(output / RUNNER_CFG_FILENAME)


class SideBySideTrainer(LiveTrainer, MultiSAETrainer):
    """Trains several SAEs, with a live bar and whole checkpoints."""

    def prepare(self) -> None:
        """Set the steps of a resumed run right, and let outputs of steps be small."""
        self.after_loading()
        for trainer in self.trainers.values():
            trainer.n_training_steps = self.n_training_steps
            trainer.step = partial(self._small_step, trainer.step)

    def _small_step(
        self, step: Callable[[Tensor], TrainStepOutput], batch: Tensor
    ) -> TrainStepOutput:
        output = step(batch)
        # SAELens holds the outputs of all SAEs at once, [batch, d_sae] each.
        output.hidden_pre = batch.new_empty(0)
        if not self._is_logging_step():
            output.feature_acts, output.metrics = batch.new_empty(0), {}
        return output

    @override
    def save_checkpoint(
        self, checkpoint_name: str, wandb_aliases: list[str] | None = None
    ) -> None:
        if self.cfg.checkpoint_path is None:
            super().save_checkpoint(checkpoint_name, wandb_aliases)
            return
        checkpoint = Path(self.cfg.checkpoint_path) / checkpoint_name
        with whole_folder(checkpoint) as staging:
            super().save_checkpoint(staging.name, wandb_aliases)

    @override
    @torch.no_grad()
    def _update_pbar(
        self,
        step_outputs: dict[str, TrainStepOutput],
        pbar: tqdm,
        update_interval: int = 100,
    ) -> None:
        self.after_step(pbar, {name: o.loss for name, o in step_outputs.items()})
