"""W_dec's gradient without atomics: bitwise the same from run to run.

The gradient's row f is the sum of l_i s_i over the places (token, i) where feature f
is active. The places are sorted by feature once; then each row is summed in that order
from the suffix sums s_i that ``fused_loss`` stored.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
from torch import Tensor

from sae_lens_hierarchical.ops.triton.kernels import merge_chunks, sum_chunks

__all__ = ["TILE", "WARPS", "Places", "sort_by_feature", "sum_by_feature"]

# Places to a program, and its threads: 4 places side by side, 64 columns wide.
TILE: dict[str, Any] = {"CHUNK": 64, "STREAMS": 4, "LANES": 8}
WARPS = 1


@dataclasses.dataclass
class Places:
    """The places (token, rank) sorted by feature and cut into chunks.

    Attributes:
        sources: Each place's row of suffix sums, token · |J| + budget, [B · K].
        factors: Its activation, float32, or 0 where no budget covers its rank, [B · K].
        bounds: The places of feature f start at bounds[f], [d_sae + 1].
        chunk_ends: The number of chunks of features 0 to f, [d_sae].
        owners: Each chunk's feature; d_sae where there is no chunk. Its length bounds
            the number of chunks from above: the host does not wait to learn it.
    """

    sources: Tensor
    factors: Tensor
    bounds: Tensor
    chunk_ends: Tensor
    owners: Tensor


def sort_by_feature(
    indices: Tensor, values: Tensor, segments: Tensor, budgets: int, d_sae: int
) -> Places:
    """Sort a batch's places.

    Args:
        indices: [B, K].
        values: [B, K].
        segments: For each rank the place in J of the first budget that covers it, or
            -1, [K].
        budgets: |J|.
        d_sae: The number of features.
    """
    (batch, k), device = indices.shape, indices.device
    tokens = torch.arange(batch, dtype=torch.int32, device=device)
    sources = tokens[:, None] * budgets + segments.clamp(min=0)
    factors = values.float() * (segments >= 0)
    features, order = torch.sort(indices.flatten().int(), stable=True)
    bounds = torch.searchsorted(
        features, torch.arange(d_sae + 1, dtype=torch.int32, device=device)
    )
    chunk_ends = ((bounds.diff() + TILE["CHUNK"] - 1) // TILE["CHUNK"]).cumsum(0)
    most = batch * k // TILE["CHUNK"] + min(d_sae, batch * k)
    owners = torch.searchsorted(
        chunk_ends, torch.arange(most, device=device), right=True
    )
    return Places(
        sources=sources.flatten()[order].int(),
        factors=factors.flatten()[order],
        bounds=bounds.int(),
        chunk_ends=chunk_ends.int(),
        owners=owners.int(),
    )


def sum_by_feature(
    places: Places, suffixes: Tensor, gradient: Tensor, first_column: int
) -> None:
    """Write columns of W_dec's gradient.

    Args:
        places: The batch's, from ``sort_by_feature``.
        suffixes: s_i for some columns, [B, |J|, columns], columns a multiple of 4.
        gradient: W_dec's gradient, [d_sae, d_in]; all rows are written, from
            ``first_column`` on.
        first_column: The first of the columns.
    """
    (d_sae, d_in), columns = gradient.shape, suffixes.shape[-1]
    chunks = len(places.owners)
    partial = suffixes.new_empty(chunks, columns)
    blocks = triton.cdiv(columns, 8 * TILE["LANES"])
    sum_chunks[(chunks, blocks)](
        suffixes,
        places.sources,
        places.factors,
        places.bounds,
        places.chunk_ends,
        places.owners,
        partial,
        gradient,
        d_sae,
        columns,
        first_column,
        d_in,
        **TILE,
        num_warps=WARPS,  # pyright: ignore[reportCallIssue]
    )
    merge_chunks[(d_sae, blocks)](
        places.bounds,
        places.chunk_ends,
        partial,
        gradient,
        columns,
        first_column,
        d_in,
        **TILE,
        num_warps=WARPS,  # pyright: ignore[reportCallIssue]
    )
