"""The dead-latent loss as SAELens has it, computed from the dead latents alone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sae_lens_hierarchical.ops.encode_topk import encode_topk

__all__ = ["auxiliary_loss"]


def auxiliary_loss(
    x: Tensor,
    error: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor | None,
    W_dec: Tensor,
    dead: Tensor,
    *,
    scale: Tensor | None = None,
    output_scale: Tensor | None = None,
) -> Tensor:
    """Compute the dead-latent loss: dead latents reconstruct the SAE's error (AuxK).

    The d_in / 2 dead latents with the largest pre-activations of each token, or all if
    there are fewer, reconstruct ``error``. The fewer are dead, the less it counts.

    Args:
        x: The encoder's input before ``b_dec`` is subtracted, [B, d_in].
        error: x − x̂ in the units of the output, [B, d_in]; no gradient flows to it.
        W_enc: [d_in, d_sae].
        b_enc: [d_sae].
        b_dec: [d_in], to subtract from ``x``; None for none.
        W_dec: [d_sae, d_in].
        dead: The dead latents, [n], int64, at least one.
        scale: As in ``encode_topk``, [d_sae]: latents are chosen by the scaled
            pre-activations and decoded without the scale.
        output_scale: Multiplies a token's reconstruction, [B, 1]; None for 1.

    Returns:
        min(n / (d_in / 2), 1) · mean over tokens of ‖error − reconstruction‖², summed
        over d_in; a scalar.
    """
    half = max(1, x.shape[1] // 2)
    # Rows of W_enc.T are contiguous in an SAE that stores it by feature.
    weight, bias = W_enc.T.index_select(0, dead).T, b_enc[dead]
    rows = W_dec.index_select(0, dead)
    if len(dead) <= half:
        encoder_in = x if b_dec is None else x - b_dec
        reconstruction = (encoder_in @ weight + bias) @ rows
    else:
        factor = None if scale is None else scale[dead]
        values, indices = encode_topk(x, weight, bias, b_dec, half, scale=factor)
        if factor is not None:
            values = values / factor[indices]
        reconstruction = F.embedding_bag(
            indices, rows, mode="sum", per_sample_weights=values.to(rows.dtype)
        )
    if output_scale is not None:
        reconstruction = reconstruction * output_scale
    difference = reconstruction - error.detach()
    return min(len(dead) / half, 1.0) * difference.pow(2).sum(dim=-1).mean()
