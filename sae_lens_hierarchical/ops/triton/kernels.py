"""The kernels: ``op`` and ``by_feature`` launch them, ``launch`` sizes them.

``fused_loss`` gathers a token's rows of W_dec once and keeps them in registers. There
are GROUPS · LANES threads: group g holds the ranks from g · RANKS on, lane l eight of
the block's columns. Sums along K then run inside a thread, and one row a group crosses
threads:

    d_j = x̂_j − x              the residual: a scan over the groups, then a loop in each
    s_i = 2/B Σ_{j ≥ i} w_j d_j  the suffix sum: the same, from the other end

(``sequential`` has the algebra.) A rank counts from 0, so budget j ends at rank j - 1.
The bits of BUDGET_MASK say which of a group's ranks is a budget in any group: J with
gaps skips the others' work, and TOPK, J = {K}, every scan. EVEN says that K and d_in
fill the threads exactly: then no access needs a mask.
"""

# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
# A kernel is written in Triton's language, which type checkers take for Python.
# ruff: noqa: RUF005 - Triton has no starred expressions.

import triton
import triton.language as tl

from sae_lens_hierarchical.ops.triton.tiles import (
    first_columns,
    load_tile,
    scan_groups,
    store_tile,
    sum_groups,
    sum_lanes,
)

__all__ = ["fused_loss", "merge_chunks", "scale", "sum_chunks"]


