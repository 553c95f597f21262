"""Encoder and top-k in one operator: forward in chunks of tokens, backward sparse.

With the active pairs (token b, feature f) and g the gradient of a pair's value,

    ∂/∂W_enc[:, f] = Σ_b g · (x_b − b_dec),   ∂/∂b_enc[f] = Σ_b g,
    ∂/∂b_dec = −W_enc · ∂/∂b_enc,             ∂/∂x_b = Σ_f g · W_enc[:, f].

No tensor [B, d_sae] is kept, and no product of that size is made in backward: B·k pairs
are all that it needs. Both directions are opaque operators to ``torch.compile``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_lens_hierarchical.ops.operator_tags import NO_CUDA_GRAPH
from sae_lens_hierarchical.ops.topk import stable_topk

__all__ = ["encode_topk", "encode_topk_with_sample"]

# A chunk has at least so many tokens, for the matrix product's sake, or as many as have
# so many pre-activations.
_CHUNK_TOKENS = {"cpu": 256, "cuda": 1024}
_CHUNK_ENTRIES = {"cpu": 1 << 22, "cuda": 1 << 27}


def encode_topk(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor | None,
    k: int,
    *,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return each token's ``k`` largest pre-activations and their features.

    The pre-activations are ((x − b_dec) W_enc + b_enc) · scale, [B, d_sae], of which
    only a chunk of tokens exists at a time. There are gradients for all arguments, each
    where asked for, but no second derivatives. Under autocast the product is in its
    dtype.

    Args:
        x: Activations, [B, d_in], floating point.
        W_enc: The encoder, [d_in, d_sae].
        b_enc: Its bias, [d_sae].
        b_dec: The decoder's bias, [d_in], to subtract from the input; None for none.
        k: How many features, from 1 to d_sae.
        scale: Multiplies each feature's pre-activation, [d_sae], such as the decoder
            rows' norms; None for 1.

    Returns:
        The pre-activations before ReLU, [B, k], largest first, and their features,
        [B, k], int64. Of equal ones the lower index comes first.
    """
    values, indices, _ = encode_topk_with_sample(x, W_enc, b_enc, b_dec, k, 0, scale)
    return values, indices


