"""A run's config in a file: YAML or JSON, read as data alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sae_lens_hierarchical.defaults import ARCHITECTURE
from sae_lens_hierarchical.spelling import did_you_mean
from sae_lens_hierarchical.training.config import (
    LanguageModelSAERunnerConfig,
    flat_field_names,
    without_additions,
)

__all__ = ["changed_fields", "read_config", "to_yaml"]

# The SAE has these, too, and SAELens's command calls them so.
_SHARED = ("device", "dtype")
_KINDS = (str, int, float, list, dict, type(None))  # JSON's
# Of a run that was, not of one to come.
_OF_THE_RUN = {
    "metadata",
    "resume_from_checkpoint",
    "sae_lens_training_version",
    "sae_lens_version",
    "wandb_id",
}


def read_config(path: Path) -> dict[str, Any]:
    """Return the fields of a run by their names on the command line.

    Args:
        path: YAML or JSON with the fields of the run, of its SAE and of its logger
            side by side, or the ``runner_cfg.json`` of a run. Of that what belongs to
            the run alone is left out, and what follows from other fields.

    Raises:
        ValueError: If it is neither, or a field is unknown or of no type of JSON's.
        OSError: If it cannot be read.
    """
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read: {message}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a run's fields by name, got {content!r}")
    fields = {str(name): value for name, value in content.items()}
    if isinstance(fields.get("sae"), dict):
        fields = _flat(fields)
    known = flat_field_names(fields.get("architecture", ARCHITECTURE))
    known |= {"architecture", *(f"sae.{name}" for name in _SHARED)}
    for name, value in fields.items():
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"{path} has the unknown field {name!r}{hint}")
        # Those with a dot are names of options alone; YAML has dates, too.
        kinds = (str,) if "." in name else _KINDS
        if not isinstance(value, kinds):
            raise ValueError(f"{path}: {name} cannot be {value!r}")
    return fields


def changed_fields(cfg: LanguageModelSAERunnerConfig) -> dict[str, Any]:
    """Return the fields of a run that differ from the defaults, for ``read_config``."""
    sae = cfg.sae
    default = {
        f"sae.{f.name}" if part is sae and f.name in _SHARED else f.name: f.default
        for part in (cfg, cfg.logger, sae)
        for f in dataclasses.fields(part)
        if f.default is not dataclasses.MISSING
    } | {"model_kwargs": {}, "seqpos_slice": [None], "log_to": []}
    now = _flat(json.loads(json.dumps(cfg.to_dict())))
    changed = {n: v for n, v in now.items() if n not in default or default[n] != v}
    return {"architecture": sae.architecture(), "d_in": sae.d_in, **changed}


def to_yaml(fields: Mapping[str, Any]) -> str:
    """Return fields as ``read_config`` takes them."""
    return yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True)


def _flat(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a run's config is made of, side by side."""
    cfg = without_additions(cfg)
    sae, log = cfg["sae"], cfg["logger"]
    known = flat_field_names(sae.get("architecture", ARCHITECTURE)) | {"architecture"}
    sae = {name: value for name, value in sae.items() if name in known}
    fields = {n: v for n, v in cfg.items() if n not in ("sae", "logger")}
    shared = {f"sae.{name}": sae[name] for name in _SHARED if name in sae}
    fields |= log | {n: v for n, v in sae.items() if n not in _SHARED} | shared
    device, lr = fields.get("device"), fields.get("lr")
    follows = {
        "llm_device": device,
        "act_store_device": device,
        "lr_end": lr / 10 if isinstance(lr, int | float) else None,
        "run_name": None,
    }
    return {
        name: value
        for name, value in fields.items()
        if name not in _OF_THE_RUN and (name not in follows or value != follows[name])
    }
