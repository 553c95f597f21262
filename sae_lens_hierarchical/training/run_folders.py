"""The folders that a run writes: checked before it starts, and reserved for it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sae_lens_hierarchical.files.atomic_directory import remove_abandoned
from sae_lens_hierarchical.files.locks import locked
from sae_lens_hierarchical.files.writable import writable

__all__ = ["reserve_folders"]


@contextmanager
def reserve_folders(cfg: Any) -> Generator[None]:
    """Lock a run's ``output_path`` and ``checkpoint_path`` against other runs.

    What killed runs left half written there is removed. Folders that were made for the
    run and are empty at the end are removed too.

    Args:
        cfg: The run's config, for one SAE or several.

    Raises:
        ValueError: If one cannot be written, or another run holds it, naming the field.
    """
    folders: dict[Path, str] = {}
    for field in ("output_path", "checkpoint_path"):
        if (folder := getattr(cfg, field)) is not None:
            folders.setdefault(Path(folder).resolve(), field)
    with ExitStack() as stack:
        for folder, field in folders.items():
            stack.enter_context(_reserve_folder(field, folder))
        yield


@contextmanager
def _reserve_folder(field: str, folder: Path) -> Generator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(writable(folder))
            stack.enter_context(locked(folder / ".run.lock", wait=False))
        except BlockingIOError:
            raise ValueError(
                f"{field} {folder} is being written by another run: give this one "
                "a folder of its own, or wait for the other to end"
            ) from None
        except OSError as error:
            raise ValueError(
                f"{field} must be a folder that can be written, got {folder}: {error}"
            ) from error
        remove_abandoned(folder)
        yield
