"""Features of a saved SAE, whose metadata name the model and the dataset."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_hierarchical.defaults import (
    DEVICE,
    SEED,
    SWEEP_CONTEXTS,
    TOP_FEATURES,
)
from sae_lens_hierarchical.eval.folders import (
    batches_of,
    default_batch_size,
    provenance,
)
from sae_lens_hierarchical.features.collect import (
    check_features,
    collect_features,
    random_features,
)
from sae_lens_hierarchical.features.ranked_batches import with_ranks
from sae_lens_hierarchical.features.table import FeatureTable
from sae_lens_hierarchical.loading import (
    find_saes,
    load_model_and_dataset,
    load_saes,
    load_store,
)
from sae_lens_hierarchical.saes.checks import check_size

__all__ = ["features_of_checkpoint"]


def features_of_checkpoint(
    checkpoint: str | Path,
    features: Sequence[int] | None = None,
    *,
    top: int = TOP_FEATURES,
    random: int | None = None,
    seed: int = SEED,
    model_name: str | None = None,
    dataset: str | None = None,
    contexts: int = SWEEP_CONTEXTS,
    device: str = DEVICE,
    trust_remote_code: bool = False,
) -> FeatureTable:
    """Measure features of a saved SAE; see ``collect_features``.

    A progress bar is shown.

    Args:
        checkpoint: A HierarchicalTopK or TopK SAE, as ``find_saes`` takes it.
        features: Which features; default the ``top`` ones, or ``random`` ones.
        top: As in ``collect_features``.
        random: How many features to choose, each as likely as any other.
        seed: Fixes which these are.
        model_name: A model on the Hub or on disk; default the SAE's own.
        dataset: A dataset on the Hub or on disk, as SAELens takes it; default what the
            SAE was trained on, or for the bundled model its held-out dataset.
        contexts: How many contexts to read, where the dataset has as many.
        device: Where to put the model and the SAE.
        trust_remote_code: Whether Python that lies with the model may run.

    Raises:
        ValueError: As ``collect_features`` does, or if the SAE cannot be loaded.
    """
    check_size("contexts", contexts)
    (name,) = sources = find_saes([checkpoint])
    saes = load_saes(sources, device, model_name)
    sae = with_ranks(name, saes[name])
    if random is not None:
        features = random_features(sae.cfg.d_sae, random, seed)
    check_features(features, top, sae.cfg.d_sae)
    model, data, dataset_name = load_model_and_dataset(
        saes, dataset, device, trust_remote_code=trust_remote_code
    )
    store = load_store(model, sae, data, device=device)
    batch_size = default_batch_size(model, store.context_size)
    read: list[int] = []
    batches = tqdm(
        _counted(batches_of(store, contexts, batch_size), read),
        desc="Reading contexts",
        total=math.ceil(contexts / batch_size),
        leave=False,
    )
    table = collect_features(saes[name], model, batches, features, top=top, name=name)
    seeded = f"{random} of all at random, seed {seed}"
    return replace(
        table,
        chosen=table.chosen if random is None else seeded,
        provenance=provenance(store, saes)
        | {
            "dataset": dataset_name,
            "contexts": sum(read),  # the dataset may have fewer than were asked for
            "checkpoint": sources[name].provenance(),
        },
    )


def _counted(batches: Iterable[Tensor], sizes: list[int]) -> Iterator[Tensor]:
    """Yield batches, and note how many contexts each has in ``sizes``."""
    for batch in batches:
        sizes.append(len(batch))
        yield batch
