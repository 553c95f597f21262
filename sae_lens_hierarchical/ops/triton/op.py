"""The Triton loss as an operator of torch.

The loss is a scalar, so that its gradients are known, up to the factor ``grad_loss``,
as soon as the rows of W_dec are on chip: forward computes them with the loss, and
backward scales them.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from sae_lens_hierarchical.ops.triton.by_feature import sort_by_feature, sum_by_feature
from sae_lens_hierarchical.ops.triton.kernels import fused_loss, scale
from sae_lens_hierarchical.ops.triton.launch import MAX_K, budget_slots, plan_launch

__all__ = ["hierarchical_loss", "unsupported"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The arguments of _forward that have gradients, in the order of its last outputs.
_LEAVES = (2, 3, 4, 0)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# _plan keeps tensors from step to step, which a CUDA graph's own memory must not hold.
_TAGS: dict[str, Any] = (
    {"tags": (torch.Tag.cudagraph_unsafe,)}
    if hasattr(torch.Tag, "cudagraph_unsafe")
    else {}
)


def unsupported(
    target: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor
) -> str | None:
    """Return why these arguments are not for Triton, or None if they are."""
    if not (target.is_cuda or INTERPRETED):
        return f"needs tensors on a CUDA device, got {target.device}"
    tensors = {"target": target, "values": values, "W_dec": W_dec, "b_dec": b_dec}
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            return f"takes {name} in one of {_DTYPES}, got {tensor.dtype}"
    if values.shape[1] > MAX_K:
        return f"takes up to {MAX_K} active features, got {values.shape[1]}"
    return None


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

    Everything is summed in float32. Gradients are bitwise reproducible where
    ``torch.are_deterministic_algorithms_enabled()``.
    """
    leaves = (target, values, W_dec, b_dec)
    wanted = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
    return _forward(
        target,
        indices,
        values,
        W_dec,
        b_dec,
        budgets,
        weights,
        wanted,
        wanted and target.requires_grad,
        torch.are_deterministic_algorithms_enabled(),
    )[:3]


