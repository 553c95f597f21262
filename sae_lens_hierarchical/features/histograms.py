"""Histograms of values whose largest is not known before."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Histograms"]

_BINS = 64


class Histograms:
    """One histogram a feature, each split by group; ranges double as values grow.

    A range is the smallest power of two above the largest value, and so does not depend
    on the order in which values came.

    Attributes:
        counts: [rows, groups, 64], int64.
        exponents: The ranges' ends, as powers of two, [rows], int64.
    """

    def __init__(self, rows: int, groups: int) -> None:
        self.counts = torch.zeros(rows, groups, _BINS, dtype=torch.int64)
        self.exponents = torch.zeros(rows, dtype=torch.int64)

    def add(self, row: Tensor, group: Tensor, values: Tensor) -> None:
        """Add positive values, [n], each to its row and group, [n] int64."""
        largest = torch.zeros(len(self.exponents))
        largest.scatter_reduce_(0, row, values, "amax")
        needed = largest.frexp().exponent.long()
        seen = self.counts.sum((1, 2)) > 0
        grown = torch.where(
            largest > 0,
            torch.where(seen, needed.maximum(self.exponents), needed),
            self.exponents,
        )
        # After log2(64) doublings all that was there is in the first bin.
        doublings = ((grown - self.exponents) * seen).clamp(max=_BINS.bit_length() - 1)
        self.exponents = grown
        while (growing := doublings > 0).any():
            halves = self.counts[growing].unflatten(-1, (-1, 2)).sum(-1)
            self.counts[growing] = torch.cat([halves, torch.zeros_like(halves)], -1)
            doublings -= growing.long()
        at = torch.ldexp(values, -self.exponents[row]) * _BINS
        cell = (row * self.counts.shape[1] + group) * _BINS + at.long()
        total = self.counts.numel()
        self.counts += torch.bincount(cell, minlength=total).view_as(self.counts)

    def of(self, row: int) -> tuple[float, list[list[int]]]:
        """Return the width of a row's bins, and its counts by group up to the last."""
        counts = self.counts[row]
        used = int(counts.any(0).nonzero().max()) + 1 if counts.any() else 0
        return 2.0 ** int(self.exponents[row]) / _BINS, counts[:, :used].tolist()
