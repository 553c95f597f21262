"""The kernels: ``op`` and ``by_feature`` launch them, ``launch`` sizes them.

``fused_loss`` gathers a token's rows of W_dec once and keeps them in registers. There
are GROUPS · LANES threads: group g holds the ranks from g · RANKS on, lane l eight of
the block's columns. Sums along K then run inside a thread, and one row a group crosses
threads:

    d_j = x̂_j − x            a scan over the groups' sums, then a walk in the group
    s_i = 2 Σ_{j ≥ i} w_j d_j  the same, from the other end

(``sequential`` has the algebra). The bits of SLOTS say which of a group's ranks is a
budget in any group: J with gaps skips the others' work, J = {K} every scan.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
# A kernel is written in Triton's language, which type checkers take for Python.
# ruff: noqa: RUF005 - Triton has no starred expressions.

import triton
import triton.language as tl

from sae_lens_hierarchical.ops.triton.tiles import (
    first_columns,
    load,
    put,
    scan_groups,
    sum_groups,
    sum_lanes,
)

__all__ = ["fused_loss", "merge_chunks", "scale", "sum_chunks"]


@triton.jit
def fused_loss(
    target_ptr,  # [B, d_in]
    indices_ptr,  # [B, K]
    values_ptr,  # [B, K]
    W_dec_ptr,  # [d_sae, d_in]
    b_dec_ptr,  # [d_in]
    weights_ptr,  # [GROUPS * RANKS]: 2 w_j / B at rank j - 1, elsewhere 0
    positions_ptr,  # [GROUPS * RANKS]: the place in J of rank j - 1, elsewhere -1
    residual_ptr,  # [B, d_in]
    squares_ptr,  # [programs, GROUPS * RANKS]: Σ |d_j|² at rank j - 1
    grad_values_ptr,  # [column blocks from first_block on, B, K], to be summed
    grad_b_dec_ptr,  # [token blocks, d_in], to be summed
    grad_target_ptr,  # [B, d_in]
    grad_W_dec_ptr,  # [d_sae, d_in], zeros, to be added to
    suffixes_ptr,  # [B, |J|, suffix_columns]
    first_block,
    suffix_columns,
    budgets,
    tokens,
    B,
    K,
    d_in,
    GROUPS: tl.constexpr,
    RANKS: tl.constexpr,
    LANES: tl.constexpr,
    WIDE: tl.constexpr,
    FULL: tl.constexpr,
    SLOTS: tl.constexpr,
    ONE_BUDGET: tl.constexpr,
    GRADIENTS: tl.constexpr,
    TARGET_GRADIENT: tl.constexpr,
    ADD_W_DEC: tl.constexpr,
):
    """Compute a column block's share of the loss and gradients for ``tokens`` tokens.

    All tokens of one column block come before the next block, so that its slice of
    W_dec and of the gradient stays in the L2 cache. W_dec's gradient is added to
    atomically (ADD_W_DEC), or each s_i is stored for ``by_feature``.
    """
    token_blocks = tl.cdiv(B, tokens)
    token_block = tl.program_id(0) % token_blocks
    column_block = first_block + tl.program_id(0) // token_blocks
    thread = tl.arange(0, GROUPS * LANES)
    group, lane = thread // LANES, thread % LANES
    low, high = first_columns(column_block, lane, LANES, WIDE)
    every = FULL | (thread >= 0)
    squares = ()
    for _ in tl.static_range(RANKS):
        squares = squares + (tl.zeros([GROUPS * LANES], tl.float32),)
    bias_gradient = tl.zeros([GROUPS * LANES, 8], tl.float32)

    first = token_block * tokens
    for step in range(tl.minimum(tokens, B - first)):
        token = (first + step).to(tl.int64)
        position = token * d_in + thread * 0
        prefix = tl.zeros([GROUPS * LANES, 8], tl.float32)
        pull = tl.zeros([GROUPS * LANES, 8], tl.float32)
        weight_sum = tl.zeros([GROUPS * LANES], tl.float32)
        features, values, rows = (), (), ()
        for r in tl.static_range(RANKS):
            rank = group * RANKS + r
            active = FULL | (rank < K)
            place = token * K + rank
            feature = tl.load(indices_ptr + place, mask=active, other=0).to(tl.int32)
            value = tl.load(values_ptr + place, mask=active, other=0).to(tl.float32)
            row_ptr = W_dec_ptr + feature.to(tl.int64) * d_in
            row = load(row_ptr, active, low, high, d_in, FULL, WIDE)
            prefix += value[:, None] * row.to(tl.float32)
            if GRADIENTS and not ONE_BUDGET and (SLOTS >> r) & 1:
                weight = tl.load(weights_ptr + rank)
                pull += weight[:, None] * prefix
                weight_sum += weight
            features = features + (feature,)
            values = values + (value,)
            rows = rows + (row,)

        # Read again for each token, like the weights: registers are scarce.
        bias = load(b_dec_ptr + thread * 0, every, low, high, d_in, FULL, WIDE)
        target = load(target_ptr + position, every, low, high, d_in, FULL, WIDE)
        start = bias.to(tl.float32) - target.to(tl.float32)

        # d at the end of each group, and s beyond it.
        if ONE_BUDGET:
            error = start + sum_groups(prefix, GROUPS)
            suffix = error * tl.load(weights_ptr + K - 1)
        else:
            error = scan_groups(prefix, GROUPS, False)
            pull += weight_sum[:, None] * (start + (error - prefix))
            error += start
            suffix = scan_groups(pull, GROUPS, True) - pull
        is_last = group == GROUPS - 1
        put(residual_ptr + position, error, is_last, low, high, d_in, FULL, False)

        walked = ()
        for r in tl.static_range(RANKS - 1, -1, -1):
            rank = group * RANKS + r
            active = FULL | (rank < K)
            if (SLOTS >> r) & 1:
                walked = (squares[r] + tl.sum(error * error, axis=1),) + walked
                if GRADIENTS:
                    if not ONE_BUDGET:
                        suffix += tl.load(weights_ptr + rank)[:, None] * error
                    if not ADD_W_DEC:
                        budget = tl.load(positions_ptr + rank)
                        place = (token * budgets + budget) * suffix_columns
                        place -= first_block * (LANES * 8)
                        put(
                            suffixes_ptr + place,
                            suffix,
                            budget >= 0,
                            low,
                            high,
                            first_block * (LANES * 8) + suffix_columns,
                            FULL,
                            False,
                        )
            else:
                walked = (squares[r],) + walked
            row = rows[r].to(tl.float32)
            if GRADIENTS:
                slope = sum_lanes(tl.sum(row * suffix, axis=1), GROUPS)
                block = (column_block - first_block).to(tl.int64)
                place = (block * B + token) * K + rank
                mask = active & (lane == 0)
                tl.store(grad_values_ptr + place, slope, mask=mask)
                if ADD_W_DEC:
                    row_ptr = grad_W_dec_ptr + features[r].to(tl.int64) * d_in
                    term = values[r][:, None] * suffix
                    put(row_ptr, term, active, low, high, d_in, FULL, True)
            if not ONE_BUDGET:
                error -= values[r][:, None] * row
        squares = walked
        if GRADIENTS:
            bias_gradient += suffix
            if TARGET_GRADIENT:
                row_ptr = grad_target_ptr + position
                put(row_ptr, -suffix, group == 0, low, high, d_in, FULL, False)

    program = (column_block * token_blocks + token_block).to(tl.int64)
    for r in tl.static_range(RANKS):
        if (SLOTS >> r) & 1:
            place = (program * GROUPS + group) * RANKS + r
            total = sum_lanes(squares[r], GROUPS)
            tl.store(squares_ptr + place, total, mask=lane == 0)
    if GRADIENTS:
        row_ptr = grad_b_dec_ptr + token_block.to(tl.int64) * d_in + thread * 0
        put(row_ptr, bias_gradient, group == 0, low, high, d_in, FULL, False)


@triton.jit
def sum_chunks(
    rows_ptr,  # [rows, columns]
    sources_ptr,  # [pairs]: a row of rows_ptr
    factors_ptr,  # [pairs]
    bounds_ptr,  # [d_sae + 1]: the pairs of feature f start at bounds[f]
    chunk_ends_ptr,  # [outputs]: the chunks of outputs 0 to f, counted
    owners_ptr,  # [chunks]: each chunk's feature, or outputs where there is no chunk
    partial_ptr,  # [chunks, columns]
    gradient_ptr,  # [d_sae, d_in]
    d_sae,
    columns,
    first_column,
    d_in,
    CHUNK: tl.constexpr,
    STREAMS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Sum factor · row over a chunk of up to CHUNK pairs, always in the same order.

    An feature with one chunk is written at once, the others by ``merge_chunks``: no
    feature's pairs, however many, are one program's work.
    """
    chunk = tl.program_id(0)
    feature = tl.load(owners_ptr + chunk)
    if feature < d_sae:
        thread = tl.arange(0, STREAMS * LANES)
        stream, lane = thread // LANES, thread % LANES
        low, high = first_columns(tl.program_id(1), lane, LANES, False)
        chunk_end = tl.load(chunk_ends_ptr + feature)
        last = tl.load(bounds_ptr + feature + 1)
        start = tl.load(bounds_ptr + feature)
        chunks = tl.cdiv(last - start, CHUNK)
        start += (chunk - (chunk_end - chunks)) * CHUNK
        end = tl.minimum(start + CHUNK, last)
        total = tl.zeros([STREAMS * LANES, 8], tl.float32)
        for step in range(start, end, STREAMS):
            pair = step + stream
            active = pair < end
            source = tl.load(sources_ptr + pair, mask=active, other=0).to(tl.int64)
            factor = tl.load(factors_ptr + pair, mask=active, other=0)
            row_ptr = rows_ptr + source * columns
            row = load(row_ptr, active, low, high, columns, False, False)
            total += factor[:, None] * row
        total = sum_groups(total, STREAMS)
        is_first = stream == 0
        if chunks == 1:
            row_ptr = gradient_ptr + feature.to(tl.int64) * d_in + first_column
            width = d_in - first_column
            put(row_ptr + thread * 0, total, is_first, low, high, width, False, False)
        else:
            row_ptr = partial_ptr + chunk.to(tl.int64) * columns
            put(row_ptr + thread * 0, total, is_first, low, high, columns, False, False)


