"""Tests of how the Triton kernels are sized."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_hierarchical.ops import loss_budgets
from sae_lens_hierarchical.ops.triton import launch

SHAPES = {
    "batch": st.integers(1, 100_000),
    "k": st.integers(1, launch.MAX_K),
    "d_in": st.integers(1, 20_000),
    "n_budgets": st.integers(1, 200),
    "itemsize": st.sampled_from([2, 4]),
    "capability": st.sampled_from([75, 80, 90, 100, 120]),
}


@given(**SHAPES)
def test_a_launch_covers_the_shape_with_a_block_that_fits(
    batch: int, k: int, d_in: int, n_budgets: int, itemsize: int, capability: int
) -> None:
    sizes = launch.plan_launch(batch, k, d_in, n_budgets, itemsize, capability)

    columns = 8 * sizes.lanes
    assert sizes.ranks * sizes.groups >= k
    assert (sizes.column_blocks - 1) * columns < d_in <= sizes.column_blocks * columns
    assert 32 <= sizes.groups * sizes.lanes == 32 * sizes.warps <= 256
    assert sizes.even == (sizes.ranks * sizes.groups == k and d_in % columns == 0)
    assert 1 <= sizes.tokens_per_program <= 16
    assert 1 <= sizes.deterministic_blocks <= sizes.column_blocks
    assert 1 <= sizes.atomic_blocks <= sizes.column_blocks


@given(**SHAPES)
def test_suffix_sums_stay_in_the_cache_where_one_column_block_allows(
    batch: int, k: int, d_in: int, n_budgets: int, itemsize: int, capability: int
) -> None:
    sizes = launch.plan_launch(batch, k, d_in, n_budgets, itemsize, capability)

    stored = batch * n_budgets * sizes.deterministic_blocks * sizes.lanes * 8 * 4
    assert stored <= 32 * 2**20 or sizes.deterministic_blocks == 1
    shares = batch * k * sizes.atomic_blocks * 4
    assert shares <= 512 * 2**20 or sizes.atomic_blocks == 1


def test_the_papers_shape_takes_64_columns_at_a_time() -> None:
    sizes = launch.plan_launch(8192, 128, 2304, 128, 4, 90)

    assert (sizes.ranks, sizes.groups, sizes.lanes) == (8, 16, 8)
    assert (sizes.column_blocks, sizes.tokens_per_program, sizes.even) == (36, 16, True)
    assert sizes.atomic_blocks == 36


@pytest.mark.parametrize(
    ("d_sae", "cache_mib", "lanes"),
    [(65_536, 50, 8), (131_072, 50, 4), (2**20, 50, 2), (65_536, 24, 4), (1024, 4, 8)],
)
def test_a_column_block_of_w_dec_and_its_gradient_fits_the_cache(
    d_sae: int, cache_mib: int, lanes: int
) -> None:
    sizes = launch.plan_launch(
        8192, 128, 2304, 128, 4, 90, d_sae=d_sae, cache_bytes=cache_mib * 2**20
    )

    assert sizes.lanes == lanes
    if lanes > 2:
        assert 8 * lanes * d_sae * 8 <= 0.75 * cache_mib * 2**20


def test_a_small_batch_is_spread_over_more_programs() -> None:
    assert launch.plan_launch(8, 32, 2304, 1, 4, 90).tokens_per_program == 1


@pytest.mark.parametrize(("capability", "row"), [(100, 90), (90, 90), (75, 90)])
def test_another_gpu_takes_the_nearest_row(capability: int, row: int) -> None:
    expected = launch.plan_launch(64, 64, 64, 1, 2, row)

    assert launch.plan_launch(64, 64, 64, 1, 2, capability) == expected


def test_a_tile_overrides_the_table() -> None:
    sizes = launch.plan_launch(64, 64, 512, 1, 4, 90, launch.Tile(4, 16))

    assert (sizes.ranks, sizes.groups, sizes.lanes) == (4, 16, 16)


def test_the_table_reaches_the_largest_k_in_ascending_rows() -> None:
    for rows in launch.TABLE.values():
        assert list(rows) == sorted(rows)
        assert max(rows) == launch.MAX_K


@pytest.mark.parametrize(
    ("budgets", "mask"),
    [
        (loss_budgets(128), 0b11111111),
        (loss_budgets(128, 8), 0b10000001),
        ([128], 0b10000000),
        ([3, 11, 20], 0b00001100),
    ],
)
def test_the_mask_says_where_a_group_may_have_a_budget(
    budgets: list[int], mask: int
) -> None:
    assert launch.budget_mask(budgets, 8) == mask
