"""What the processes tell each other, with gradients.

The whole loss is a sum of one part a process, and each process differentiates its own
part. So the gradient of what all processes have alike, such as a gathered tensor, is
the sum of what they find for it, and each takes what belongs to its input.

Every process has to make the same calls in the same order, in backward too. Backward's
order is that of forward turned round, if on every process each output has a gradient:
an input that needs none on one process alone would leave the others waiting.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sae_lens_hierarchical.ops import stable_topk
from sae_lens_hierarchical.training.distributed.mesh import Mesh

__all__ = [
    "add_up_parts",
    "all_reduce",
    "broadcast",
    "gather",
    "global_topk",
    "row_norms",
    "sum_in_order",
]

# Torch's older releases have one name for it, and its newer ones warn of that.
_all_gather_into = (  # pyright: ignore[reportDeprecated]
    getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # pyright: ignore[reportDeprecated]
)


def all_reduce(mesh: Mesh, tensor: Tensor) -> Tensor:
    """Return the sum over processes, without gradients, in the dtype of ``tensor``.

    It is made in float32 at least. Processes may differ in the last bit: what decides
    anything is to be summed by ``sum_in_order``.
    """
    total = tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
    total = total.contiguous()
    sent = 2 * (mesh.size - 1) * total.numel() * total.element_size() // mesh.size
    mesh.bytes_sent["all_reduce"] += sent
    dist.all_reduce(total, group=mesh.group)
    return total.to(tensor.dtype)


def sum_in_order(mesh: Mesh, tensor: Tensor) -> Tensor:
    """Return the sum over processes, without gradients, the same bits on all of them.

    For few numbers: each process gets every other's tensor.
    """
    total, *others = _all_gather(mesh, tensor.detach()).unbind()
    for part in others:
        total = total + part
    return total


def broadcast(mesh: Mesh, tensor: Tensor) -> Tensor:
    """Return process 0's tensor, without gradients; they have the same shape on all."""
    received = tensor.clone()
    mesh.bytes_sent["broadcast"] += received.nbytes
    dist.broadcast(received, group_src=0, group=mesh.group)
    return received


def add_up_parts(mesh: Mesh, parts: Tensor) -> Tensor:
    """Return the whole of what each process has a part of, the same bits everywhere.

    Backward: the gradient goes to the own part as it is, and no process sends anything,
    since each differentiates its own part of the loss.

    Args:
        mesh: The processes.
        parts: Losses, of the same shape on each.
    """
    return _AddUpParts.apply(parts, mesh)


def gather(mesh: Mesh, tensor: Tensor, sizes: list[int], dim: int = 0) -> Tensor:
    """Return all processes' parts in the order of their ranks.

    Backward: the gradients of the whole are summed over processes, and each takes its
    own part's.

    Args:
        mesh: The processes.
        tensor: The own part.
        sizes: Every process's size in ``dim``; they may differ, and be 0.
        dim: What the parts are put together in; other sizes are the same everywhere.
    """
    return _Gather.apply(tensor, mesh, sizes, dim)


def global_topk(
    mesh: Mesh, values: Tensor, indices: Tensor, widths: list[int], k: int
) -> tuple[Tensor, Tensor]:
    """Return each token's ``k`` largest of all processes' candidates.

    They come in the order in which one process would have them: the larger first, and
    of equal ones the lower index. Each process sends the others its m candidates for
    each token, values and int32 indices. m is the most that one has to send: those at
    or above the k-th of the values that all send first, twice their share of k. With
    few processes these would be nearly all, and m is then the largest of ``widths``.

    Backward: the gradients of the k values are summed over processes, [B, k], and each
    hands on what belongs to its candidates; the others of them get 0.

    Args:
        mesh: The processes.
        values: The own candidates, [B, widths[rank]], largest first.
        indices: Their global indices, [B, widths[rank]], int64, below 2³¹ and all above
            those of lower ranks. Of equal values the lower index has to come first.
        widths: How many candidates each process has.
        k: From 1 to the sum of ``widths``.

    Returns:
        The values, [B, k], and indices, [B, k], int64, the same bits everywhere.

    Raises:
        ValueError: If there are fewer than ``k`` candidates.
    """
    if not 1 <= k <= sum(widths):
        raise ValueError(
            f"k must be from 1 to the {sum(widths)} candidates that the processes have "
            f"together, got {k}"
        )
    needed = _needed(mesh, values.detach(), widths, k)
    own = needed[mesh.rank]
    return _GlobalTopK.apply(values[:, :own], indices[:, :own], mesh, needed, k)


