"""One SAE over W processes: how long is a step, and what does it send?

    python benchmarks/distributed.py [--device cuda] [--repeats N]
    python benchmarks/distributed.py --plan

Times the training step of ``ShardedTrainingSAE``, with the all-gather of activations,
on W processes of one thread (CPU, gloo) or one GPU (NCCL) each, against the ordinary
step on one, and writes ``results/distributed_DEVICE.csv``. The two take turns, so that
a slow moment of the machine meets both; times are medians of the slowest process.

Bytes are those that one process sends in a step. ``counted_mb`` is what ``Mesh``
counts, ``loopback_mb`` what the loopback interface has sent, headers included, divided
by W; where Linux permits, the benchmark has that interface to itself (``unshare``).
NCCL does not use it, so it is left empty there. ``planned_mb`` is this file's formula.

``--plan`` prints the tables of docs/distributed.md: computed, not measured. No run on
GPUs has been made.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from training_step import DEAD_SHARE, RESULTS, ask, hardware, trainer_config, wait

CPU_SIZES = ((512, 16_384, 64, 1024), (768, 24_576, 32, 1024))
CUDA_SIZES = ((2304, 65_536, 128, 8096),)
# J_x and whether a share of the latents is dead.
STEPS = ((1, False), (8, False), (8, True))
REPEATS = 7
STEPS_BY_BYTES = 3
FLOAT = 4  # bytes
TRACKED = 32  # tokens that thresholds follow


def main() -> None:
    """Measure and write the CSV, or print the plan."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--plan", action="store_true", help="print the planned tables")
    parser.add_argument("--own-network", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=9, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        folder, *numbers = options.worker
        _work(folder, options.device, *map(int, numbers))
    elif options.plan:
        _print_plan()
    elif options.device == "cpu" and not options.own_network and _may_unshare():
        command = [sys.executable, *sys.argv, "--own-network"]
        up = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        subprocess.run(["unshare", "-rn", *up, *command], check=True)
    else:
        _measure_all(options)


def _may_unshare() -> bool:
    try:
        command = ["unshare", "-rn", "ip", "link", "set", "lo", "up"]
        return not subprocess.run(command, capture_output=True, check=False).returncode
    except OSError:
        return False


def _measure_all(options: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    counts = [1, 2]
    if options.device == "cuda":
        counts = [n for n in (1, 2, 4, 8) if n <= torch.cuda.device_count()]
    path = RESULTS / f"distributed_{options.device}.csv"
    for size in CPU_SIZES if options.device == "cpu" else CUDA_SIZES:
        for every, dead in STEPS:
            rows += _measure(size, every, dead, counts, options)
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=rows[0])
                writer.writeheader()
                writer.writerows(rows)


def _measure(
    size: tuple[int, int, int, int],
    every: int,
    dead: bool,
    counts: list[int],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        groups = {
            n: _start(folder, options.device, n, size, every, dead) for n in counts
        }
        times: dict[int, list[float]] = {n: [] for n in counts}
        for _ in range(options.repeats):
            for n, group in groups.items():
                times[n].append(max(map(float, _ask_all(group, "step"))))
        medians = {n: statistics.median(own) for n, own in times.items()}
        rows: list[dict[str, Any]] = []
        for n, group in groups.items():
            loopback: object = ""
            if options.device == "cpu":
                before = _loopback_bytes()
                for _ in range(STEPS_BY_BYTES):
                    _ask_all(group, "step")
                sent = (_loopback_bytes() - before) / STEPS_BY_BYTES / n
                loopback = round(sent / 1e6, 3)
            planned = sum(planned_bytes(*size, n).values()) / 1e6
            row = {
                "processes": n,
                "loss": f"J_{every}",
                "dead_latents": dead,
                "ms": round(medians[n], 1),
                "times_as_fast_as_one": round(medians[counts[0]] / medians[n], 2),
                "counted_mb": round(float(_ask_all(group, "bytes")[0]) / 1e6, 3),
                "loopback_mb": loopback,
                "planned_mb": "" if dead else round(planned, 3),
                "weights_and_adam_mib": max(map(int, _ask_all(group, "state"))),
            }
            print(size, row, flush=True)
            d_in, d_sae, k, batch = size
            row |= {"d_in": d_in, "d_sae": d_sae, "K": k, "B": batch}
            row |= {"dtype": "float32", "backend": _backend(options.device)}
            row |= {"own_network": options.own_network, "threads_a_process": 1}
            row |= {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
            row |= {"torch": torch.__version__, "hardware": hardware(options.device)}
            rows.append(row)
        for group in groups.values():
            _ask_all(group, "end")
            for process in group:
                process.wait()
    return rows


def _start(
    folder: str,
    device: str,
    processes: int,
    size: tuple[int, ...],
    every: int,
    dead: bool,
) -> list[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).resolve()), "--device", device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [
                *command,
                *("--worker", folder, str(rank), str(processes)),
                *map(str, size),
                *(str(every), str(int(dead))),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(processes)
    ]


def _ask_all(group: list[subprocess.Popen[str]], question: str) -> list[str]:
    for process in group[1:]:  # ``ask`` waits for the answer, which needs all of them
        assert process.stdin is not None
        process.stdin.write(question + "\n")
        process.stdin.flush()
    return [ask(group[0], question), *(ask(process, "") for process in group[1:])]


def _work(
    folder: str,
    device: str,
    rank: int,
    processes: int,
    d_in: int,
    d_sae: int,
    k: int,
    batch: int,
    every: int,
    dead: int,
) -> None:
    """Answer questions on standard input."""
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        _backend(device),
        init_method=f"file://{folder}/{processes}",
        rank=rank,
        world_size=processes,
    )
    trainer, step, mesh = _trainer(device, d_in, d_sae, k, batch, every, bool(dead))
    for _ in range(3):
        step()
    for line in sys.stdin:
        match line.strip():
            case "step":
                mesh.bytes_sent.clear()
                wait(device)
                start = time.perf_counter()
                step()
                wait(device)
                answer: object = (time.perf_counter() - start) * 1e3
            case "bytes":
                answer = sum(mesh.bytes_sent.values())
            case "state":
                tensors = list(trainer.sae.parameters())
                for state in trainer.optimizer.state.values():
                    tensors += state.values()
                answer = round(sum(tensor.nbytes for tensor in tensors) / 2**20)
            case "end":
                dist.destroy_process_group()
                print("answer ", flush=True)
                return
            case _:
                continue
        print(f"answer {answer}", flush=True)


def _trainer(
    device: str, d_in: int, d_sae: int, k: int, batch: int, every: int, dead: bool
) -> tuple[Any, Callable[[], object], Any]:
    from sae_lens_hierarchical import (
        HierarchicalTopKTrainingSAE,
        HierarchicalTopKTrainingSAEConfig,
    )
    from sae_lens_hierarchical.training.distributed import (
        Mesh,
        ShardedSAETrainer,
        ShardedTrainingSAE,
    )
    from sae_lens_hierarchical.training.distributed.collectives import gather
    from sae_lens_hierarchical.training.step import FastSAETrainer

    torch.manual_seed(0)
    mesh = Mesh.of(f"cuda:{torch.cuda.current_device()}" if device == "cuda" else "cpu")
    sae_cfg = HierarchicalTopKTrainingSAEConfig(
        d_in=d_in,
        d_sae=d_sae,
        k=k,
        loss_every=every,
        unit_norm_decoder=True,
        device=str(mesh.device),
    )
    cfg = trainer_config(batch, str(mesh.device))
    if mesh.size == 1:
        sae: Any = HierarchicalTopKTrainingSAE(sae_cfg)
        trainer: Any = FastSAETrainer(cfg, sae, iter(()))
    else:
        sae = ShardedTrainingSAE(sae_cfg, mesh)
        trainer = ShardedSAETrainer(cfg, sae, iter(()))
    sizes = mesh.sizes(batch)
    whole = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(0))
    own = whole.split(sizes)[mesh.rank].to(mesh.device)

    def step() -> None:
        if dead:
            unused = trainer.n_forward_passes_since_fired[: int(DEAD_SHARE * d_sae)]
            unused.fill_(2000)
        trainer.step(own if mesh.size == 1 else gather(mesh, own, sizes))
        trainer.n_training_steps += 1

    return trainer, step, mesh


