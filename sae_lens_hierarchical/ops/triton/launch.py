"""How the kernels are launched: pure functions and the table they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

__all__ = [
    "H100_CACHE_BYTES",
    "MAX_K",
    "TABLE",
    "Launch",
    "Tile",
    "budget_mask",
    "compiler_options",
    "plan_launch",
]

MAX_K = 2048
H100_CACHE_BYTES = 50 * 2**20

# The columns a pass of the reproducible mode covers are as many as keep its suffix sums
# within this many bytes: in the L2 cache, beside a slice of W_dec.
_SUFFIX_SUM_BYTES = 2**25
# In the other mode, as many as keep the shares of values' gradient within this many.
# Up to K = 256 that is one pass for most shapes; above it blocks are narrow and many.
_GRAD_VALUES_BYTES = 2**29
# A column block's slices of W_dec and of its gradient are to fit the L2 cache, with
# this part of it left for all else.
_CACHE_LEFT = 0.25
# A program handles up to this many tokens, while there are programs enough.
_MAX_TOKENS_PER_PROGRAM = 16
_MIN_PROGRAMS = 4096


@dataclasses.dataclass(frozen=True)
class Tile:
    """How the threads of a program share a token's ranks and columns.

    Attributes:
        ranks: Ranks of a token that one thread holds.
        lanes: Threads side by side in a row of W_dec, eight columns each.
    """

    ranks: int
    lanes: int


# (compute capability, bytes of a weight, largest K) -> tile, in ascending order of K.
# 64 columns of a 65,536-row W_dec and of its float32 gradient fit an H100's L2 cache;
# a large K takes fewer, so that its rows fit the registers of 256 threads.
# `python benchmarks/loss_kernels.py --tune` prints the rows for another GPU.
TABLE: dict[tuple[int, int], dict[int, Tile]] = {
    (90, 4): {
        256: Tile(8, 8),
        1024: Tile(8, 2),
        2048: Tile(8, 1),
    },
    (90, 2): {
        256: Tile(8, 8),
        1024: Tile(8, 2),
        2048: Tile(8, 1),
    },
}


@dataclasses.dataclass(frozen=True)
class Launch:
    """The sizes of a launch.

    Attributes:
        ranks: Ranks of a token that one thread holds, RANKS.
        groups: Threads that a token's ranks are spread over, GROUPS.
        lanes: Threads side by side in a row of W_dec, LANES.
        tokens_per_program: Tokens that a program handles, one after another.
        column_blocks: Blocks of 8 · lanes columns in a row of W_dec.
        even: Whether the ranks are exactly K and the blocks' columns exactly d_in, so
            that no access needs a mask, EVEN; elsewhere a large K may spill registers.
        deterministic_blocks: Column blocks of one pass in the reproducible mode.
        atomic_blocks: Column blocks of one pass in the other mode.
    """

    ranks: int
    groups: int
    lanes: int
    tokens_per_program: int
    column_blocks: int
    even: bool
    deterministic_blocks: int
    atomic_blocks: int

    @property
    def warps(self) -> int:
        """Warps of a program."""
        return max(1, self.groups * self.lanes // 32)


def plan_launch(
    batch: int,
    k: int,
    d_in: int,
    n_budgets: int,
    itemsize: int,
    capability: int,
    tile: Tile | None = None,
    *,
    d_sae: int = 0,
    cache_bytes: int = H100_CACHE_BYTES,
) -> Launch:
    """Choose a launch's sizes.

    Args:
        batch: B, the tokens.
        k: K, at most ``MAX_K``.
        d_in: The columns of W_dec.
        n_budgets: |J|.
        itemsize: Bytes of one weight of W_dec, 2 or 4.
        capability: The GPU's compute capability, as in 90; one that the table lacks
            takes the rows of the nearest lower one, or else of the lowest.
        tile: In place of the table's row.
        d_sae: The rows of W_dec. Where a block's columns of so many do not fit the
            cache, it gets half as many, down to 16.
        cache_bytes: The size of the GPU's L2 cache.
    """
    if tile is None:
        known = sorted(cc for cc, size in TABLE if size == itemsize)
        nearest = max((cc for cc in known if cc <= capability), default=known[0])
        rows = TABLE[nearest, itemsize]
        tile = next(tile for largest, tile in rows.items() if k <= largest)
    ranks = min(tile.ranks, _power_of_two(k))
    groups = _power_of_two(-(-k // ranks))
    lanes = tile.lanes
    room = (1 - _CACHE_LEFT) * cache_bytes
    while lanes > 2 and 8 * lanes * d_sae * (itemsize + 4) > room:
        lanes //= 2
    lanes = max(lanes, 32 // groups)
    column_blocks = -(-d_in // (8 * lanes))
    suffix_sum_bytes = batch * n_budgets * 8 * lanes * 4
    grad_values_bytes = batch * k * 4
    tokens_per_program = batch * column_blocks // _MIN_PROGRAMS
    deterministic_blocks = _SUFFIX_SUM_BYTES // suffix_sum_bytes
    atomic_blocks = _GRAD_VALUES_BYTES // grad_values_bytes
    return Launch(
        ranks=ranks,
        groups=groups,
        lanes=lanes,
        tokens_per_program=min(_MAX_TOKENS_PER_PROGRAM, max(1, tokens_per_program)),
        column_blocks=column_blocks,
        even=ranks * groups == k and d_in % (8 * lanes) == 0,
        deterministic_blocks=min(column_blocks, max(1, deterministic_blocks)),
        atomic_blocks=min(column_blocks, max(1, atomic_blocks)),
    )


def budget_mask(budgets: Sequence[int], ranks: int) -> int:
    """Return the bits r at which any group of ``ranks`` ranks has a budget."""
    mask = 0
    for budget in budgets:
        mask |= 1 << (budget - 1) % ranks
    return mask


def compiler_options(num_warps: int) -> dict[str, Any]:
    """Return a launch's options for Triton's compiler.

    Multiplications and additions are fused: Triton before 3.10 does so by default.
    """
    return {"num_warps": num_warps, "enable_fp_fusion": True}


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()
