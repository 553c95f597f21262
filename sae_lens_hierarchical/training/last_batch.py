"""What a trained SAE does with one more batch: a first look, not a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from sae_lens_hierarchical.saes import HierarchicalTopKTrainingSAE

__all__ = ["explained_variance_by_k"]

_METRIC = "explained_variance_k"


@torch.no_grad()
def explained_variance_by_k(
    sae: TrainingSAE[Any], batches: Iterator[Tensor]
) -> dict[int, float]:
    """Return the explained variance of the next batch at a handful of k.

    The SAE stays as it is.

    Args:
        sae: What a run returned.
        batches: Activations, [batch, d_in] each.

    Returns:
        By k; empty for an SAE of another architecture, or if there is no batch left.
    """
    batch = next(batches, None)
    if batch is None or not isinstance(sae, HierarchicalTopKTrainingSAE):
        return {}
    step = TrainStepInput(
        sae_in=batch.to(sae.device),
        coefficients={},
        dead_neuron_mask=None,
        n_training_steps=1,  # the first, 0, may set b_dec
        is_logging_step=True,
    )
    thresholds = sae.thresholds.clone()  # which every training step moves
    try:
        metrics: dict[str, Any] = sae.training_forward_pass(step).metrics
    finally:
        sae.thresholds.copy_(thresholds)
    return {
        int(name.removeprefix(_METRIC)): float(value)
        for name, value in metrics.items()
        if name.startswith(_METRIC)
    }