def _backend(device: str) -> str:
    return "nccl" if device == "cuda" else "gloo"


def _loopback_bytes() -> int:
    # Not /sys/class/net, which goes on showing the interfaces outside ``unshare``.
    lines = Path("/proc/net/dev").read_text().splitlines()
    (line,) = [line for line in lines if line.strip().startswith("lo:")]
    return int(line.split(":")[1].split()[8])


def planned_bytes(
    d_in: int, d_sae: int, k: int, batch: int, n: int
) -> dict[str, float]:
    """Return what one of n processes sends in a step, by what it is, at most.

    float32, ``unit_norm_decoder``, no dead latents. Candidates are those if none could
    be left out before they are sent.
    """
    others, summed = n - 1, 2 * (n - 1) / n
    own = -(-d_sae // n)
    return {
        "activations": others * -(-batch // n) * d_in * FLOAT,
        "candidates": others * batch * min(k, own) * 2 * FLOAT,
        "gradients of values": summed * batch * k * FLOAT,
        "sums of decoder rows": 2 * summed * d_sae * FLOAT,
        "b_dec and its gradient": others * -(-d_in // n) * FLOAT
        + summed * d_in * FLOAT,
        "thresholds": others * TRACKED * min(k, own) * FLOAT,
    }


def planned_memory(
    d_in: int, d_sae: int, k: int, batch: int, n: int
) -> dict[str, float]:
    """Return the bytes that one of n processes holds, by what they are: float32."""
    weights = 2 * -(-d_sae // n) * d_in * FLOAT  # W_enc by feature, W_dec by column
    tokens = min(batch, max(1024, (1 << 27) // -(-d_sae // n)))
    return {
        "weights": weights,
        "gradients": weights,
        "Adam": 2 * weights,
        # The batch, the encoder's input; target, residual and its gradient by column.
        "activations": (2 + 3 / n) * batch * d_in * FLOAT,
        "pre-activations": tokens * -(-d_sae // n) * FLOAT,
        # Received and put together; values and int32 features.
        "candidates": 2 * batch * n * min(k, -(-d_sae // n)) * 2 * FLOAT,
        # Values, their gradients, features, positions, the sparse activations.
        "top-k": batch * k * (3 * FLOAT + 4 * 8),
    }


def _print_plan() -> None:
    d_in, k, batch = 2304, 128, 8096
    counts = (1, 2, 4, 8, 16, 32, 64)
    print(f"d_in {d_in}, K {k}, B {batch}, float32; GB (10^9 bytes) a process")
    head = "| d_sae | " + " | ".join(f"W = {n}" for n in counts) + " |"
    rule = "| ---: |" + " ---: |" * len(counts)
    for title, parts in (
        ("Weights, gradients and Adam", ("weights", "gradients", "Adam")),
        ("With a step's tensors", None),
    ):
        print(f"\n{title}\n\n{head}\n{rule}")
        for d_sae in (65_536 << i for i in range(5)):
            plans = [planned_memory(d_in, d_sae, k, batch, n) for n in counts]
            sums = [sum(p[name] for name in parts or p) / 1e9 for p in plans]
            print(f"| {d_sae:,} | " + " | ".join(f"{gb:.2f}" for gb in sums) + " |")
    for title, plan in (
        ("A step's tensors at d_sae 1,048,576", planned_memory),
        ("Sent in a step, at most, at d_sae 1,048,576", planned_bytes),
    ):
        print(f"\n{title}\n\n{head.replace('d_sae', 'what')}\n{rule}")
        plans = [plan(d_in, 1 << 20, k, batch, n) for n in counts]
        for name in plans[0]:
            cells = " | ".join(f"{p[name] / 1e9:.3f}" for p in plans)
            print(f"| {name} | {cells} |")
        cells = " | ".join(f"{sum(p.values()) / 1e9:.3f}" for p in plans)
        print(f"| all | {cells} |")


if __name__ == "__main__":
    main()
