"""The dead-latent loss of an SAE over processes: ``ops.auxiliary_loss``, in parts."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_lens_hierarchical.ops import encode_topk
from sae_lens_hierarchical.ops.auxiliary_loss import (
    auxiliary_k,
    reconstruction_error,
    select_latents,
)
from sae_lens_hierarchical.training.distributed.collectives import gather, global_topk
from sae_lens_hierarchical.training.distributed.mesh import Mesh

__all__ = ["auxiliary_loss_of_columns"]


def auxiliary_loss_of_columns(
    mesh: Mesh,
    x: Tensor,
    error: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor | None,
    W_dec: Tensor,
    dead: Tensor,
    *,
    d_sae: int,
    scale: Tensor | None = None,
    output_scale: Tensor | None = None,
) -> Tensor:
    """Return this process's part of ``ops.auxiliary_loss``, that of its columns.

    With n dead latents, at most m of them on one process, a process sends to each other
    one B · m activations if n ≤ d_in / 2, and else what ``global_topk`` sends of its
    B · min(m, d_in / 2) candidates; in backward the gradients of B · min(n, d_in / 2)
    activations are summed.

    Args:
        mesh: The processes.
        x: As in ``ops.auxiliary_loss``, [B, d_in], the same on all processes.
        error: The own columns, [B, columns].
        W_enc: Of the own features, [d_in, features].
        b_enc: Likewise, [features].
        b_dec: Whole, [d_in], to subtract from ``x``; None for none.
        W_dec: The own columns, [d_sae, columns].
        dead: The dead latents of all processes, [n], int64, ascending, at least one.
        d_sae: How many features the processes have together.
        scale: Of all features, [d_sae].
        output_scale: [B, 1].
    """
    k = auxiliary_k(x.shape[1])
    features = mesh.features(d_sae)
    ends = torch.tensor(mesh.sizes(d_sae), device=dead.device).cumsum(0)
    owner = torch.bucketize(dead, ends, right=True)
    counts = owner.bincount(minlength=mesh.size).tolist()
    first = sum(counts[: mesh.rank])
    own = dead[first : first + counts[mesh.rank]]
    weight, bias = select_latents(W_enc, b_enc, own - features.start)

    # Without dead latents a process has [B, 0] activations, with a gradient as others.
    encoder_in = x if b_dec is None else x - b_dec
    if len(dead) <= k:
        acts = gather(mesh, encoder_in @ weight + bias, counts, dim=1)
        indices = None
    else:
        factor = None if scale is None else scale[own]
        if len(own) <= k:
            # Also under autocast in the dtype of others' ``encode_topk``.
            values = torch.addmm(bias, encoder_in, weight)
            values = values if factor is None else values * factor.to(values.dtype)
            values, candidates = values.sort(dim=1, descending=True, stable=True)
        else:
            values, candidates = encode_topk(x, weight, bias, b_dec, k, scale=factor)
        widths = [min(k, count) for count in counts]
        acts, indices = global_topk(mesh, values, candidates + first, widths, k)
        if scale is not None:
            acts = acts / scale[dead][indices]
    rows = W_dec.index_select(0, dead)
    part = reconstruction_error(acts, indices, rows, error, output_scale)
    return min(len(dead) / k, 1.0) * part
