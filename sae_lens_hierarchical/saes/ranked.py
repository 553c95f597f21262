"""Activations in compact form: the k largest features of each token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["AdaptiveActs", "RankedActs"]


class RankedActs(NamedTuple):
    """The k largest features of each token, largest first.

    Attributes:
        values: Activations after ReLU, [..., k]; zeros stand last.
        indices: Their features, [..., k], int64.
    """

    values: Tensor
    indices: Tensor

    def to_dense(self, d_sae: int) -> Tensor:
        """Return the activations of all features, [..., d_sae], as ``encode`` does."""
        dense = self.values.new_zeros(*self.values.shape[:-1], d_sae)
        return dense.scatter_(-1, self.indices, self.values)


class AdaptiveActs(NamedTuple):
    """Each token's features at the smallest k that meets a target.

    Attributes:
        ranked: [..., k_max]; the values past each token's own k are 0.
        k: The number of features in use, [...], int64.
        fvu: The fraction of the token's variance left unexplained, [...].
    """

    ranked: RankedActs
    k: Tensor
    fvu: Tensor


def rank(hidden_pre: Tensor, k: int, k_max: int) -> RankedActs:
    """Return the ``k`` largest entries along the last dimension, after ReLU.

    Entries are ranked for ``k_max``, whatever k, so that a smaller k keeps just the
    first of what a larger one keeps, even where entries tie.
    """
    values, indices = torch.topk(hidden_pre, max(k, k_max), dim=-1)
    return RankedActs(values[..., :k].relu(), indices[..., :k])
