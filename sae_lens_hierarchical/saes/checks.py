"""Checks shared by the training and the inference SAE."""

from __future__ import annotations

from typing import Any, Literal, get_args

from sae_lens import SAE
from torch import Tensor

from sae_lens_hierarchical.saes.thresholds import unknown_thresholds

__all__ = [
    "Activation",
    "check_activation",
    "check_k",
    "check_size",
    "check_state_dict",
]

Activation = Literal["topk", "jumprelu"]

# Far above any SAE; the bytes of a tensor of two such sizes still fit in 64 bits.
LARGEST_SIZE = 2**29


def check_activation(name: str, activation: str) -> None:
    """Raise a ValueError unless ``activation`` is ``"topk"`` or ``"jumprelu"``."""
    known = list(get_args(Activation))
    if activation not in known:
        raise ValueError(f"{name} must be one of {known}, got {activation!r}")


def check_size(name: str, size: object) -> None:
    """Raise a ValueError unless ``size`` is an integer that a tensor could have."""
    if not isinstance(size, int) or isinstance(size, bool):
        raise ValueError(f"{name} must be an integer, got {size!r}")
    if not 1 <= size <= LARGEST_SIZE:
        raise ValueError(f"{name} must be from 1 to {LARGEST_SIZE}, got {size}")


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
    for name, tensor in sae.state_dict().items():
        expected = list(tensor.shape)
        if name == "thresholds" and name not in state_dict:
            # They come last, so the sizes have been checked: they may take memory.
            state_dict[name] = unknown_thresholds(len(tensor))
        if name not in state_dict:
            raise ValueError(f"the checkpoint has no tensor {name} {expected}")
        if (actual := list(state_dict[name].shape)) != expected:
            raise ValueError(
                f"the checkpoint's {name} is {actual}, but its cfg.json "
                f"(d_in={sae.cfg.d_in}, d_sae={sae.cfg.d_sae}, k_max={sae.cfg.k_max}) "
                f"asks for {expected}"
            )
