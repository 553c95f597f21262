"""Locks on files that end with the process that holds them, however it ends."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: folders still appear whole, two writers are not told
    fcntl = None

__all__ = ["locked"]


@contextmanager
def locked(path: Path, *, wait: bool) -> Generator[None]:
    """Hold a lock on the file ``path`` within the block, then remove the file.

    Args:
        path: The file; its folder exists.
        wait: Whether to wait for another holder.

    Raises:
        BlockingIOError: If another one holds it and ``wait`` is off.
    """
    descriptor = _open_locked(path, wait)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _open_locked(path: Path, wait: bool) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if fcntl is None:
            return descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:
            return descriptor  # a file system without locks
        # A holder takes its file away as it ends: the lock must be on the one there.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
