"""Tests of the stable top-k, against a stable sort of everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_lens_hierarchical.ops import stable_topk, topk


def sorted_whole(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = x.sort(dim=-1, descending=True, stable=True)
    return values[..., :k], indices[..., :k]


@given(
    seed=st.integers(0, 2**20),
    rows=st.integers(0, 5),
    n=st.integers(1, 40),
    distinct=st.integers(1, 30),
    dtype=st.sampled_from(
        [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    ),
    data=st.data(),
)
def test_it_is_the_start_of_a_stable_sort(
    seed: int,
    rows: int,
    n: int,
    distinct: int,
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    k = data.draw(st.integers(1, n))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-distinct, distinct, (rows, 2, n), generator=generator)
    x = (x / 7 * torch.where(x % 2 == 0, -1, 1)).to(dtype)  # -0 is among them

    values, indices = stable_topk(x, k)

    expected = sorted_whole(x, k)
    assert torch.equal(values, expected[0])
    assert torch.equal(indices, expected[1])


@given(
    seed=st.integers(0, 2**20),
    groups=st.integers(1, 12),
    distinct=st.integers(1, 300),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    data=st.data(),
)
def test_it_is_so_where_groups_are_searched_first(
    seed: int, groups: int, distinct: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    n = topk.GROUP * 2 * groups
    k = data.draw(st.integers(1, groups))  # up to where groups are given up
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-distinct, distinct, (4, n), generator=generator).to(dtype)

    values, indices = stable_topk(x, k)

    expected = sorted_whole(x, k)
    assert torch.equal(values, expected[0])
    assert torch.equal(indices, expected[1])


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_looked_through_in_parts(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(topk, "_ENTRIES_AT_ONCE", {"cpu": 100})
    x = torch.randint(0, 3, (50, 30)).to(dtype)

    assert torch.equal(stable_topk(x, 7)[1], sorted_whole(x, 7)[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_features_than_16_bits_can_number(dtype: torch.dtype) -> None:
    x = torch.randint(-9, 9, (2, 70_001)).to(dtype)

    assert torch.equal(stable_topk(x, 500)[1], sorted_whole(x, 500)[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities_have_their_places(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, torch.inf, -torch.inf, torch.inf, 1.0, -torch.inf]])
    x = x.to(dtype)

    for k in range(1, 7):
        assert torch.equal(stable_topk(x, k)[1], sorted_whole(x, k)[1])


def test_gradients_flow_to_the_entries_taken() -> None:
    x = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: stable_topk(x, 3)[0], x)

    tied = torch.ones(1, 4, requires_grad=True)
    stable_topk(tied, 2)[0].sum().backward()
    assert tied.grad is not None
    assert tied.grad.tolist() == [[1, 1, 0, 0]]


def test_it_compiles_without_a_graph_break() -> None:
    x = torch.randint(0, 5, (6, 20)).float()
    compiled = torch.compile(stable_topk, fullgraph=True, backend="aot_eager")

    for actual, expected in zip(compiled(x, 4), stable_topk(x, 4), strict=True):
        assert torch.equal(actual, expected)
