"""The paper's comparison: many SAEs on the same activations, measured at every k."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import sae_lens
from datasets import Dataset
from sae_lens import ActivationsStore, HookedSAETransformer, TrainingSAE, logger
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from typing_extensions import override

from sae_lens_hierarchical.defaults import COMPARISON_CONTEXTS
from sae_lens_hierarchical.eval.folders import sweep_store
from sae_lens_hierarchical.eval.table import MetricsTable
from sae_lens_hierarchical.figures.write import remove_results
from sae_lens_hierarchical.files.atomic_directory import atomic_directory
from sae_lens_hierarchical.loading import load_saes, load_store
from sae_lens_hierarchical.saes import HierarchicalTopKTrainingSAEConfig
from sae_lens_hierarchical.saes.checks import check_size
from sae_lens_hierarchical.training.baselines import paper_comparison
from sae_lens_hierarchical.training.multi_sae import MultiSAERunner, multi_sae_config

__all__ = ["compare", "comparison_ks"]


def compare(
    cfg: sae_lens.LanguageModelSAERunnerConfig[Any],
    output: Path,
    *,
    contexts: int = COMPARISON_CONTEXTS,
    model: HookedSAETransformer | None = None,
    text: Dataset | None = None,
    held_out: Dataset | None = None,
    held_out_name: str | None = None,
    replace: bool = False,
) -> MetricsTable:
    """Train the paper's SAEs side by side, and measure each at many k up to 4 K.

    They are those of ``paper_comparison``; all see the same activations in the same
    order. They are measured on what follows in the text that they were trained on; if
    nothing does, on that text itself, with a warning.

    Args:
        cfg: How to train one HierarchicalTopK SAE; the others are trained alike.
        output: The folder to write: each SAE to ``saes/NAME``.
        contexts: How many contexts to measure on, where the text has as many.
        model: The language model; default the one that ``cfg`` names.
        text: What to train on; default what ``cfg`` names.
        held_out: What to measure on instead.
        held_out_name: What the table's provenance calls that.
        replace: Whether to remove the table, the figures and the other SAEs of an
            earlier comparison in ``output``, once the new SAEs are trained.

    Raises:
        ValueError: If ``cfg`` is not for a HierarchicalTopK SAE, or an argument does
            not fit.
        KeyboardInterrupt: If a signal ended the training early.
    """
    ours = cfg.sae
    if not isinstance(ours, HierarchicalTopKTrainingSAEConfig):
        raise ValueError(f"cfg must train a hierarchical_topk SAE, got {cfg.sae}")
    check_size("contexts", contexts)
    configs = paper_comparison(ours, cfg.total_training_steps)
    folder = output / "saes"
    runner = _Runner(multi_sae_config(cfg, configs, folder), text, model)
    if replace:
        runner.before_saving = partial(_remove_earlier, output, configs)
    runner.run()
    store, settings = runner.activations_store, runner.cfg.to_dict()
    del runner  # with the training SAEs, before the others take their place
    dataset = cfg.dataset_path if held_out is None else held_out_name
    if held_out is None and _read_to_its_end(store):
        logger.warning(
            "The text was read to its end in training: the SAEs are measured on text "
            "that they were trained on"
        )
        settings["measured_on"] = "text that was trained on"
        dataset = f"{dataset}, text that was trained on"
        held_out = cast("Dataset", store.dataset)
    saes = load_saes({name: folder / name for name in configs}, device=cfg.device)
    if held_out is not None:
        first = next(iter(saes.values()))
        store = load_store(store.model, first, held_out, device=cfg.device)
    ks = comparison_ks(ours)
    table = sweep_store(saes, store, ks, contexts=contexts, jumprelu=True)
    table.provenance["training"] = settings
    table.provenance["dataset"] = dataset
    return table


def comparison_ks(ours: HierarchicalTopKTrainingSAEConfig) -> list[int]:
    """Return the k to compare SAEs at: two an octave, up to 4 K."""
    widths = (n for i in range(ours.k.bit_length() + 2) for n in (2**i, 3 * 2**i))
    return sorted({n for n in widths if n <= min(4 * ours.k, ours.d_sae)} | {ours.k})


class _Runner(MultiSAERunner):
    """Does something more between the training and the saving."""

    before_saving: Callable[[], None] | None = None

    @override
    def _save_final_outputs(
        self, saes: dict[str, TrainingSAE[Any]], trainer: MultiSAETrainer
    ) -> None:
        if self.before_saving is not None:
            try:
                self.before_saving()
            except OSError as error:  # which is no reason to lose the SAEs
                logger.warning("Earlier results could not be removed: %s", error)
        super()._save_final_outputs(saes, trainer)


def _remove_earlier(output: Path, names: Collection[str]) -> None:
    """Remove a comparison's table and figures, and its SAEs of none of these names."""
    remove_results(output)
    saes = output / "saes"
    try:  # which SAEs the comparison trained: others there are not its own
        earlier = json.loads((saes / RUNNER_CFG_FILENAME).read_text("utf-8"))["saes"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    for folder in saes.iterdir():
        is_stale = folder.name in earlier and folder.name not in names
        if is_stale and folder.is_dir() and not folder.is_symlink():
            with atomic_directory(folder):
                pass  # nothing takes the place of the SAE; other files stay
            with suppress(OSError):  # there are some
                folder.rmdir()


def _read_to_its_end(store: ActivationsStore) -> bool:
    """Tell it of a text that says how long it is; those that are streamed are long."""
    text = store.dataset
    return isinstance(text, Dataset) and store.n_dataset_processed >= len(text)