def encode_topk_with_sample(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor | None,
    k: int,
    sample: int,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``encode_topk``, and return all pre-activations of the first tokens too.

    Args:
        x: As in ``encode_topk``; likewise the rest.
        W_enc: Likewise.
        b_enc: Likewise.
        b_dec: Likewise.
        k: Likewise.
        sample: Of how many tokens; B at most are given.
        scale: Likewise.

    Returns:
        Also [min(sample, B), d_sae], detached.
    """
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else W_enc.dtype
    values, indices, first = _forward(
        x, W_enc, b_enc, b_dec, scale, k, min(sample, len(x)), dtype
    )
    return values, indices, first.detach()


@torch.library.custom_op(
    "sae_lens_hierarchical::encode_topk", mutates_args=(), **NO_CUDA_GRAPH
)
def _forward(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor | None,
    scale: Tensor | None,
    k: int,
    sample: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias = W_enc.to(dtype), b_enc.to(dtype)
    factor = None if scale is None else scale.to(dtype)
    encoder_in = _encoder_in(x, b_dec).to(dtype)
    values = encoder_in.new_empty(len(x), k)
    indices = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    first = encoder_in.new_empty(sample, W_enc.shape[1])
    tokens = min(len(x), _tokens_at_once(W_enc.shape[1], x.device.type))
    # One for all chunks: fresh memory costs a CPU as much as the top-k does.
    buffer = encoder_in.new_empty(tokens, W_enc.shape[1])
    start = 0
    for part in encoder_in.split(tokens):
        hidden_pre = torch.addmm(bias, part, weight, out=buffer[: len(part)])
        if factor is not None:
            hidden_pre *= factor
        end = start + len(part)
        values[start:end], indices[start:end] = stable_topk(hidden_pre, k)
        if start < sample:
            first[start:end] = hidden_pre[: sample - start]
        start = end
    return values, indices, first


@_forward.register_fake
def _(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor | None,
    scale: Tensor | None,
    k: int,
    sample: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(len(x), k, dtype=dtype),
        x.new_empty(len(x), k, dtype=torch.int64),
        x.new_empty(sample, W_enc.shape[1], dtype=dtype),
    )


@torch.library.custom_op(
    "sae_lens_hierarchical::encode_topk_backward", mutates_args=(), **NO_CUDA_GRAPH
)
def _backward(
    grad_values: Tensor,
    values: Tensor,
    indices: Tensor,
    x: Tensor,
    W_enc: Tensor,
    b_dec: Tensor | None,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of W_enc (as [d_sae, d_in]), b_enc and scale."""
    d_sae = W_enc.shape[1]
    exact = torch.promote_types(W_enc.dtype, torch.float32)
    grad = grad_values.to(exact)
    feature = indices.flatten()
    size = 0 if scale is None else d_sae
    grad_scale = torch.zeros(size, dtype=exact, device=x.device)
    if scale is not None:
        factor = scale.to(exact)[indices]
        # 0 where the scale is 0: such a feature's pre-activation is not to be had back.
        unscaled = (values.to(exact) / factor).where(factor != 0, 0)
        grad_scale.index_add_(0, feature, (grad * unscaled).flatten())
        grad = grad * factor
    grad_b_enc = torch.zeros(d_sae, dtype=exact, device=x.device)
    grad_b_enc.index_add_(0, feature, grad.flatten())

    # A feature's pairs stand together, and are summed without atomics.
    order = feature.argsort(stable=True)
    pairs = feature.bincount(minlength=d_sae)
    grad_W_enc = F.embedding_bag(
        order // indices.shape[1],
        _encoder_in(x, b_dec).to(exact),
        pairs.cumsum(0) - pairs,
        mode="sum",
        per_sample_weights=grad.flatten()[order],
    )
    return grad_W_enc, grad_b_enc, grad_scale


@_backward.register_fake
def _(
    grad_values: Tensor,
    values: Tensor,
    indices: Tensor,
    x: Tensor,
    W_enc: Tensor,
    b_dec: Tensor | None,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    d_in, d_sae = W_enc.shape
    exact = torch.promote_types(W_enc.dtype, torch.float32)
    return (
        x.new_empty(d_sae, d_in, dtype=exact),
        x.new_empty(d_sae, dtype=exact),
        x.new_empty(0 if scale is None else d_sae, dtype=exact),
    )


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
) -> None:
    x, W_enc, b_enc, b_dec, scale, _k, _sample, _dtype = inputs
    values, indices, first = output
    ctx.mark_non_differentiable(indices, first)
    ctx.save_for_backward(values, indices, x, W_enc, b_dec, scale)
    ctx.b_enc_dtype = b_enc.dtype


def _autograd_backward(ctx: Any, grad_values: Tensor, *_: Any) -> tuple[Any, ...]:
    scale: Tensor | None
    values, indices, x, W_enc, b_dec, scale = ctx.saved_tensors
    grad_W_enc, grad_b_enc, grad_scale = _backward(
        grad_values, values, indices, x, W_enc, b_dec, scale
    )
    needs_x, _, _, needs_b_dec, needs_scale = ctx.needs_input_grad[:5]
    grad_x = grad_b_dec = None
    if needs_x:
        grad = grad_values.to(grad_b_enc.dtype)
        if scale is not None:
            grad = grad * scale.to(grad.dtype)[indices]
        rows = W_enc.T.to(grad.dtype)
        bags = F.embedding_bag(indices, rows, mode="sum", per_sample_weights=grad)
        grad_x = bags.to(x.dtype)
    if needs_b_dec and b_dec is not None:
        grad_b_dec = -(W_enc.to(grad_b_enc.dtype) @ grad_b_enc).to(b_dec.dtype)
    return (
        grad_x,
        grad_W_enc.T.to(W_enc.dtype),
        grad_b_enc.to(ctx.b_enc_dtype),
        grad_b_dec,
        grad_scale.to(scale.dtype) if needs_scale and scale is not None else None,
        None,
        None,
        None,
    )


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def _encoder_in(x: Tensor, b_dec: Tensor | None) -> Tensor:
    return x if b_dec is None else x - b_dec


def _tokens_at_once(d_sae: int, device: str) -> int:
    tokens = _CHUNK_TOKENS.get(device, _CHUNK_TOKENS["cuda"])
    entries = _CHUNK_ENTRIES.get(device, _CHUNK_ENTRIES["cuda"])
    return max(tokens, entries // d_sae)
