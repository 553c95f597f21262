"""The processes that torchrun starts: joined, and agreed on what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import sae_lens
import torch
import torch.distributed as dist
from sae_lens import logger

from sae_lens_hierarchical.training.distributed.mesh import Mesh

__all__ = [
    "PeerFailedError",
    "all_or_none",
    "broadcast_object",
    "check_same_config",
    "join_processes",
]

# What torchrun sets, and a process needs to find the others.
_RENDEZVOUS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# The others wait so long for process 0 to evaluate or to write a checkpoint.
_TIMEOUT = timedelta(hours=1)
# Of a config, what SAELens makes up in each process.
_MADE_UP = "checkpoint_path"


class PeerFailedError(SystemExit):
    """Another process failed, whose own error says why: this one ends without words."""


@contextmanager
def join_processes() -> Generator[bool]:
    """Join the processes that torchrun started, and leave them at the end.

    On GPUs each process takes the one of its ``LOCAL_RANK``. All but process 0 log
    errors alone. Yields whether this is process 0.

    Raises:
        ValueError: If what torchrun sets is not all there.
    """
    missing = [name for name in _RENDEZVOUS if name not in os.environ]
    if missing:
        raise ValueError(
            f"training over several processes needs {missing} in the environment: "
            "start them with torchrun"
        )
    backend = "gloo"
    if torch.cuda.is_available():
        here = int(os.environ["LOCAL_RANK"])
        if here < torch.cuda.device_count():  # the runner says so where it is not
            torch.cuda.set_device(here)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    if not (first := dist.get_rank() == 0):
        logger.setLevel("ERROR")
    yield first
    # After an error others may never come to this point.
    dist.destroy_process_group()


@contextmanager
def all_or_none(mesh: Mesh) -> Generator[None]:
    """End a block with an error on all processes if it ends so on any.

    The block must not let processes wait for each other. Of the processes that failed,
    the first one raises its own error.

    Raises:
        PeerFailedError: On all others.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    failed: list[bool] = [False] * mesh.size
    dist.all_gather_object(failed, own is not None, group=mesh.group)
    if not any(failed):
        return
    first = failed.index(True)
    if own is not None and mesh.rank == first:
        raise own
    raise PeerFailedError(1) from own


def broadcast_object(mesh: Mesh, value: Any) -> Any:
    """Return process 0's ``value``, which can be pickled."""
    values = [value]
    dist.broadcast_object_list(values, group=mesh.group, group_src=0)
    return values[0]


def check_same_config(mesh: Mesh, cfg: Any) -> None:
    """Check that all processes have one config and the same versions.

    Process 0's ``checkpoint_path`` becomes that of all.

    Args:
        mesh: The processes.
        cfg: A runner's config.

    Raises:
        ValueError: On the first process that differs from process 0, naming what does.
        PeerFailedError: On all others, then.
    """
    cfg.checkpoint_path = broadcast_object(mesh, cfg.checkpoint_path)
    own = _facts(cfg)
    first = broadcast_object(mesh, own)
    with all_or_none(mesh):
        differing = [name for name in first | own if first.get(name) != own.get(name)]
        if differing:
            listed = "\n  ".join(
                f"{n}: {first.get(n)!r} on process 0, {own.get(n)!r} on {mesh.rank}"
                for n in differing
            )
            raise ValueError(
                "all processes must have the same config and versions, but:\n  "
                + listed
            )


def _facts(cfg: Any) -> Mapping[str, Any]:
    fields = json.loads(json.dumps(cfg.to_dict(), default=str))
    fields.pop(_MADE_UP)
    versions = {"sae-lens": sae_lens.__version__, "torch": torch.__version__}
    return {**fields, **versions}