def row_norms(mesh: Mesh, columns: Tensor) -> Tensor:
    """Return the norms of a matrix's rows, [rows], from each process's columns.

    The squares are summed over processes. Backward: with g the gradient of the norms,
    summed over processes, g / norm · columns, and 0 for rows of 0, as torch has it.

    Args:
        mesh: The processes.
        columns: The own columns, [rows, columns].
    """
    return _RowNorms.apply(columns, mesh)


class _AddUpParts(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, parts: Tensor, mesh: Mesh) -> Tensor:
        return sum_in_order(mesh, parts)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, mesh: Mesh, sizes: list[int], dim: int
    ) -> Tensor:
        ctx.mesh, ctx.sizes, ctx.dim = mesh, sizes, dim
        return _gather_parts(mesh, tensor, sizes, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = all_reduce(ctx.mesh, grad)
        return total.split(ctx.sizes, ctx.dim)[ctx.mesh.rank], None, None, None


class _GlobalTopK(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        indices: Tensor,
        mesh: Mesh,
        widths: list[int],
        k: int,
    ) -> tuple[Tensor, Tensor]:
        candidates = _gather_parts(mesh, values, widths, 1)
        features = _gather_parts(mesh, indices.int(), widths, 1)
        largest, position = stable_topk(candidates, k)
        chosen = features.gather(1, position).long()
        ctx.mark_non_differentiable(chosen)
        ctx.save_for_backward(position)
        ctx.mesh, ctx.widths = mesh, widths
        return largest, chosen

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (position,) = ctx.saved_tensors
        total = all_reduce(ctx.mesh, grad)
        rank, widths = ctx.mesh.rank, ctx.widths
        own = position - sum(widths[:rank])
        # What is not this process's goes into a column more, which is left off.
        own = own.where((own >= 0) & (own < widths[rank]), widths[rank])
        parts = total.new_zeros(len(total), widths[rank] + 1).scatter_(1, own, total)
        return parts[:, :-1], None, None, None, None


class _RowNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, columns: Tensor, mesh: Mesh) -> Tensor:
        exact = torch.promote_types(columns.dtype, torch.float32)
        own = torch.linalg.vector_norm(columns, dim=1, dtype=exact)
        norms = all_reduce(mesh, own.square()).sqrt()
        ctx.save_for_backward(columns, norms)
        ctx.mesh = mesh
        return norms.to(columns.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        columns, norms = ctx.saved_tensors
        factor = all_reduce(ctx.mesh, grad.to(norms.dtype)) / norms
        factor = factor.masked_fill(norms == 0, 0).to(columns.dtype)
        return columns * factor[:, None], None


def _needed(mesh: Mesh, values: Tensor, widths: list[int], k: int) -> list[int]:
    """Return how many of its candidates each process has to send for each token."""
    total = sum(widths)
    # Twice its share rounded up: k at least together, so the k-th is a lower bound.
    first = [min(width, 2 * -(-k * width // total)) for width in widths]
    if 2 * sum(first) > total:
        return widths
    some = _gather_parts(mesh, values[:, : first[mesh.rank]], first, 1)
    bound = some.topk(k).values[:, -1:]
    # NaN is among the largest.
    count = (~(values < bound)).sum(dim=1).amax()
    most = int(_all_gather(mesh, count).amax())
    return [min(width, most) for width in widths]


def _gather_parts(mesh: Mesh, tensor: Tensor, sizes: list[int], dim: int) -> Tensor:
    # gloo gathers equal shapes alone.
    missing = max(sizes) - tensor.shape[dim]
    padding = [0, 0] * (tensor.ndim - 1 - dim) + [0, missing]
    parts = _all_gather(mesh, F.pad(tensor, padding) if missing else tensor)
    if min(sizes) == max(sizes) and dim == 0:
        return parts.flatten(0, 1)
    return torch.cat(
        [
            part.narrow(dim, 0, size)
            for part, size in zip(parts.unbind(), sizes, strict=True)
        ],
        dim,
    )


def _all_gather(mesh: Mesh, tensor: Tensor) -> Tensor:
    """Return every process's tensor, [size, ...], all of one shape and dtype."""
    # As bytes: gloo does not know every dtype.
    own = tensor.contiguous().flatten().view(torch.uint8)
    parts = own.new_empty(mesh.size * len(own))
    mesh.bytes_sent["all_gather"] += (mesh.size - 1) * len(own)
    _all_gather_into(parts, own, group=mesh.group)  # pyright: ignore[reportDeprecated]
    return parts.view(tensor.dtype).view(mesh.size, *tensor.shape)
