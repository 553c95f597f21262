"""The language model and the dataset of a run, as SAELens's runners are given them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from sae_lens.config import HfDataset
from transformer_lens import HookedRootModule

from sae_lens_hierarchical.loading.false_warnings import without_false_warnings
from sae_lens_hierarchical.loading.models import bundled_if_named
from sae_lens_hierarchical.training.activations_store import reject_empty_dataset

__all__ = ["model_and_dataset"]


@contextmanager
def model_and_dataset(
    cfg: Any,
    override_model: HookedRootModule | None,
    override_dataset: HfDataset | None,
) -> Generator[tuple[Any, Any]]:
    """Yield what to override a run's model and dataset with while it is set up.

    Args:
        cfg: The run's config, for one SAE or several.
        override_model: What the user gave; None for the model that ``cfg`` names.
        override_dataset: Likewise.

    Raises:
        ValueError: If the dataset has no document.
    """
    model, dataset = bundled_if_named(cfg, override_model, override_dataset)
    with (
        reject_empty_dataset(dataset, cfg.dataset_path),
        without_false_warnings(
            model=override_model is None,
            dataset=override_dataset is None and dataset is not None,
        ),
    ):
        yield model, dataset
