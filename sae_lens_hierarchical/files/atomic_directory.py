"""Folders whose SAE appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATION_WHITENING_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    TRAINER_STATE_FILENAME,
)

from sae_lens_hierarchical.files.locks import locked

__all__ = ["MANIFEST_FILENAME", "SAE_FILES", "atomic_directory", "remove_abandoned"]

MANIFEST_FILENAME = "manifest.json"
_PARTIAL = ".*.partial-*"
_LOCK_FILENAME = ".lock"  # held while somebody writes to the partial folder

# What belongs to an SAE or a checkpoint, and so to the one before in the same folder.
SAE_FILES = {
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATION_WHITENING_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    TRAINER_STATE_FILENAME,
    RUNNER_CFG_FILENAME,
    MANIFEST_FILENAME,
}


@contextmanager
def atomic_directory(
    folder: Path, *, own_files: Collection[str] = frozenset(SAE_FILES)
) -> Generator[Path]:
    """Yield an empty folder to write to, which replaces ``folder`` when the block ends.

    If the block raises or the process dies, ``folder`` stays as it was. Where
    ``folder`` exists, its files of the same paths go, and those with names of
    ``own_files``, in sub-folders that are written too. Other files stay. ``folder`` may
    be a mount point, or a link to one.

    Args:
        folder: The folder.
        own_files: Names of files that belong to what is replaced, written anew or not;
            default an SAE's and a checkpoint's.

    Raises:
        OSError: If the full folder cannot take its place: an older SAE is then as it
            was, and the message names where the new one is, unless that is gone.
    """
    folder = folder.resolve()  # of a link, what it points to is written
    is_new = not folder.exists()
    # On the file system of the final files, so that they can be renamed.
    beside = folder.parent if is_new else folder
    if not beside.exists():
        beside.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=beside))
    with locked(work / _LOCK_FILENAME, wait=False):
        yield from _fill(work, folder, is_new, own_files)


def _fill(
    work: Path, folder: Path, is_new: bool, own_files: Collection[str]
) -> Generator[Path]:
    staging = work / "new"
    try:
        staging.mkdir()
        yield staging
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    try:
        _sync_all(staging)
        if not (is_new and _rename(staging, folder)):
            with locked(folder / ".write.lock", wait=True):
                _replace(folder, work, own_files)
        _sync(folder)
        _sync(folder.parent)
    except BaseException as error:
        if not work.exists():
            raise
        kept = work.with_name(work.name.replace(".partial-", ".kept-"))
        work.rename(kept)
        if not isinstance(error, OSError):
            raise
        raise OSError(
            error.errno,
            f"{folder} could not be replaced and is as it was; the new files are in "
            f"{kept / 'new'}: {error.strerror or error}",
        ) from error
    shutil.rmtree(work, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed writers left unfinished in ``folder`` and its sub-folders.

    What somebody is just writing stays. So does a full folder, whose writer died while
    it took its place: it may hold the only copy.
    """
    for work in [*folder.glob(_PARTIAL), *folder.glob(f"*/{_PARTIAL}")]:
        # Its writer holds the lock, or it is not ours to write.
        with suppress(OSError), locked(work / _LOCK_FILENAME, wait=False):
            if not (work / "old").exists():
                shutil.rmtree(work, ignore_errors=True)


def _rename(staging: Path, folder: Path) -> bool:
    """Rename a folder; return False if another one has taken the name meanwhile."""
    try:
        staging.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        return False
    return True


def _replace(folder: Path, work: Path, own_files: Collection[str]) -> None:
    """Move ``work``'s new files into ``folder``, or leave both as they were."""
    new, old = work / "new", work / "old"
    old.mkdir()
    moved: list[tuple[Path, Path]] = []

    def move(source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        moved.append((source, target))

    try:
        # Without its cfg.json no loader takes half of an SAE for one.
        for file in _cfg_first(_replaced(folder, new, own_files)):
            move(file, old / file.relative_to(folder))
        for file in reversed(_cfg_first(f for f in new.rglob("*") if f.is_file())):
            move(file, folder / file.relative_to(new))
    except BaseException:
        for source, target in reversed(moved):
            target.rename(source)
        shutil.rmtree(old)
        raise


def _replaced(folder: Path, new: Path, own_files: Collection[str]) -> Iterator[Path]:
    """Yield the files that ``new`` takes the place of, in its own sub-folders too."""
    names = {entry.name for entry in new.iterdir()}.union(own_files)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            if (new / entry.name).is_dir():
                yield from _replaced(entry, new / entry.name, own_files)
        elif entry.name in names:
            yield entry


def _cfg_first(files: Iterator[Path]) -> list[Path]:
    return sorted(files, key=lambda file: (file.name != SAE_CFG_FILENAME, file))


def _sync_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that it survives a crash."""
    if path.is_dir():
        # Not every system can do that with a folder.
        with suppress(OSError):
            _fsync(path, os.O_RDONLY)
    else:
        _fsync(path, os.O_RDWR)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
