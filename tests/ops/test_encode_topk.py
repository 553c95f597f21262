"""Tests of the encoder with the top-k in it, against the dense product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_lens_hierarchical.ops import encode_topk, stable_topk


def make(
    B: int, d_in: int, d_sae: int, *, dtype: torch.dtype, **without: bool
) -> dict[str, Any]:
    shapes = {
        "x": (B, d_in),
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "b_dec": (d_in,),
        "scale": (d_sae,),
    }
    tensors: dict[str, Any] = {
        name: torch.randn(shape, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }
    tensors["scale"] = tensors["scale"].abs() + 0.5
    for name, tensor in tensors.items():
        if without.get(name):
            tensors[name] = None
        else:
            tensor.requires_grad_()
    return tensors


def dense(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    b_dec: Tensor | None,
    k: int,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    hidden_pre = (x if b_dec is None else x - b_dec) @ W_enc + b_enc
    return stable_topk(hidden_pre if scale is None else hidden_pre * scale, k)


def gradients(values: Tensor, tensors: dict[str, Any]) -> dict[str, Tensor]:
    weight = torch.linspace(-1, 2, values.numel(), dtype=values.dtype)
    given = {n: t for n, t in tensors.items() if t is not None}
    grads = torch.autograd.grad((values.flatten() * weight).sum(), list(given.values()))
    return dict(zip(given, grads, strict=True))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    B=st.integers(1, 9),
    d_in=st.integers(1, 7),
    d_sae=st.integers(1, 23),
    without_b_dec=st.booleans(),
    without_scale=st.booleans(),
    by_feature=st.booleans(),
    data=st.data(),
)
def test_values_and_gradients_are_those_of_the_dense_product(
    seed: int,
    B: int,
    d_in: int,
    d_sae: int,
    without_b_dec: bool,
    without_scale: bool,
    by_feature: bool,
    data: st.DataObject,
) -> None:
    torch.manual_seed(seed)
    k = data.draw(st.integers(1, d_sae))
    tensors = make(
        B, d_in, d_sae, dtype=torch.float64, b_dec=without_b_dec, scale=without_scale
    )
    if by_feature:
        stored = tensors["W_enc"].detach().T.contiguous().T
        tensors["W_enc"] = stored.requires_grad_()

    values, indices = encode_topk(k=k, **tensors)

    expected, expected_indices = dense(k=k, **tensors)
    torch.testing.assert_close(values, expected)
    assert torch.equal(indices, expected_indices)
    wanted = gradients(expected, tensors)
    for name, gradient in gradients(values, tensors).items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


@pytest.mark.parametrize("without", ["", "b_dec", "scale"])
def test_gradcheck(without: str) -> None:
    tensors = make(5, 4, 11, dtype=torch.float64, **{without: True})
    given = [t for t in tensors.values() if t is not None]

    def values(*given: Tensor) -> Tensor:
        rest = iter(given)
        args = {n: None if t is None else next(rest) for n, t in tensors.items()}
        return encode_topk(k=3, **args)[0]  # pyright: ignore[reportArgumentType]

    assert torch.autograd.gradcheck(values, given)


def test_chunks_of_tokens_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = sys.modules["sae_lens_hierarchical.ops.encode_topk"]
    tensors = make(23, 6, 40, dtype=torch.float64)
    whole = encode_topk(k=5, **tensors)
    monkeypatch.setitem(module._CHUNK_TOKENS, "cpu", 4)
    monkeypatch.setitem(module._CHUNK_ENTRIES, "cpu", 1)

    values, indices, first = module.encode_topk_with_sample(k=5, sample=7, **tensors)

    torch.testing.assert_close(values, whole[0])
    assert torch.equal(indices, whole[1])
    every, _, more = module.encode_topk_with_sample(k=40, sample=99, **tensors)
    torch.testing.assert_close(first.sort(descending=True).values, every[:7])
    assert len(more) == 23


def test_ties_and_repeated_features_and_features_that_nobody_uses() -> None:
    tensors = make(300, 3, 50, dtype=torch.float64)
    with torch.no_grad():
        # Of whole numbers products are exact: others tie on some CPUs alone.
        for name in ("x", "W_enc", "b_dec"):
            tensors[name].mul_(4).round_()
        tensors["W_enc"][:] = tensors["W_enc"][:, :1]
        tensors["b_enc"].zero_()
        tensors["scale"].fill_(1)

    values, indices = encode_topk(k=4, **tensors)

    assert torch.equal(indices, torch.arange(4).expand(300, 4))
    wanted = gradients(dense(k=4, **tensors)[0], tensors)
    for name, gradient in gradients(values, tensors).items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_and_autocast(dtype: torch.dtype, autocast: bool) -> None:
    tensors = make(40, 16, 64, dtype=dtype)

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        values, indices = encode_topk(k=64, **tensors)
        expected, _ = dense(k=64, **tensors)

    half = autocast or dtype == torch.bfloat16
    assert values.dtype == (torch.bfloat16 if half else torch.float32)
    tolerance = 0.05 if half else 1e-4
    exact = {n: t.detach().double().requires_grad_() for n, t in tensors.items()}
    reference, _ = dense(k=64, **exact)
    for found in (values, expected):
        error = (found.double() - reference).abs().max() / reference.abs().max()
        assert error < tolerance
    by_feature = values.new_zeros(40, 64).scatter(1, indices, values)
    weight = torch.randn(40, 64)
    exact_dense = (exact["x"] - exact["b_dec"]) @ exact["W_enc"] + exact["b_enc"]
    wanted = torch.autograd.grad(
        (exact_dense * exact["scale"] * weight.double()).sum(), list(exact.values())
    )
    found = torch.autograd.grad(
        (by_feature * weight.to(values.dtype)).sum(), list(tensors.values())
    )
    for name, actual, grad in zip(tensors, found, wanted, strict=True):
        assert actual.dtype == dtype, name
        error = (actual.double() - grad).norm() / grad.norm()
        assert error < tolerance, name


def test_it_compiles_without_a_graph_break() -> None:
    tensors = make(9, 4, 20, dtype=torch.float64)
    compiled = torch.compile(encode_topk, fullgraph=True, backend="aot_eager")

    values, indices = compiled(k=3, **tensors)

    expected, expected_indices = encode_topk(k=3, **tensors)
    torch.testing.assert_close(values, expected)
    assert torch.equal(indices, expected_indices)
    wanted = gradients(expected, tensors)
    for name, gradient in gradients(values, tensors).items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    tensors = make(9, 4, 20, dtype=torch.float32)
    tensors["x"].requires_grad_(False)
    tensors["scale"].requires_grad_(False)

    encode_topk(k=3, **tensors)[0].sum().backward()

    given = {n for n, t in tensors.items() if t.grad is not None}
    assert given == {"W_enc", "b_enc", "b_dec"}
