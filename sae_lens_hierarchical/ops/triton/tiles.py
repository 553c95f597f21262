"""Tiles of [threads, 8]: how the kernels load, store and sum rows of memory.

Row t of a tile belongs to thread t, which holds eight columns of one row of memory:
Triton lays a two-dimensional tile out so, and then none moves through shared memory.
Threads are numbered group by group, lanes within a group.
"""

# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
# A kernel is written in Triton's language, which type checkers take for Python.

import triton
import triton.language as tl

__all__ = [
    "first_columns",
    "load_tile",
    "scan_groups",
    "store_tile",
    "sum_groups",
    "sum_lanes",
]


@triton.jit
def first_columns(column_block, lane, LANES: tl.constexpr):
    """Return the first column of the left and of the right half of a lane's eight.

    The halves are apart, so that the lanes' accesses of four columns touch whole cache
    lines: those of float32, and so the additions to W_dec's gradient in any dtype.
    """
    first = column_block * (LANES * 8)
    return first + lane * 4, first + (LANES + lane) * 4


@triton.jit
def load_tile(row_ptr, active, left, right, width, EVEN: tl.constexpr):
    """Load a [threads, 8] tile, eight columns a thread from its row_ptr.

    Columns from ``width`` on are 0; EVEN says that there are none.
    """
    row_ptr, active = row_ptr[:, None], active[:, None]
    left = left[:, None] + tl.arange(0, 4)[None, :]
    right = right[:, None] + tl.arange(0, 4)[None, :]
    left = tl.load(row_ptr + left, mask=active & (EVEN | (left < width)), other=0)
    right = tl.load(row_ptr + right, mask=active & (EVEN | (right < width)), other=0)
    halves = tl.permute(tl.join(left, right), (0, 2, 1))
    return tl.reshape(halves, (left.shape[0], 8))


@triton.jit
def store_tile(
    row_ptr, tile, active, left, right, width, EVEN: tl.constexpr, ADD: tl.constexpr
):
    """Store a [threads, 8] tile, or ADD it atomically: the reverse of ``load_tile``."""
    halves = tl.reshape(tile, (tile.shape[0], 2, 4))
    left_half, right_half = tl.split(tl.permute(halves, (0, 2, 1)))
    for half in tl.static_range(2):
        column = (right if half else left)[:, None] + tl.arange(0, 4)[None, :]
        value = right_half if half else left_half
        mask = active[:, None] & (EVEN | (column < width))
        if ADD:
            tl.atomic_add(row_ptr[:, None] + column, value, mask=mask, sem="relaxed")
        else:
            tl.store(row_ptr[:, None] + column, value, mask=mask)


@triton.jit
def scan_groups(tile, GROUPS: tl.constexpr, REVERSE: tl.constexpr):
    """Return the inclusive sums of a [GROUPS * LANES, 8] tile along its groups."""
    grouped = tl.reshape(tile, (GROUPS, tile.shape[0] // GROUPS, 8))
    return tl.reshape(tl.cumsum(grouped, axis=0, reverse=REVERSE), tile.shape)


@triton.jit
def sum_groups(tile, GROUPS: tl.constexpr):
    """Return the sum of a [GROUPS * LANES, 8] tile's groups, at each of them."""
    grouped = tl.reshape(tile, (GROUPS, tile.shape[0] // GROUPS, 8))
    total = tl.sum(grouped, axis=0, keep_dims=True)
    return tl.reshape(tl.broadcast_to(total, grouped.shape), tile.shape)


@triton.jit
def sum_lanes(thread_sums, GROUPS: tl.constexpr):
    """Return the sum of a [GROUPS * LANES] tile's lanes, at each of them."""
    grouped = tl.reshape(thread_sums, (GROUPS, thread_sums.shape[0] // GROUPS))
    total = tl.sum(grouped, axis=1, keep_dims=True)
    return tl.reshape(tl.broadcast_to(total, grouped.shape), thread_sums.shape)