# A step's passes differ in first_block: Triton would compile 0, 1 and the others apart.
@triton.jit(do_not_specialize=["first_block"])
def fused_loss(
    target_ptr,  # [B, d_in]
    indices_ptr,  # [B, K]
    values_ptr,  # [B, K]
    W_dec_ptr,  # [d_sae, d_in]
    b_dec_ptr,  # [d_in]
    rank_weights_ptr,  # [GROUPS * RANKS]: 2 w_j / B at rank j - 1, elsewhere 0
    rank_budgets_ptr,  # [GROUPS * RANKS]: the index of j in J at rank j - 1, else -1
    residual_ptr,  # [B, d_in]
    squared_error_ptr,  # [programs, GROUPS * RANKS]: Σ |d_j|² at rank j - 1
    grad_values_ptr,  # [column blocks from first_block on, B, K], to be summed
    grad_b_dec_ptr,  # [token blocks, d_in], to be summed
    grad_target_ptr,  # [B, d_in]
    grad_W_dec_ptr,  # [d_sae, d_in], zeros, to be added to
    suffix_sums_ptr,  # [B, |J|, pass_columns]
    first_block,
    pass_columns,
    n_budgets,
    tokens_per_program,
    B,
    K,
    d_in,
    GROUPS: tl.constexpr,
    RANKS: tl.constexpr,
    LANES: tl.constexpr,
    EVEN: tl.constexpr,
    BUDGET_MASK: tl.constexpr,
    TOPK: tl.constexpr,
    GRADIENTS: tl.constexpr,
    TARGET_GRADIENT: tl.constexpr,
    ATOMIC: tl.constexpr,
):
    """Compute a column block's share of the loss and gradients for a block of tokens.

    All tokens of one column block come before the next block, so that its slice of
    W_dec and of the gradient stays in the L2 cache. W_dec's gradient is added to
    atomically (ATOMIC), or each s_i is stored for ``by_feature``.
    """
    token_blocks = tl.cdiv(B, tokens_per_program)
    token_block = tl.program_id(0) % token_blocks
    column_block = first_block + tl.program_id(0) // token_blocks
    thread = tl.arange(0, GROUPS * LANES)
    group, lane = thread // LANES, thread % LANES
    left, right = first_columns(column_block, lane, LANES)
    every = EVEN | (thread >= 0)
    squared_error = ()
    for _ in tl.static_range(RANKS):
        squared_error = squared_error + (tl.zeros([GROUPS * LANES], tl.float32),)
    grad_b_dec = tl.zeros([GROUPS * LANES, 8], tl.float32)

    first_token = token_block * tokens_per_program
    for step in range(tl.minimum(tokens_per_program, B - first_token)):
        token = (first_token + step).to(tl.int64)
        token_row = token * d_in + thread * 0
        # Of the group's own ranks: their part of x̂, and their Σ w_j d_j.
        decoded = tl.zeros([GROUPS * LANES, 8], tl.float32)
        weighted_residual = tl.zeros([GROUPS * LANES, 8], tl.float32)
        weight_sum = tl.zeros([GROUPS * LANES], tl.float32)
        features, values, rows = (), (), ()
        for r in tl.static_range(RANKS):
            rank = group * RANKS + r
            active = EVEN | (rank < K)
            entry = token * K + rank
            feature = tl.load(indices_ptr + entry, mask=active, other=0).to(tl.int32)
            value = tl.load(values_ptr + entry, mask=active, other=0).to(tl.float32)
            row_ptr = W_dec_ptr + feature.to(tl.int64) * d_in
            row = load_tile(row_ptr, active, left, right, d_in, EVEN)
            decoded += value[:, None] * row.to(tl.float32)
            if GRADIENTS and not TOPK and (BUDGET_MASK >> r) & 1:
                weight = tl.load(rank_weights_ptr + rank)
                weighted_residual += weight[:, None] * decoded
                weight_sum += weight
            features = features + (feature,)
            values = values + (value,)
            rows = rows + (row,)

        # Read again for each token, like the weights: registers are scarce.
        row_ptr = b_dec_ptr + thread * 0
        b_dec = load_tile(row_ptr, every, left, right, d_in, EVEN)
        row_ptr = target_ptr + token_row
        target = load_tile(row_ptr, every, left, right, d_in, EVEN)
        residual_0 = b_dec.to(tl.float32) - target.to(tl.float32)

        # The residual at the end of each group, and the suffix sum beyond it.
        if TOPK:
            residual = residual_0 + sum_groups(decoded, GROUPS)
            suffix_sum = residual * tl.load(rank_weights_ptr + K - 1)
        else:
            residual = scan_groups(decoded, GROUPS, False)
            before_group = residual_0 + (residual - decoded)
            weighted_residual += weight_sum[:, None] * before_group
            residual += residual_0
            suffix_sum = scan_groups(weighted_residual, GROUPS, True)
            suffix_sum -= weighted_residual
        row_ptr = residual_ptr + token_row
        is_last = group == GROUPS - 1
        store_tile(row_ptr, residual, is_last, left, right, d_in, EVEN, False)

        # Back through the group's ranks: the residual shrinks, the suffix sum grows.
        new_squared_error = ()
        for r in tl.static_range(RANKS - 1, -1, -1):
            rank = group * RANKS + r
            active = EVEN | (rank < K)
            row = rows[r].to(tl.float32)
            total = squared_error[r]
            if (BUDGET_MASK >> r) & 1:
                total += tl.sum(residual * residual, axis=1)
                if GRADIENTS:
                    if not TOPK:
                        weight = tl.load(rank_weights_ptr + rank)
                        suffix_sum += weight[:, None] * residual
                    if not ATOMIC:
                        budget = tl.load(rank_budgets_ptr + rank)
                        first_column = first_block * (LANES * 8)
                        offset = (token * n_budgets + budget) * pass_columns
                        store_tile(
                            suffix_sums_ptr + (offset - first_column),
                            suffix_sum,
                            budget >= 0,
                            left,
                            right,
                            first_column + pass_columns,
                            EVEN,
                            False,
                        )
            new_squared_error = (total,) + new_squared_error
            if GRADIENTS:
                grad_value = sum_lanes(tl.sum(row * suffix_sum, axis=1), GROUPS)
                pass_block = (column_block - first_block).to(tl.int64)
                entry = (pass_block * B + token) * K + rank
                mask = active & (lane == 0)
                tl.store(grad_values_ptr + entry, grad_value, mask=mask)
                if ATOMIC:
                    row_ptr = grad_W_dec_ptr + features[r].to(tl.int64) * d_in
                    grad_row = values[r][:, None] * suffix_sum
                    store_tile(row_ptr, grad_row, active, left, right, d_in, EVEN, True)
            if not TOPK:
                residual -= values[r][:, None] * row
        squared_error = new_squared_error
        if GRADIENTS:
            grad_b_dec += suffix_sum
            if TARGET_GRADIENT:
                row_ptr = grad_target_ptr + token_row
                is_first = group == 0
                store_tile(
                    row_ptr, -suffix_sum, is_first, left, right, d_in, EVEN, False
                )

    program = (column_block * token_blocks + token_block).to(tl.int64)
    for r in tl.static_range(RANKS):
        if (BUDGET_MASK >> r) & 1:
            offset = (program * GROUPS + group) * RANKS + r
            total = sum_lanes(squared_error[r], GROUPS)
            tl.store(squared_error_ptr + offset, total, mask=lane == 0)
    if GRADIENTS:
        row_ptr = grad_b_dec_ptr + token_block.to(tl.int64) * d_in + thread * 0
        store_tile(row_ptr, grad_b_dec, group == 0, left, right, d_in, EVEN, False)


