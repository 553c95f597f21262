"""Evaluates saved SAEs, whose metadata name the model and the dataset."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, ActivationsStore
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from sae_lens.load_model import HookedProxyLM
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_hierarchical.defaults import (
    CE_CONTEXTS,
    DEVICE,
    STORE_BATCH_SIZE,
    SWEEP_CONTEXTS,
)
from sae_lens_hierarchical.eval.inference_modes import check_kind
from sae_lens_hierarchical.eval.sweep import sweep
from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable
from sae_lens_hierarchical.files.checksum import file_sha256
from sae_lens_hierarchical.loading import (
    find_saes,
    load_model_and_dataset,
    load_saes,
    load_store,
)
from sae_lens_hierarchical.ops.budgets import check_ks
from sae_lens_hierarchical.saes.checks import check_size

__all__ = [
    "batches_of",
    "default_batch_size",
    "provenance",
    "sweep_checkpoints",
    "sweep_store",
]

_COUNTS = ("tokens", "ce_tokens", "excluded_tokens", "outlier_tokens", "max_norm")
_PACKAGES = ("sae-lens-hierarchical", "sae-lens", "transformer-lens", "torch")


def sweep_checkpoints(
    checkpoints: Sequence[str | Path],
    ks: Sequence[int],
    *,
    model_name: str | None = None,
    dataset: str | None = None,
    contexts: int = SWEEP_CONTEXTS,
    ce_contexts: int = CE_CONTEXTS,
    batch_size: int | None = None,
    jumprelu: bool = False,
    max_norm_ratio: float | None = None,
    device: str = DEVICE,
    trust_remote_code: bool = False,
) -> MetricsTable:
    """Evaluate saved SAEs at each k; see ``sweep_store``.

    Args:
        checkpoints: SAEs of SAELens that were trained on one model, as ``find_saes``
            takes them: folders, or ids on the Hub or of SAELens's releases.
        ks: Strictly increasing numbers of features.
        model_name: A model on the Hub or on disk; default the SAEs' own.
        dataset: A dataset on the Hub or on disk, as SAELens takes it; default what the
            first SAE was trained on, or for the bundled model its held-out dataset.
        contexts: As in ``sweep_store``; likewise the rest.
        ce_contexts: Likewise.
        batch_size: Likewise.
        jumprelu: Likewise.
        max_norm_ratio: Likewise.
        device: Where to put the model and the SAEs.
        trust_remote_code: Whether Python that lies with the model may run.

    Returns:
        The table, whose provenance says where each SAE is from.

    Raises:
        ValueError: If ``ks`` does not fit, an SAE cannot be found or loaded, the SAEs'
            metadata name no model or different ones, or it needs Python of its own.
    """
    sources = find_saes(checkpoints)
    saes = load_saes(sources, device, model_name)
    for sae in saes.values():
        check_ks("ks", ks, sae.cfg.d_sae)
        check_kind(sae)
    model, data, dataset_name = load_model_and_dataset(
        saes, dataset, device, trust_remote_code=trust_remote_code
    )
    store = load_store(model, next(iter(saes.values())), data, device=device)
    table = sweep_store(
        saes,
        store,
        ks,
        contexts=contexts,
        ce_contexts=ce_contexts,
        batch_size=batch_size,
        jumprelu=jumprelu,
        max_norm_ratio=max_norm_ratio,
    )
    table.provenance["dataset"] = dataset_name
    table.provenance["checkpoints"] = {
        name: source.provenance() | _sha256(source.place)
        for name, source in sources.items()
    }
    return table


def sweep_store(
    saes: Mapping[str, SAE[Any]],
    store: ActivationsStore,
    ks: Sequence[int],
    *,
    contexts: int = SWEEP_CONTEXTS,
    ce_contexts: int = CE_CONTEXTS,
    batch_size: int | None = None,
    jumprelu: bool = False,
    max_norm_ratio: float | None = None,
) -> MetricsTable:
    """Evaluate loaded SAEs at each k on a store's dataset; see ``sweep``.

    A progress bar is shown.

    Args:
        saes: SAEs by name.
        store: SAELens's store, which has the model and goes on from where it is in its
            dataset: after training, with tokens that were not trained on.
        ks: Strictly increasing numbers of features.
        contexts: How many contexts to evaluate on, where the dataset has as many.
        ce_contexts: On how many of them to run the model with the SAEs' outputs too.
        batch_size: Contexts in one forward pass of the model; default
            ``default_batch_size``.
        jumprelu: Whether to evaluate SAEs with one threshold as well.
        max_norm_ratio: As in ``sweep``.

    Returns:
        The table, whose provenance has versions, model and numbers of tokens.

    Raises:
        ValueError: As ``sweep`` does, or if a number of contexts does not fit.
    """
    check_size("contexts", contexts)
    if batch_size is None:
        batch_size = default_batch_size(store.model, store.context_size)
    check_size("batch_size", batch_size)
    if ce_contexts < 0:
        raise ValueError(f"ce_contexts must be at least 0, got {ce_contexts}")
    steps = math.ceil(contexts / batch_size) * len(saes)
    with tqdm(total=steps, desc=f"Evaluating {len(saes)} SAEs", leave=False) as bar:
        rows = sweep(
            saes,
            store.model,  # pyright: ignore[reportArgumentType]
            batches_of(store, contexts, batch_size),
            ks,
            ce_batches=math.ceil(ce_contexts / batch_size),
            jumprelu=jumprelu,
            max_norm_ratio=max_norm_ratio,
            progress=bar.update,
        )
    counts = {name: _one_or_by_sae(rows, name) for name in _COUNTS}
    return MetricsTable(rows, provenance(store, saes) | counts)


def default_batch_size(model: Any, context_size: int) -> int:
    """Return how many contexts to run in one forward pass of the model.

    That is ``defaults.STORE_BATCH_SIZE``, or as many as have 2 GiB of float32 logits; a
    run holds a few times as much.
    """
    if isinstance(model, HookedProxyLM):
        config: Any = model.model.config
        d_vocab = config.get_text_config().vocab_size
    else:
        d_vocab = model.cfg.d_vocab
    return max(1, min(STORE_BATCH_SIZE, 2**29 // (context_size * d_vocab)))


def batches_of(
    store: ActivationsStore, contexts: int, batch_size: int
) -> Iterator[Tensor]:
    """Yield up to so many contexts of a store, once each, [batch_size, context]."""
    sequences = itertools.islice(store.iterable_sequences, contexts)
    while batch := list(itertools.islice(sequences, batch_size)):
        yield torch.stack(batch).to(store.device)


def provenance(store: ActivationsStore, saes: Mapping[str, SAE[Any]]) -> dict[str, Any]:
    """Return what numbers about SAEs on a store come from: versions, model, hooks."""
    first = next(iter(saes.values()))
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in _PACKAGES},
        "device": _device_name(first.device),
        "model": first.cfg.metadata.model_name,
        "hooks": sorted({str(sae.cfg.metadata.hook_name) for sae in saes.values()}),
        "context_size": store.context_size,
        "sequence_separator_token": store.sequence_separator_token,
        "disable_concat_sequences": store.disable_concat_sequences,
    }


def _one_or_by_sae(rows: Sequence[BudgetMetrics], name: str) -> Any:
    """Return a count, by SAE where not all were evaluated on the same tokens."""
    counts = {row.sae: getattr(row, name) for row in rows}
    return counts if len(set(counts.values())) > 1 else getattr(rows[0], name)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _sha256(place: Path | tuple[str, str]) -> dict[str, str]:
    """Return the checksum of an SAE's weights; nothing of a release, which has many."""
    if not isinstance(place, Path):
        return {}
    return {"sha256": file_sha256(place / SAE_WEIGHTS_FILENAME)}
