"""The dead-latent loss as SAELens has it, computed from the dead latents alone."""

from __future__ import annotations

from torch import Tensor

from sae_lens_hierarchical.ops.encode_topk import encode_topk
from sae_lens_hierarchical.ops.loss import hierarchical_loss

__all__ = [
    "auxiliary_k",
    "auxiliary_loss",
    "reconstruction_error",
    "select_latents",
]


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
    k = auxiliary_k(x.shape[1])
    weight, bias = select_latents(W_enc, b_enc, dead)
    indices = None
    if len(dead) <= k:
        acts = (x if b_dec is None else x - b_dec) @ weight + bias
    else:
        factor = None if scale is None else scale[dead]
        acts, indices = encode_topk(x, weight, bias, b_dec, k, scale=factor)
        if factor is not None:
            acts = acts / factor[indices]
    rows = W_dec.index_select(0, dead)
    error_left = reconstruction_error(acts, indices, rows, error, output_scale)
    return min(len(dead) / k, 1.0) * error_left


def auxiliary_k(d_in: int) -> int:
    """Return how many dead latents of a token reconstruct its error, if so many are."""
    return max(1, d_in // 2)


def select_latents(
    W_enc: Tensor, b_enc: Tensor, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the encoder and its bias of some latents, [d_in, n] and [n]."""
    # Rows of W_enc.T are contiguous in an SAE that stores it by feature.
    return W_enc.T.index_select(0, latents).T, b_enc[latents]


def reconstruction_error(
    acts: Tensor,
    indices: Tensor | None,
    rows: Tensor,
    error: Tensor,
    output_scale: Tensor | None,
) -> Tensor:
    """Return the mean over tokens of ‖error − reconstruction‖², summed over d_in.

    Args:
        acts: Activations, [B, n] of all rows, or [B, k] of those in ``indices``.
        indices: [B, k], int64; None for all rows.
        rows: What is decoded with, [n, d_in].
        error: [B, d_in]; no gradient flows to it.
        output_scale: Multiplies a token's reconstruction, [B, 1]; None for 1.
    """
    error = error.detach()
    if indices is not None:
        # The loss at one budget. On a GPU torch's embedding bag needs gigabytes for
        # the gradient of the rows, and older ones count its threads in 32 bits.
        acts = acts if output_scale is None else acts * output_scale
        no_bias = rows.new_zeros(rows.shape[1])
        k = indices.shape[1]
        loss, _ = hierarchical_loss(error, indices, acts, rows, no_bias, budgets=[k])
        return loss
    reconstruction = acts @ rows
    if output_scale is not None:
        reconstruction = reconstruction * output_scale
    return (reconstruction - error).pow(2).sum(dim=-1).mean()
