"""The contexts in which features are most active, kept while tokens stream by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_lens_hierarchical.features.ranked_batches import RankedBatch

__all__ = ["AFTER", "BEFORE", "Excerpt", "TopContexts"]

BEFORE, AFTER = 24, 12  # tokens shown around the one with the largest activation
NO_TOKEN = -1  # before the start or after the end of a context


@dataclass(frozen=True)
class Excerpt:
    """A piece of a context around the token on which a feature is most active.

    Attributes:
        context: Which context of the stream, from 0.
        position: Where that token stands in its context, from 0.
        rank: The feature's rank on it, from 1.
        activation: The feature's activation on it.
        peak: Where that token stands in ``tokens``.
        tokens: Token ids.
        active: Where in ``tokens`` the feature is active: position, activation, rank.
    """

    context: int
    position: int
    rank: int
    activation: float
    peak: int
    tokens: list[int]
    active: list[tuple[int, float, int]]


class TopContexts:
    """The contexts with the largest activations, for each feature and group of ranks.

    A context counts once, by its token with the largest activation; of equal ones the
    earlier stays.

    Args:
        rows: How many features.
        ks: The largest rank of each group, ascending, the last one K.
        n: How many contexts to keep of each group.
    """

    def __init__(self, rows: int, ks: Sequence[int], n: int) -> None:
        self._ks, self._n = torch.tensor(ks), n
        self._contexts = 0  # so far
        lists, window = (rows * len(ks), n), BEFORE + 1 + AFTER
        self._values = torch.zeros(lists)
        self._context = torch.zeros(lists, dtype=torch.int64)
        self._position = torch.zeros(lists, dtype=torch.int64)
        self._tokens = torch.full((*lists, window), NO_TOKEN, dtype=torch.int32)
        self._acts = torch.zeros(*lists, window)
        self._ranks = torch.zeros(*lists, window, dtype=torch.int32)

    def add(self, row: Tensor, token: Tensor, rank: Tensor, batch: RankedBatch) -> None:
        """Add the tokens of a batch on which features of rows are active.

        Args:
            row: [n], int64.
            token: Which of the batch's tokens that count, [n], int64.
            rank: The rank of the row's feature there, from 0, [n], int64.
            batch: The batch.
        """
        contexts, length = batch.tokens.shape
        value, position = batch.values[token, rank], batch.positions[token]
        lists = row * len(self._ks) + torch.bucketize(rank + 1, self._ks)
        cell = lists * contexts + position // length
        cells = len(self._values) * contexts
        best = torch.zeros(cells).scatter_reduce_(0, cell, value, "amax")
        is_best = value == best[cell]
        first = torch.full((cells,), batch.tokens.numel())
        first.scatter_reduce_(0, cell[is_best], position[is_best], "amin")
        best, first = best.view(-1, contexts), first.view(-1, contexts)

        changed = (best.amax(1) > self._values[:, -1]).nonzero().squeeze(1)
        both = torch.cat([self._values[changed], best[changed]], 1)
        order = both.argsort(dim=1, descending=True, stable=True)[:, : self._n]
        taken = both.gather(1, order)
        kept = changed[:, None], order.clamp(max=self._n - 1)
        for stored in (
            self._context,
            self._position,
            self._tokens,
            self._acts,
            self._ranks,
        ):
            stored[changed] = stored[kept]
        self._values[changed] = taken

        at, slot = ((order >= self._n) & (taken > 0)).nonzero(as_tuple=True)
        into = changed[at], slot
        context = order[at, slot] - self._n
        within = first[changed[at], context] - context * length
        self._context[into] = context + self._contexts
        self._position[into] = within
        window = within[:, None] + torch.arange(-BEFORE, AFTER + 1)
        inside = (window >= 0) & (window < length)
        flat = context[:, None] * length + window.clamp(0, length - 1)
        tokens = batch.tokens.flatten()[flat].masked_fill(~inside, NO_TOKEN)
        self._tokens[into] = tokens.int()
        # A feature's activation at any place, by searching the tokens on which it is.
        keys, by_key = (row * batch.tokens.numel() + position).sort()
        features = changed[at] // len(self._ks)
        wanted = features[:, None] * batch.tokens.numel() + flat
        found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        hit = inside & (keys[found] == wanted)
        self._acts[into] = value[by_key[found]] * hit
        self._ranks[into] = ((rank[by_key[found]] + 1) * hit).int()
        self._contexts += contexts

    def of(self, row: int, n_strongest: int, n_of_group: int) -> list[Excerpt]:
        """Return a feature's excerpts, largest activation first.

        Args:
            row: The feature's row.
            n_strongest: How many contexts with the largest activations to return of
                those at each k, at most as many as are kept.
            n_of_group: How many to return at least of each group of ranks.
        """
        groups = len(self._ks)
        excerpts: list[Excerpt] = []
        wanted: set[tuple[int, int]] = set()
        for group in range(groups):
            of_group = list(self._excerpts(row * groups + group))
            wanted |= {(e.context, e.position) for e in of_group[:n_of_group]}
            excerpts = sorted(
                [*excerpts, *of_group],
                key=lambda e: (-e.activation, e.context, e.position),
            )
            by_context: dict[int, Excerpt] = {}
            for excerpt in excerpts:
                by_context.setdefault(excerpt.context, excerpt)
            strongest = list(by_context.values())[:n_strongest]
            wanted |= {(e.context, e.position) for e in strongest}
        return [e for e in excerpts if (e.context, e.position) in wanted]

    def _excerpts(self, at: int) -> Iterator[Excerpt]:
        n = int((self._values[at] > 0).sum())
        stored = self._context, self._position, self._tokens, self._acts, self._ranks
        for context, position, tokens, acts, ranks in zip(
            *(one[at, :n].tolist() for one in stored), strict=True
        ):
            window = zip(tokens, acts, ranks, strict=True)
            inside = [one for one in window if one[0] != NO_TOKEN]
            yield Excerpt(
                context=context,
                position=position,
                rank=ranks[BEFORE],
                activation=acts[BEFORE],
                peak=min(position, BEFORE),
                tokens=[token for token, _, _ in inside],
                active=[
                    (place, act, rank)
                    for place, (_, act, rank) in enumerate(inside)
                    if rank
                ],
            )
