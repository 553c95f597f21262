"""The folders that a run will write: found fit and held before it starts."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sae_lens_hierarchical.training.atomic_directory import remove_abandoned
from sae_lens_hierarchical.training.locks import locked

__all__ = ["claimed"]


@contextmanager
def claimed(folders: Mapping[str, str | None]) -> Iterator[None]:
    """Hold folders for one run, and remove afterwards those made for it left empty.

    The folders are created, and what killed runs left half written there is removed.

    Args:
        folders: By the config's field; None is for a run without one.

    Raises:
        ValueError: If one cannot be written, or another run holds it, naming the field.
    """
    paths = {Path(f).resolve(): field for field, f in folders.items() if f is not None}
    with ExitStack() as stack:
        for path, field in paths.items():
            stack.enter_context(_claimed(field, path))
        yield


@contextmanager
def _claimed(field: str, folder: Path) -> Iterator[None]:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _write_and_rename(folder)
                stack.enter_context(locked(folder / ".run.lock", wait=False))
            except BlockingIOError:
                raise ValueError(
                    f"{field} {folder} is being written by another run: give this one "
                    "a folder of its own, or wait for the other to end"
                ) from None
            except OSError as error:
                raise ValueError(
                    f"{field} must be a folder that can be written, got {folder}: "
                    f"{error}"
                ) from error
            remove_abandoned(folder)
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
