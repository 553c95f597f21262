"""Which other features are active on the tokens of a feature, before or after it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Companion", "Companions"]

_PAIRS_AT_ONCE = 2**22
_EVIDENCE = 10  # nats of log-likelihood against chance that a companion must have


class Companion(NamedTuple):
    """A feature that is active with another one.

    Attributes:
        feature: Its index.
        share: On what share of the other's tokens, on this side of it in rank.
        frequency: On what share of all tokens.
    """

    feature: int
    share: float
    frequency: float


class Companions:
    """Counts of the features that rank before and after others on the same tokens.

    Attributes:
        counts: Before and after, [2, rows, d_sae], int32.
    """

    def __init__(self, rows: int, d_sae: int) -> None:
        self.counts = torch.zeros(2, rows, d_sae, dtype=torch.int32)

    def add(
        self,
        row: Tensor,
        token: Tensor,
        rank: Tensor,
        values: Tensor,
        indices: Tensor,
    ) -> None:
        """Add the tokens on which features of rows are active.

        Args:
            row: [n], int64.
            token: Which token, [n], int64.
            rank: That of the row's feature there, from 0, [n], int64.
            values: The activations of each token, [tokens, K].
            indices: Their features, [tokens, K].
        """
        _, rows, d_sae = self.counts.shape
        k = values.shape[1]
        ranks = torch.arange(k)
        step = max(1, _PAIRS_AT_ONCE // k)
        for at in range(0, len(row), step):
            one = slice(at, at + step)
            own_rank = rank[one, None]
            joint = (values[token[one]] > 0) & (ranks != own_rank)
            after = (ranks > own_rank).long()
            cell = (after * rows + row[one, None]) * d_sae + indices[token[one]]
            cell = cell[joint]
            ones = torch.ones(len(cell), dtype=torch.int32)
            self.counts.view(-1).index_add_(0, cell, ones)

    def of(
        self, row: int, firings: int, frequencies: Tensor, n: int
    ) -> tuple[list[Companion], list[Companion]]:
        """Return the features that are before and after a row's more than by chance.

        Their share of the row's tokens exceeds their share of all tokens; those whose
        two shares differ most, by KL divergence, come first.

        Args:
            row: The row.
            firings: On how many tokens its feature is active.
            frequencies: On what share of all tokens each feature is, [d_sae], float64.
            n: How many of each at most.
        """
        before, after = (
            _most_by_no_chance(counts / max(firings, 1), frequencies, firings, n)
            for counts in self.counts[:, row].double()
        )
        return before, after


def _most_by_no_chance(
    shares: Tensor, frequencies: Tensor, firings: int, n: int
) -> list[Companion]:
    # KL divergence of the one share from the other: rare features need to be with this
    # one only sometimes, and frequent ones nearly always.
    divergence = torch.special.xlogy(shares, shares / frequencies)
    divergence += torch.special.xlogy(1 - shares, (1 - shares) / (1 - frequencies))
    more = (shares > frequencies) & (divergence * firings > _EVIDENCE)
    divergence = divergence.where(more, 0)
    order = divergence.argsort(descending=True, stable=True)[:n]
    return [
        Companion(int(i), float(shares[i]), float(frequencies[i]))
        for i in order
        if more[i]
    ]
