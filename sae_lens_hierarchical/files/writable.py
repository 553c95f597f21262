"""Whether a folder can be written, found out before there is something to write."""

from __future__ import annotations

import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["writable"]


@contextmanager
def writable(folder: Path) -> Generator[None]:
    """Make a folder for the time of a block, and try to write a file there at once.

    Folders that were made for it and are empty at the end are removed.

    Raises:
        OSError: If it cannot be made, or a file cannot be written or renamed in it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_and_rename(folder)
        yield
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _write_and_rename(folder: Path) -> None:
    probe = folder / f".probe-{uuid.uuid4().hex}"
    renamed = probe.with_suffix(".renamed")
    try:
        probe.write_bytes(b"-")
        probe.rename(renamed)
    finally:
        probe.unlink(missing_ok=True)
        renamed.unlink(missing_ok=True)
