"""W_dec's gradient without atomics: bitwise the same from run to run.

The gradient's row f is the sum of value · suffix sum over the entries (token, rank)
where feature f is active. The entries are sorted by feature once; then each row is
summed in that order from the suffix sums s_i that ``fused_loss`` stored.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
from torch import Tensor

from sae_lens_hierarchical.ops.triton.kernels import merge_chunks, sum_chunks
from sae_lens_hierarchical.ops.triton.launch import compiler_options

__all__ = ["TILE", "WARPS", "ActivationsCSC", "sort_by_feature", "sum_by_feature"]

# Entries to a program, and its threads: 4 entries side by side, 64 columns wide.
TILE: dict[str, Any] = {"CHUNK": 64, "GROUPS": 4, "LANES": 8}
WARPS = 1


@dataclasses.dataclass
class ActivationsCSC:
    """The activations by feature, as a compressed sparse column (CSC) matrix, chunked.

    Its columns are the features, its rows those of the suffix sums, [B · |J|].

    Attributes:
        rows: Each entry's row, token · |J| + budget, int32, [B · K].
        values: Its activation, float32, or 0 where no budget covers its rank, [B · K].
        indptr: The entries of feature f start at indptr[f], int32, [d_sae + 1].
        chunk_ends: The number of chunks of features 0 to f, int32, [d_sae].
        chunk_features: Each chunk's feature, int32; d_sae where there is no chunk. Its
            length bounds the number of chunks from above: the host does not wait to
            learn it.
    """

    rows: Tensor
    values: Tensor
    indptr: Tensor
    chunk_ends: Tensor
    chunk_features: Tensor


def sort_by_feature(
    indices: Tensor,
    values: Tensor,
    covering_budget: Tensor,
    n_budgets: int,
    d_sae: int,
) -> ActivationsCSC:
    """Sort a batch's activations by feature.

    Args:
        indices: [B, K], int32 or int64.
        values: [B, K], floating point.
        covering_budget: For each rank the index in J of the first budget that covers
            it, or -1, int32, [K].
        n_budgets: |J|.
        d_sae: The number of features.
    """
    (batch, k), device = indices.shape, indices.device
    tokens = torch.arange(batch, dtype=torch.int32, device=device)
    rows = tokens[:, None] * n_budgets + covering_budget.clamp(min=0)
    covered_values = values.float() * (covering_budget >= 0)
    features, order = torch.sort(indices.flatten().int(), stable=True)
    indptr = torch.searchsorted(
        features, torch.arange(d_sae + 1, dtype=torch.int32, device=device)
    )
    chunk_ends = ((indptr.diff() + TILE["CHUNK"] - 1) // TILE["CHUNK"]).cumsum(0)
    most_chunks = batch * k // TILE["CHUNK"] + min(d_sae, batch * k)
    chunk_features = torch.searchsorted(
        chunk_ends, torch.arange(most_chunks, device=device), right=True
    )
    return ActivationsCSC(
        rows=rows.flatten()[order].int(),
        values=covered_values.flatten()[order],
        indptr=indptr.int(),
        chunk_ends=chunk_ends.int(),
        chunk_features=chunk_features.int(),
    )


def sum_by_feature(
    activations: ActivationsCSC,
    suffix_sums: Tensor,
    grad_W_dec: Tensor,
    first_column: int,
) -> None:
    """Write a pass's columns of W_dec's gradient.

    Args:
        activations: The batch's, from ``sort_by_feature``.
        suffix_sums: s_i for the pass's columns, float32, [B, |J|, pass_columns],
            pass_columns a multiple of 4.
        grad_W_dec: W_dec's gradient, float32, [d_sae, d_in]; all rows are written,
            from ``first_column`` on.
        first_column: The first of the columns.
    """
    (d_sae, d_in), pass_columns = grad_W_dec.shape, suffix_sums.shape[-1]
    chunks = len(activations.chunk_features)
    partial_sums = suffix_sums.new_empty(chunks, pass_columns)
    column_blocks = triton.cdiv(pass_columns, 8 * TILE["LANES"])
    sum_chunks[(chunks, column_blocks)](
        suffix_sums_ptr=suffix_sums,
        rows_ptr=activations.rows,
        values_ptr=activations.values,
        indptr_ptr=activations.indptr,
        chunk_ends_ptr=activations.chunk_ends,
        chunk_features_ptr=activations.chunk_features,
        partial_sums_ptr=partial_sums,
        grad_W_dec_ptr=grad_W_dec,
        d_sae=d_sae,
        pass_columns=pass_columns,
        first_column=first_column,
        d_in=d_in,
        **TILE,
        **compiler_options(WARPS),
    )
    merge_chunks[(d_sae, column_blocks)](
        indptr_ptr=activations.indptr,
        chunk_ends_ptr=activations.chunk_ends,
        partial_sums_ptr=partial_sums,
        grad_W_dec_ptr=grad_W_dec,
        pass_columns=pass_columns,
        first_column=first_column,
        d_in=d_in,
        **TILE,
        **compiler_options(WARPS),
    )
