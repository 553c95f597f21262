"""Measures features over a stream of tokens, in memory that does not grow with it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor
from transformer_lens import HookedTransformer

from sae_lens_hierarchical.defaults import TOP_FEATURES
from sae_lens_hierarchical.features.companions import Companions
from sae_lens_hierarchical.features.contexts import Excerpt, TopContexts
from sae_lens_hierarchical.features.histograms import Histograms
from sae_lens_hierarchical.features.logits import (
    LogitEffects,
    logit_effects,
    why_no_logits,
)
from sae_lens_hierarchical.features.ranked_batches import (
    RankedBatch,
    ranked_batches,
    with_ranks,
)
from sae_lens_hierarchical.features.table import (
    Context,
    FeatureStatistics,
    FeatureTable,
)
from sae_lens_hierarchical.features.tokens import token_texts
from sae_lens_hierarchical.ops.budgets import as_integer

__all__ = ["check_features", "collect_features", "random_features"]

MOST_FEATURES = 2048  # on one page, and in memory
SELECTION_TOKENS = 2**16  # the first ones, on which the largest features are found
_STRONGEST, _OF_GROUP = 10, 3  # contexts at each k, and at least of each range of ranks
_LOGITS, _COMPANIONS = 10, 8


def random_features(d_sae: int, n: int, seed: int) -> list[int]:
    """Return ``n`` features of all, each as likely as any other, ascending.

    Raises:
        ValueError: If ``n`` does not fit.
    """
    _check_number("random", n, d_sae)
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(d_sae, generator=generator)[:n].tolist())


def check_features(features: Sequence[int] | None, top: int, d_sae: int) -> None:
    """Check which features are asked for.

    Args:
        features: Which; None for the ``top`` ones.
        top: How many of the largest, where ``features`` is None.
        d_sae: The SAE's.

    Raises:
        ValueError: If a feature is none of the SAE's, one is named twice, or there are
            too few or too many for a page.
    """
    if features is None:
        _check_number("top", top, d_sae)
        return
    _check_number("the number of features", len(features), d_sae)
    for feature in features:
        index = as_integer(feature)
        if index is None or not 0 <= index < d_sae:
            raise ValueError(
                f"features must be integers from 0 to d_sae - 1 = {d_sae - 1}, "
                f"got {feature!r}"
            )
    if len(set(features)) < len(features):
        raise ValueError(f"features must name each once, got {list(features)}")


def collect_features(
    sae: SAE[Any],
    model: HookedTransformer,
    batches: Iterable[Tensor],
    features: Sequence[int] | None = None,
    *,
    top: int = TOP_FEATURES,
    name: str = "the SAE",
) -> FeatureTable:
    """Measure features of an SAE over a stream of tokens, in one pass.

    Args:
        sae: A HierarchicalTopK or TopK SAE. Ranks go up to K: ``k_max``, or its k. Its
            metadata name the hook.
        model: The language model that it was trained on.
        batches: Contexts, [n, context], int64, such as ``tokens.split(16)``. They are
            read once.
        features: Which features; default the ``top`` ones.
        top: How many features: those with the largest summed activation on the first
            65,536 tokens, largest first.
        name: What the page and errors call the SAE.

    Returns:
        The features' statistics.

    Raises:
        ValueError: If the SAE is of another kind or not of this model, a feature is
            none of it or named twice, there are too many for a page, or the batches
            have no tokens to evaluate the SAE on.
    """
    ranked_sae = with_ranks(name, sae)
    check_features(features, top, sae.cfg.d_sae)
    chosen = "as they were named"
    stream = ranked_batches(name, ranked_sae, model, batches)
    if features is None:
        chosen = f"the {top} with the largest summed activation"
        features, stream = _largest(stream, sae.cfg.d_sae, top)
    features = [int(feature) for feature in features]  # JSON knows no NumPy
    collector = _Collector(features, sae.cfg.d_sae, ranked_sae.k_max)
    for batch in stream:
        collector.add(batch)
    if not collector.tokens:
        raise ValueError(
            f"batches must hold tokens that are not special and that {name} was "
            "trained on (seqpos_slice, exclude_special_tokens, max_norm), and have none"
        )
    no_logits = why_no_logits(model, str(sae.cfg.metadata.hook_name), sae.cfg.d_in)
    effects: list[tuple[LogitEffects, LogitEffects]] | None = None
    if no_logits is None:
        effects = list(logit_effects(model, sae.W_dec[features], _LOGITS))
    return FeatureTable(
        sae=name,
        architecture=sae.cfg.architecture(),
        d_sae=sae.cfg.d_sae,
        ks=collector.ks,
        tokens=collector.tokens,
        chosen=chosen,
        no_logits=no_logits,
        features=collector.statistics(effects, model.tokenizer),
        provenance={},
    )


def _check_number(name: str, n: int, d_sae: int) -> None:
    most = min(d_sae, MOST_FEATURES)
    if as_integer(n) is None or not 1 <= n <= most:
        raise ValueError(f"{name} must be an integer from 1 to {most}, got {n!r}")


def _largest(
    stream: Iterator[RankedBatch], d_sae: int, n: int
) -> tuple[list[int], Iterator[RankedBatch]]:
    """Return the features with the largest summed activation, and the whole stream."""
    sums, first, tokens = torch.zeros(d_sae, dtype=torch.float64), [], 0
    while tokens < SELECTION_TOKENS and (batch := next(stream, None)) is not None:
        first.append(batch)
        tokens += len(batch.positions)
        values = batch.values.double().flatten()
        sums.index_add_(0, batch.indices.flatten(), values)
    order = sums.argsort(descending=True, stable=True)[:n]
    return order.tolist(), itertools.chain(first, stream)


class _Collector:
    """Running statistics of the features that were chosen.

    Attributes:
        ks: Powers of two up to K, and K.
        tokens: How many were added.
    """

    def __init__(self, features: Sequence[int], d_sae: int, k: int) -> None:
        rows = len(features)
        self._features, self._k = features, k
        self.ks = sorted({*(2**i for i in range(k.bit_length())), k})
        self.tokens = 0
        self._row_of = torch.full((d_sae,), -1)
        self._row_of[torch.tensor(features)] = torch.arange(rows)
        self._all_firings = torch.zeros(d_sae, dtype=torch.int64)
        self._ranks = torch.zeros(rows, k, dtype=torch.int64)
        self._sums = torch.zeros(rows, dtype=torch.float64)
        self._largest = torch.zeros(rows)
        self._histograms = Histograms(rows, len(self.ks))
        self._companions = Companions(rows, d_sae)
        self._contexts = TopContexts(rows, self.ks, _STRONGEST)

    def add(self, batch: RankedBatch) -> None:
        self.tokens += len(batch.positions)
        active = batch.values > 0
        self._all_firings += torch.bincount(
            batch.indices[active], minlength=len(self._all_firings)
        )
        rows = self._row_of[batch.indices]
        token, rank = ((rows >= 0) & active).nonzero(as_tuple=True)
        row, value = rows[token, rank], batch.values[token, rank]
        firings = torch.bincount(row * self._k + rank, minlength=self._ranks.numel())
        self._ranks += firings.view_as(self._ranks)
        self._sums.index_add_(0, row, value.double())
        self._largest.scatter_reduce_(0, row, value, "amax")
        group = torch.bucketize(rank + 1, torch.tensor(self.ks))
        self._histograms.add(row, group, value)
        self._companions.add(row, token, rank, batch.values, batch.indices)
        self._contexts.add(row, token, rank, batch)

    def statistics(
        self, effects: list[tuple[LogitEffects, LogitEffects]] | None, tokenizer: Any
    ) -> list[FeatureStatistics]:
        """Return what was measured.

        Args:
            effects: Each feature's tokens that it promotes and suppresses.
            tokenizer: The language model's.
        """
        rows = range(len(self._features))
        excerpts = [self._contexts.of(row, _STRONGEST, _OF_GROUP) for row in rows]
        shown = {i for of_row in excerpts for one in of_row for i in one.tokens}
        for both in effects or ():
            shown |= {i for tokens in both for i, _ in tokens}
        texts = token_texts(tokenizer, shown)
        return [
            self._of(row, excerpts[row], effects[row] if effects else None, texts)
            for row in rows
        ]

    def _of(
        self,
        row: int,
        excerpts: list[Excerpt],
        effects: tuple[LogitEffects, LogitEffects] | None,
        texts: dict[int, str],
    ) -> FeatureStatistics:
        ranks = self._ranks[row]
        firings = int(ranks.sum())
        up_to = ranks.cumsum(0)[torch.tensor(self.ks) - 1]
        rank_sum = int((ranks * torch.arange(1, self._k + 1)).sum())
        bin_width, histograms = self._histograms.of(row)
        frequencies = self._all_firings / self.tokens
        before, after = self._companions.of(row, firings, frequencies, _COMPANIONS)
        promoted, suppressed = (
            [[(texts[i], logit) for i, logit in tokens] for tokens in effects]
            if effects is not None
            else (None, None)
        )
        return FeatureStatistics(
            feature=self._features[row],
            firings=firings,
            frequency=(up_to / self.tokens).tolist(),
            ranks=ranks.tolist(),
            mean_rank=rank_sum / firings if firings else None,
            mean_activation=float(self._sums[row]) / firings if firings else None,
            max_activation=float(self._largest[row]),
            bin_width=bin_width,
            activations=histograms,
            promoted=promoted,
            suppressed=suppressed,
            before=before,
            after=after,
            contexts=[
                Context(
                    context=one.context,
                    position=one.position,
                    rank=one.rank,
                    activation=one.activation,
                    peak=one.peak,
                    tokens=[texts[i] for i in one.tokens],
                    active=one.active,
                )
                for one in excerpts
            ],
        )
