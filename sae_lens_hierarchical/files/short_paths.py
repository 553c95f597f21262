"""Shortens paths for pages that people pass on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["short_paths"]


def short_paths(value: Any) -> Any:
    """Return JSON-like data in which of an absolute path only the last part is left.

    What stands before it, such as a home folder, says nothing to another reader.
    """
    if isinstance(value, dict):
        return {name: short_paths(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [short_paths(one) for one in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return f"…/{Path(value).name}"
    return value
