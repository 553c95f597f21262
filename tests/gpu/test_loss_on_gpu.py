"""The Triton loss on a GPU: `python tests/gpu/test_loss_on_gpu.py`.

As a script it needs torch and Triton alone, for a machine with a GPU and little else;
pytest runs it where SAELens is installed.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
else:
    import pytest

    pytestmark = pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA GPU"
    )

from sae_lens_hierarchical.ops import hierarchical_loss_with_residual, loss_budgets

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
DEVICE = "cuda"
NAMES = ("target", "values", "W_dec", "b_dec")


def make_case(
    batch: int = 96,
    k: int = 32,
    d_in: int = 256,
    d_sae: int = 1024,
    dtype: torch.dtype = torch.float32,
    index_dtype: torch.dtype = torch.int64,
) -> dict[str, Any]:
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE).to(dtype)

    return {
        "target": normal(batch, d_in),
        "indices": torch.randint(
            d_sae, (batch, k), generator=generator, device=DEVICE, dtype=index_dtype
        ),
        "values": normal(batch, k).relu().sort(descending=True).values,
        "W_dec": normal(d_sae, d_in),
        "b_dec": normal(d_in),
    }


def run(case: dict[str, Any], function: Any = None, **options: Any) -> list[Tensor]:
    leaves = {name: tensor.clone() for name, tensor in case.items()}
    for name in NAMES:
        leaves[name].requires_grad_()
    outputs = (function or hierarchical_loss_with_residual)(**leaves, **options)
    outputs[0].backward()
    gradients = [leaves[name].grad for name in NAMES]
    return [*(o.detach() for o in outputs), *(g for g in gradients if g is not None)]


def assert_parity(case: dict[str, Any], **options: Any) -> None:
    exact = {n: t.double() if t.is_floating_point() else t for n, t in case.items()}
    # Listing 1's cumsum has no deterministic form on CUDA.
    expected = run(exact, backend="reference", **options)

    def actual() -> list[Tensor]:
        return run(case, backend="triton", **options)

    for outputs in (actual(), with_reproducible(actual)):
        assert len(outputs) == len(expected) == 7
        for got, wanted in zip(outputs, expected, strict=True):
            atol = TOLERANCE[got.dtype] * max(1.0, wanted.abs().max().item())
            torch.testing.assert_close(got.double(), wanted, rtol=0, atol=atol)


def with_reproducible(function: Any, enabled: bool = True) -> Any:
    torch.use_deterministic_algorithms(enabled)
    try:
        return function()
    finally:
        torch.use_deterministic_algorithms(False)


def test_parity() -> None:
    shapes: list[dict[str, Any]] = [
        {},
        {"batch": 33, "k": 100, "d_in": 130},
        {"batch": 3, "k": 1, "d_in": 1, "d_sae": 1},
        {"batch": 40, "k": 512, "d_in": 64},
        {"batch": 40, "k": 1024, "d_in": 70},
        {"batch": 5, "k": 2048, "d_in": 64},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16, "k": 128},
        {"dtype": torch.bfloat16, "k": 20, "d_in": 77},
        {"index_dtype": torch.int32},
        # Many tokens a program, and in the reproducible mode many passes.
        {"batch": 4096, "k": 64, "d_in": 256, "d_sae": 200},
    ]
    for shape in shapes:
        case = make_case(**shape)
        k = case["indices"].shape[1]
        for budgets in (loss_budgets(k), loss_budgets(k, 8), [k], [max(1, k // 2)]):
            assert_parity(case, budgets=budgets)


def test_reproducible_gradients_are_bitwise_equal() -> None:
    # Few features: every one is active in many tokens, and one in all.
    case = make_case(batch=4096, k=64, d_sae=200)
    case["indices"][:, 0] = 7
    for budgets in (loss_budgets(64), loss_budgets(64, 8), [64]):
        options: dict[str, Any] = {"budgets": budgets, "backend": "triton"}
        first = with_reproducible(partial(run, case, **options))
        for _ in range(5):
            again = with_reproducible(partial(run, case, **options))
            assert all(map(torch.equal, first, again))


def test_auto_takes_triton() -> None:
    case = make_case()

    auto = with_reproducible(partial(run, case, backend="auto"))
    triton = with_reproducible(partial(run, case, backend="triton"))

    assert all(map(torch.equal, auto, triton))


def test_decoders_of_more_than_two_to_the_31_weights() -> None:
    d_sae, d_in = 2**21, 1032  # 4.3 GB in bfloat16, and 8.7 GB of its gradient
    case = make_case(8, 8, d_in, 64, torch.bfloat16)
    features = case["indices"] + d_sae - 64
    W_dec = torch.zeros(d_sae, d_in, dtype=torch.bfloat16, device=DEVICE)
    W_dec[-64:] = case["W_dec"]
    large = case | {"indices": features, "W_dec": W_dec}
    for deterministic in (False, True):
        expected = with_reproducible(
            partial(run, case, backend="triton"), deterministic
        )
        actual = with_reproducible(partial(run, large, backend="triton"), deterministic)

        gradient = actual.pop(5)
        torch.testing.assert_close(gradient[-64:], expected.pop(5))
        assert not gradient[:-64].any()
        for got, wanted in zip(actual, expected, strict=True):
            torch.testing.assert_close(got, wanted)


def test_it_compiles_without_a_graph_break() -> None:
    case = make_case()
    compiled = torch.compile(hierarchical_loss_with_residual, fullgraph=True)

    actual = run(case, compiled, backend="auto")

    torch.testing.assert_close(
        actual, run(case, backend="triton"), rtol=1e-5, atol=1e-4
    )


def test_it_compiles_where_cuda_graphs_are_asked_for() -> None:
    case = make_case(batch=17)  # a size that has no plan on the device yet
    compiled = torch.compile(hierarchical_loss_with_residual, mode="reduce-overhead")

    *_, actual = (run(case, compiled, backend="triton") for _ in range(3))

    torch.testing.assert_close(
        actual, run(case, backend="triton"), rtol=1e-5, atol=1e-4
    )


def test_grad_scaler_and_autocast_train() -> None:
    case = make_case()
    W_dec = case["W_dec"].requires_grad_()
    optimizer = torch.optim.SGD([W_dec], lr=1e-3)
    scaler = torch.amp.GradScaler("cuda")
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = hierarchical_loss_with_residual(**case)[0]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())

    assert losses[-1] < losses[0]


def test_gradients_are_scaled_in_place() -> None:
    """A step's peak holds one gradient of W_dec, not two."""
    case = make_case(64, 8, 1024, 65_536)
    W_dec = case["W_dec"].requires_grad_()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    (2 * hierarchical_loss_with_residual(**case)[0]).backward()

    assert torch.cuda.max_memory_allocated() - before < 1.5 * W_dec.nbytes


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print("passed", name)
