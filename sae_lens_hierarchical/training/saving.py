"""Saving what was trained, in a temporary folder if the one asked for fails."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

__all__ = ["WRITE_ERRORS", "save_with_fallback"]

# What a full disk is to Python, safetensors and torch.
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)


def save_with_fallback(save: Callable[[Path], None], folder: Path) -> None:
    """Save into ``folder`` with ``save``, or into a temporary one where that fails.

    Raises:
        OSError: If it had to be the temporary one, naming it.
    """
    try:
        save(folder)
    except WRITE_ERRORS as error:
        fallback = Path(tempfile.mkdtemp(prefix="trained-sae-"))
        save(fallback)
        raise OSError(
            f"{folder} could not be written: {error}; what was trained is in {fallback}"
        ) from error
