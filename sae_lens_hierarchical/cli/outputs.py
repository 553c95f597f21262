"""Whether commands can write their outputs, and may replace others."""

from __future__ import annotations

from pathlib import Path

from sae_lens_hierarchical.files.writable import writable

__all__ = ["check_writable", "refuse_existing"]


def check_writable(folder: Path) -> None:
    """Raise a ValueError if a command could not write to a folder in the end."""
    try:
        with writable(folder):
            pass
    except OSError as error:
        raise ValueError(
            f"--output must be a folder that can be written, got {folder}: {error}"
        ) from error


def refuse_existing(*outputs: Path, option: str = "--output", force: bool) -> None:
    """Raise a ValueError if an output is there already, unless it may be replaced.

    Args:
        outputs: Files or folders that the command will write.
        option: The one that says where.
        force: Whether they may be replaced.
    """
    for output in outputs:
        if not force and output.exists():
            raise ValueError(
                f"{output} is there already: name another folder with {option}, or "
                "replace it with --force"
            )
