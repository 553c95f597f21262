"""Folders that appear whole or not at all, and the checkpoints among them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
)

__all__ = ["check_unfinished", "find_checkpoint", "whole_folder"]

CHECKPOINT_FILES = (
    SAE_WEIGHTS_FILENAME,
    SAE_CFG_FILENAME,
    TRAINER_STATE_FILENAME,
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    RUNNER_CFG_FILENAME,
)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill that takes the place of ``folder`` once it is full.

    If the block raises or the process dies, ``folder`` stays as it was. Where
    ``folder`` has other files they stay; of an SAE there, ``cfg.json`` is taken away
    first and put back last, so that no loader finds half of one.
    """
    staging = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)  # what a killed run left
    staging.mkdir(parents=True)
    try:
        yield staging
        if not folder.exists():
            staging.rename(folder)
            return
        (folder / SAE_CFG_FILENAME).unlink(missing_ok=True)
        files = sorted(staging.iterdir(), key=lambda f: f.name == SAE_CFG_FILENAME)
        for file in files:
            if file.is_dir():
                shutil.rmtree(folder / file.name, ignore_errors=True)
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_unfinished(checkpoint: Path, normalize_activations: str) -> None:
    """Raise a ValueError if a run with this normalization has ended with a checkpoint.

    SAELens has then folded it into the weights, and would do so again.

    Args:
        checkpoint: The folder of a SAE in training.
        normalize_activations: The run's own.
    """
    text = (checkpoint / SAE_CFG_FILENAME).read_text(encoding="utf-8")
    found = json.loads(text)["normalize_activations"]
    if found != normalize_activations:
        raise ValueError(
            f"{checkpoint} is of a run that has ended, with normalize_activations="
            f"{normalize_activations!r} folded into its weights: it cannot go on"
        )


def find_checkpoint(path: str | Path) -> Path:
    """Return ``path`` if it is a checkpoint, else the newest checkpoint within it.

    Raises:
        ValueError: If there is none, or if ``path`` lacks some of a checkpoint's files.
    """
    path = Path(path)
    missing = [name for name in CHECKPOINT_FILES if not (path / name).is_file()]
    if not missing:
        return path
    if (path / SAE_CFG_FILENAME).is_file():
        raise ValueError(f"{path} is no whole checkpoint: it lacks {missing}")
    states = path.rglob(TRAINER_STATE_FILENAME)
    found = [s for s in states if not s.parent.name.startswith(".")]
    if not found:
        raise ValueError(f"there is no checkpoint in {path}")
    newest = max(found, key=lambda state: state.stat().st_mtime_ns)
    return find_checkpoint(newest.parent)
