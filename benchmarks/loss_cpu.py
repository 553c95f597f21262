"""Is the sequential loss fast and lean on a CPU, whatever K?

Runs Listing 1 and the sequential backend side by side, forward plus backward, and
writes ``results/loss_cpu.csv``. Times are medians, taken in turn in this one process;
memory is what a step peaks at beyond its arguments and gradients (Linux only).

    python benchmarks/loss_cpu.py
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sae_lens_hierarchical.ops import Backend, hierarchical_loss, loss_budgets

BATCH, D_IN, D_SAE = 1024, 512, 16_384
KS = (16, 32, 64, 128)
REPEATS = 7
RESULTS = Path(__file__).parent / "results" / "loss_cpu.csv"


def main() -> None:
    """Measure, print a table and write the CSV."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = [_measure(k, every) for k in KS for every in (1, 8)]
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _measure(k: int, every: int) -> dict[str, object]:
    listing, sequential = _medians(k, every)
    row: dict[str, object] = {
        "K": k,
        "loss_every": every,
        "listing_1_ms": round(listing * 1e3, 1),
        "sequential_ms": round(sequential * 1e3, 1),
        "times_as_fast": round(listing / sequential, 1),
        "listing_1_extra_mib": _peak_extra_mib("reference", k, every),
        "sequential_extra_mib": _peak_extra_mib("sequential", k, every),
    }
    print(row, flush=True)
    return row | {
        "B": BATCH,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": _processor(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def _step(backend: Backend, k: int, every: int) -> Callable[[], None]:
    """Return a function that runs forward and backward once."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    target = normal(BATCH, D_IN).detach()
    W_dec, b_dec = normal(D_SAE, D_IN), normal(D_IN)
    rank = torch.rand(BATCH, D_SAE, generator=generator).topk(k)
    values = rank.values.detach().requires_grad_()
    indices = rank.indices
    budgets = loss_budgets(k, every)

    def step() -> None:
        for leaf in (W_dec, b_dec, values):
            leaf.grad = None
        loss, _ = hierarchical_loss(
            target, indices, values, W_dec, b_dec, budgets=budgets, backend=backend
        )
        loss.backward()

    return step


def _medians(k: int, every: int) -> tuple[float, float]:
    steps = _step("reference", k, every), _step("sequential", k, every)
    for step in steps:
        step()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        # In turn, so that a slow moment of the machine meets both.
        for step, times in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _peak_extra_mib(backend: Backend, k: int, every: int) -> int:
    """Return what a step's memory peaks at beyond its arguments and gradients."""
    step = _step(backend, k, every)
    step()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what that step freed
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status_kib("VmRSS")
    step()
    return round((_status_kib("VmHWM") - before) / 1024)


def _status_kib(field: str) -> int:
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    ]
    return int(line.split()[1])


if __name__ == "__main__":
    main()
