"""Unit-norm decoder rows, as the paper trains them (Table 1, "Decoder Normalization").

SAELens's trainers own the optimizer and have no seam around its step, so the rows are
kept by torch's own hooks on optimizer steps. They touch only the decoders given here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

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

# Turns sums over a part of a decoder's columns, [d_sae, 1], into those over all.
SumOverColumns = Callable[[Tensor], Tensor]

_SAES: WeakKeyDictionary[TrainingSAE[Any], SumOverColumns | None] = WeakKeyDictionary()


def keep_unit_norm_decoder(
    sae: TrainingSAE[Any], sum_over_columns: SumOverColumns | None = None
) -> None:
    """Keep the rows of ``sae.W_dec`` at norm 1 through every optimizer's steps.

    Before a step the gradient's part parallel to each row is removed; after it each
    row is divided by its norm.

    Args:
        sae: The SAE in training.
        sum_over_columns: Where ``sae.W_dec`` is a part of the columns, what adds up
            each row's sums over all parts; None where it is whole.
    """
    _register_hooks()
    _SAES[sae] = sum_over_columns


def row_norms(W_dec: Tensor, sum_over_columns: SumOverColumns | None = None) -> Tensor:
    """Return the norms of a decoder's rows, [d_sae, 1], and 1 for rows of zeros."""
    norms = W_dec.norm(dim=-1, keepdim=True)
    if sum_over_columns is not None:
        norms = sum_over_columns(norms.square()).sqrt()
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
    for W_dec, add_up in _decoders(optimizer):
        if W_dec.grad is None:
            continue
        blocks = zip(_blocks(W_dec, add_up), _blocks(W_dec.grad, add_up), strict=True)
        for rows, gradient in blocks:
            parallel = (gradient * rows).sum(dim=-1, keepdim=True)
            if add_up is not None:
                parallel = add_up(parallel)
            gradient.addcmul_(parallel, rows, value=-1)


@torch.no_grad()
def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    for W_dec, add_up in _decoders(optimizer):
        for rows in _blocks(W_dec, add_up):
            rows.div_(row_norms(rows, add_up))


def _blocks(
    matrix: Tensor, sum_over_columns: SumOverColumns | None
) -> tuple[Tensor, ...]:
    """Split a matrix into rows that a CPU's cache holds from one pass to the next."""
    # One sum over processes for all rows, not one a block.
    if matrix.device.type != "cpu" or sum_over_columns is not None:
        return (matrix,)
    return matrix.split(max(1, _CACHED_ENTRIES // matrix.shape[1]))


def _decoders(optimizer: Optimizer) -> list[tuple[Tensor, SumOverColumns | None]]:
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [
        (sae.W_dec, add_up) for sae, add_up in _SAES.items() if id(sae.W_dec) in owned
    ]
