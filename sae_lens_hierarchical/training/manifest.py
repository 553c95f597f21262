"""A checkpoint's own list of its files, with their checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae_lens_hierarchical.files.atomic_directory import MANIFEST_FILENAME
from sae_lens_hierarchical.files.checksum import file_sha256
from sae_lens_hierarchical.loading.files import read_json

__all__ = ["Manifest", "read_manifest", "verify", "write_manifest"]

_FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """Which run wrote a checkpoint, when, and the checksums of its files.

    Attributes:
        run_id: The run that wrote it; a resumed run is the same one.
        n_training_samples: Tokens trained on until then.
        files: By their path within the checkpoint, sha256 and size in bytes.
    """

    run_id: str
    n_training_samples: int
    files: dict[str, dict[str, Any]]


def write_manifest(checkpoint: Path, run_id: str, n_training_samples: int) -> None:
    """Write the manifest of a checkpoint whose files are all there."""
    files = {
        path.relative_to(checkpoint).as_posix(): _facts(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    content = asdict(Manifest(run_id, n_training_samples, files))
    text = json.dumps({"format": _FORMAT, **content, "sha256": _digest(content)})
    (checkpoint / MANIFEST_FILENAME).write_text(text, encoding="utf-8")


def read_manifest(checkpoint: Path) -> Manifest | None:
    """Return a checkpoint's manifest; None if it has none.

    Raises:
        ValueError: If it is damaged, or of a later format.
    """
    path = checkpoint / MANIFEST_FILENAME
    if not path.is_file():
        return None
    content = read_json(path)
    written, digest = content.pop("format", None), content.pop("sha256", None)
    if written != _FORMAT and digest == _digest(content):
        raise ValueError(f"{path} has format {written}: it needs a later version")
    try:
        manifest = Manifest(**content)
    except TypeError:
        manifest = None
    if manifest is None or written != _FORMAT or digest != _digest(content):
        raise ValueError(f"{path} is damaged: it does not match its own checksum")
    return manifest


def verify(
    checkpoint: Path, manifest: Manifest, names: Collection[str] | None = None
) -> None:
    """Compare a checkpoint's files, or those of ``names``, with its manifest.

    Raises:
        ValueError: If one is missing or is not what was written, naming it.
    """
    for name, facts in manifest.files.items():
        if names is not None and name not in names:
            continue
        path = checkpoint / name
        if not path.is_file():
            raise ValueError(f"{checkpoint} is no whole checkpoint: it lacks {name}")
        if (size := path.stat().st_size) != facts["size"]:
            raise ValueError(
                f"{path} is damaged: it has {size} bytes and not {facts['size']}"
            )
        if _facts(path) != facts:
            raise ValueError(f"{path} is damaged: it does not match its checksum")


def _facts(path: Path) -> dict[str, Any]:
    return {"sha256": file_sha256(path), "size": path.stat().st_size}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
