"""JumpReLU thresholds from given activations, in one pass (paper B.5)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_hierarchical.saes.sae import HierarchicalTopKSAE

__all__ = ["calibrate_thresholds"]

# Positive float32 values sort like their bits. The sign is 0; of the other 31 bits
# these stay: all 8 of the exponent and 15 of the mantissa.
_DROPPED_BITS = 8
_BINS = 1 << (31 - _DROPPED_BITS)


@torch.no_grad()
def calibrate_thresholds(
    sae: HierarchicalTopKSAE,
    activations: Tensor | Iterable[Tensor],
    *,
    progress: bool = False,
) -> Tensor:
    """Set θ(k) for every k up to ``k_max`` from given activations, in one pass.

    θ(k) is the point that k features of a token exceed on average over all tokens. It
    is read from a histogram whose size, 64 MiB, does not grow with the tokens, and
    whose bins are 2⁻¹⁵ of a value wide: exact for bfloat16 activations, and to that
    width for float32. Where tokens have fewer than k positive features on average it
    is 0. An SAE in half precision computes other activations than the same one in
    float32: calibrate it in the dtype that it will be used in.

    Args:
        sae: The SAE; its ``thresholds`` are set.
        activations: The model's activations, [..., d_in], or an iterable of such.
        progress: Whether to show a progress bar.

    Returns:
        The thresholds, [k_max], float32.

    Raises:
        ValueError: If there are no activations, or some are NaN or infinite.
    """
    batches = [activations] if isinstance(activations, Tensor) else activations
    counts = torch.zeros(_BINS, dtype=torch.int64, device=sae.device)
    tokens = 0
    for batch in tqdm(batches, desc="Calibrating thresholds", disable=not progress):
        if not batch.isfinite().all():
            raise ValueError("activations must be finite, got NaN or infinity")
        acts = sae.hidden_pre(batch.to(sae.device)).relu().float()
        tokens += acts.shape[:-1].numel()
        bits = acts[acts > 0].view(torch.int32) >> _DROPPED_BITS
        counts += torch.bincount(bits, minlength=_BINS)
    if tokens == 0:
        raise ValueError("activations must hold at least one token, got none")

    at_or_above = counts.flip(0).cumsum(0).flip(0)  # a bin, and all above it
    wanted = torch.arange(1, sae.k_max + 1, device=sae.device) * tokens
    # The bins before this one have enough activations at or above them.
    first_too_high = torch.searchsorted(-at_or_above, -wanted, right=True)
    lower_edge = (first_too_high - 1).clamp(min=0).to(torch.int32) << _DROPPED_BITS
    # Just below the edge, since only what exceeds a threshold is active.
    thresholds = (lower_edge - 1).clamp(min=0).view(torch.float32)
    sae.thresholds.copy_(thresholds)
    return thresholds
