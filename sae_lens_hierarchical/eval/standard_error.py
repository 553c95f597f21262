"""How much explained variance depends on which contexts it was measured on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sae_lens_hierarchical.eval.statistics import as_double

__all__ = ["ContextGroups", "group_of_tokens", "sum_by_group"]

_GROUPS = 32  # of contexts: as many estimates, in memory that does not grow with these


def group_of_tokens(keep: Tensor, contexts_before: int) -> Tensor:
    """Return the group of contexts that each evaluated token of a batch is in.

    Contexts are dealt out to the groups one by one.

    Args:
        keep: Which tokens are evaluated, [n, context], bool.
        contexts_before: How many contexts came in earlier batches.

    Returns:
        Numbers of groups, [tokens], int64, on the CPU.
    """
    contexts = torch.arange(contexts_before, contexts_before + len(keep))
    return (contexts % _GROUPS).repeat_interleave(keep.sum(dim=1).cpu())


def sum_by_group(values: Tensor, groups: Tensor) -> Tensor:
    """Return the sums of tokens' values, [tokens, ...], by group.

    They are in float64, on the CPU.

    Args:
        values: Of each token, on any device.
        groups: From ``group_of_tokens``.
    """
    values = as_double(values)
    sums = torch.zeros(_GROUPS, *values.shape[1:]).to(values)
    return sums.index_add_(0, groups.to(values.device), values).cpu()


class ContextGroups:
    """Running sums of the activations in each group of contexts."""

    def __init__(self, d_in: int) -> None:
        self._tokens = torch.zeros(_GROUPS, dtype=torch.float64)
        self._sum = torch.zeros(_GROUPS, d_in, dtype=torch.float64)
        self._squares = torch.zeros(_GROUPS, dtype=torch.float64)

    def add(self, x: Tensor, groups: Tensor) -> None:
        """Add a batch of activations, [tokens, d_in], and their groups, [tokens]."""
        x = as_double(x)
        self._tokens += torch.bincount(groups, minlength=_GROUPS)
        self._sum += sum_by_group(x, groups)
        self._squares += sum_by_group(x.pow(2).sum(dim=1), groups)

    def standard_error(self, squared_errors: Tensor) -> float | None:
        """Return the standard error of explained variance, by the jackknife.

        That is from its values without each group; None of fewer than two groups.

        Args:
            squared_errors: The summed ‖x - x̂‖² of each group.
        """
        used = self._tokens > 0
        if (n := int(used.sum())) < 2:
            return None
        tokens, total, squares, errors = (
            sums.sum(dim=0) - sums[used]
            for sums in (self._tokens, self._sum, self._squares, squared_errors)
        )
        variance = squares / tokens - (total / tokens.unsqueeze(1)).pow(2).sum(dim=1)
        without = 1 - errors / tokens / variance
        return math.sqrt((n - 1) * float(without.var(correction=0)))
