"""What an SAE of SAELens was before training ended, as far as that shows."""

from __future__ import annotations

from typing import Any

from sae_lens import SAE, JumpReLUSAE, TopKSAE

from sae_lens_hierarchical.saes.sae import HierarchicalTopKSAE

__all__ = ["is_batchtopk", "trained_k"]

_BATCHTOPK = ("batchtopk", "matryoshka_batchtopk")


def is_batchtopk(sae: SAE[Any]) -> bool:
    """Tell whether an SAE is a JumpReLU one with one threshold for all features.

    That is what BatchTopK and Matryoshka SAEs are saved as.
    """
    return type(sae) is JumpReLUSAE and bool((sae.threshold == sae.threshold[0]).all())


def trained_k(sae: SAE[Any]) -> int | None:
    """Return the k that an SAE was trained at, K for ours; None if it does not say."""
    if isinstance(sae, HierarchicalTopKSAE):
        return sae.k_max
    if isinstance(sae, TopKSAE):
        return sae.cfg.k
    metadata = sae.cfg.metadata
    if (
        metadata.trained_k is not None
        or metadata.training_architecture not in _BATCHTOPK
    ):
        return metadata.trained_k
    # SAELens notes there what a BatchTopK SAE was trained with: k may be a float.
    details = metadata.training_architecture_details
    k = details.get("k") if isinstance(details, dict) else None
    if isinstance(k, int | float) and k in range(1, sae.cfg.d_sae + 1):
        return int(k)
    return None
