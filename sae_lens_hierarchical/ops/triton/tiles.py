"""Tiles of [threads, 8]: how the kernels read, write and sum rows.

Row t of a tile belongs to thread t, which holds eight columns of one row of memory:
Triton lays a two-dimensional tile out so, and then none moves through shared memory.
Threads are numbered group by group, lanes within a group.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
# A kernel is written in Triton's language, which type checkers take for Python.

import triton
import triton.language as tl

__all__ = ["first_columns", "load", "put", "scan_groups", "sum_groups", "sum_lanes"]


@triton.jit
def first_columns(column_block, lane, LANES: tl.constexpr, WIDE: tl.constexpr):
    """Return the first column of each half of a lane's eight.

    A 16-byte access to W_dec is eight columns of a 16-bit type (WIDE) or four of
    float32; the halves are then apart, so that the lanes touch whole cache lines.
    """
    first = column_block * (LANES * 8)
    if WIDE:
        return first + lane * 8, first + lane * 8 + 4
    return first + lane * 4, first + (LANES + lane) * 4


@triton.jit
def load(row_ptr, active, low, high, width, FULL: tl.constexpr, WIDE: tl.constexpr):
    """Load a [threads, 8] tile, eight columns a thread from its row_ptr.

    Columns from ``width`` on are 0; FULL says that there are none.
    """
    row_ptr, active = row_ptr[:, None], active[:, None]
    if WIDE:
        column = low[:, None] + tl.arange(0, 8)[None, :]
        return tl.load(
            row_ptr + column, mask=active & (FULL | (column < width)), other=0
        )
    low = low[:, None] + tl.arange(0, 4)[None, :]
    high = high[:, None] + tl.arange(0, 4)[None, :]
    low = tl.load(row_ptr + low, mask=active & (FULL | (low < width)), other=0)
    high = tl.load(row_ptr + high, mask=active & (FULL | (high < width)), other=0)
    halves = tl.permute(tl.join(low, high), (0, 2, 1))
    return tl.reshape(halves, (low.shape[0], 8))


@triton.jit
def put(row_ptr, tile, active, low, high, width, FULL: tl.constexpr, ADD: tl.constexpr):
    """Store a [threads, 8] tile, or add it atomically: the reverse of load."""
    halves = tl.reshape(tile, (tile.shape[0], 2, 4))
    left, right = tl.split(tl.permute(halves, (0, 2, 1)))
    for half in tl.static_range(2):
        column = (high if half else low)[:, None] + tl.arange(0, 4)[None, :]
        mask = active[:, None] & (FULL | (column < width))
        if ADD:
            tl.atomic_add(
                row_ptr[:, None] + column,
                right if half else left,
                mask=mask,
                sem="relaxed",
            )
        else:
            tl.store(row_ptr[:, None] + column, right if half else left, mask=mask)


@triton.jit
def scan_groups(tile, GROUPS: tl.constexpr, REVERSE: tl.constexpr):
    """Return the inclusive sums of a [GROUPS * LANES, 8] tile along its groups."""
    apart = tl.reshape(tile, (GROUPS, tile.shape[0] // GROUPS, 8))
    return tl.reshape(tl.cumsum(apart, axis=0, reverse=REVERSE), tile.shape)


@triton.jit
def sum_groups(tile, GROUPS: tl.constexpr):
    """Return the sum of a [GROUPS * LANES, 8] tile's groups, at each of them."""
    apart = tl.reshape(tile, (GROUPS, tile.shape[0] // GROUPS, 8))
    total = tl.sum(apart, axis=0, keep_dims=True)
    return tl.reshape(tl.broadcast_to(total, apart.shape), tile.shape)


@triton.jit
def sum_lanes(thread_sums, GROUPS: tl.constexpr):
    """Return the sum of a [GROUPS * LANES] tile's lanes, at each of them."""
    apart = tl.reshape(thread_sums, (GROUPS, thread_sums.shape[0] // GROUPS))
    total = tl.sum(apart, axis=1, keep_dims=True)
    return tl.reshape(tl.broadcast_to(total, apart.shape), thread_sums.shape)
