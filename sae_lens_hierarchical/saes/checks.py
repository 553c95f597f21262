"""Checks shared by the training and the inference SAE."""

from __future__ import annotations

from typing import Any, Literal, get_args

from sae_lens import SAE
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from torch import Tensor

from sae_lens_hierarchical.ops.budgets import as_integer
from sae_lens_hierarchical.saes.thresholds import decode_thresholds, unknown_thresholds

__all__ = [
    "Activation",
    "check_activation",
    "check_flags",
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


def check_flags(config: object, *names: str) -> None:
    """Raise a ValueError unless the named fields are True or False."""
    for name in names:
        if not isinstance(flag := getattr(config, name), bool):
            raise ValueError(f"{name} must be True or False, got {flag!r}")


def check_size(name: str, size: object) -> int:
    """Return ``size`` as an int; a ValueError unless a tensor could have that size."""
    integer = as_integer(size)
    if integer is None:
        raise ValueError(f"{name} must be an integer, got {size!r}")
    if not 1 <= integer <= LARGEST_SIZE:
        raise ValueError(f"{name} must be from 1 to {LARGEST_SIZE}, got {size}")
    return integer


def check_k(name: str, k: object, d_sae: int) -> int:
    """Return ``k`` as an int; a ValueError unless it is an integer from 1 to d_sae."""
    integer = as_integer(k)
    if integer is None or not 1 <= integer <= d_sae:
        raise ValueError(
            f"{name} must be an integer from 1 to d_sae={d_sae}, got {k!r}"
        )
    return integer


def check_state_dict(sae: SAE[Any], state_dict: dict[str, Tensor]) -> None:
    """Check a checkpoint's tensors, and bring its thresholds into the buffer's form.

    Where it has no table of thresholds it gets an empty one.

    Raises:
        ValueError: If a tensor that ``sae`` needs is missing or misshapen, is not
            floating point, or holds NaN or infinity.
    """
    for name, tensor in sae.state_dict().items():
        expected = list(tensor.shape)
        if name == "thresholds":
            # They come last, so the sizes have been checked: they may take memory.
            table = state_dict.get(name, unknown_thresholds(len(tensor)))
            state_dict[name] = decode_thresholds(table)
        if name not in state_dict:
            raise ValueError(f"the checkpoint has no tensor {name} {expected}")
        found = state_dict[name]
        if (actual := list(found.shape)) != expected:
            raise ValueError(
                f"the checkpoint's {name} is {actual}, but its cfg.json "
                f"(d_in={sae.cfg.d_in}, d_sae={sae.cfg.d_sae}, k_max={sae.cfg.k_max}) "
                f"asks for {expected}"
            )
        if not found.is_floating_point():
            raise ValueError(
                f"the checkpoint's {name} must be floating point, got {found.dtype}"
            )
        # NaN in the thresholds means that they are unknown.
        finite = ~found.isinf() if name == "thresholds" else found.isfinite()
        if not finite.all():
            raise ValueError(f"{SAE_WEIGHTS_FILENAME}: {name} is not finite")
