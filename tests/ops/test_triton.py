"""Tests of the Triton backend, on a GPU or in Triton's interpreter.

The oracle is Listing 1 in float64.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_lens_hierarchical.ops import (
    hierarchical_loss_with_residual,
)

triton_op = pytest.importorskip("sae_lens_hierarchical.ops.triton.op")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Of the scale of the largest entry. Inputs are the same for both: what differs is the
# float32 sums and the rounding of a gradient to its argument's dtype.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
ARGUMENTS = ["target", "values", "W_dec", "b_dec"]


@dataclasses.dataclass
class Case:
    """The arguments of one call."""

    target: Tensor
    indices: Tensor
    values: Tensor
    W_dec: Tensor
    b_dec: Tensor


def make_case(
    batch: int = 5,
    k: int = 7,
    d_in: int = 11,
    d_sae: int = 23,
    dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    # Drawn with replacement: a token may hold one feature twice. About half are zero.
    indices = torch.randint(d_sae, (batch, k), generator=generator).to(DEVICE)
    values = normal(batch, k, dtype=dtype).relu().sort(descending=True).values
    return Case(
        target=normal(batch, d_in, dtype=dtype),
        indices=indices,
        values=values,
        W_dec=normal(d_sae, d_in, dtype=weight_dtype),
        b_dec=normal(d_in, dtype=weight_dtype),
    )


def run(
    case: Case, wanted: Sequence[str] = ARGUMENTS, factor: float = 1, **kwargs: Any
) -> dict[str, Tensor]:
    """Return the outputs, and by argument's name the wanted gradients."""
    leaves = {name: tensor.detach().clone() for name, tensor in vars(case).items()}
    for name in wanted:
        leaves[name].requires_grad_()
    value, per_budget, residual = hierarchical_loss_with_residual(**leaves, **kwargs)
    (factor * value).backward()
    results = {"loss": value.detach(), "per_budget": per_budget, "residual": residual}
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            results[name] = leaf.grad
    return results


def assert_parity(case: Case, **kwargs: Any) -> None:
    exact = Case(*(t.double() if t.is_floating_point() else t for t in fields(case)))
    expected = run(exact, backend="reference", **kwargs)
    actual = run(case, backend="triton", **kwargs)

    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        assert actual[name].shape == wanted.shape, name
        dtype = getattr(case, name).dtype if hasattr(case, name) else torch.float32
        assert actual[name].dtype == dtype, name
        tolerance = TOLERANCE[dtype] * max(1, wanted.abs().max().item())
        torch.testing.assert_close(
            actual[name].double(), wanted, rtol=0, atol=tolerance, msg=name
        )


def fields(case: Case) -> list[Tensor]:
    return list(vars(case).values())


@contextlib.contextmanager
def reproducible(enabled: bool = True) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@given(
    batch=st.integers(1, 9),
    k=st.integers(1, 40),
    d_in=st.integers(1, 70),
    d_sae=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    weight_dtype=st.sampled_from(DTYPES),
    index_dtype=st.sampled_from([torch.int32, torch.int64]),
    deterministic=st.booleans(),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_any_shape_dtype_budgets_and_weights(
    batch: int,
    k: int,
    d_in: int,
    d_sae: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    index_dtype: torch.dtype,
    deterministic: bool,
    data: st.DataObject,
) -> None:
    budgets = sorted(data.draw(st.sets(st.integers(1, k), min_size=1), label="J"))
    weight = st.sampled_from([0.0, 0.125, 1.0, 8.0])
    lists = st.lists(weight, min_size=len(budgets), max_size=len(budgets)).filter(any)
    weights = data.draw(st.none() | lists, label="weights")
    seed = data.draw(st.integers(0, 99), label="seed")
    case = make_case(batch, k, d_in, d_sae, dtype, weight_dtype, seed)
    case.indices = case.indices.to(index_dtype)

    with reproducible(deterministic):
        assert_parity(case, budgets=budgets, budget_weights=weights)
