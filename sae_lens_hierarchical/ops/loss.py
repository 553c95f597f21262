"""The public loss: checks its arguments and picks a backend."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from sae_lens_hierarchical.ops import reference, sequential
from sae_lens_hierarchical.ops.budgets import resolve_budgets
from sae_lens_hierarchical.ops.triton import why_unavailable

__all__ = [
    "BACKENDS",
    "Backend",
    "check_backend",
    "hierarchical_loss",
    "hierarchical_loss_with_residual",
]

_no_triton = why_unavailable()
if _no_triton is None:
    from sae_lens_hierarchical.ops.triton import op as triton_op
else:
    triton_op = None

Backend = Literal["auto", "reference", "sequential", "triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)

_logger = logging.getLogger(__name__)


def hierarchical_loss(
    target: Tensor,
    indices: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    *,
    budgets: Sequence[int] | None = None,
    budget_weights: Sequence[float] | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute the HierarchicalTopK loss (paper, equation 1) in one pass.

    With x̂_j = b_dec + Σ_{i ≤ j} values_i · W_dec[indices_i] for each token,
    loss = Σ_{j ∈ J} w_j · mean over tokens of ‖target − x̂_j‖², the squared error summed
    over d_in as in SAELens. J = {K} is the plain TopK loss.

    Sums are made in float32, or in float64 where an argument is float64. There are
    gradients for ``values``, ``W_dec``, ``b_dec`` and ``target``, each where asked
    for, but no second derivatives (except from the reference backend).

    Args:
        target: The activations x, [B, d_in], floating point.
        indices: The active features of each token, [B, K], int32 or int64, sorted by
            activation, largest first. One feature may stand in several places.
        values: Their activations, [B, K], floating point; zeros are allowed.
        W_dec: The decoder, [d_sae, d_in], floating point.
        b_dec: The decoder's bias, [d_in], floating point.
        budgets: J, strictly increasing integers from 1 to K; default all of them.
        budget_weights: w, one weight a budget; default 1/|J|.
        backend: ``"reference"`` is Listing 1 and keeps [B, K, d_in] tensors;
            ``"sequential"`` needs O(B·d_in) extra memory; ``"triton"`` makes one fused
            pass, on CUDA devices, without float64; ``"auto"`` picks the fastest one
            for the arguments.

    Returns:
        The loss, a scalar, and ``per_budget``, [|J|]: each budget's mean squared
        error (summed over d_in), detached. Both have the dtype of the sums.

    Raises:
        ValueError: If a shape, dtype, device, index, budget, weight or the backend
            does not fit, naming the argument and what is allowed.
    """
    return hierarchical_loss_with_residual(
        target,
        indices,
        values,
        W_dec,
        b_dec,
        budgets=budgets,
        budget_weights=budget_weights,
        backend=backend,
    )[:2]


def hierarchical_loss_with_residual(
    target: Tensor,
    indices: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    *,
    budgets: Sequence[int] | None = None,
    budget_weights: Sequence[float] | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``hierarchical_loss``, and return x̂_K − target too, [B, d_in], detached.

    A training step gets its reconstruction from it without decoding a second time.
    """
    _check_tensors(target, indices, values, W_dec, b_dec)
    check_backend(backend)
    budgets, weights = resolve_budgets(indices.shape[1], budgets, budget_weights)
    compute = _implementation(target, values, W_dec, b_dec, backend)
    loss, per_budget, residual = compute(
        target, indices, values, W_dec, b_dec, budgets, weights
    )
    return loss, per_budget.detach(), residual.detach()


def check_backend(backend: str) -> None:
    """Raise a ValueError unless ``backend`` is one of ``BACKENDS``."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")


def _implementation(
    target: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor, backend: Backend
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    if backend == "reference":
        return reference.hierarchical_loss
    if backend == "triton" or (backend == "auto" and target.is_cuda):
        problem = _triton_problem(target, values, W_dec, b_dec)
        if problem is None and triton_op is not None:
            return triton_op.hierarchical_loss
        if backend == "triton":
            raise ValueError(f"backend 'triton' {problem}")
        if not torch.compiler.is_compiling():
            _log_fallback(str(problem))
    return sequential.hierarchical_loss


def _triton_problem(
    target: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor
) -> str | None:
    """Return why these arguments cannot go to Triton here, or None if they can."""
    if triton_op is None:
        return f"cannot be used here: {_no_triton}"
    problem = triton_op.unsupported(target, values, W_dec, b_dec)
    # Where operators are only traced nothing can be launched.
    traced = torch.compiler.is_compiling() or type(target) is not Tensor
    if problem is not None or traced:
        return problem
    return triton_op.launch_problem(target.device)


@functools.cache
def _log_fallback(problem: str) -> None:
    _logger.warning("backend 'triton' %s; taking 'sequential'", problem)


def _check_tensors(
    target: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor
) -> None:
    tensors = {
        "target": target,
        "indices": indices,
        "values": values,
        "W_dec": W_dec,
        "b_dec": b_dec,
    }
    for name, tensor in tensors.items():
        if tensor.ndim != (1 if name == "b_dec" else 2) or 0 in tensor.shape:
            raise ValueError(
                "expected target [B, d_in], indices and values [B, K], "
                "W_dec [d_sae, d_in] and b_dec [d_in], none of them empty, "
                f"got {name} {list(tensor.shape)}"
            )
        if tensor.device != target.device:
            raise ValueError(
                f"{name} is on {tensor.device}, but target is on {target.device}: "
                "all tensors must be on one device"
            )
        if name != "indices" and not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    batch, d_in = target.shape
    if indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"indices must be int32 or int64, got {indices.dtype}")
    if len(indices) != batch:
        raise ValueError(
            f"indices must have one row for each of target's {batch} tokens, "
            f"got {len(indices)}"
        )
    if values.shape != indices.shape:
        raise ValueError(
            f"values must have the shape of indices {list(indices.shape)}, "
            f"got {list(values.shape)}"
        )
    for name, tensor in (("W_dec", W_dec), ("b_dec", b_dec)):
        if tensor.shape[-1] != d_in:
            raise ValueError(
                f"{name}'s last dimension must be target's d_in={d_in}, "
                f"got {tensor.shape[-1]}"
            )
    # On a GPU this would make the host wait for the device.
    if indices.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in indices.aminmax())
        if low < 0 or high >= len(W_dec):
            raise ValueError(
                f"indices must lie between 0 and d_sae - 1 = {len(W_dec) - 1}, "
                f"got {low} to {high}"
            )
