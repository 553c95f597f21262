"""Sweeps over SAEs on disk, whose metadata name the model and the text."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import SAE, ActivationsStore
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from sae_lens.load_model import load_model
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_hierarchical.data import (
    BUNDLED_MODEL_NAME,
    load_bundled_model,
    load_bundled_text,
)
from sae_lens_hierarchical.eval.model_run import contexts_at_once
from sae_lens_hierarchical.eval.sweep import sweep
from sae_lens_hierarchical.eval.table import MetricsTable
from sae_lens_hierarchical.ops.budgets import check_ks
from sae_lens_hierarchical.saes.checks import check_size
from sae_lens_hierarchical.saes.loading import load_sae

__all__ = [
    "load_model_and_text",
    "load_saes",
    "name_checkpoints",
    "sweep_checkpoints",
    "sweep_store",
]

_PACKAGES = ("sae-lens-hierarchical", "sae-lens", "transformer-lens", "torch")


def name_checkpoints(checkpoints: Sequence[Path]) -> dict[str, Path]:
    """Return checkpoints by their folders' names, or by paths where names clash."""
    paths = {path.resolve().name: path for path in checkpoints}
    if len(paths) < len(checkpoints):
        paths = {str(path): path for path in checkpoints}
    return paths


def load_saes(
    checkpoints: Mapping[str, Path], device: str = "cpu", model_name: str | None = None
) -> dict[str, SAE[Any]]:
    """Load SAEs that are to be compared, by name.

    Args:
        checkpoints: Their folders.
        device: Where to put them.
        model_name: Their model; default the one that their metadata name.

    Raises:
        ValueError: If they say nothing of their model, or have different ones.
    """
    saes = {name: load_sae(path, device) for name, path in checkpoints.items()}
    if model_name is not None:
        for sae in saes.values():
            sae.cfg.metadata.model_name = model_name
    names = {name: sae.cfg.metadata.model_name for name, sae in saes.items()}
    if None in names.values() or len(set(names.values())) > 1:
        raise ValueError(f"the SAEs must name one model in their metadata, got {names}")
    return saes


def load_model_and_text(
    saes: Mapping[str, SAE[Any]], dataset: str | None, device: str
) -> tuple[Any, str | Dataset, str]:
    """Load what SAEs of one model are measured on.

    Args:
        saes: The SAEs; their model may be a folder.
        dataset: A data set on the Hub or on disk, as SAELens takes it; default what the
            first SAE was trained on, or for the bundled model its held-out text.
        device: Where to put the model.

    Returns:
        The model, the text, and what to call the text.
    """
    metadata = next(iter(saes.values())).cfg.metadata
    model_class = metadata.model_class_name or "HookedTransformer"
    text = dataset or metadata.dataset_path
    if metadata.model_name == BUNDLED_MODEL_NAME:
        model = load_bundled_model(device)
        if dataset is None:
            return model, load_bundled_text("held_out"), "bundled, held out"
    elif Path(metadata.model_name).is_dir() and model_class == "HookedTransformer":
        # HookedTransformer knows models by their names on the Hub alone.
        model = SAETransformerBridge.boot_transformers(
            metadata.model_name, device=device
        )
        model.enable_compatibility_mode(no_processing=True)
    else:
        model = load_model(
            model_class,
            metadata.model_name,
            device=device,
            model_from_pretrained_kwargs=metadata.model_from_pretrained_kwargs,
        )
    return model, text, text


