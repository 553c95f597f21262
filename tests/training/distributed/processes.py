"""Runs a function on several processes of this machine, which talk over gloo."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sae_lens_hierarchical.training.distributed import Mesh

# Its children have everything imported, and nothing else of the test's process.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.training.distributed.cases"])


class ProcessError(Exception):
    """A process failed, or all took too long; with the first one's traceback."""


def run_on_processes(
    size: int, function: Callable[..., Any], *arguments: Any, seconds: float = 300
) -> list[Any]:
    """Return what ``function(mesh, *arguments)`` returns on each process.

    Args:
        size: How many processes.
        function: Of a module; its arguments and what it returns can be pickled.
        arguments: After the mesh.
        seconds: How long it may take.

    Raises:
        ProcessError: With the traceback of the first process that failed; or if it
            takes longer. The processes are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            _CONTEXT.Process(
                target=_run, args=(Path(folder), rank, size, function, arguments)
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        end = time.monotonic() + seconds
        try:
            while any(process.exitcode is None for process in processes):
                if any(process.exitcode for process in processes):
                    break
                if time.monotonic() > end:
                    raise ProcessError(f"not done after {seconds} seconds")
                time.sleep(0.01)
        finally:
            for process in processes:
                process.kill()
                process.join()
        # What a process says whose fellow has died is of no interest.
        failed = sorted(Path(folder).glob("*.error"), key=lambda p: p.stat().st_mtime)
        if failed:
            raise ProcessError(failed[0].read_text())
        if any(process.exitcode for process in processes):
            raise ProcessError(f"exit codes {[p.exitcode for p in processes]}")
        return [
            torch.load(Path(folder, f"{rank}.pt"), weights_only=False)
            for rank in range(size)
        ]


def _run(
    folder: Path,
    rank: int,
    size: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
        )
        result = function(Mesh.of("cpu"), *arguments)
        torch.save(result, folder / f"{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        partial = folder / f"{rank}.partial"
        partial.write_text(f"process {rank}: {traceback.format_exc()}")
        partial.rename(folder / f"{rank}.error")
        raise
