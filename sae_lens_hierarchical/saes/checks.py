"""Checks shared by the training and the inference SAE."""

from __future__ import annotations

from typing import Any

from sae_lens import SAE
from torch import Tensor

__all__ = ["check_k", "check_state_dict"]


def check_k(name: str, k: object, d_sae: int) -> None:
    """Raise a ValueError unless ``k`` is an integer from 1 to ``d_sae``."""
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= d_sae:
        raise ValueError(
            f"{name} must be an integer from 1 to d_sae={d_sae}, got {k!r}"
        )


def check_state_dict(sae: SAE[Any], state_dict: dict[str, Tensor]) -> None:
    """Raise a ValueError if a tensor that ``sae`` needs is missing or misshapen."""
    for name, parameter in sae.named_parameters():
        expected = list(parameter.shape)
        if name not in state_dict:
            raise ValueError(f"the checkpoint has no tensor {name} {expected}")
        if (actual := list(state_dict[name].shape)) != expected:
            raise ValueError(
                f"the checkpoint's {name} is {actual}, but its cfg.json "
                f"(d_in={sae.cfg.d_in}, d_sae={sae.cfg.d_sae}) asks for {expected}"
            )
