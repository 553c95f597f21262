"""Top-k in which ties go to the lower index, on every device and for every k.

``torch.topk`` takes any of the entries that tie, and others for another k. In bfloat16,
where activations often tie, features would then come and go with the k asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_lens_hierarchical.ops.operator_tags import NO_CUDA_GRAPH

__all__ = ["GROUP", "stable_topk"]

# How many entries are looked through at once, which bounds the memory that ties take. A
# GPU's host waits for each part.
_ENTRIES_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 27}
# How many entries share one maximum where that is searched first.
GROUP = 16


def stable_topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest entries along the last dimension, largest first.

    Of entries that tie, the one with the lower index comes first. So the first entries
    for one k are those for any smaller k, in every batch and on every device.

    Args:
        x: [..., n], floating point; NaN is larger than everything, and several stand
            in any order.
        k: From 1 to n.

    Returns:
        The entries, [..., k], through which gradients flow, and their indices,
        [..., k], int64.
    """
    indices = _stable_topk_indices(x.detach(), k)
    return x.gather(-1, indices), indices


@torch.library.custom_op(
    "sae_lens_hierarchical::stable_topk_indices", mutates_args=(), **NO_CUDA_GRAPH
)
def _stable_topk_indices(x: Tensor, k: int) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    indices, smallest, following = _any_topk(rows, k)
    indices = indices.sort(dim=-1).values
    if following is not None:
        # Where the next entry ties with the last one taken, there was a choice.
        tied = (following == smallest).nonzero().squeeze(-1)
        at_once = _ENTRIES_AT_ONCE.get(x.device.type, _ENTRIES_AT_ONCE["cpu"])
        for part in tied.split(max(1, at_once // rows.shape[1])):
            indices[part] = _lowest_indices(rows[part], smallest[part, None], k)
    # The indices ascend, so a stable sort leaves the lower one of a tie in front.
    order = rows.gather(-1, indices).sort(dim=-1, descending=True, stable=True).indices
    return indices.gather(-1, order).view(*x.shape[:-1], k)


@_stable_topk_indices.register_fake
def _(x: Tensor, k: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], k), dtype=torch.int64)


def _any_topk(rows: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the indices of k largest entries of each row, the smallest and the next.

    Args:
        rows: [m, n].
        k: From 1 to n.

    Returns:
        The indices, [m, k]; the smallest of these entries, [m]; and the largest of all
        others, [m], or None where there is no other.
    """
    n = rows.shape[1]
    if n % GROUP or 2 * k * GROUP > n:
        largest, indices = rows.topk(min(k + 1, n), dim=-1)
        following = largest[:, k] if n > k else None
        return indices[:, :k], largest[:, k - 1], following
    # The k largest entries lie in the k groups with the largest maxima: one pass over
    # the row and two small searches in place of a large one.
    groups = n // GROUP
    maxima = rows.view(-1, GROUP, groups).amax(dim=1)
    best, group = maxima.topk(k + 1, dim=-1)
    members = torch.arange(0, n, groups, device=rows.device)[:, None]
    candidates = (group[:, None, :k] + members).flatten(1)
    largest, position = rows.gather(1, candidates).topk(k + 1, dim=-1)
    indices = candidates.gather(1, position[:, :k])
    return indices, largest[:, k - 1], torch.maximum(largest[:, k], best[:, k])


def _lowest_indices(rows: Tensor, smallest: Tensor, k: int) -> Tensor:
    """Return, ascending, the indices of the ``k`` largest entries of each row.

    Args:
        rows: [m, n].
        smallest: The smallest entry taken from each row, [m, 1].
        k: How many to take.
    """
    # NaN is not smaller than anything, so it is taken.
    row, index = (~(rows < smallest)).nonzero(as_tuple=True)
    equal = rows[row, index] == smallest[row, 0]
    # How many entries of a row that equal the smallest one come up to each.
    so_far = equal.cumsum(dim=0)
    per_row = torch.zeros(len(rows) + 1, dtype=torch.int64, device=rows.device)
    per_row[1:].index_add_(0, row, equal.long())
    before_row = per_row.cumsum(dim=0)
    room = k - torch.zeros_like(per_row).index_add_(0, row, (~equal).long())
    taken = ~equal | (so_far - before_row[row] <= room[row])
    return index[taken].view(-1, k)
