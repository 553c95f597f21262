"""Reading files that anybody may have written: JSON, tensors, regular files."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["read_json", "read_tensors_checked", "regular_file"]

_FLOATS = {"F64", "F32", "F16", "BF16"}


def regular_file(path: Path) -> Path:
    """Return ``path`` if it is a regular file or a link to one.

    Raises:
        ValueError: If it is missing, or is something that opening might wait for.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path.name} is no regular file")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ValueError: If it holds none, naming the file.
    """
    try:
        value = json.loads(regular_file(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: it is no JSON: {error}") from error
    except RecursionError:
        raise ValueError(f"{path} is damaged: it is nested too deeply") from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise ValueError(f"{path} is damaged: it must hold an object, got {kind}")
    return value


def read_tensors_checked(path: Path, unchecked: str = "") -> dict[str, Tensor]:
    """Check the dtypes of a safetensors file, and return one tensor that may have any.

    Args:
        path: The file.
        unchecked: The name of a tensor that may have another dtype.

    Returns:
        That tensor by its name, as it is stored; nothing where there is none.

    Raises:
        ValueError: If it is no such file, or another tensor's dtype is not float16,
            bfloat16, float32 or float64.
    """
    try:
        with safe_open(regular_file(path), framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names - {unchecked}):
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _FLOATS:
                    raise ValueError(
                        f"{path.name}: {name} must hold floating-point numbers, "
                        f"got {dtype}"
                    )
            if unchecked not in names:
                return {}
            return {unchecked: file.get_tensor(unchecked)}
    except SafetensorError as error:
        raise ValueError(f"{path.name} is no whole safetensors file: {error}") from None
