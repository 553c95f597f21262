"""Checkpoints of one SAE or of several: found, and checked before they are used."""

from __future__ import annotations

import pickle
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import logger
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
)
from safetensors import SafetensorError, safe_open

from sae_lens_hierarchical.files.atomic_directory import MANIFEST_FILENAME
from sae_lens_hierarchical.loading.files import read_json
from sae_lens_hierarchical.training.manifest import read_manifest, verify

__all__ = [
    "Checkpoint",
    "check_unfinished",
    "find_checkpoint",
    "open_checkpoint",
    "read_runner_cfg",
]

_FILES_OF_AN_SAE = (
    SAE_WEIGHTS_FILENAME,
    SAE_CFG_FILENAME,
    TRAINER_STATE_FILENAME,
    ACTIVATION_SCALER_CFG_FILENAME,
)
_FILES_OF_A_RUN = (ACTIVATIONS_STORE_STATE_FILENAME, RUNNER_CFG_FILENAME)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are all there and undamaged.

    Attributes:
        folder: Its folder.
        run_id: The run that wrote it.
        runner_cfg: The run's config, as ``to_dict`` gives it.
    """

    folder: Path
    run_id: str
    runner_cfg: dict[str, Any]


def find_checkpoint(path: str | Path) -> Path:
    """Return ``path`` if it is a checkpoint, else the newest checkpoint within it.

    The newest is the one with the most trained samples, by its own content.

    Raises:
        ValueError: If there is none, if it lacks some of its files, or if there are
            checkpoints of more than one run.
    """
    path = Path(path)
    if _looks_like_checkpoint(path) or (path / SAE_CFG_FILENAME).is_file():
        _check_files(path)
        return path
    runs: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for folder in _checkpoints_in(path):
        run_id, n_training_samples = _run_and_samples(folder)
        runs[run_id].append((n_training_samples, folder))
    if not runs:
        raise ValueError(f"there is no checkpoint in {path}")
    newest = [max(checkpoints)[1] for checkpoints in runs.values()]
    if len(newest) > 1:
        listed = "\n  ".join(map(str, sorted(newest)))
        raise ValueError(
            f"{path} has checkpoints of {len(newest)} runs: name the one to go on "
            f"with. The last checkpoint of each:\n  {listed}"
        )
    _check_files(newest[0])
    return newest[0]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Check that a checkpoint is whole and undamaged, and return what it says.

    Raises:
        ValueError: If one is missing, damaged or would run code, naming it.
    """
    _check_files(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        logger.warning(
            f"{folder} has no {MANIFEST_FILENAME}: it is of SAELens's own runner or of "
            "an earlier version, and its files can be checked for little damage"
        )
        _check_readable(folder)
    else:
        verify(folder, manifest)
    for part in _sae_folders(folder):
        _n_training_samples(part / TRAINER_STATE_FILENAME)
    runner_cfg = read_json(folder / RUNNER_CFG_FILENAME)
    return Checkpoint(folder, _run_and_samples(folder)[0], runner_cfg)


def read_runner_cfg(folder: Path) -> dict[str, Any]:
    """Return the config of the run that wrote a checkpoint, as ``to_dict`` gives it.

    Raises:
        ValueError: If its file is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is not None:
        verify(folder, manifest, {RUNNER_CFG_FILENAME})
    return read_json(folder / RUNNER_CFG_FILENAME)


def check_unfinished(checkpoint: Path, normalize_activations: str) -> None:
    """Raise a ValueError if a run with this normalization has ended with a checkpoint.

    SAELens has then folded it into the weights, and would do so again.

    Args:
        checkpoint: The folder of an SAE in training.
        normalize_activations: The run's own.
    """
    found = read_json(checkpoint / SAE_CFG_FILENAME).get("normalize_activations")
    if found != normalize_activations:
        raise ValueError(
            f"{checkpoint} is of a run that has ended, with normalize_activations="
            f"{normalize_activations!r} folded into its weights: it cannot go on"
        )


def _looks_like_checkpoint(folder: Path) -> bool:
    """Tell a checkpoint by any file that nothing else has."""
    names = (
        MANIFEST_FILENAME,
        TRAINER_STATE_FILENAME,
        ACTIVATIONS_STORE_STATE_FILENAME,
    )
    return any((folder / name).is_file() for name in names)


def _checkpoints_in(path: Path) -> list[Path]:
    """Return the checkpoints below ``path``, without the parts of those of several."""
    found: list[Path] = []
    for folder in sorted(p for p in path.rglob("*") if p.is_dir()):
        hidden = any(part.startswith(".") for part in folder.relative_to(path).parts)
        if not hidden and folder.parent not in found and _looks_like_checkpoint(folder):
            found.append(folder)
    return found


def _sae_folders(folder: Path) -> list[Path]:
    """Return the folders of a checkpoint's SAEs: itself, or a sub-folder each."""
    path = folder / RUNNER_CFG_FILENAME
    runner_cfg = read_json(path) if path.is_file() else {}
    several = runner_cfg.get("saes", {})
    for sae in (several, runner_cfg.get("sae", {})):
        if not isinstance(sae, dict):
            raise ValueError(f"{path} is damaged: it has no SAE's fields, but {sae!r}")
    if any(Path(name).name != name for name in several):
        raise ValueError(f"{path} names SAEs outside of its folder: {[*several]}")
    return [folder / name for name in several] or [folder]


def _check_files(folder: Path) -> None:
    wanted = [folder / name for name in _FILES_OF_A_RUN]
    wanted += [
        part / name for part in _sae_folders(folder) for name in _FILES_OF_AN_SAE
    ]
    missing = [str(p.relative_to(folder)) for p in wanted if not p.is_file()]
    if missing:
        raise ValueError(f"{folder} is no whole checkpoint: it lacks {missing}")


def _check_readable(folder: Path) -> None:
    """Raise a ValueError for what shows without checksums, such as a cut-off file."""
    tensors = [folder / ACTIVATIONS_STORE_STATE_FILENAME]
    for part in _sae_folders(folder):
        tensors.append(part / SAE_WEIGHTS_FILENAME)
        read_json(part / SAE_CFG_FILENAME)
        read_json(part / ACTIVATION_SCALER_CFG_FILENAME)
    for path in tensors:
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def _run_and_samples(folder: Path) -> tuple[str, int]:
    """Return which run wrote a checkpoint, and the samples trained on until then."""
    manifest = read_manifest(folder)
    if manifest is not None:
        return manifest.run_id, manifest.n_training_samples
    # SAELens names a run's folder by an id, and its checkpoints by their samples.
    number = re.search(r"\d+$", folder.name)
    try:
        samples = _n_training_samples(_sae_folders(folder)[0] / TRAINER_STATE_FILENAME)
    except ValueError:
        samples = int(number[0]) if number is not None else 0
    return folder.parent.name, samples


def _n_training_samples(trainer_state: Path) -> int:
    """Read a trainer's state as SAELens will, once it is known to hold tensors alone.

    SAELens leaves ``weights_only`` to torch, whose default an environment variable
    turns off.
    """
    try:
        state = torch.load(
            trainer_state, map_location="cpu", mmap=True, weights_only=True
        )
        return int(state["n_training_samples"])
    except (RuntimeError, pickle.UnpicklingError, KeyError, TypeError, OSError) as e:
        raise ValueError(
            f"{trainer_state} is damaged, or holds more than tensors and numbers"
        ) from e
