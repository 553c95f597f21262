"""How long does a whole training step take: encoder, loss, backward, clip and Adam?

Times SAELens's TopK step, ours (losses J_1 and J_8), that of an earlier commit,
EleutherAI/sparsify's, and the bare product of the encoder, and writes
``results/training_step_DEVICE.csv``. Each runs in a process of its own, one step in
turn after the other, so that a slow moment of the machine meets all; times are medians.
Memory is what a step peaks at beyond weights, gradients and Adam's state.

    python benchmarks/training_step.py --previous PATH --peer sparsify=PATH

``--previous`` is a checkout of this repository at an earlier commit (``git worktree add
PATH COMMIT``), ``--peer sparsify`` one of sparsify, which needs natsort. Threads:
``OMP_NUM_THREADS``.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
CPU_SIZES = ((512, 16_384, 64, 1024), (768, 24_576, 32, 1024))
CUDA_SIZES = ((2304, 65_536, 128, 8096),)
REPEATS = 9
# How many latents are dead in the steps that say so.
DEAD_SHARE = 0.25


def main() -> None:
    """Measure, print a table and write the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--previous", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--peer", default="", help="sparsify=PATH of its checkout")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--worker", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, *sizes, dead = options.worker
        _work(name, tuple(map(int, sizes)), options.device, dead=dead == "True")
        return
    rows: list[dict[str, Any]] = []
    path = RESULTS / f"training_step_{options.device}.csv"
    path.parent.mkdir(exist_ok=True)
    for dead in (False, True):
        for size in CPU_SIZES if options.device == "cpu" else CUDA_SIZES:
            rows += _measure(size, dead, options)
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=rows[0])
                writer.writeheader()
                writer.writerows(rows)


def _measure(
    size: tuple[int, ...], dead: bool, options: argparse.Namespace
) -> list[dict[str, Any]]:
    root = Path(__file__).resolve().parents[1]
    contenders = {
        "encoder product": root,
        "SAELens TopK": root,
        "ours J_1": root,
        "ours J_8": root,
    }
    if options.previous:
        contenders |= {"ours J_1, previous": options.previous.resolve()}
        contenders |= {"ours J_8, previous": options.previous.resolve()}
    if options.peer:
        contenders["sparsify"] = Path(options.peer.removeprefix("sparsify=")).resolve()
    workers = {}
    for name, path in contenders.items():
        command = [sys.executable, str(Path(__file__).resolve())]
        command += ["--device", options.device, "--worker", name, *map(str, size)]
        workers[name] = subprocess.Popen(
            [*command, str(dead)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment(), **_package(path, options.device)},
            cwd=path,
        )
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(options.repeats):
        for name, worker in workers.items():
            times[name].append(float(ask(worker, "step")))
    medians = {name: statistics.median(own) for name, own in times.items()}
    rows = []
    for name, worker in workers.items():
        row = {
            "step": name,
            "dead_latents": dead,
            "ms": round(medians[name], 1),
            "times_as_fast_as_saelens": round(
                medians["SAELens TopK"] / medians[name], 2
            ),
            "encoder_products": round(medians[name] / medians["encoder product"], 2),
            "peak_mib": ask(worker, "peak"),
        }
        ask(worker, "end")
        print(size, row, flush=True)
        d_in, d_sae, k, batch = size
        row |= {"d_in": d_in, "d_sae": d_sae, "K": k, "B": batch, "dtype": "float32"}
        row |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
        rows.append(row | {"hardware": hardware(options.device)})
    return rows


