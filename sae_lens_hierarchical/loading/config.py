"""Checks of a cfg.json, beyond those that SAELens and the SAEs make themselves."""

from __future__ import annotations

import math
from typing import Any, get_type_hints

from sae_lens.constants import DTYPE_MAP, SAE_CFG_FILENAME
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata

from sae_lens_hierarchical.saes.checks import check_size

__all__ = ["check_config"]

_METADATA_TYPES: dict[str, type] = {
    "model_name": str,
    "model_class_name": str,
    "model_from_pretrained_kwargs": dict,
    "hook_name": str,
    "hook_head_index": int,
    "dataset_path": str,
    "context_size": int,
    "training_tokens": int,
    "prepend_bos": bool,
    "trained_k": int,
    "max_norm": float,
    "exported_from": dict,
}


def check_config(cfg: dict[str, Any]) -> None:
    """Check what a cfg.json holds, of this or an older version of SAELens.

    Raises:
        ValueError: If a field does not fit, naming it and what is allowed.
    """
    _check_type("metadata", cfg.get("metadata", {}), dict)
    if (saved_by := cfg.get("metadata", {}).get("sae_lens_version")) is not None:
        _check_type("metadata.sae_lens_version", saved_by, str)
    if "architecture" in cfg:
        _check_architecture(cfg["architecture"])
    cfg = handle_config_defaulting(cfg)
    _check_architecture(cfg.get("architecture"))
    if cfg.get("dtype") not in list(DTYPE_MAP):
        _refuse("dtype", f"one of {list(DTYPE_MAP)}", cfg.get("dtype"))
    config_class = SAE_CLASS_REGISTRY[cfg["architecture"]][1]
    for name, kind in get_type_hints(config_class).items():
        unset = cfg.get(name) is None and getattr(config_class, name, 0) is None
        if name in cfg and kind in (bool, int, float, str) and not unset:
            _check_type(name, cfg[name], kind)
    for name in ("d_in", "d_sae"):
        check_size(f"{SAE_CFG_FILENAME}: {name}", cfg.get(name))
    if cfg.get("reshape_activations", "none") not in ("none", "hook_z"):
        _refuse("reshape_activations", "none or hook_z", cfg["reshape_activations"])
    _check_metadata(cfg.get("metadata", {}))


def _check_architecture(architecture: object) -> None:
    known = sorted(SAE_CLASS_REGISTRY)
    if not isinstance(architecture, str) or architecture not in known:
        _refuse("architecture", f"one of {known}", architecture)


def _check_metadata(metadata: dict[str, Any]) -> None:
    for name, value in metadata.items():
        if hasattr(SAEMetadata, name):  # it would hide a method
            raise ValueError(f"{SAE_CFG_FILENAME}: metadata cannot have a {name!r}")
        if name in _METADATA_TYPES and value is not None:
            _check_type(f"metadata.{name}", value, _METADATA_TYPES[name])
    if (context_size := metadata.get("context_size")) is not None:
        check_size(f"{SAE_CFG_FILENAME}: metadata.context_size", context_size)
    head = metadata.get("hook_head_index")
    if head is not None and head < 0:
        _refuse("metadata.hook_head_index", "0 or above", head)
    max_norm = metadata.get("max_norm")
    if max_norm is not None and not 0 < max_norm < math.inf:
        _refuse("metadata.max_norm", "above 0 and finite", max_norm)
    positions = metadata.get("seqpos_slice")
    if positions is not None and not (
        isinstance(positions, list)
        and 1 <= len(positions) <= 3
        and all(one is None or _is(one, int) for one in positions)
        and (len(positions) < 3 or positions[2] is None or positions[2] > 0)
    ):
        allowed = "one to three integers or nulls, the third above 0"
        _refuse("metadata.seqpos_slice", allowed, positions)
    tokens = metadata.get("exclude_special_tokens")
    if not (
        tokens is None
        or isinstance(tokens, bool)
        or (isinstance(tokens, list) and all(map(_is_token, tokens)))
    ):
        allowed = "true, false or a list of token ids"
        _refuse("metadata.exclude_special_tokens", allowed, tokens)


def _check_type(name: str, value: object, kind: type) -> None:
    if not (_is(value, kind) or (kind is float and _is(value, int))):
        _refuse(name, f"of type {kind.__name__}", value)


def _is_token(value: object) -> bool:
    return isinstance(value, int) and _is(value, int) and 0 <= value < 2**31


def _is(value: object, kind: type) -> bool:
    # True is an int to Python.
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _refuse(name: str, allowed: str, value: object) -> None:
    got = repr(value)[:200]
    raise ValueError(f"{SAE_CFG_FILENAME}: {name} must be {allowed}, got {got}")
