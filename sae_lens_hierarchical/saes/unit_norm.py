"""Unit-norm decoder rows, as the paper trains them (Table 1, "Decoder Normalization").

SAELens's trainers own the optimiser and have no seam around its step, so the rows are
kept by torch's own hooks on optimiser steps. They touch only the decoders given here.
"""

from __future__ import annotations

import functools
from typing import Any
from weakref import WeakSet

import torch
from sae_lens import TrainingSAE
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

__all__ = ["keep_unit_norm_decoder"]

_SAES: WeakSet[TrainingSAE[Any]] = WeakSet()


def keep_unit_norm_decoder(sae: TrainingSAE[Any]) -> None:
    """Keep the rows of ``sae.W_dec`` at norm 1 through every optimiser's steps.

    Before a step the gradient's part parallel to each row is removed; after it each
    row is divided by its norm.
    """
    _register_hooks()
    _SAES.add(sae)


@functools.cache
def _register_hooks() -> None:
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)


@torch.no_grad()
def _before_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    for W_dec in _decoders(optimizer):
        if W_dec.grad is not None:
            parallel = (W_dec.grad * W_dec).sum(dim=-1, keepdim=True)
            W_dec.grad.addcmul_(parallel, W_dec, value=-1)


@torch.no_grad()
def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    for W_dec in _decoders(optimizer):
        W_dec.div_(W_dec.norm(dim=-1, keepdim=True))


def _decoders(optimizer: Optimizer) -> list[Tensor]:
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [sae.W_dec for sae in _SAES if id(sae.W_dec) in owned]