def ask(worker: subprocess.Popen[str], question: str) -> str:
    """Return a worker's next answer to a line on its standard input."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(question + "\n")
    worker.stdin.flush()
    for line in worker.stdout:  # others may print, too
        if line.startswith("answer "):
            return line.removeprefix("answer ").strip()
    raise RuntimeError(f"{worker.args} ended early")


def environment() -> dict[str, str]:
    """Return this process's environment, with its number of threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def _package(path: Path, device: str) -> dict[str, str]:
    paths = [str(path), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if device == "cpu":
        own["SPARSIFY_DISABLE_TRITON"] = "1"  # it would look for a GPU
    return own


def _work(name: str, size: tuple[int, ...], device: str, *, dead: bool) -> None:
    """Answer questions on standard input with times and memory."""
    step = _contender(name, size, device, dead)
    for _ in range(3):
        step()
    for line in sys.stdin:
        match line.strip():
            case "step":
                wait(device)
                start = time.perf_counter()
                step()
                wait(device)
                answer: object = (time.perf_counter() - start) * 1e3
            case "peak":
                answer = peak_mib(step, device)
            case _:
                print("answer", flush=True)
                print("answer ", flush=True)
                return
        print(f"answer {answer}", flush=True)


def _contender(
    name: str, size: tuple[int, ...], device: str, dead: bool
) -> Callable[[], object]:
    d_in, d_sae, k, batch = size
    torch.manual_seed(0)
    x = torch.randn(batch, d_in, device=device)
    if name == "encoder product":
        W_enc = torch.randn(d_in, d_sae, device=device)
        return lambda: x @ W_enc
    if name == "sparsify":
        return _sparsify(x, d_sae, k, dead)
    return _saelens(name, x, d_sae, k, dead)


def _saelens(
    name: str, x: torch.Tensor, d_sae: int, k: int, dead: bool
) -> Callable[[], object]:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    from sae_lens_hierarchical import (
        HierarchicalTopKTrainingSAE,
        HierarchicalTopKTrainingSAEConfig,
    )

    batch, d_in = x.shape
    sizes: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "k": k}
    sizes["device"] = x.device.type
    trainer_class: Any = SAETrainer
    if name == "SAELens TopK":
        sae: Any = TopKTrainingSAE(TopKTrainingSAEConfig(**sizes))
    else:
        every = 8 if "J_8" in name else 1
        sae = HierarchicalTopKTrainingSAE(
            HierarchicalTopKTrainingSAEConfig(
                **sizes, loss_every=every, unit_norm_decoder=True
            )
        )
        if "previous" not in name:
            from sae_lens_hierarchical.training.step import FastSAETrainer

            trainer_class = FastSAETrainer
    trainer = trainer_class(trainer_config(batch, x.device.type), sae, iter(()))

    def step() -> None:
        if dead:
            unused = trainer.n_forward_passes_since_fired[: int(DEAD_SHARE * d_sae)]
            unused.fill_(2000)
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


def trainer_config(batch: int, device: str) -> Any:
    """Return the config of SAELens's trainer, for steps that do nothing beside."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    return SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=10**12,
        device=device,
        autocast=False,
        lr=1e-4,
        lr_end=1e-5,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=batch,
        dead_feature_window=1000,
        feature_sampling_window=10**9,
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=1,
    )


def _sparsify(x: torch.Tensor, d_sae: int, k: int, dead: bool) -> Callable[[], object]:
    # Its package imports its trainer, which needs more than a step does.
    package = types.ModuleType("sparsify")
    package.__path__ = [str(Path.cwd() / "sparsify")]
    sys.modules["sparsify"] = package
    from sparsify.config import SparseCoderConfig  # pyright: ignore[reportMissingImports]
    from sparsify.sparse_coder import SparseCoder  # pyright: ignore[reportMissingImports]

    coder = SparseCoder(
        x.shape[1], SparseCoderConfig(num_latents=d_sae, k=k), device=x.device
    )
    adam = torch.optim.Adam(coder.parameters(), lr=1e-4)
    mask = torch.arange(d_sae, device=x.device) < DEAD_SHARE * d_sae

    def step() -> None:
        out = coder(x, dead_mask=mask if dead else None)
        (out.fvu + out.auxk_loss / 32).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        coder.set_decoder_norm_to_unit_norm()

    return step


def wait(device: str) -> None:
    """Wait until the device has nothing more to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_mib(step: Callable[[], object], device: str) -> int:
    """Return what a step's memory peaks at beyond what was held before, in MiB."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what earlier steps freed
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status_kib("VmRSS")
    step()
    return round((_status_kib("VmHWM") - before) / 1024)


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(field)]
    return int(line.split()[1])


def hardware(device: str) -> str:
    """Return the GPU's or CPU's name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
