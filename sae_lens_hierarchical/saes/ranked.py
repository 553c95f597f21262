"""Activations in compact form: the k largest features of each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from sae_lens import SAE
from torch import Tensor

from sae_lens_hierarchical.ops import stable_topk
from sae_lens_hierarchical.saes.normalization import OutputMap

__all__ = ["AdaptiveActs", "RankedActs", "decode_prefixes", "rank"]


class RankedActs(NamedTuple):
    """The k largest features of each token, largest first.

    Attributes:
        values: Activations after ReLU, [..., k]; zeros stand last.
        indices: Their features, [..., k], int64; of equal ones the lower comes first.
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


def rank(hidden_pre: Tensor, k: int) -> RankedActs:
    """Return the ``k`` largest entries along the last dimension, after ReLU.

    A smaller k keeps just the first of what a larger one keeps, even among ties.
    """
    values, indices = stable_topk(hidden_pre, k)
    return RankedActs(values.relu(), indices)


def decode_prefixes(
    sae: SAE[Any], ranked: RankedActs, ks: Sequence[int], output_map: OutputMap
) -> Iterator[Tensor]:
    """Yield the output of the first k features of each token, [..., d_in], for each k.

    Args:
        sae: Any SAE of SAELens with a linear decoder.
        ranked: [..., k].
        ks: Strictly increasing, up to the k of ``ranked``.
        output_map: That of the input which was encoded to ``ranked``.
    """
    values, indices = ranked
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        values = values / sae.W_dec.norm(dim=-1)[indices]
    # In bfloat16 a sum of many terms would lose the small ones.
    exact = torch.promote_types(values.dtype, torch.float32)
    total = values.new_zeros(*values.shape[:-1], sae.cfg.d_in, dtype=exact)
    for before, k in pairwise([0, *ks]):
        for i in range(before, k):
            row = sae.W_dec[indices[..., i]].to(exact)
            total = total.addcmul(row, values[..., i, None].to(exact))
        reconstruction = sae.hook_sae_recons((total + sae.b_dec).to(values.dtype))
        yield sae.reshape_fn_out(output_map(reconstruction), sae.d_head)
