"""Several SAEs trained on the same activations, by SAELens's runner for that."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sae_lens
from sae_lens import (
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from typing_extensions import override

from sae_lens_hierarchical.training.checkpoint import whole_folder

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
    """
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
    """SAELens's runner, whose bar moves with every step and whose SAEs appear whole."""

    @override
    def run(self) -> dict[str, TrainingSAE[Any]]:
        """Train all SAEs; write each to its own folder in ``output_path``.

        Raises:
            KeyboardInterrupt: If a signal ended the run early; it says how to go on.
        """
        try:
            return super().run()
        except InterruptedException:
            kept = self.cfg.checkpoint_path
            where = "without a checkpoint" if kept is None else f"checkpoints: {kept}"
            raise KeyboardInterrupt(f"stopped early, {where}") from None

    @override
    def _run_with_interruption_handling(
        self, trainer: MultiSAETrainer
    ) -> dict[str, TrainingSAE[Any]]:
        every_step = functools.partial(trainer._update_pbar, update_interval=1)
        trainer._update_pbar = every_step  # type: ignore[method-assign]
        return super()._run_with_interruption_handling(trainer)

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
