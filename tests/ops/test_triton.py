"""Tests of the Triton backend, on a GPU or in Triton's interpreter.

The oracle is Listing 1 in float64.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sae_lens_hierarchical.ops import (
    hierarchical_loss,
    hierarchical_loss_with_residual,
    loss,
)
from sae_lens_hierarchical.ops.triton import why_unavailable
from tests.ops.cases import SPECIALS, Case, make_special, strided

triton_op = pytest.importorskip("sae_lens_hierarchical.ops.triton.op")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Of the scale of the largest entry. Inputs are the same for both: what differs is the
# float32 sums and the rounding of a gradient to its argument's dtype.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
ARGUMENTS = ["target", "values", "W_dec", "b_dec"]


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
def reproducible(enabled: bool = True) -> Generator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(enabled)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@given(
    batch=st.integers(1, 6),
    k=st.integers(1, 40),
    d_in=st.integers(1, 70),
    d_sae=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    weight_dtype=st.sampled_from(DTYPES),
    index_dtype=st.sampled_from([torch.int32, torch.int64]),
    deterministic=st.booleans(),
    data=st.data(),
)
@settings(max_examples=12, deadline=None)
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


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    ("shape", "budgets"),
    [
        # Shapes without a mask, one token a program and several, J with gaps and TopK.
        ({"batch": 3, "k": 32, "d_in": 128, "d_sae": 40}, None),
        ({"batch": 3, "k": 32, "d_in": 64, "d_sae": 40}, [1, 8, 16, 24, 32]),
        ({"batch": 3, "k": 16, "d_in": 64, "d_sae": 40}, [16]),
        ({"batch": 2, "k": 1024, "d_in": 20, "d_sae": 50}, [1, 500, 1000]),
        # Features of more than one chunk, and dead ones.
        ({"batch": 25, "k": 20, "d_in": 9, "d_sae": 4}, [2, 20]),
        ({"batch": 2, "k": 3, "d_in": 5, "d_sae": 70}, [3]),
    ],
)
def test_shapes_that_take_other_paths(
    shape: dict[str, Any], budgets: list[int] | None, deterministic: bool
) -> None:
    with reproducible(deterministic):
        assert_parity(make_case(**shape), budgets=budgets)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("special", SPECIALS)
def test_special_activations(special: str, deterministic: bool) -> None:
    case = make_case(6, 5, 7, 9)
    make_special(case, special)

    with reproducible(deterministic):
        assert_parity(case)


def test_several_tokens_to_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_lens_hierarchical.ops.triton.launch._MIN_PROGRAMS", 4)

    assert_parity(make_case(batch=13, k=9, d_in=70), budgets=[1, 4, 9])


@pytest.mark.parametrize("deterministic", [False, True])
def test_several_passes(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizing = "sae_lens_hierarchical.ops.triton.launch"
    case = make_case(batch=3, k=9, d_in=300)
    # Two column blocks a pass, of the three that this width has.
    monkeypatch.setattr(f"{sizing}._GRAD_VALUES_BYTES", 2 * 3 * 9 * 4)
    monkeypatch.setattr(f"{sizing}._SUFFIX_SUM_BYTES", 2 * 3 * 3 * 128 * 4)
    plan = importlib.import_module(sizing).plan_launch(3, 9, 300, 3, 4, 90)
    assert plan.column_blocks == 3
    assert plan.atomic_blocks == plan.deterministic_blocks == 2

    with reproducible(deterministic):
        assert_parity(case, budgets=[1, 4, 9])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torchs_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    case = make_case(batch=7, d_in=13)  # a size that has no plan on the device yet
    expected = run(case, backend="reference")
    torch.set_default_dtype(dtype)
    try:
        actual = run(case, backend="triton")
    finally:
        torch.set_default_dtype(torch.float32)

    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)


def test_strided_arguments() -> None:
    assert_parity(strided(make_case(6, 6, 12, 12)))


@pytest.mark.parametrize(
    "wanted", [["values"], ["W_dec"], ["b_dec"], ["target"], ["values", "target"]]
)
def test_only_the_gradients_asked_for(wanted: list[str]) -> None:
    case = make_case()
    results = run(case, wanted, backend="triton")
    expected = run(case, wanted, backend="reference")

    assert results.keys() == expected.keys()
    torch.testing.assert_close(results, expected, rtol=2e-5, atol=2e-5)


def test_without_gradients() -> None:
    case = make_case()
    expected = hierarchical_loss_with_residual(**vars(case), backend="reference")

    outputs = hierarchical_loss_with_residual(**vars(case), backend="triton")

    torch.testing.assert_close(outputs, expected, rtol=2e-5, atol=2e-5)
    assert not any(output.requires_grad for output in outputs)


@pytest.mark.parametrize("factor", [0.0, 0.5, 3.0])
def test_gradients_scale_with_the_upstream_gradient(factor: float) -> None:
    case = make_case()
    expected = run(case, factor=factor, backend="reference")

    actual = run(case, factor=factor, backend="triton")

    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)


def test_float16_gradients_are_rounded_after_grad_scaler_scaled_them() -> None:
    case = make_case(dtype=torch.float16, weight_dtype=torch.float16)
    for leaf in (case.target, case.values, case.W_dec, case.b_dec):
        leaf *= 1e-3  # most gradients are below float16's smallest number
    exact = Case(*(t.double() if t.is_floating_point() else t for t in fields(case)))
    expected = run(exact, factor=2**16, backend="reference")["W_dec"]

    actual = run(case, factor=2**16, backend="triton")["W_dec"]

    tolerance = TOLERANCE[torch.float16] * expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)


def test_a_kept_graph_can_be_walked_again() -> None:
    case = make_case()
    W_dec = case.W_dec.requires_grad_()
    value, _ = hierarchical_loss(**vars(case), backend="triton")

    (once,) = torch.autograd.grad(value, W_dec, retain_graph=True)
    kept = once.clone()
    (thrice,) = torch.autograd.grad(3 * value, W_dec)

    torch.testing.assert_close(thrice, 3 * kept)
    assert torch.equal(once, kept)


def test_gradients_accumulate() -> None:
    case = make_case()
    W_dec = case.W_dec.requires_grad_()
    for factor in (1, 2):
        value, _ = hierarchical_loss(**vars(case), backend="triton")
        (factor * value).backward()

    assert W_dec.grad is not None
    expected = 3 * run(case, backend="reference")["W_dec"]
    torch.testing.assert_close(W_dec.grad, expected, rtol=2e-5, atol=2e-5)


def test_second_derivatives_are_refused() -> None:
    case = make_case()
    values = case.values.requires_grad_()
    value, _ = hierarchical_loss(**vars(case), backend="triton")

    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(value, values, create_graph=True)


@pytest.mark.parametrize("deterministic", [False, True])
def test_it_is_a_well_behaved_operator(deterministic: bool) -> None:
    case = make_case(3, 3, 6, 8)
    leaves = {n: getattr(case, n).requires_grad_() for n in ARGUMENTS}
    arguments = (
        leaves["target"],
        case.indices,
        leaves["values"],
        leaves["W_dec"],
        leaves["b_dec"],
        [1, 3],
        [0.5, 0.5],
        True,
        True,
        deterministic,
    )

    operator = torch.ops.sae_lens_hierarchical.triton_loss.default
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_compiles_without_a_graph_break(dtype: torch.dtype) -> None:
    case = make_case(dtype=dtype)
    expected = run(case, factor=2, backend="triton")

    def compiled(**kwargs: Any) -> Any:
        return torch.compile(
            hierarchical_loss_with_residual, fullgraph=True, backend="aot_eager"
        )(**kwargs)

    leaves = {n: t.detach().clone() for n, t in vars(case).items()}
    for name in ARGUMENTS:
        leaves[name].requires_grad_()
    value, *_ = compiled(**leaves, backend="triton")
    (2 * value).backward()

    for name in ARGUMENTS:
        torch.testing.assert_close(leaves[name].grad, expected[name])


def test_autocast_does_not_lower_the_sums() -> None:
    case = make_case(4, 8, 16, 32)
    with reproducible():
        expected = run(case, backend="triton")
        with torch.autocast(DEVICE, torch.bfloat16):
            actual = run(case, backend="triton")

    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


class _Operators(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def operators(device: str, **changes: Any) -> set[str]:
    """Return which operators the ``auto`` backend runs, on a device not at hand."""
    case = make_case()
    with FakeTensorMode(), _Operators() as seen:
        arguments: dict[str, Any] = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            for name, tensor in vars(case).items()
        }
        for name, dtype in changes.items():
            arguments[name] = arguments[name].to(dtype)
        hierarchical_loss(**arguments)
    return {name.partition("::")[2] for name in seen.names if "hierarchical" in name}


def test_auto_takes_triton_on_cuda_alone() -> None:
    assert operators("cuda") == {"triton_loss"}
    assert operators("cuda", values=torch.bfloat16) == {"triton_loss"}
    assert operators("cuda", values=torch.float64) == {"sequential_forward"}


def test_auto_takes_sequential_and_logs_it_once_without_triton(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loss, "triton_op", None)
    monkeypatch.setattr(loss, "_no_triton", "triton is not installed")
    loss._log_fallback.cache_clear()  # pyright: ignore[reportPrivateUsage]

    with caplog.at_level(logging.WARNING):
        assert operators("cuda") == operators("cuda") == {"sequential_forward"}

    problem = "backend 'triton' cannot be used here: triton is not installed"
    assert caplog.messages == [f"{problem}; taking 'sequential'"]
    with pytest.raises(ValueError, match=problem):
        hierarchical_loss(**vars(make_case()), backend="triton")


def test_where_no_kernel_can_be_launched_auto_takes_sequential_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler.")

    op = loss.triton_op
    assert op is not None
    monkeypatch.setattr(op, "_scale_", no_compiler)
    op.launch_problem.cache_clear()
    problem = f"cannot launch a kernel on {DEVICE}: RuntimeError: Failed to find C comp"
    try:
        with pytest.raises(ValueError, match=f"backend 'triton' {problem}"):
            hierarchical_loss(**vars(make_case()), backend="triton")
        found = op.launch_problem(torch.device(DEVICE))
    finally:
        op.launch_problem.cache_clear()
    loss._log_fallback.cache_clear()  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(loss, "_triton_problem", lambda *_: found)
    with caplog.at_level(logging.WARNING):
        assert operators("cuda") == operators("cuda") == {"sequential_forward"}
    assert caplog.messages == [f"backend 'triton' {found}; taking 'sequential'"]


@pytest.mark.parametrize(
    ("version", "expected"),
    [("3.3.1", "triton 3.3.1 is older than 3.4"), ("3.4.0", None), ("3.10.0", None)],
)
def test_an_old_triton_is_refused(
    version: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triton.__version__", version)

    assert why_unavailable() == expected


def test_a_missing_triton_is_named_and_a_broken_one_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert why_unavailable() == "triton is not installed"

    # A triton that lacks a package of its own.
    (tmp_path / "triton.py").write_text("import no_such_package")
    monkeypatch.delitem(sys.modules, "triton")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        why_unavailable()


def test_a_fault_in_the_kernels_is_no_missing_triton() -> None:
    """The package raises it, and does not go on without the kernels."""
    program = (
        "import sys; "
        "sys.modules['sae_lens_hierarchical.ops.triton.tiles'] = None; "
        "import sae_lens_hierarchical.ops"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )

    assert result.returncode == 1
    assert "import of sae_lens_hierarchical.ops.triton.tiles halted" in result.stderr


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"dtype": torch.float64}, r"takes target in one of .*, got torch\.float64"),
        ({"k": 2049}, "takes up to 2048 active features, got 2049"),
    ],
)
def test_what_it_cannot_take_is_named(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"backend 'triton' {message}"):
        hierarchical_loss(**vars(make_case(**shape)), backend="triton")


def test_it_needs_a_gpu_but_for_the_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_op, "INTERPRETED", False)
    case = Case(*(tensor.cpu() for tensor in fields(make_case())))

    with pytest.raises(ValueError, match="needs tensors on a CUDA device, got cpu"):
        hierarchical_loss(**vars(case), backend="triton")
