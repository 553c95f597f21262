"""What was trained, saved where it can be if not where it should be."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

__all__ = ["WRITE_ERRORS", "save_somewhere"]

# What a full disk is to Python, safetensors and torch.
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)


def save_somewhere(save: Callable[[Path], None], folder: Path) -> None:
    """Call ``save`` on a folder, and if that fails on a temporary one.

    Raises:
        OSError: If it had to be the temporary one, naming it.
    """
    try:
        save(folder)
    except WRITE_ERRORS as error:
        rescue = Path(tempfile.mkdtemp(prefix="trained-sae-"))
        save(rescue)
        raise OSError(
            f"{folder} could not be written: {error}; what was trained is in {rescue}"
        ) from error
