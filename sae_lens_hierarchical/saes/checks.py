"""Checks shared by the training and the inference SAE."""

from __future__ import annotations

from typing import Any, Literal, get_args

from sae_lens import SAE
from torch import Tensor

from sae_lens_hierarchical.saes.thresholds import unknown_thresholds

__all__ = ["Activation", "check_activation", "check_k", "check_state_dict"]

Activation = Literal["topk", "jumprelu"]


def check_activation(activation: str) -> None:
    """Raise a ValueError unless ``activation`` is ``"topk"`` or ``"jumprelu"``."""
    if activation not in get_args(Activation):
        raise ValueError(
            f"activation must be one of {get_args(Activation)}, got {activation!r}"
        )


def check_k(name: str, k: object, d_sae: int) -> None:
    """Raise a ValueError unless ``k`` is an integer from 1 to ``d_sae``."""
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= d_sae:
        raise ValueError(
            f"{name} must be an integer from 1 to d_sae={d_sae}, got {k!r}"
        )


def check_state_dict(sae: SAE[Any], state_dict: dict[str, Tensor]) -> None:
    """Check a checkpoint's tensors; add an empty table of thresholds where it has none.

    Raises:
        ValueError: If a tensor that ``sae`` needs is missing or misshapen.
    """
    thresholds = sae.get_buffer("thresholds")
    state_dict.setdefault("thresholds", unknown_thresholds(len(thresholds)))
    for name, tensor in sae.state_dict().items():
        expected = list(tensor.shape)
        if name not in state_dict:
            raise ValueError(f"the checkpoint has no tensor {name} {expected}")
        if (actual := list(state_dict[name].shape)) != expected:
            raise ValueError(
                f"the checkpoint's {name} is {actual}, but its cfg.json "
                f"(d_in={sae.cfg.d_in}, d_sae={sae.cfg.d_sae}, k_max={sae.cfg.k_max}) "
                f"asks for {expected}"
            )
