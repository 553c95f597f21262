"""Time the loss, forward plus backward: the paper's Table 3, and this package's rows.

    python benchmarks/loss_kernels.py                          # a CUDA GPU: all rows
    python benchmarks/loss_kernels.py --peer flexsae=PATH      # and a local checkout
    python benchmarks/loss_kernels.py --tune                   # rows for launch.TABLE
    python benchmarks/loss_kernels.py --device cpu             # does it run? (tiny)

It needs torch and Triton, not SAELens. See README.md beside it.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

if "cpu" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import torch
import triton
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sae_lens_hierarchical.ops import hierarchical_loss, loss_budgets
from sae_lens_hierarchical.ops.triton import launch

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
RESULTS = ROOT / "benchmarks" / "results" / "loss_kernels.csv"
COLUMNS = [
    "dtype",
    "B",
    "K",
    "frequencies",
    "row",
    "ms",
    "peak_gib",
    "of_floor",
    "copy_gb_per_s",
]
FREQUENCIES = ("uniform", "zipf")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass
class Problem:
    """Random arguments of one size."""

    target: Tensor
    indices: Tensor
    values: Tensor
    W_dec: Tensor
    b_dec: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        """What has a gradient in training."""
        return [self.values, self.W_dec, self.b_dec]

    @property
    def floor_bytes(self) -> int:
        """What any implementation moves: every argument and gradient once."""
        moved = [self.target, self.indices, *self.leaves, *self.leaves]
        return sum(tensor.nbytes for tensor in moved)


def make_problem(
    batch: int,
    k: int,
    d_in: int,
    d_sae: int,
    dtype: torch.dtype,
    device: str,
    frequencies: str = "uniform",
) -> Problem:
    """Draw a problem; a token's features are distinct.

    With "uniform" frequencies all are as likely. With "zipf" feature n is drawn in
    proportion to 1 / n: the first ones are active in nearly every token, so that many
    tokens' gradients go to the same row.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    uniform = torch.rand(batch, d_sae, generator=generator, device=device)
    scores = -(-uniform.log()).log()  # the k largest are a draw without replacement
    if frequencies == "zipf":
        scores -= torch.arange(1, d_sae + 1, device=device).log()
    indices = scores.topk(k)
    values = normal(batch, k).abs().sort(descending=True).values
    problem = Problem(
        target=normal(batch, d_in).to(dtype),
        indices=indices.indices,
        values=values.to(dtype),
        W_dec=(normal(d_sae, d_in) / d_in**0.5).to(dtype),
        b_dec=normal(d_in).to(dtype),
    )
    for leaf in problem.leaves:
        leaf.requires_grad_()
    return problem


def naive_topk(
    target: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor
) -> Tensor:
    """The TopK loss as one writes it down."""
    terms = values.unsqueeze(-1) * W_dec[indices]
    error = (terms.sum(dim=1) + b_dec - target).float()
    return error.pow(2).sum(dim=-1).mean()


def naive_hierarchical(
    target: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor, b_dec: Tensor
) -> Tensor:
    """Listing 1."""
    arguments = (target, indices, values, W_dec, b_dec)
    return hierarchical_loss(*arguments, backend="reference")[0]


def ours(budgets: list[int], reproducible: bool = False) -> Loss:
    """This package's loss for J."""

    def loss(*arguments: Tensor) -> Tensor:
        torch.use_deterministic_algorithms(reproducible, warn_only=True)
        return hierarchical_loss(*arguments, budgets=budgets, backend="triton")[0]

    return loss


def flexsae_rows(path: Path) -> dict[str, Loss]:
    """The paper authors' kernels, from a checkout of theirs."""
    sys.path[:0] = [str(path), str(path / "torch-ext")]
    import flex_sae  # pyright: ignore[reportMissingImports]

    def adapt(function: Callable[..., Tensor]) -> Loss:
        def loss(
            target: Tensor, indices: Tensor, values: Tensor, W: Tensor, b: Tensor
        ) -> Tensor:
            return function(indices, W, values, b, target)

        return loss

    return {
        "TopK": adapt(flex_sae.triton_topk_sae_loss),
        "HierarchicalTopK": adapt(flex_sae.triton_hierarchical_sae_loss),
    }


def openai_rows(path: Path) -> dict[str, Loss]:
    """OpenAI's sparse decoder, from a checkout of their sparse_autoencoder."""
    source = path / "sparse_autoencoder" / "kernels.py"
    spec = importlib.util.spec_from_file_location("openai_kernels", source)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(source)
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)

    def loss(
        target: Tensor, indices: Tensor, values: Tensor, W: Tensor, b: Tensor
    ) -> Tensor:
        decoded = kernels.TritonDecoderAutograd.apply(indices, values, W.T)
        return (decoded + b - target).float().pow(2).sum(dim=-1).mean()

    return {"TopK": loss}


PEERS = {"flexsae": flexsae_rows, "openai": openai_rows}


def rows(k: int, device: str, peers: dict[str, dict[str, Loss]]) -> dict[str, Loss]:
    """Name the implementations; without a GPU nothing is compiled."""
    naive: dict[str, Loss] = {
        "TopK": naive_topk,
        "Hierarchical J_1": naive_hierarchical,
    }
    if device == "cuda":
        naive = {
            f"{name}, torch.compile": torch.compile(loss)
            for name, loss in naive.items()
        }
    else:
        naive = {f"{name}, eager": loss for name, loss in naive.items()}
    every_8th = loss_budgets(k, 8)
    return {
        **naive,
        **{
            f"{peer} {name}": loss
            for peer, losses in peers.items()
            for name, loss in losses.items()
        },
        "ours TopK": ours([k]),
        "ours Hierarchical J_1": ours(loss_budgets(k)),
        "ours Hierarchical J_8": ours(every_8th),
        "ours TopK, reproducible": ours([k], reproducible=True),
        "ours Hierarchical J_1, reproducible": ours(loss_budgets(k), reproducible=True),
        "ours Hierarchical J_8, reproducible": ours(every_8th, reproducible=True),
    }


