"""Arguments of the loss that the tests of several backends share."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

SPECIALS = ["one feature", "all zero", "ties", "extremes"]


@dataclasses.dataclass
class Case:
    """The arguments of one call."""

    target: Tensor
    indices: Tensor
    values: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def leaves(self) -> list[Tensor]:
        return [self.target, self.values, self.W_dec, self.b_dec]


def make_special(case: Case, special: str) -> None:
    """Turn a case with at least nine features into one of ``SPECIALS``."""
    if special == "one feature":
        case.indices = torch.full_like(case.indices, 3)
    elif special == "all zero":
        case.values = torch.zeros_like(case.values)
    elif special == "ties":
        case.values = torch.ones_like(case.values)
    else:
        case.indices[:, ::2], case.indices[:, 1::2] = 0, 8


def strided(case: Case) -> Case:
    """Return the same case, its tensors no longer contiguous in memory.

    ``indices`` is every other column of a twice repeated one.
    """
    return Case(
        target=case.target.T.contiguous().T,
        indices=case.indices.repeat(1, 2)[:, ::2],
        values=case.values.T.contiguous().T,
        W_dec=case.W_dec.T.contiguous().T,
        b_dec=case.b_dec.repeat_interleave(2)[::2],
    )
