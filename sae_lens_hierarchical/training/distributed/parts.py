"""Whole checkpoints of an SAE whose parts are spread over processes, and back.

Each process writes its part as if it were a whole SAE; process 0 puts the parts
together. Tensors come from files and go to files, so that no process has to hold the
whole optimizer's state. All processes must see the same folders.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import (
    ACTIVATIONS_STORE_STATE_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_lens_hierarchical.training.activations_store import store_state_file

__all__ = [
    "Slices",
    "merge_parts",
    "own_slices",
    "own_trainer_state",
    "own_weights",
    "part_folder",
]

# By parameter, which part of the whole tensor a process has.
Slices = Mapping[str, tuple[slice, ...]]

# By parameter, the dimension in which that is a part.
_DIMENSIONS = {"W_enc": 1, "b_enc": 0, "W_dec": 1, "b_dec": 0}


def own_slices(features: range, columns: range) -> Slices:
    """Return a process's slices of the SAE's parameters.

    Args:
        features: Those whose encoder it has.
        columns: Those of the decoder.
    """
    encoder = slice(features.start, features.stop)
    decoder = slice(columns.start, columns.stop)
    parts = {"W_enc": encoder, "b_enc": encoder, "W_dec": decoder, "b_dec": decoder}
    return {
        name: (*[slice(None)] * dimension, parts[name])
        for name, dimension in _DIMENSIONS.items()
    }


def part_folder(checkpoint: Path, rank: int) -> Path:
    """Return where process ``rank`` writes its part of a checkpoint."""
    return checkpoint / f"part-{rank}"


def merge_parts(checkpoint: Path, size: int, parameters: list[str]) -> None:
    """Make a whole checkpoint of the parts in it, which are removed.

    Args:
        checkpoint: Its folder, with a ``part_folder`` of each process.
        size: How many processes there are.
        parameters: The SAE's parameters, as the optimizer has them.
    """
    parts = [part_folder(checkpoint, rank) for rank in range(size)]
    # Removed with the parts.
    scratch = parts[0] / "whole"
    scratch.mkdir()
    _merge_weights(checkpoint, parts, scratch)
    _merge_trainer_states(checkpoint, parts, scratch, parameters)
    for rank, part in enumerate(parts):
        store = part / ACTIVATIONS_STORE_STATE_FILENAME
        if store.exists():
            store.rename(checkpoint / store_state_file(rank))
    for file in parts[0].iterdir():  # what is the same on all
        if file.is_file() and not (checkpoint / file.name).exists():
            file.rename(checkpoint / file.name)
    for part in parts:
        shutil.rmtree(part)


def own_weights(checkpoint: Path, slices: Slices) -> dict[str, Tensor]:
    """Read a process's part of a whole checkpoint's weights, as its file has them."""
    with safe_open(checkpoint / SAE_WEIGHTS_FILENAME, framework="pt") as file:
        return {
            name: file.get_slice(name)[slices[name]]
            if name in slices
            else file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118 - it is no dict
        }


def own_trainer_state(
    checkpoint: Path, slices: Slices, parameters: list[str]
) -> dict[str, Any]:
    """Read a process's part of a whole checkpoint's trainer state.

    Args:
        checkpoint: Its folder.
        slices: The process's.
        parameters: The SAE's parameters, as the optimizer has them.
    """
    state = _load(checkpoint)
    for number, moments in state["optimizer"]["state"].items():
        for name, value in moments.items():
            if value.ndim:  # and not the number of steps
                moments[name] = value[slices[parameters[number]]].clone()
    return state


def _merge_weights(checkpoint: Path, parts: list[Path], scratch: Path) -> None:
    files = [safe_open(part / SAE_WEIGHTS_FILENAME, framework="pt") for part in parts]
    whole: dict[str, Tensor] = {}
    for name in files[0].keys():  # noqa: SIM118 - it is no dict
        tensors = [file.get_tensor(name) for file in files]
        whole[name] = tensors[0]
        if name in _DIMENSIONS:
            dimension = _DIMENSIONS[name]
            whole[name] = _cat(tensors, dimension, scratch / name)
    save_file(whole, checkpoint / SAE_WEIGHTS_FILENAME)


def _merge_trainer_states(
    checkpoint: Path, parts: list[Path], scratch: Path, parameters: list[str]
) -> None:
    states = [_load(part) for part in parts]
    whole = states[0]
    for number, moments in whole["optimizer"]["state"].items():
        dimension = _DIMENSIONS[parameters[number]]
        for name, value in moments.items():
            if value.ndim:
                tensors = [s["optimizer"]["state"][number][name] for s in states]
                path = scratch / f"{number}-{name}"
                moments[name] = _cat(tensors, dimension, path)
    torch.save(whole, checkpoint / TRAINER_STATE_FILENAME)


def _cat(tensors: list[Tensor], dimension: int, path: Path) -> Tensor:
    """Put tensors together in a file, to which the tensor returned belongs."""
    shape = [*tensors[0].shape]
    shape[dimension] = sum(tensor.shape[dimension] for tensor in tensors)
    size, dtype = torch.Size(shape).numel(), tensors[0].dtype
    with path.open("wb") as file:  # a full disk is an error here, and a crash later
        os.posix_fallocate(file.fileno(), 0, max(1, size * dtype.itemsize))
    whole = torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)
    return torch.cat(tensors, dimension, out=whole)


def _load(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / TRAINER_STATE_FILENAME
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
