"""An SAE of tensors that are there already."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from typing import Any, TypeVar

from sae_lens import SAE
from sae_lens.saes.sae import SAEConfig
from torch import Tensor

__all__ = ["sae_of_tensors", "shared_settings"]

AnySAE = TypeVar("AnySAE", bound=SAE[Any])


def shared_settings(sae: SAE[Any]) -> dict[str, Any]:
    """Return the config's fields that SAEs of every architecture have.

    The metadata are a copy: SAELens writes into an SAE's.
    """
    settings = {f.name: getattr(sae.cfg, f.name) for f in fields(SAEConfig)}
    return settings | {"metadata": deepcopy(sae.cfg.metadata)}


def sae_of_tensors(
    cls: type[AnySAE], cfg: SAEConfig, tensors: dict[str, Tensor]
) -> AnySAE:
    """Return an SAE whose tensors are ``tensors`` themselves, where ``W_dec`` is.

    Args:
        cls: The SAE's class.
        cfg: Its config, whose device does not count.
        tensors: What its ``state_dict`` is to hold.

    Raises:
        ValueError: If they do not fit an SAE of ours.
    """
    cfg.device = "meta"  # nothing is allocated, and no random number drawn
    sae = cls(cfg)
    sae.process_state_dict_for_loading(tensors)
    sae.load_state_dict(tensors, assign=True)
    return sae.to(tensors["W_dec"].device)
