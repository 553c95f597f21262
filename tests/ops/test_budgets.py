"""Tests of the budgets J and their weights."""

from __future__ import annotations

import pytest

from sae_lens_hierarchical.ops import loss_budgets, octave_budgets, spread_budgets
from sae_lens_hierarchical.ops.budgets import resolve_budgets


def test_every_term_gives_all_budgets() -> None:
    assert loss_budgets(5) == [1, 2, 3, 4, 5]


def test_every_eighth_term_is_the_papers_j_8() -> None:
    assert loss_budgets(128, 8) == [1, *range(8, 129, 8)]


@pytest.mark.parametrize(
    ("k", "every", "expected"),
    [(1, 1, [1]), (1, 64, [1]), (10, 4, [1, 4, 8]), (8, 8, [1, 8])],
)
def test_edges(k: int, every: int, expected: list[int]) -> None:
    assert loss_budgets(k, every) == expected


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, None])
def test_bad_k_and_every_are_named(bad: object) -> None:
    with pytest.raises(ValueError, match="k must be an integer"):
        loss_budgets(bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="k must be an integer"):
        octave_budgets(bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="every must be an integer"):
        loss_budgets(8, bad)  # pyright: ignore[reportArgumentType]


def test_default_is_every_budget_with_equal_weight() -> None:
    assert resolve_budgets(4) == ([1, 2, 3, 4], [0.25] * 4)


@pytest.mark.parametrize(
    "budgets", [[], [0, 1], [1, 5], [2, 1], [1, 1], [1.0, 2.0], [True, 2]]
)
def test_bad_budgets_are_named(budgets: list[int]) -> None:
    with pytest.raises(ValueError, match="budgets must"):
        resolve_budgets(4, budgets)


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")], [1, float("inf")]]
)
def test_bad_weights_are_named(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="budget_weights must"):
        resolve_budgets(4, [1, 4], weights)


@pytest.mark.parametrize(
    ("k", "budgets"),
    [
        (1, [1]),
        (2, [1, 2]),
        (32, [1, 2, 4, 8, 16, 32]),
        (33, [1, 2, 4, 8, 16, 32, 33]),
    ],
)
def test_octaves_end_at_k(k: int, budgets: list[int]) -> None:
    found, weights = octave_budgets(k)

    assert found == budgets
    assert sum(weights) == pytest.approx(1)
    assert weights[-1] == (1 if k == 1 else pytest.approx(2 / 3))
    assert len(set(weights[:-1])) <= 1


def test_spread_keeps_a_short_list_and_thins_a_long_one() -> None:
    assert spread_budgets([1, 5]) == [1, 5]
    assert spread_budgets(list(range(1, 129))) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert spread_budgets(loss_budgets(128, 8), at_most=3) == [1, 8, 128]
