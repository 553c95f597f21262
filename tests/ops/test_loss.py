"""Tests of the loss: every backend against Listing 1, values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_lens_hierarchical.ops import (
    BACKENDS,
    Backend,
    hierarchical_loss,
    hierarchical_loss_with_residual,
)
from tests.ops.cases import SPECIALS, Case, make_special, strided

# tests/ops/test_triton.py has the tests of "triton", which takes no float64.
CPU_BACKENDS: list[Backend] = [b for b in BACKENDS if b != "triton"]
FAST_BACKENDS: list[Backend] = [b for b in CPU_BACKENDS if b != "reference"]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2}


def make_case(
    batch: int = 5,
    k: int = 7,
    d_in: int = 11,
    d_sae: int = 23,
    dtype: torch.dtype = torch.float64,
    weight_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # Drawn with replacement: a token may hold one feature twice.
    indices = torch.randint(d_sae, (batch, k), generator=generator)
    values = normal(batch, k).relu().sort(descending=True).values
    weight_dtype = weight_dtype or dtype
    return Case(
        target=normal(batch, d_in).to(dtype),
        indices=indices,
        values=values.to(dtype),
        W_dec=normal(d_sae, d_in).to(weight_dtype),
        b_dec=normal(d_in).to(weight_dtype),
    )


def run(case: Case, **kwargs: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the loss, per_budget and the gradients of all four leaves."""
    copy = Case(*(t.detach().clone() for t in vars(case).values()))
    for leaf in copy.leaves():
        leaf.requires_grad_()
    loss, per_budget = hierarchical_loss(**vars(copy), **kwargs)
    loss.backward()
    gradients = [leaf.grad for leaf in copy.leaves()]
    return loss.detach(), per_budget, [g for g in gradients if g is not None]