@torch.library.custom_op("sae_lens_hierarchical::triton_loss", mutates_args=(), **_TAGS)
def _forward(
    target: Tensor,
    indices: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    budgets: Sequence[int],
    weights: Sequence[float],
    gradients: bool,
    target_gradient: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return (loss, per_budget, residual) and, in float32, the gradients.

    They are those of values, W_dec, b_dec and target; empty where not asked for.
    """
    target, indices, values = map(Tensor.contiguous, (target, indices, values))
    W_dec, b_dec = W_dec.contiguous(), b_dec.contiguous()
    (batch, k), (d_sae, d_in) = indices.shape, W_dec.shape
    budgets, weights = tuple(budgets), tuple(weights)
    device = target.device
    launch = plan_launch(
        batch, k, d_in, len(budgets), W_dec.element_size(), _capability(device)
    )
    ranks = launch.groups * launch.ranks
    slot_weights, slot_positions, segments, chosen, budget_weights = _plan(
        batch, k, ranks, budgets, weights, device
    )
    token_blocks = -(-batch // launch.tokens)

    empty = functools.partial(torch.empty, dtype=torch.float32, device=device)
    residual = empty(batch, d_in)
    squares = empty(launch.column_blocks * token_blocks, ranks)
    bias = empty(token_blocks if gradients else 0, d_in)
    grad_target = empty((batch, d_in) if target_gradient else 0)
    grad_W_dec = empty((d_sae, d_in) if gradients else 0)
    block_columns = 8 * launch.lanes
    if gradients and deterministic:
        places = sort_by_feature(indices, values, segments, len(budgets), d_sae)
        blocks = launch.suffix_blocks
        suffixes = empty(batch, len(budgets), blocks * block_columns)
    else:
        places, blocks, suffixes = None, launch.slope_blocks, empty(0)
        grad_W_dec.zero_()
    slopes = empty(blocks if gradients else 0, batch, k)
    grad_values = empty(batch, k)

    with _on(device):
        for first in range(0, launch.column_blocks, blocks):
            here = min(blocks, launch.column_blocks - first)
            fused_loss[(here * token_blocks,)](
                target,
                indices,
                values,
                W_dec,
                b_dec,
                slot_weights,
                slot_positions,
                residual,
                squares,
                slopes,
                bias,
                grad_target,
                grad_W_dec,
                suffixes,
                first,
                blocks * block_columns,
                len(budgets),
                launch.tokens,
                batch,
                k,
                d_in,
                GROUPS=launch.groups,
                RANKS=launch.ranks,
                LANES=launch.lanes,
                FULL=launch.full,
                WIDE=W_dec.element_size() == 2,
                SLOTS=budget_slots(budgets, launch.ranks),
                ONE_BUDGET=budgets == (k,),
                GRADIENTS=gradients,
                TARGET_GRADIENT=target_gradient,
                ADD_W_DEC=places is None,
                num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
            )
            if places is not None:
                sum_by_feature(places, suffixes, grad_W_dec, first * block_columns)
            if gradients:
                of_pass = slopes[:here].sum(dim=0)
                grad_values = grad_values + of_pass if first else of_pass

    per_budget = squares.sum(dim=0)[chosen] / batch
    return (
        (per_budget * budget_weights).sum(),
        per_budget,
        residual,
        grad_values,
        grad_W_dec,
        bias.sum(dim=0),
        grad_target,
    )


@_forward.register_fake
def _(
    target: Tensor,
    indices: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    budgets: Sequence[int],
    weights: Sequence[float],
    gradients: bool,
    target_gradient: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    empty = functools.partial(target.new_empty, dtype=torch.float32)
    return (
        empty(()),
        empty(len(budgets)),
        empty(target.shape),
        empty(values.shape),
        empty(W_dec.shape if gradients else 0),
        empty(b_dec.shape),
        empty(target.shape if target_gradient else 0),
    )


@torch.library.custom_op(
    "sae_lens_hierarchical::triton_scale_", mutates_args=("tensor",)
)
def _scale_(tensor: Tensor, factor: Tensor) -> None:
    block: Any = 4096
    with _on(tensor.device):
        programs = triton.cdiv(tensor.numel(), block)
        scale[(programs,)](tensor, factor, tensor.numel(), BLOCK=block)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[3:])
    ctx.dtypes = [inputs[argument].dtype for argument in _LEAVES]


def _backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "backend 'triton' has no second derivatives, which create_graph=True asks "
            "for: take backend 'reference'"
        )
    gradients: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    saved = zip(_LEAVES, ctx.saved_tensors, ctx.dtypes, strict=True)
    for argument, gradient, dtype in saved:
        if ctx.needs_input_grad[argument]:
            gradients[argument] = _scaled(gradient, grad_loss, dtype)
    return tuple(gradients)


_forward.register_autograd(_backward, setup_context=_setup_context)


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    # In place, but for tracers (their tensors are subclasses) and for a graph that is
    # kept, which may be walked again with another factor.
    kept = torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore
    if kept or dtype != gradient.dtype or type(gradient) is not Tensor:
        return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
    _scale_(gradient, factor)
    return gradient


@functools.lru_cache(maxsize=64)
def _plan(
    batch: int,
    k: int,
    ranks: int,
    budgets: tuple[int, ...],
    weights: tuple[float, ...],
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what a loss needs of J on the device, kept from step to step.

    Returns:
        2 w_j / B and j's place in J at rank j - 1, elsewhere 0 and -1, both [ranks];
        the place in J of the first budget that covers a rank, or -1, [k]; J - 1; w.
    """
    slot_weights, slot_positions = [0.0] * ranks, [-1] * ranks
    for position, (budget, weight) in enumerate(zip(budgets, weights, strict=True)):
        slot_weights[budget - 1] = 2 * weight / batch
        slot_positions[budget - 1] = position
    covered = [bisect.bisect_left(budgets, rank + 1) for rank in range(k)]
    segments = [-1 if place == len(budgets) else place for place in covered]
    return (
        torch.tensor(slot_weights, dtype=torch.float32, device=device),
        torch.tensor(slot_positions, dtype=torch.int32, device=device),
        torch.tensor(segments, dtype=torch.int32, device=device),
        torch.tensor([budget - 1 for budget in budgets], device=device),
        torch.tensor(weights, dtype=torch.float32, device=device),
    )


@functools.cache
def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 90  # Triton's interpreter
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return (
        torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    )
