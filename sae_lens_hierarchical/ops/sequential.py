"""The loss as a loop over K, for any device.

With d_j = x̂_j − x and s_i = 2 Σ_{j ≥ i} w_j d_j (a suffix sum over the budgets),

    loss = Σ_j w_j |d_j|²,   ∂loss/∂l_i = <e_i, s_i>,   ∂loss/∂e_i = l_i s_i,
    ∂loss/∂b_dec = s_1,      ∂loss/∂x = −s_1             (each a mean over the tokens).

Forward keeps one running residual d and backward walks it back while it grows one
running suffix sum s, each from budget to budget: the extra memory is O(B·d_in),
whatever K. Forward and backward
are opaque operators to ``torch.compile``, so a long K makes no long graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_lens_hierarchical.ops.operator_tags import NO_CUDA_GRAPH

__all__ = ["hierarchical_loss"]

# Up to so many budgets, backward keeps s at each and sums by feature what it goes into:
# as many as J_8 has at K = 128.
_STACKED_BUDGETS = 17


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


@torch.library.custom_op(
    "sae_lens_hierarchical::sequential_forward", mutates_args=(), **NO_CUDA_GRAPH
)
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
    per_budget = torch.empty(len(budgets), dtype=dtype, device=target.device)
    for n, part in enumerate(_parts(indices, values.to(dtype), budgets)):
        _add_rows(residual, W_dec, part)
        if n < len(budgets):
            flat = residual.view(-1)
            torch.dot(flat, flat, out=per_budget[n])
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


@torch.library.custom_op(
    "sae_lens_hierarchical::sequential_backward", mutates_args=(), **NO_CUDA_GRAPH
)
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
    grad_values = torch.zeros(values.shape, dtype=dtype, device=values.device)
    parts = list(_parts(indices, values.to(dtype), budgets))
    stacked = len(budgets) <= _STACKED_BUDGETS
    suffixes = residual.new_empty(len(budgets) if stacked else 0, *residual.shape)
    grad_W_dec = residual.new_zeros(() if stacked else W_dec.shape)
    for n in reversed(range(len(parts))):
        part = parts[n]
        if n < len(budgets):
            suffix.add_(residual, alpha=2 * weights[n] / len(residual))
            grad_values[:, part.start : part.end] = _dot_rows(suffix, W_dec, part)
            if stacked:
                suffixes[n] = suffix
            else:
                for index, value in part.ranks():
                    grad_W_dec.index_add_(0, index, suffix * value)
        if n:  # before the first part there is no budget
            _add_rows(residual, W_dec, part, sign=-1)
    if stacked:
        grad_W_dec = _sum_by_feature(suffixes, parts, len(W_dec))
    for grad in (grad_values, grad_W_dec, suffix):
        grad.mul_(grad_loss)
    return (
        grad_values.to(values.dtype),
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


class _Part(NamedTuple):
    """The ranks after one budget, up to the next one.

    Attributes:
        start: The first rank, from 0.
        end: The one after the last.
        indices: [B, end - start], contiguous.
        values: [B, end - start], contiguous.
    """

    start: int
    end: int
    indices: Tensor
    values: Tensor

    def ranks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each rank's indices, [B], and values, [B, 1]."""
        return zip(self.indices.unbind(1), self.values.split(1, dim=1), strict=True)

    def fits_embedding_bag(self, W_dec: Tensor) -> bool:
        """Tell whether torch's embedding bags can take these ranks in one call."""
        same_dtype = W_dec.dtype == self.values.dtype
        return same_dtype and W_dec.device.type in ("cpu", "cuda")


def _parts(indices: Tensor, values: Tensor, budgets: Sequence[int]) -> Iterator[_Part]:
    """Yield the ranks up to each budget, and those after the last one if there are."""
    ends = sorted({*budgets, indices.shape[1]})
    for start, end in itertools.pairwise([0, *ends]):
        part_indices = indices[:, start:end].long().contiguous()
        yield _Part(start, end, part_indices, values[:, start:end].contiguous())


def _add_rows(total: Tensor, W_dec: Tensor, part: _Part, sign: int = 1) -> None:
    """Add sign · Σ_i l_i e_i of these ranks to ``total``, [B, d_in], in place."""
    # For one rank a bag is slower than what it is made of.
    if part.end - part.start > 1 and part.fits_embedding_bag(W_dec):
        rows = F.embedding_bag(
            part.indices, W_dec, mode="sum", per_sample_weights=part.values
        )
        total.add_(rows, alpha=sign)
        return
    for index, value in part.ranks():
        total.addcmul_(W_dec[index], value, value=sign)


def _dot_rows(suffix: Tensor, W_dec: Tensor, part: _Part) -> Tensor:
    """Return <e_i, suffix> of these ranks, [B, end - start]."""
    if not part.fits_embedding_bag(W_dec):
        dots = [(W_dec[index] * suffix).sum(dim=-1) for index, _ in part.ranks()]
        return torch.stack(dots, dim=1)
    # The gradient of an embedding bag's weights is just this.
    tokens, ranks = part.indices.shape
    token = torch.arange(tokens, device=suffix.device)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        suffix,
        W_dec,
        part.indices.view(-1),
        token * ranks,
        token.repeat_interleave(ranks),
        0,
    ).view(tokens, ranks)


def _sum_by_feature(suffixes: Tensor, parts: list[_Part], d_sae: int) -> Tensor:
    """Return Σ l · s over the places where each feature stands, [d_sae, d_in].

    Args:
        suffixes: s at each budget, [|J|, B, d_in]; 0 after the last one.
        parts: The ranks.
        d_sae: How many features there are.
    """
    used = parts[: len(suffixes)]
    feature = torch.cat([part.indices.flatten() for part in used])
    value = torch.cat([part.values.flatten() for part in used])
    rows = torch.arange(suffixes.shape[:2].numel(), device=feature.device)
    ranks = [part.end - part.start for part in used]
    row = torch.cat(
        [
            own.repeat_interleave(n)
            for own, n in zip(rows.view(len(used), -1), ranks, strict=True)
        ]
    )
    order = feature.argsort(stable=True)
    counts = feature.bincount(minlength=d_sae)
    return F.embedding_bag(
        row[order],
        suffixes.flatten(0, 1),
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=value[order],
    )
