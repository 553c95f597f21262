"""The Triton loss as an operator of torch.

The loss is a scalar, so that its gradients are known, up to the factor ``grad_loss``,
as soon as the rows of W_dec are on chip: forward computes them with the loss, and
backward scales them.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from sae_lens_hierarchical.ops.operator_tags import NO_CUDA_GRAPH
from sae_lens_hierarchical.ops.triton.by_feature import sort_by_feature, sum_by_feature
from sae_lens_hierarchical.ops.triton.kernels import fused_loss, scale
from sae_lens_hierarchical.ops.triton.launch import (
    H100_CACHE_BYTES,
    MAX_K,
    budget_mask,
    compiler_options,
    plan_launch,
)

__all__ = ["hierarchical_loss", "launch_problem", "unsupported"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The arguments of _forward that have gradients, in the order of its last outputs.
_LEAVES = (2, 3, 4, 0)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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


@functools.cache
def launch_problem(device: torch.device) -> str | None:
    """Return why no kernel can be launched on a device, or None if one can.

    The smallest kernel is tried, once: Triton needs a C compiler at its first launch,
    and may not know the GPU.
    """
    try:
        doubled = torch.ones(1, device=device)
        _scale_(doubled, torch.full((), 2.0, device=device))
        works = doubled.item() == 2
    # A compiler of Triton's own or the system's may fail in any way.
    except Exception as error:
        return f"cannot launch a kernel on {device}: {type(error).__name__}: {error}"
    return None if works else f"computes wrongly on {device}"


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


@torch.library.custom_op(
    "sae_lens_hierarchical::triton_loss", mutates_args=(), **NO_CUDA_GRAPH
)
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
    capability, cache_bytes = _gpu(device)
    # Before Hopper each of a tile's columns is added alone, and sorting is cheaper.
    deterministic = deterministic or capability < 90
    launch = plan_launch(
        batch,
        k,
        d_in,
        len(budgets),
        W_dec.element_size(),
        capability,
        d_sae=d_sae,
        cache_bytes=cache_bytes,
    )
    budget_tensors = _budget_tensors(
        batch, k, launch.groups * launch.ranks, budgets, weights, device
    )
    token_blocks = -(-batch // launch.tokens_per_program)
    block_columns = 8 * launch.lanes

    empty = functools.partial(torch.empty, dtype=torch.float32, device=device)
    residual = empty(batch, d_in)
    programs = launch.column_blocks * token_blocks
    squared_error = empty(programs, launch.groups * launch.ranks)
    grad_values = empty(batch, k)
    grad_W_dec = empty((d_sae, d_in) if gradients else 0)
    grad_b_dec_shares = empty(token_blocks if gradients else 0, d_in)
    grad_target = empty((batch, d_in) if target_gradient else 0)
    if gradients and deterministic:
        activations = sort_by_feature(
            indices, values, budget_tensors.covering_budget, len(budgets), d_sae
        )
        pass_blocks = launch.deterministic_blocks
        suffix_sums = empty(batch, len(budgets), pass_blocks * block_columns)
    else:
        activations, pass_blocks, suffix_sums = None, launch.atomic_blocks, empty(0)
        grad_W_dec.zero_()
    grad_values_shares = empty(pass_blocks if gradients else 0, batch, k)

    constants: dict[str, Any] = {
        "GROUPS": launch.groups,
        "RANKS": launch.ranks,
        "LANES": launch.lanes,
        "EVEN": launch.even,
        "BUDGET_MASK": budget_mask(budgets, launch.ranks),
        "TOPK": budgets == (k,),
        "GRADIENTS": gradients,
        "TARGET_GRADIENT": target_gradient,
        "ATOMIC": activations is None,
    }
    with _on_device(device):
        for first_block in range(0, launch.column_blocks, pass_blocks):
            blocks = min(pass_blocks, launch.column_blocks - first_block)
            fused_loss[(blocks * token_blocks,)](
                target_ptr=target,
                indices_ptr=indices,
                values_ptr=values,
                W_dec_ptr=W_dec,
                b_dec_ptr=b_dec,
                rank_weights_ptr=budget_tensors.rank_weights,
                rank_budgets_ptr=budget_tensors.rank_budgets,
                residual_ptr=residual,
                squared_error_ptr=squared_error,
                grad_values_ptr=grad_values_shares,
                grad_b_dec_ptr=grad_b_dec_shares,
                grad_target_ptr=grad_target,
                grad_W_dec_ptr=grad_W_dec,
                suffix_sums_ptr=suffix_sums,
                first_block=first_block,
                pass_columns=pass_blocks * block_columns,
                n_budgets=len(budgets),
                tokens_per_program=launch.tokens_per_program,
                B=batch,
                K=k,
                d_in=d_in,
                **constants,
                **compiler_options(launch.warps),
            )
            if activations is not None:
                first_column = first_block * block_columns
                sum_by_feature(activations, suffix_sums, grad_W_dec, first_column)
            if gradients:
                of_pass = grad_values_shares[:blocks].sum(dim=0)
                grad_values = grad_values + of_pass if first_block else of_pass

    per_budget = squared_error.sum(dim=0)[budget_tensors.ranks] / batch
    return (
        (per_budget * budget_tensors.weights).sum(),
        per_budget,
        residual,
        grad_values,
        grad_W_dec,
        grad_b_dec_shares.sum(dim=0),
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
    n_elements = tensor.numel()
    block_size: Any = 4096
    with _on_device(tensor.device):
        scale[(triton.cdiv(n_elements, block_size),)](
            tensor_ptr=tensor,
            factor_ptr=factor,
            n_elements=n_elements,
            BLOCK_SIZE=block_size,
            **compiler_options(num_warps=4),
        )


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
    kept = torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    if kept or dtype != gradient.dtype or type(gradient) is not Tensor:
        return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
    _scale_(gradient, factor)
    return gradient


@dataclasses.dataclass(frozen=True)
class _BudgetTensors:
    """What a loss needs of J and its weights on the device.

    Attributes:
        rank_weights: 2 w_j / B at rank j - 1, elsewhere 0, float32, [GROUPS · RANKS].
        rank_budgets: The index of j in J at rank j - 1, elsewhere -1, int32, the same.
        covering_budget: For each rank the index in J of the first budget that covers
            it, or -1, int32, [K].
        ranks: j - 1 for each budget, int64, [|J|].
        weights: w, float32, [|J|].
    """

    rank_weights: Tensor
    rank_budgets: Tensor
    covering_budget: Tensor
    ranks: Tensor
    weights: Tensor


@functools.lru_cache(maxsize=64)
def _budget_tensors(
    batch: int,
    k: int,
    padded_k: int,
    budgets: tuple[int, ...],
    weights: tuple[float, ...],
    device: torch.device,
) -> _BudgetTensors:
    """Put J on the device; kept from step to step. ``padded_k`` is GROUPS · RANKS."""
    rank_weights, rank_budgets = [0.0] * padded_k, [-1] * padded_k
    for index, (budget, weight) in enumerate(zip(budgets, weights, strict=True)):
        rank_weights[budget - 1] = 2 * weight / batch
        rank_budgets[budget - 1] = index
    covering = [bisect.bisect_left(budgets, rank + 1) for rank in range(k)]
    covering_budget = [-1 if index == len(budgets) else index for index in covering]
    return _BudgetTensors(
        rank_weights=torch.tensor(rank_weights, dtype=torch.float32, device=device),
        rank_budgets=torch.tensor(rank_budgets, dtype=torch.int32, device=device),
        covering_budget=torch.tensor(covering_budget, dtype=torch.int32, device=device),
        ranks=torch.tensor([budget - 1 for budget in budgets], device=device),
        weights=torch.tensor(weights, dtype=torch.float32, device=device),
    )


@functools.cache
def _gpu(device: torch.device) -> tuple[int, int]:
    """Return a GPU's compute capability, as in 90, and the bytes of its L2 cache."""
    if device.type != "cuda":
        return 90, H100_CACHE_BYTES  # Triton's interpreter
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.L2_cache_size


def _on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return (
        torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    )
