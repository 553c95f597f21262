"""Tests of the machine code of the Triton kernels, compiled without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sae_lens_hierarchical.ops.triton.op")

Compiled = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """What ``compile_kernels`` found."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    output = subprocess.run(
        [sys.executable, script],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return json.loads(output)


@pytest.fixture(scope="module")
def compiled(results: dict[str, Any]) -> Compiled:
    """What each variant, row of the table and architecture compiles to."""
    return results["code"]


def test_nothing_is_kept_in_local_memory(compiled: Compiled) -> None:
    spilled = {
        name: {key: code[key] for key in ("registers", "stack", "local", "spills")}
        for name, code in compiled.items()
        if code["stack"] or code["local"] or code["spills"]
    }

    assert not spilled


def test_rows_are_loaded_four_columns_at_a_time(compiled: Compiled) -> None:
    losses = {n: c for n, c in compiled.items() if "wide_loads_expected" in c}
    narrow = {
        name: code["loads"]
        for name, code in losses.items()
        if sum(load.startswith(code["wide_load"]) for load in code["loads"])
        < code["wide_loads_expected"]
    }

    assert losses
    assert not narrow


def test_adds_are_vectors_of_four(compiled: Compiled) -> None:
    losses = {
        name: code
        for name, code in compiled.items()
        if "vector_adds_expected" in code and not name.startswith("sm_80 ")
    }
    scalar = {
        name: code["atomics"]
        for name, code in losses.items()
        if len(code["atomics"]) != code["vector_adds_expected"]
        or not all(".ADD.F32x4" in operation for operation in code["atomics"])
    }

    assert losses
    assert not scalar


def test_reproducible_kernels_have_no_atomics(compiled: Compiled) -> None:
    kernels = ("reproducible", "sum_chunks", "merge_chunks")
    atomics = {
        name: code["atomics"]
        for name, code in compiled.items()
        if any(kernel in name for kernel in kernels)
    }

    assert len(atomics) == 2 + 2 * 3
    assert not any(atomics.values()), atomics


@pytest.mark.parametrize("suffix", ["", ", bfloat16"])
def test_gaps_in_j_cost_less(compiled: Compiled, suffix: str) -> None:
    topk, coarse, full = (
        compiled[f"sm_90 {name}{suffix}"]["instructions"]
        for name in ("TopK", "J_8", "J_1")
    )

    assert topk < coarse < full


def test_multiplications_and_additions_are_fused(compiled: Compiled) -> None:
    losses = {n: c for n, c in compiled.items() if "wide_loads_expected" in c}

    assert losses
    # A row of eight columns a rank, at least.
    assert all(len(code["fused"]) >= 8 for code in losses.values())


def test_the_passes_of_a_step_share_one_compilation(results: dict[str, Any]) -> None:
    # Columns, by contrast, may be known to be multiples of 16.
    assert results["compilations"] == {"first_block": 1, "pass_columns": 3}