def sweep_checkpoints(
    checkpoints: Sequence[Path],
    ks: Sequence[int],
    *,
    dataset: str | None = None,
    contexts: int = 256,
    ce_contexts: int = 64,
    batch_size: int | None = None,
    jumprelu: bool = False,
    device: str = "cpu",
) -> MetricsTable:
    """Measure SAEs on disk, whose metadata name the model; see ``sweep_store``.

    Args:
        checkpoints: Folders of SAEs of SAELens that were trained on one model.
        ks: Strictly increasing numbers of features.
        dataset: A data set on the Hub or on disk, as SAELens takes it; default what the
            first SAE was trained on, or for the bundled model its held-out text.
        contexts: As in ``sweep_store``; likewise the rest.
        ce_contexts: Likewise.
        batch_size: Likewise.
        jumprelu: Likewise.
        device: Where to put the model and the SAEs.

    Returns:
        The table. SAEs are called by their folders' names, or paths where names clash.

    Raises:
        ValueError: If ``ks`` does not fit, or the SAEs say nothing of their model or
            have different ones.
    """
    paths = name_checkpoints(checkpoints)
    saes = load_saes(paths, device)
    for sae in saes.values():
        check_ks("ks", ks, sae.cfg.d_sae)
    model, text, text_name = load_model_and_text(saes, dataset, device)
    first = next(iter(saes.values()))
    streaming = isinstance(text, str)
    store = ActivationsStore.from_sae(
        model, first, text, streaming=streaming, device=device
    )
    table = sweep_store(
        saes,
        store,
        ks,
        contexts=contexts,
        ce_contexts=ce_contexts,
        batch_size=batch_size,
        jumprelu=jumprelu,
    )
    table.provenance["text"] = text_name
    table.provenance["checkpoints"] = {
        name: {"path": str(path.resolve()), "sha256": _sha256(path)}
        for name, path in paths.items()
    }
    return table


def sweep_store(
    saes: Mapping[str, SAE[Any]],
    store: ActivationsStore,
    ks: Sequence[int],
    *,
    contexts: int = 256,
    ce_contexts: int = 64,
    batch_size: int | None = None,
    jumprelu: bool = False,
) -> MetricsTable:
    """Measure loaded SAEs at each k on one text, with a progress bar; see ``sweep``.

    Args:
        saes: By name.
        store: SAELens's store, which has the model and goes on from where it is in its
            text: after training, with text that was not trained on.
        ks: Strictly increasing numbers of features.
        contexts: How many contexts to measure on, where the text has as many.
        ce_contexts: On how many of them to run the model with the SAEs' outputs too.
        batch_size: Contexts in one forward pass of the model; default
            ``contexts_at_once``.
        jumprelu: Whether to read SAEs by a threshold as well.

    Returns:
        The table, which knows the versions, the model and how much was measured.

    Raises:
        ValueError: As ``sweep`` does, or if a number of contexts does not fit.
    """
    check_size("contexts", contexts)
    if batch_size is None:
        batch_size = contexts_at_once(store.model, store.context_size)
    check_size("batch_size", batch_size)
    if ce_contexts < 0:
        raise ValueError(f"ce_contexts must be at least 0, got {ce_contexts}")
    steps = math.ceil(contexts / batch_size) * len(saes)
    with tqdm(total=steps, desc=f"Measuring {len(saes)} SAEs", leave=False) as bar:
        rows = sweep(
            saes,
            store.model,  # type: ignore[arg-type]
            _batches(store, contexts, batch_size),
            ks,
            ce_batches=math.ceil(ce_contexts / batch_size),
            jumprelu=jumprelu,
            progress=bar.update,
        )
    first = next(iter(saes.values()))
    provenance = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in _PACKAGES},
        "device": _device_name(first.device),
        "model": first.cfg.metadata.model_name,
        "hooks": sorted({str(sae.cfg.metadata.hook_name) for sae in saes.values()}),
        "context_size": store.context_size,
        "tokens": rows[0].tokens,
        "ce_tokens": rows[0].ce_tokens,
    }
    return MetricsTable(rows, provenance)


def _batches(
    store: ActivationsStore, contexts: int, batch_size: int
) -> Iterator[Tensor]:
    """Yield up to so many contexts of a text, once each, [batch_size, context]."""
    sequences = itertools.islice(store.iterable_sequences, contexts)
    while batch := list(itertools.islice(sequences, batch_size)):
        yield torch.stack(batch).to(store.device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _sha256(checkpoint: Path) -> str:
    digest = hashlib.sha256()
    with (checkpoint / SAE_WEIGHTS_FILENAME).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
