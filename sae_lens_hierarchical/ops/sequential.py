"""The loss as a loop over K, for any device.

With d_j = x̂_j − x and s_i = 2 Σ_{j ≥ i} w_j d_j (a suffix sum over the budgets),

    loss = Σ_j w_j |d_j|²,   ∂loss/∂l_i = <e_i, s_i>,   ∂loss/∂e_i = l_i s_i,
    ∂loss/∂b_dec = s_1,      ∂loss/∂x = −s_1             (each a mean over the tokens).

Forward keeps one running residual d and backward walks it back while it grows one
running suffix sum s: the extra memory is O(B·d_in), whatever K. Forward and backward
are opaque operators to ``torch.compile``, so a long K makes no long graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["hierarchical_loss"]


def hierarchical_loss(
    target: Tensor,
    indices: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    budgets: list[int],
    weights: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, per_budget, x̂_K − x); see ``ops.hierarchical_loss_with_residual``.

    Everything is summed in float32, or in float64 where an argument is float64.
    """
    return _forward(target, indices, values, W_dec, b_dec, budgets, weights)


@torch.library.custom_op("sae_lens_hierarchical::sequential_forward", mutates_args=())
def _forward(
    target: Tensor,
    indices: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    budgets: Sequence[int],
    weights: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _sum_dtype(target, values, W_dec, b_dec)
    residual = (b_dec.to(dtype) - target).contiguous()
    rows = torch.empty_like(target, dtype=W_dec.dtype)
    position = {budget - 1: n for n, budget in enumerate(budgets)}
    per_budget = torch.empty(len(budgets), dtype=dtype, device=target.device)
    for i, (index, value) in enumerate(_columns(indices, values.to(dtype))):
        torch.index_select(W_dec, 0, index, out=rows)
        residual.addcmul_(rows, value)
        if i in position:
            flat = residual.view(-1)
            torch.dot(flat, flat, out=per_budget[position[i]])
    per_budget /= len(target)
    loss = (per_budget * per_budget.new_tensor(weights)).sum()
    return loss, per_budget, residual


@_forward.register_fake
def _(
    target: Tensor,
    indices: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    budgets: Sequence[int],
    weights: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _sum_dtype(target, values, W_dec, b_dec)
    return (
        target.new_empty((), dtype=dtype),
        target.new_empty(len(budgets), dtype=dtype),
        target.new_empty(target.shape, dtype=dtype),
    )


@torch.library.custom_op("sae_lens_hierarchical::sequential_backward", mutates_args=())
def _backward(
    grad_loss: Tensor,
    residual: Tensor,
    indices: Tensor,
    values: Tensor,
    W_dec: Tensor,
    budgets: Sequence[int],
    weights: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of values, of W_dec, and of each token's b_dec (s_1)."""
    dtype = residual.dtype
    residual = residual.clone()
    suffix = torch.zeros_like(residual)
    product = torch.empty_like(residual)
    rows = torch.empty_like(residual, dtype=W_dec.dtype)
    grad_values = torch.empty(values.T.shape, dtype=dtype, device=values.device)
    grad_W_dec = torch.zeros_like(W_dec, dtype=dtype)
    weight_at = dict(zip((j - 1 for j in budgets), weights, strict=True))
    columns = list(enumerate(_columns(indices, values.to(dtype))))
    for i, (index, value) in reversed(columns):
        if i in weight_at:
            suffix.add_(residual, alpha=2 * weight_at[i] / len(residual))
        torch.index_select(W_dec, 0, index, out=rows)
        residual.addcmul_(rows, value, value=-1)
        torch.mul(rows, suffix, out=product)
        torch.sum(product, dim=-1, out=grad_values[i])
        torch.mul(suffix, value, out=product)
        grad_W_dec.index_add_(0, index, product)
    for grad in (grad_values, grad_W_dec, suffix):
        grad.mul_(grad_loss)
    return (
        grad_values.T.to(values.dtype).contiguous(),
        grad_W_dec.to(W_dec.dtype),
        suffix,
    )


@_backward.register_fake
def _(
    grad_loss: Tensor,
    residual: Tensor,
    indices: Tensor,
    values: Tensor,
    W_dec: Tensor,
    budgets: Sequence[int],
    weights: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        values.new_empty(values.shape),
        W_dec.new_empty(W_dec.shape),
        torch.empty_like(residual),
    )


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
) -> None:
    target, indices, values, W_dec, b_dec, ctx.budgets, ctx.weights = inputs
    ctx.save_for_backward(output[2], indices, values, W_dec)
    ctx.target_dtype, ctx.b_dec_dtype = target.dtype, b_dec.dtype


def _autograd_backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Any, ...]:
    residual, indices, values, W_dec = ctx.saved_tensors
    grad_values, grad_W_dec, suffix = _backward(
        grad_loss, residual, indices, values, W_dec, ctx.budgets, ctx.weights
    )
    grad_target = -suffix.to(ctx.target_dtype) if ctx.needs_input_grad[0] else None
    grad_b_dec = suffix.sum(dim=0).to(ctx.b_dec_dtype)
    return grad_target, None, grad_values, grad_W_dec, grad_b_dec, None, None


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def _sum_dtype(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _columns(indices: Tensor, values: Tensor) -> zip[tuple[Tensor, Tensor]]:
    """Yield each rank's indices [B] and values [B, 1], contiguous in memory."""
    by_rank = values.T.contiguous().unsqueeze(-1)
    return zip(indices.T.contiguous(), by_rank, strict=True)
