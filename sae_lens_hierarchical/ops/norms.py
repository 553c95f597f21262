"""Norms of activations: the limit that leaves outlying tokens out, and a warning."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["check_max_norm_ratio", "describe_concentration", "median", "norms"]

# Half of the sum of squares in fewer of the tokens than this is a warning.
_FEW = 0.01


def check_max_norm_ratio(ratio: object) -> float:
    """Return ``ratio`` as a float; a ValueError unless it is finite and above 1."""
    if isinstance(ratio, int | float) and 1 < ratio < math.inf:  # True is 1
        return float(ratio)
    raise ValueError(f"max_norm_ratio must be a finite number above 1, got {ratio!r}")


def norms(activations: Tensor) -> Tensor:
    """Return the norm of each token's activations, [..., d_in] to [...], float32."""
    return activations.float().norm(dim=-1)


def median(norms: Tensor) -> float:
    """Return the median of the norms of some tokens, the lower one of two.

    Raises:
        ValueError: If there are none, or it is 0, of which there is no multiple.
    """
    found = float(norms.median()) if norms.numel() else 0.0
    if found == 0:
        raise ValueError(
            "max_norm_ratio needs activations whose median norm is above 0, but "
            f"the first {norms.numel():,} tokens have none"
        )
    return found


def describe_concentration(norms: Tensor, hook_name: str) -> str | None:
    """Return a sentence if few of some tokens hold half of the sum of squares.

    Args:
        norms: The norms of the tokens, [tokens].
        hook_name: Where the activations are.
    """
    # In float64, where the squares of float32 norms cannot overflow.
    squares = norms.cpu().double().pow(2).sort(descending=True).values.cumsum(0)
    if not len(squares) or not 0 < float(squares[-1]) < math.inf:
        return None
    needed = int((squares < squares[-1] / 2).sum()) + 1
    if needed > _FEW * len(squares):
        return None
    return (
        f"{needed:,} of {len(squares):,} tokens ({needed / len(squares):.2%}) hold "
        f"half of the sum of squares of the activations at {hook_name}, and decide "
        "what is learned and measured: leave such tokens out with max_norm_ratio "
        "(--max-norm-ratio 3.5, say)"
    )
