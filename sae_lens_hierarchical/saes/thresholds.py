"""JumpReLU thresholds θ(k): on average k features of a token lie above (paper B.5).

A table of them, for k = 1 to K, is a buffer of the SAE: [K], float32, NaN where
unknown, in the units of the activations that ``encode`` gives. In a checkpoint it is
those floats' bytes, uint8 [K, 4]: SAELens converts all tensors that it loads to the
SAE's dtype, and float16 and bfloat16 hold every byte, but would round the floats.
"""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor

__all__ = [
    "above_threshold",
    "check_threshold_k",
    "decode_thresholds",
    "encode_thresholds",
    "move_thresholds",
    "rescale_thresholds",
    "track_thresholds",
    "unknown_thresholds",
]

# Few tokens, so that tracking costs nothing that shows, and many steps.
TRACKED_TOKENS = 32
_TRACKING_RATE = 0.01


def unknown_thresholds(k_max: int, device: torch.device | str = "cpu") -> Tensor:
    """Return a table of which nothing is known, [k_max]."""
    return torch.full((k_max,), torch.nan, dtype=torch.float32, device=device)


def encode_thresholds(thresholds: Tensor) -> Tensor:
    """Return a table, [K] float32, as a checkpoint has it: its bytes, [K, 4] uint8."""
    return thresholds.contiguous().view(torch.uint8).view(-1, 4)


def decode_thresholds(table: Tensor) -> Tensor:
    """Return a checkpoint's table, [K] float32: of bytes, or of floats in older ones.

    Args:
        table: [K, 4], uint8 or what SAELens made of it; or [K], floating point.

    Raises:
        ValueError: If it is neither.
    """
    floating = table.is_floating_point()
    as_bytes = table.ndim == 2 and table.shape[1] == 4
    if as_bytes and (floating or table.dtype == torch.uint8):
        if not torch.equal(table, table.to(torch.uint8).to(table.dtype)):
            raise ValueError("thresholds must be bytes [K, 4], got other numbers")
        return table.to(torch.uint8).contiguous().view(torch.float32).view(-1)
    if not floating:
        raise ValueError(
            "thresholds must be bytes, uint8 [K, 4], or floating point [K], "
            f"got {table.dtype} {list(table.shape)}"
        )
    return table.float()


def check_threshold_k(k: int, k_max: int) -> None:
    """Raise a ValueError if a table for 1 to ``k_max`` has no threshold for ``k``."""
    if k > k_max:
        raise ValueError(
            f"jumprelu has thresholds for k from 1 to k_max={k_max}, got {k}"
        )


def above_threshold(hidden_pre: Tensor, threshold: Tensor) -> Tensor:
    """Return the positive activations that exceed a threshold; 0 for the others.

    Args:
        hidden_pre: What features are ranked by, [..., d_sae].
        threshold: [1], float32. With a dimension it is not rounded to the dtype of
            ``hidden_pre``: torch compares in the larger of both.
    """
    return hidden_pre.relu() * (hidden_pre > threshold)


@torch.no_grad()
def track_thresholds(thresholds: Tensor, hidden_pre: Tensor) -> None:
    """Update a table with the thresholds of a batch's first tokens (moving average).

    Args:
        thresholds: The table, [K].
        hidden_pre: What a training step ranks features by, [tokens, d_sae], of the
            batch's first ``TRACKED_TOKENS``.
    """
    tokens = len(hidden_pre)
    largest = hidden_pre.flatten().topk(len(thresholds) * tokens).values
    move_thresholds(thresholds, largest, tokens)


@torch.no_grad()
def move_thresholds(thresholds: Tensor, largest: Tensor, tokens: int) -> None:
    """Move a table towards that of some tokens, in place.

    Args:
        thresholds: The table, [K].
        largest: The K · tokens largest of what all these tokens' features are ranked
            by, largest first.
        tokens: How many tokens.
    """
    # Of the k·n largest of all n tokens' activations, the last.
    current = largest.relu()[tokens - 1 :: tokens].float()
    moved = torch.lerp(thresholds, current, _TRACKING_RATE)
    thresholds.copy_(torch.where(thresholds.isnan(), current, moved))


@torch.no_grad()
def rescale_thresholds(sae: SAE[Any], scaling_factor: float) -> None:
    """Rescale the table when ``fold_activation_norm_scaling_factor`` divides W_dec."""
    if sae.cfg.rescale_acts_by_decoder_norm:
        sae.get_buffer("thresholds").div_(scaling_factor)