@triton.jit
def merge_chunks(
    bounds_ptr,
    chunk_ends_ptr,
    partial_ptr,
    gradient_ptr,
    columns,
    first_column,
    d_in,
    CHUNK: tl.constexpr,
    STREAMS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Sum the chunks of the outputs that have several, and write 0 where there is none.

    The arguments are those of ``sum_chunks``.
    """
    feature = tl.program_id(0)
    pairs = tl.load(bounds_ptr + feature + 1) - tl.load(bounds_ptr + feature)
    chunks = tl.cdiv(pairs, CHUNK)
    if chunks != 1:
        thread = tl.arange(0, STREAMS * LANES)
        stream, lane = thread // LANES, thread % LANES
        low, high = first_columns(tl.program_id(1), lane, LANES, False)
        end = tl.load(chunk_ends_ptr + feature)
        total = tl.zeros([STREAMS * LANES, 8], tl.float32)
        for step in range(end - chunks, end, STREAMS):
            chunk = step + stream
            row_ptr = partial_ptr + chunk.to(tl.int64) * columns
            total += load(row_ptr, chunk < end, low, high, columns, False, False)
        total = sum_groups(total, STREAMS)
        row_ptr = gradient_ptr + feature.to(tl.int64) * d_in + first_column
        width = d_in - first_column
        put(row_ptr + thread * 0, total, stream == 0, low, high, width, False, False)


@triton.jit
def scale(tensor_ptr, factor_ptr, count, BLOCK: tl.constexpr):
    """Multiply in place; the factor 1, most losses' own, costs next to nothing."""
    factor = tl.load(factor_ptr)
    if factor != 1:
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(tensor_ptr + place, mask=place < count)
        tl.store(tensor_ptr + place, value * factor, mask=place < count)