@triton.jit
def sum_chunks(
    suffix_sums_ptr,  # [B * |J|, pass_columns]
    rows_ptr,  # [entries]: each entry's row of suffix_sums
    values_ptr,  # [entries]
    indptr_ptr,  # [d_sae + 1]: the entries of feature f start at indptr[f]
    chunk_ends_ptr,  # [d_sae]: the number of chunks of features 0 to f
    chunk_features_ptr,  # [chunks]: each chunk's feature; d_sae where there is no chunk
    partial_sums_ptr,  # [chunks, pass_columns]
    grad_W_dec_ptr,  # [d_sae, d_in]
    d_sae,
    pass_columns,
    first_column,
    d_in,
    CHUNK: tl.constexpr,
    GROUPS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Sum value · suffix sum over a chunk of up to CHUNK entries, in a fixed order.

    A feature with one chunk is written at once, the others by ``merge_chunks``: no
    feature's entries, however many, are one program's work.
    """
    chunk = tl.program_id(0)
    feature = tl.load(chunk_features_ptr + chunk)
    if feature < d_sae:
        thread = tl.arange(0, GROUPS * LANES)
        group, lane = thread // LANES, thread % LANES
        left, right = first_columns(tl.program_id(1), lane, LANES)
        chunk_end = tl.load(chunk_ends_ptr + feature)
        last = tl.load(indptr_ptr + feature + 1)
        start = tl.load(indptr_ptr + feature)
        chunks = tl.cdiv(last - start, CHUNK)
        start += (chunk - (chunk_end - chunks)) * CHUNK
        end = tl.minimum(start + CHUNK, last)
        total = tl.zeros([GROUPS * LANES, 8], tl.float32)
        for step in range(start, end, GROUPS):
            entry = step + group
            active = entry < end
            row = tl.load(rows_ptr + entry, mask=active, other=0).to(tl.int64)
            value = tl.load(values_ptr + entry, mask=active, other=0)
            row_ptr = suffix_sums_ptr + row * pass_columns
            suffix_sum = load_tile(row_ptr, active, left, right, pass_columns, False)
            total += value[:, None] * suffix_sum
        total = sum_groups(total, GROUPS)
        if chunks == 1:
            row_ptr = grad_W_dec_ptr + feature.to(tl.int64) * d_in + first_column
            width = d_in - first_column
        else:
            row_ptr = partial_sums_ptr + chunk.to(tl.int64) * pass_columns
            width = pass_columns
        row_ptr += thread * 0
        store_tile(row_ptr, total, group == 0, left, right, width, False, False)


@triton.jit
def merge_chunks(
    indptr_ptr,
    chunk_ends_ptr,
    partial_sums_ptr,
    grad_W_dec_ptr,
    pass_columns,
    first_column,
    d_in,
    CHUNK: tl.constexpr,
    GROUPS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Sum the chunks of the features that have several; write 0 where there is none.

    The arguments are those of ``sum_chunks``.
    """
    feature = tl.program_id(0)
    entries = tl.load(indptr_ptr + feature + 1) - tl.load(indptr_ptr + feature)
    chunks = tl.cdiv(entries, CHUNK)
    if chunks != 1:
        thread = tl.arange(0, GROUPS * LANES)
        group, lane = thread // LANES, thread % LANES
        left, right = first_columns(tl.program_id(1), lane, LANES)
        end = tl.load(chunk_ends_ptr + feature)
        total = tl.zeros([GROUPS * LANES, 8], tl.float32)
        for step in range(end - chunks, end, GROUPS):
            chunk = step + group
            row_ptr = partial_sums_ptr + chunk.to(tl.int64) * pass_columns
            total += load_tile(row_ptr, chunk < end, left, right, pass_columns, False)
        total = sum_groups(total, GROUPS)
        row_ptr = grad_W_dec_ptr + feature.to(tl.int64) * d_in + first_column
        row_ptr += thread * 0
        width = d_in - first_column
        store_tile(row_ptr, total, group == 0, left, right, width, False, False)


@triton.jit
def scale(tensor_ptr, factor_ptr, n_elements, BLOCK_SIZE: tl.constexpr):
    """Multiply in place; the factor 1, most losses' own, costs next to nothing."""
    factor = tl.load(factor_ptr)
    if factor != 1:
        offset = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
        value = tl.load(tensor_ptr + offset, mask=offset < n_elements)
        tl.store(tensor_ptr + offset, value * factor, mask=offset < n_elements)
