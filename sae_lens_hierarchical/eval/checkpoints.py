"""Sweeps over SAEs on disk, whose metadata name the model and the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lens import SAE, ActivationsStore, TopKSAE
from sae_lens.load_model import load_model
from torch import Tensor

from sae_lens_hierarchical.data import (
    BUNDLED_MODEL_NAME,
    load_bundled_model,
    load_bundled_text,
)
from sae_lens_hierarchical.eval.sweep import sweep
from sae_lens_hierarchical.eval.table import Curve
from sae_lens_hierarchical.saes import HierarchicalTopKSAE

__all__ = ["measure", "sweep_checkpoints"]


def sweep_checkpoints(
    checkpoints: Sequence[Path],
    ks: Sequence[int],
    *,
    dataset: str | None = None,
    contexts: int = 64,
    batch_size: int = 16,
    device: str = "cpu",
) -> dict[str, Curve]:
    """Measure SAEs at each k on the same text, with progress bars.

    Args:
        checkpoints: Folders of SAEs of SAELens that were trained on one model.
        ks: Strictly increasing numbers of features.
        dataset: A data set on the Hub or on disk, as SAELens takes it; default what the
            first SAE was trained on, or for the bundled model its held-out text.
        contexts: How many contexts to measure on.
        batch_size: Contexts in one forward pass of the model.
        device: Where to put the model and the SAEs.

    Returns:
        Each SAE's metrics by its folder's name, or its path where names clash.

    Raises:
        ValueError: If ``ks`` does not fit, or the SAEs say nothing of their model or
            have different ones.
    """
    paths = {path.resolve().name: path for path in checkpoints}
    if len(paths) < len(checkpoints):
        paths = {str(path): path for path in checkpoints}
    saes = {n: SAE.load_from_disk(path, device=device) for n, path in paths.items()}
    names = {name: sae.cfg.metadata.model_name for name, sae in saes.items()}
    if None in names.values() or len(set(names.values())) > 1:
        raise ValueError(f"the SAEs must name one model in their metadata, got {names}")
    first = next(iter(saes.values()))
    model = _load_model(first, device)
    bundled = first.cfg.metadata.model_name == BUNDLED_MODEL_NAME
    store = ActivationsStore.from_sae(
        model,
        first,
        load_bundled_text("held_out")
        if bundled and dataset is None
        else dataset or first.cfg.metadata.dataset_path,
        streaming=not bundled,
        device=device,
    )
    tokens = store.get_batch_tokens(contexts)
    return {
        name: measure(name, sae, model, tokens, ks, batch_size=batch_size)
        for name, sae in saes.items()
    }


def measure(
    name: str,
    sae: SAE[Any],
    model: Any,
    tokens: Tensor,
    ks: Sequence[int],
    *,
    batch_size: int = 16,
) -> Curve:
    """Return a SAE's curve, with a progress bar that names it; see ``sweep``."""
    progress = f"Measuring {name}"
    metrics = sweep(sae, model, tokens, ks, batch_size=batch_size, progress=progress)
    return Curve(_fixed_k(sae), metrics)


def _load_model(sae: SAE[Any], device: str) -> Any:
    metadata = sae.cfg.metadata
    if metadata.model_name == BUNDLED_MODEL_NAME:
        return load_bundled_model(device)
    return load_model(
        metadata.model_class_name or "HookedTransformer",
        metadata.model_name,
        device=device,
        model_from_pretrained_kwargs=metadata.model_from_pretrained_kwargs,
    )


def _fixed_k(sae: SAE[Any]) -> int | None:
    """Return the k that a SAE is meant for: for one without k, the mean l0 it had."""
    if isinstance(sae, HierarchicalTopKSAE):
        return None
    if isinstance(sae, TopKSAE):
        return sae.cfg.k
    return round(sae.cfg.metadata.get("l0", 0))
