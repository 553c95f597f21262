"""Sparsity budgets J and their weights (paper §2 and §3.4)."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

import torch

__all__ = [
    "as_integer",
    "check_ks",
    "loss_budgets",
    "octave_budgets",
    "resolve_budgets",
    "spread_budgets",
]


def as_integer(value: object) -> int | None:
    """Return an integer of Python, NumPy or torch as Python's; None if it is none."""
    if isinstance(value, bool) or getattr(value, "dtype", None) is torch.bool:
        return None
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None


def loss_budgets(k: int, every: int = 1) -> list[int]:
    """Return the paper's J_x = {1} ∪ {i ≤ k : i mod x = 0} (§3.4), in ascending order.

    Args:
        k: K, the largest number of active features, at least 1.
        every: x, the distance between two budgets; 1 gives every i up to ``k``.

    Raises:
        ValueError: If ``k`` or ``every`` is no integer of at least 1.
    """
    largest, step = (_at_least_1(*named) for named in (("k", k), ("every", every)))
    return sorted({1, *range(step, largest + 1, step)})


def octave_budgets(k: int) -> tuple[list[int], list[float]]:
    """Return J = {1, 2, 4, ..., k} and its weights: two thirds at k, the rest alike.

    Equal weights cost quality at k, so most of the weight is there; one budget an
    octave keeps the small ones nearly as good (docs/recipe.md has the measurements).

    Args:
        k: K, the largest number of active features, at least 1.

    Returns:
        The budgets, in ascending order, and their weights, which add up to 1.

    Raises:
        ValueError: If ``k`` is no integer of at least 1.
    """
    largest = _at_least_1("k", k)
    smaller = [2**i for i in range(largest.bit_length()) if 2**i < largest]
    if not smaller:
        return [largest], [1.0]
    return [*smaller, largest], [1 / 3 / len(smaller)] * len(smaller) + [2 / 3]


def resolve_budgets(
    k: int,
    budgets: Sequence[int] | None = None,
    budget_weights: Sequence[float] | None = None,
) -> tuple[list[int], list[float]]:
    """Check budgets and weights against ``k`` and fill in the defaults.

    Args:
        k: K, the number of active features that a token has.
        budgets: J, strictly increasing integers from 1 to ``k``; default every one.
        budget_weights: One weight a budget, finite, not negative and not all zero;
            default 1/|J| each (paper, equation 1).

    Returns:
        The budgets and their weights, two lists of the same length.

    Raises:
        ValueError: If either does not fit, naming it and what is allowed.
    """
    resolved = loss_budgets(k) if budgets is None else check_ks("budgets", budgets, k)
    if budget_weights is None:
        return resolved, [1 / len(resolved)] * len(resolved)
    weights = [float(weight) for weight in budget_weights]
    if len(weights) != len(resolved):
        raise ValueError(
            "budget_weights must have one weight for each of the "
            f"{len(resolved)} budgets, got {len(weights)}"
        )
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise ValueError(
            "budget_weights must be finite, not negative and not all zero, "
            f"got {budget_weights!r}"
        )
    return resolved, weights


def check_ks(name: str, ks: Sequence[int], largest: int) -> list[int]:
    """Return ``ks`` as a list of Python's integers.

    Raises:
        ValueError: If they are not strictly increasing integers from 1 to ``largest``;
            it calls them ``name``.
    """
    integers = [n for n in map(as_integer, ks) if n is not None and 1 <= n <= largest]
    increasing = all(a < b for a, b in itertools.pairwise(integers))
    if not integers or len(integers) < len(ks) or not increasing:
        raise ValueError(
            f"{name} must be a non-empty, strictly increasing sequence of integers "
            f"from 1 to {largest}, got {ks!r}"
        )
    return integers


def spread_budgets(budgets: Sequence[int], at_most: int = 8) -> list[int]:
    """Pick the budgets nearest to a geometric grid from the first to the last."""
    if len(budgets) <= at_most:
        return list(budgets)
    first, last = budgets[0], budgets[-1]
    grid = [first * (last / first) ** (i / (at_most - 1)) for i in range(at_most)]
    return sorted({min(budgets, key=lambda j: abs(j - point)) for point in grid})


def _at_least_1(name: str, value: object) -> int:
    integer = as_integer(value)
    if integer is None or integer < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return integer
