"""What a result was made from: noted in its file, so that it is known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor

from sae_lens_hierarchical.eval.splicing import HookLocation
from sae_lens_hierarchical.saebench.results import NOTE
from sae_lens_hierarchical.saes import HierarchicalTopKSAE

__all__ = [
    "NOTE",
    "folders_sha256",
    "numbers_sha256",
    "sae_sha256",
    "texts_sha256",
    "what_differs",
]

# How a result is made, and not what it says.
_NO_INPUTS = {"llm_batch_size", "sae_batch_size", "lower_vram_usage"}


def sae_sha256(sae: SAE[Any]) -> str:
    """Return the checksum of an SAE's weights, and of what else decides its output.

    Its k is left out, for results name that.
    """
    cfg = sae.cfg.to_dict()
    for name in ("device", "k", "metadata"):
        cfg.pop(name, None)
    if isinstance(sae, HierarchicalTopKSAE):
        cfg["activation"] = "topk"  # as it is evaluated, however it was saved
    settings = json.dumps([cfg, HookLocation.of(sae)], sort_keys=True, default=str)
    weights = sorted(sae.state_dict().items())
    parts = (part for name, tensor in weights for part in (name.encode(), _of(tensor)))
    return _sha256([settings.encode(), *parts])


def numbers_sha256(numbers: Tensor | Iterable[int]) -> str:
    """Return the checksum of integers, in their order and shape."""
    if not isinstance(numbers, Tensor):
        numbers = torch.tensor(list(numbers))
    return _sha256([_of(numbers)])


def texts_sha256(texts: Iterable[str]) -> str:
    """Return the checksum of texts, in their order."""
    return _sha256(text.encode() for text in texts)


def folders_sha256(names: Iterable[str]) -> str:
    """Return the checksum of the files in those of the folders that there are."""
    return _sha256(_files(names))


def what_differs(path: Path, note: Mapping[str, Any], config: Any) -> list[str]:
    """Say in which inputs a result that is there differs from one to be made.

    Args:
        path: Its file.
        note: The checksums of what a new one is made from, by what that is.
        config: SAEBench's config of the new one.

    Returns:
        The differences in words; none if it may be taken for the new one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        noted, before = content[NOTE], content["eval_config"]
    except (ValueError, KeyError, TypeError):
        return ["it does not say what it was made from"]
    found = [f"other {name}" for name in note if noted.get(name) != note[name]]
    now = json.loads(json.dumps(asdict(config), default=str))
    return found + [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*before, *now} - _NO_INPUTS)
        if before.get(name) != now.get(name)
    ]


def _of(tensor: Tensor) -> bytes:
    data = tensor.detach().cpu().contiguous()
    # NumPy has no bfloat16, and bytes of all dtypes are alike.
    shown = data.reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {list(tensor.shape)} ".encode() + shown.tobytes()


def _files(folders: Iterable[str]) -> Iterator[bytes]:
    for folder in folders:
        for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
            yield str(path).encode()
            yield path.read_bytes()


def _sha256(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        # With their lengths, so that parts cannot be taken for others.
        digest.update(f"{len(part)} ".encode() + part)
    return digest.hexdigest()
