"""Tests that one SAE over several processes trains as it does in one."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.training.distributed.cases import (
    CASES,
    EXACT,
    Run,
    run_on_one_process,
    run_sharded,
)
from tests.training.distributed.processes import run_on_processes

# Largest differences, of numbers of about 1. The others are in float64. Products in
# bfloat16 are rounded otherwise where a matrix has another shape.
ATOL = {
    "float32": 1e-5,
    "float32 of unit norm": 1e-5,
    "autocast": 5e-3,
    "autocast, unevenly dead": 5e-3,
    "bfloat16": 2e-2,
}


@pytest.fixture(scope="module")
def in_one_process() -> dict[str, Run]:
    return {name: run_on_one_process(CASES[name]) for name in [*EXACT, *ATOL]}


NAMES = {2: [*EXACT[::2], *ATOL], 3: [*EXACT, *ATOL], 4: EXACT[::4]}


@functools.cache
def on_each_of(processes: int) -> list[dict[str, Run]]:
    return run_on_processes(processes, run_sharded, NAMES[processes])


@pytest.mark.parametrize("processes", NAMES)
def test_several_processes_train_as_one(
    processes: int, in_one_process: dict[str, Run]
) -> None:
    for runs in on_each_of(processes):
        for name in NAMES[processes]:
            expected = in_one_process[name]
            atol = ATOL.get(name, 1e-12)
            got = runs[name]
            assert got.n_dead == expected.n_dead, name
            for part in ("weights", "counts"):
                of_one, of_many = getattr(expected, part), getattr(got, part)
                assert of_many.keys() == of_one.keys()
                for key, value in of_one.items():
                    torch.testing.assert_close(
                        of_many[key],
                        value,
                        rtol=atol,
                        atol=atol,
                        equal_nan=True,
                        msg=lambda text, at=(name, key): f"{at}: {text}",
                    )


@pytest.mark.parametrize("name", EXACT)
def test_the_cases_are_what_they_say(name: str, in_one_process: dict[str, Run]) -> None:
    run, case = in_one_process[name], CASES[name]

    assert run.gradient_norms.isfinite().all()
    clipped = run.gradient_norms > 1
    assert clipped.any() if case.scale > 1 else not clipped.all()
    assert max(run.n_dead) >= len(case.never)


def test_what_a_step_sends_does_not_grow_with_the_budgets() -> None:
    runs, *_ = on_each_of(3)
    sent = {name: sum(run.bytes_sent.values()) for name, run in runs.items()}

    # But for the errors of five more budgets: 8 bytes each, to two other processes.
    assert sent["every budget"] - sent["plain TopK, dense"] == 5 * 8 * 2