def median_milliseconds(function: Callable[[], Any]) -> float:
    """Time work on a GPU, the L2 cache flushed before each run."""
    timed: Any = triton.testing.do_bench(function, 100, 1000, return_mode="median")
    return timed


def measure(loss: Loss, problem: Problem) -> tuple[float, float]:
    """Return the median milliseconds of a step, and its peak GiB (0 without a GPU)."""

    def step() -> None:
        for leaf in problem.leaves:
            leaf.grad = None
        loss(*vars(problem).values()).backward()

    torch.use_deterministic_algorithms(False)
    step()  # compiles
    if not problem.target.is_cuda:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times), 0.0
    milliseconds = median_milliseconds(step)
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return milliseconds, torch.cuda.max_memory_allocated() / 2**30


def copy_bandwidth(device: str) -> float:
    """Measure the bytes a second, read and written, of a large copy."""
    source = torch.ones(2**28 if device == "cuda" else 2**20, device=device)
    target = torch.empty_like(source)
    if device == "cuda":
        milliseconds = median_milliseconds(lambda: target.copy_(source))
    else:
        start = time.perf_counter()
        target.copy_(source)
        milliseconds = 1e3 * (time.perf_counter() - start)
    return 2 * source.nbytes / (milliseconds / 1e3)


def machine(device: str) -> dict[str, str]:
    """Name the hardware and versions."""
    names = {"gpu": "none: a CPU's figures, not the paper's", "driver": ""}
    if device == "cuda":
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
        ).stdout
        names = {
            "gpu": torch.cuda.get_device_name(),
            "driver": driver.partition("\n")[0],
        }
    return names | {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def benchmark(
    options: argparse.Namespace, peers: dict[str, dict[str, Loss]]
) -> Iterator[dict[str, Any]]:
    """Print and yield every row."""
    bandwidth = copy_bandwidth(options.device)
    for dtype, batch, k, frequencies in itertools.product(
        options.dtype, options.batch, options.k, FREQUENCIES
    ):
        size = (options.d_in, options.d_sae, DTYPES[dtype], options.device)
        problem = make_problem(batch, k, *size, frequencies)
        floor = 1e3 * problem.floor_bytes / bandwidth
        print(f"\n{dtype}, B {batch}, K {k}, {frequencies}: floor {floor:.3f} ms")
        for name, loss in rows(k, options.device, peers).items():
            row: dict[str, Any] = {"dtype": dtype, "B": batch, "K": k}
            row |= {"frequencies": frequencies, "row": name}
            try:
                milliseconds, gib = measure(loss, problem)
            except Exception as error:
                # A peer takes some shapes only, and the naive loss much memory.
                if name.startswith("ours"):
                    raise
                print(f"{name:40} failed: {str(error).splitlines()[:1]}")
                continue
            row |= {
                "ms": milliseconds,
                "peak_gib": gib,
                "of_floor": floor / milliseconds,
            }
            print(f"{name:40} {milliseconds:9.3f} ms {gib:7.2f} GiB", end=" ")
            print(f"{row['of_floor']:7.1%} of the floor")
            yield row | {"copy_gb_per_s": bandwidth / 1e9}
        torch.compiler.reset()


def tune(options: argparse.Namespace) -> None:
    """Print the fastest tile for each K, as a row for ``launch.TABLE``."""
    major, minor = torch.cuda.get_device_capability()
    for dtype in options.dtype:
        key = (10 * major + minor, DTYPES[dtype].itemsize)
        fastest = {}
        for k in options.k:
            size = (options.d_in, options.d_sae, DTYPES[dtype], options.device)
            problem = make_problem(options.batch[0], k, *size)
            times = {}
            for ranks, lanes in ((r, n) for r in (4, 8, 16) for n in (1, 2, 4, 8, 16)):
                tile = launch.Tile(ranks, lanes)
                plan = launch.plan_launch(1, k, options.d_in, 1, key[1], key[0], tile)
                if plan.warps <= 16 and plan.lanes == lanes:
                    launch.TABLE[key] = {launch.MAX_K: tile}
                    times[tile], _ = measure(ours(loss_budgets(k)), problem)
                    print(f"{dtype} K {k} {tile}: {times[tile]:.3f} ms")
            fastest[k] = min(times, key=times.__getitem__)
        print(f"{key}: {fastest},")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batch", type=int, nargs="+", default=[8192, 2048])
    parser.add_argument("--k", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--d-in", type=int, default=2304)
    parser.add_argument("--d-sae", type=int, default=65_536)
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--tune", action="store_true", help="print rows of the table")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.device == "cpu":
        print("On a CPU, in Triton's interpreter: these are not the paper's figures.")
        options.batch, options.k, options.d_in, options.d_sae = [4], [9], 64, 32
        options.out = Path(os.devnull)
    if options.tune:
        tune(options)
        return
    named = (peer.partition("=") for peer in options.peer)
    peers = {name: PEERS[name](Path(path)) for name, _, path in named}
    here = machine(options.device)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # Row by row: what was measured outlives a later row that fails.
    with options.out.open("w", newline="", buffering=1) as file:
        writer = csv.DictWriter(file, fieldnames=[*COLUMNS, *here])
        writer.writeheader()
        for row in benchmark(options, peers):
            writer.writerow(row | here)


if __name__ == "__main__":
    main()
