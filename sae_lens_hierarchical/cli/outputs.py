"""What commands do where their outputs would replace others."""

from __future__ import annotations

from pathlib import Path

__all__ = ["refuse_existing"]


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
