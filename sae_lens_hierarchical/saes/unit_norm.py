"""Unit-norm decoder rows, as the paper trains them (Table 1, "Decoder Normalization").

SAELens's trainers own the optimizer and have no seam around its step, so the rows are
kept by torch's own hooks on optimizer steps. They touch only the decoders given here.
"""

from __future__ import annotations

import functools
from typing import Any
from weakref import WeakSet

import torch
from sae_lens import TrainingSAE, logger
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

__all__ = ["keep_unit_norm_decoder", "normalize_decoder", "row_norms"]

# As far from 1 as rows of bfloat16 can be after a division by their norm.
_UNIT_NORM_ATOL = 2**-7

_CACHED_ENTRIES = 1 << 17

_SAES: WeakSet[TrainingSAE[Any]] = WeakSet()


def keep_unit_norm_decoder(sae: TrainingSAE[Any]) -> None:
    """Keep the rows of ``sae.W_dec`` at norm 1 through every optimizer's steps.

    Before a step the gradient's part parallel to each row is removed; after it each
    row is divided by its norm.
    """
    _register_hooks()
    _SAES.add(sae)


def row_norms(W_dec: Tensor) -> Tensor:
    """Return the norms of a decoder's rows, [d_sae, 1], and 1 for rows of zeros."""
    norms = W_dec.norm(dim=-1, keepdim=True)
    return norms.where(norms > 0, 1)


def normalize_decoder(state_dict: dict[str, Tensor], *, rescaled: bool) -> None:
    """Rescale decoder rows to norm 1 and the encoder with them: the same function.

    Activations take over the norms, as in SAELens's ``fold_W_dec_norm``.

    Args:
        state_dict: With ``W_enc``, ``b_enc``, ``W_dec`` and ``thresholds``; gets others
            in their place.
        rescaled: Whether the SAE ranks activations as if the rows had norm 1. If not,
            rows of different norms are ranked otherwise than before, which is warned
            of; thresholds are then unknown.
    """
    norms = row_norms(state_dict["W_dec"])
    if torch.allclose(norms, torch.ones_like(norms), rtol=0, atol=_UNIT_NORM_ATOL):
        return  # but for rounding, and a resumed run must not be rounded again
    state_dict["W_dec"] = state_dict["W_dec"] / norms
    state_dict["W_enc"] = state_dict["W_enc"] * norms.T
    state_dict["b_enc"] = state_dict["b_enc"] * norms.squeeze(-1)
    if rescaled:
        return
    largest = float(norms.max())
    if largest - float(norms.min()) > _UNIT_NORM_ATOL * largest:
        logger.warning(
            "unit_norm_decoder: the decoder's rows had different norms, and features "
            "were ranked without them; the largest features are other ones now"
        )
        state_dict["thresholds"] = torch.full_like(state_dict["thresholds"], torch.nan)
    else:
        state_dict["thresholds"] = state_dict["thresholds"] * largest


@functools.cache
def _register_hooks() -> None:
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)


@torch.no_grad()
def _before_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    for W_dec in _decoders(optimizer):
        if W_dec.grad is None:
            continue
        for rows, gradient in zip(_blocks(W_dec), _blocks(W_dec.grad), strict=True):
            parallel = (gradient * rows).sum(dim=-1, keepdim=True)
            gradient.addcmul_(parallel, rows, value=-1)


@torch.no_grad()
def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    for W_dec in _decoders(optimizer):
        for rows in _blocks(W_dec):
            rows.div_(row_norms(rows))


def _blocks(matrix: Tensor) -> tuple[Tensor, ...]:
    """Split a matrix into rows that a CPU's cache holds from one pass to the next."""
    if matrix.device.type != "cpu":
        return (matrix,)
    return matrix.split(max(1, _CACHED_ENTRIES // matrix.shape[1]))


def _decoders(optimizer: Optimizer) -> list[Tensor]:
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [sae.W_dec for sae in _SAES if id(sae.W_dec) in owned]