def assert_same(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def assert_parity(
    case: Case, tolerance: float, backend: Backend, **kwargs: Any
) -> None:
    loss, per_budget, gradients = run(case, backend=backend, **kwargs)
    expected = run(case, backend="reference", **kwargs)
    assert_same(loss, expected[0], tolerance)
    assert_same(per_budget, expected[1], tolerance)
    assert len(gradients) == len(expected[2]) == 4
    for actual, wanted in zip(gradients, expected[2], strict=True):
        assert_same(actual, wanted, tolerance)


def test_reference_is_listing_1() -> None:
    """The listing as printed, but for its mean over d_in too, which SAELens sums."""
    case = make_case()
    B, K = case.indices.shape
    emb = case.W_dec[case.indices.view(-1)].view(B, K, -1)
    emb = emb * case.values.unsqueeze(-1)
    recon_cum = emb.cumsum(dim=1) + case.b_dec.unsqueeze(0)
    diff = recon_cum - case.target.unsqueeze(1)
    listing = diff.pow(2).mean() * case.target.shape[1]

    loss, per_budget = hierarchical_loss(**vars(case), backend="reference")

    torch.testing.assert_close(loss, listing)
    torch.testing.assert_close(per_budget, diff.pow(2).sum(-1).mean(0))


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@given(
    batch=st.integers(1, 9),
    k=st.integers(1, 13),
    d_in=st.integers(1, 17),
    d_sae=st.integers(1, 40),
    index_dtype=st.sampled_from([torch.int32, torch.int64]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_budgets_and_weights(
    backend: Backend,
    batch: int,
    k: int,
    d_in: int,
    d_sae: int,
    index_dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    budgets = sorted(data.draw(st.sets(st.integers(1, k), min_size=1), label="J"))
    weight = st.floats(0.125, 8)
    weights = data.draw(
        st.none() | st.lists(weight, min_size=len(budgets), max_size=len(budgets)),
        label="weights",
    )
    case = make_case(batch, k, d_in, d_sae, seed=data.draw(st.integers(0, 99)))
    case.indices = case.indices.to(index_dtype)

    assert_parity(
        case,
        TOLERANCE[torch.float64],
        backend,
        budgets=budgets,
        budget_weights=weights,
    )


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
)
def test_dtypes(
    backend: Backend, dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    case = make_case(33, 20, 48, 100, dtype=dtype, weight_dtype=weight_dtype)
    coarse = dtype != torch.float32 or weight_dtype != torch.float32

    loss, _, gradients = run(case, backend=backend)

    assert loss.dtype == torch.float32
    expected_dtypes = [dtype, dtype, weight_dtype, weight_dtype]
    assert [g.dtype for g in gradients] == expected_dtypes
    tolerance = TOLERANCE[torch.bfloat16 if coarse else torch.float32]
    assert_parity(case, tolerance, backend)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_low_precision_is_summed_in_float32(backend: Backend) -> None:
    """A bfloat16 running sum would stall at 256 + 1 = 256."""
    case = make_case(2, 300, 4, 300, dtype=torch.bfloat16)
    case.indices = torch.arange(300).expand(2, 300)
    case.values = torch.ones(2, 300, dtype=torch.bfloat16)
    case.W_dec = torch.ones(300, 4, dtype=torch.bfloat16)
    case.b_dec, case.target = torch.zeros(4), torch.zeros(2, 4)

    _, per_budget = hierarchical_loss(**vars(case), budgets=[300], backend=backend)

    assert per_budget.item() == 4 * 300**2


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("special", SPECIALS)
def test_special_activations(backend: Backend, special: str) -> None:
    case = make_case(6, 5, 7, 9)
    make_special(case, special)

    assert_parity(case, TOLERANCE[torch.float64], backend)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_strided_arguments(backend: Backend) -> None:
    case = strided(make_case(6, 6, 12, 12))
    same = Case(*(t.contiguous() for t in vars(case).values()))

    loss, per_budget = hierarchical_loss(**vars(case), backend=backend)

    expected = hierarchical_loss(**vars(same), backend="reference")
    torch.testing.assert_close((loss, per_budget), expected)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_single_budget_is_the_topk_loss(backend: Backend) -> None:
    case = make_case()
    dense = torch.zeros(5, 23, dtype=torch.float64)
    dense.scatter_add_(1, case.indices, case.values)
    squared = (dense @ case.W_dec + case.b_dec - case.target).pow(2)

    loss, per_budget, residual = hierarchical_loss_with_residual(
        **vars(case), budgets=[7], backend=backend
    )

    torch.testing.assert_close(loss, squared.sum(-1).mean())
    torch.testing.assert_close(per_budget, loss.unsqueeze(0))
    torch.testing.assert_close(residual.pow(2), squared)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_residual_is_of_all_k_features_whatever_the_budgets(backend: Backend) -> None:
    case = make_case()

    short = hierarchical_loss_with_residual(**vars(case), budgets=[2], backend=backend)
    full = hierarchical_loss_with_residual(**vars(case), budgets=[7], backend=backend)

    torch.testing.assert_close(short[2], full[2])
    assert not short[2].requires_grad
    assert not short[1].requires_grad


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("budgets", [None, [6], [1, 3]])
def test_gradcheck(backend: Backend, budgets: list[int] | None) -> None:
    case = make_case(3, 6, 4, 8)
    leaves = [leaf.requires_grad_() for leaf in case.leaves()]

    def loss(target: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        return hierarchical_loss(
            target,
            case.indices,
            values,
            W_dec,
            b_dec,
            budgets=budgets,
            backend=backend,
        )[0]

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_gradients_scale_with_the_upstream_gradient(backend: Backend) -> None:
    case = make_case()
    values = case.values.requires_grad_()

    loss, _ = hierarchical_loss(**vars(case), backend=backend)
    (once,) = torch.autograd.grad(loss, values, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, values)

    torch.testing.assert_close(thrice, 3 * once)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_second_derivatives_are_refused(backend: Backend) -> None:
    case = make_case()
    values = case.values.requires_grad_()
    loss, _ = hierarchical_loss(**vars(case), backend=backend)
    (gradient,) = torch.autograd.grad(loss, values, create_graph=True)

    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        gradient.sum().backward()


def test_sequential_is_a_well_behaved_operator() -> None:
    case = make_case(4, 3, 6, 8, dtype=torch.float32)
    leaves = [leaf.requires_grad_() for leaf in case.leaves()]
    arguments = (leaves[0], case.indices, *leaves[1:], [1, 3], [0.5, 0.5])

    operator = torch.ops.sae_lens_hierarchical.sequential_forward.default
    torch.library.opcheck(operator, arguments)


def test_autocast_does_not_lower_the_sums() -> None:
    case = make_case(8, 8, 16, 32, dtype=torch.float32)
    expected = run(case, backend="sequential")

    with torch.autocast("cpu", torch.bfloat16):
        actual = run(case, backend="sequential")

    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def change(**changes: Callable[[Tensor], Tensor]) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        for name, function in changes.items():
            setattr(case, name, function(getattr(case, name)))

    return apply


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change(target=lambda t: t[0]), r"target \[11\]"),
        (change(target=lambda t: t[:0]), r"target \[0, 11\]"),
        (change(indices=lambda t: t[:, :0]), r"indices \[5, 0\]"),
        (change(indices=lambda t: t[:-1]), "indices must have one row"),
        (change(indices=lambda t: t.to(torch.int16)), "indices must be int32"),
        (change(indices=lambda t: t - 30), "indices must lie between 0 and .* 22"),
        (change(indices=lambda t: t + 30), "indices must lie between 0 and .* 22"),
        (change(values=lambda t: t[:, :-1]), "values must have the shape"),
        (change(values=lambda t: t.long()), "values must be floating point"),
        (change(W_dec=lambda t: t[:, :-1]), "W_dec's last dimension"),
        (change(W_dec=lambda t: t.to("meta")), "W_dec is on meta"),
        (change(b_dec=lambda t: t[:-1]), "b_dec's last dimension"),
        (change(b_dec=lambda t: t[None]), r"b_dec \[1, 11\]"),
    ],
)
def test_bad_tensors_are_named(edit: Callable[[Case], None], message: str) -> None:
    case = make_case()
    edit(case)

    with pytest.raises(ValueError, match=message):
        hierarchical_loss(**vars(case))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": [1, 8]}, r"budgets must .* from 1 to 7, got \[1, 8\]"),
        ({"budgets": [7], "budget_weights": [1, 1]}, "budget_weights must have one"),
        ({"backend": "fastest"}, "backend must be one of .*'fastest'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hierarchical_loss(**vars(make_case()), **options)


@pytest.mark.skipif(
    not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this torch has no such tag"
)
@pytest.mark.parametrize(
    "name",
    [
        "stable_topk_indices",
        "encode_topk",
        "encode_topk_backward",
        "sequential_forward",
        "sequential_backward",
    ],
)
def test_what_waits_for_the_device_is_in_no_cuda_graph(name: str) -> None:
    operator = getattr(torch.ops.sae_lens_hierarchical, name)

    assert torch.Tag.cudagraph_unsafe in operator.default.tags
