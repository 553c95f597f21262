"""Evaluates many SAEs at every k on one stream of activations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sae_lens import SAE, logger
from torch import Tensor
from transformer_lens import HookedTransformer

from sae_lens_hierarchical.defaults import MEDIAN_TOKENS
from sae_lens_hierarchical.eval.falling import ErrorGrowth
from sae_lens_hierarchical.eval.inference_modes import InferenceModes
from sae_lens_hierarchical.eval.splicing import HookLocation, SplicedModel
from sae_lens_hierarchical.eval.standard_error import (
    ContextGroups,
    group_of_tokens,
    sum_by_group,
)
from sae_lens_hierarchical.eval.statistics import (
    ModeStatistics,
    RunningMoments,
    as_double,
)
from sae_lens_hierarchical.eval.table import BudgetMetrics
from sae_lens_hierarchical.ops.norms import (
    check_max_norm_ratio,
    describe_concentration,
    median,
    norms,
)

__all__ = ["ALMOST_DEAD_FREQUENCY", "sweep"]

ALMOST_DEAD_FREQUENCY = 1e-5
THRESHOLD_TOKENS = 2**16
_EMPTY = np.empty(0, dtype=np.float32)


@torch.no_grad()
def sweep(
    saes: Mapping[str, SAE[Any]],
    model: HookedTransformer,
    batches: Iterable[Tensor],
    ks: Sequence[int],
    *,
    ce_batches: int | None = None,
    jumprelu: bool = False,
    max_norm_ratio: float | None = None,
    progress: Callable[[], object] | None = None,
) -> list[BudgetMetrics]:
    """Evaluate SAEs at each k on the same tokens.

    The model runs once a batch, each SAE encodes it once for all k, and the memory that
    statistics take does not grow with the tokens. Special tokens (BOS and the like),
    and positions and tokens that an SAE was not trained on (``seqpos_slice``, a list of
    ``exclude_special_tokens`` and ``max_norm`` in its metadata), keep their own
    activations and are not evaluated.

    Every SAE is evaluated with the k largest features of each token. Those of a
    JumpReLU, gated or standard SAE are the largest of its active features; the one
    threshold of a BatchTopK or Matryoshka SAE stands for the k that it was trained at,
    and does not bound others. These SAEs are evaluated as they are, too.

    Args:
        saes: HierarchicalTopK, TopK, JumpReLU, gated or standard SAEs by name; their
            metadata name the hook.
        model: The language model that they were trained on.
        batches: Contexts, [n, context], int64, such as ``tokens.split(16)``.
        ks: Strictly increasing numbers of features. Each SAE is also evaluated at the
            k that it was trained at, which the paper's figures mark.
        ce_batches: On how many of the batches, the first ones, to run the model with
            each SAE's output for each k, which takes most of the time; default all.
        jumprelu: Whether to evaluate HierarchicalTopK, TopK and BatchTopK SAEs with one
            threshold for all features as well (B.5), at every k up to the one they were
            trained at. HierarchicalTopK SAEs were trained with thresholds; those of the
            others are calibrated on the first 65,536 tokens.
        max_norm_ratio: Evaluate on no token whose norm is above this many times the
            median norm of the first 16,384 tokens; ``inf`` for all tokens, and None for
            each SAE's own ``max_norm``.
        progress: Called after each batch of each SAE.

    Returns:
        For each SAE its metrics by activation and ascending k.

    Raises:
        ValueError: If ``ks`` does not fit, an SAE is of another kind, or there are no
            different tokens to evaluate one on.
    """
    evaluations = [_Evaluation(name, sae, ks) for name, sae in saes.items()]
    for one in evaluations:
        one.location.check_is_of(model, one.name)
    if max_norm_ratio is not None:
        first, batches = _split(batches, MEDIAN_TOKENS)
        limits = _limits(model, first, evaluations, max_norm_ratio)
        for one in evaluations:
            limit = limits[one.location]
            one.location = one.location._replace(max_norm=limit)
        batches = itertools.chain(first, batches)
    inputs = {one.location: _Inputs(one.sae.cfg.d_in) for one in evaluations}
    if jumprelu:
        first, batches = _split(batches, THRESHOLD_TOKENS)
        x = [SplicedModel(model, batch, inputs, to_logits=False).x for batch in first]
        for one in evaluations:
            one.modes.calibrate(by_location[one.location] for by_location in x)
        del x
        batches = itertools.chain(first, batches)
    contexts = 0
    for n, batch in enumerate(batches):
        to_logits = ce_batches is None or n < ce_batches
        spliced = SplicedModel(model, batch, inputs, to_logits=to_logits)
        for one in evaluations:
            one.check_d_in(spliced)
        groups = {
            location: group_of_tokens(spliced.keep[location], contexts)
            for location in inputs
        }
        contexts += len(batch)
        for location, at in inputs.items():
            at.add(spliced, location, groups[location])
        for one in evaluations:
            one.add(spliced, groups[one.location], jumprelu=jumprelu)
            if progress is not None:
                progress()
    for one in evaluations:
        x = inputs[one.location].x
        # Of one token, or of equal ones, there is no variance to explain.
        if not x.count or not x.variance():
            raise ValueError(
                "batches must hold different tokens that are not special and that "
                f"{one.name} was trained on (seqpos_slice, exclude_special_tokens, "
                f"max_norm), and have {'only one' if x.count else 'none'}"
            )
    for location, at in inputs.items():
        sentence = describe_concentration(torch.cat(at.norms), location.hook_name)
        if sentence is not None:
            logger.warning(sentence)
    rows: list[BudgetMetrics] = []
    for one in evaluations:
        of_it = list(one.rows(inputs[one.location]))
        one.warn_if_falling(of_it)
        rows += of_it
    return rows


def _limits(
    model: HookedTransformer,
    batches: Sequence[Tensor],
    evaluations: Sequence[_Evaluation],
    ratio: float,
) -> dict[HookLocation, float | None]:
    """Return the largest norm to evaluate on at each location."""
    if ratio == math.inf:
        return dict.fromkeys(one.location for one in evaluations)
    ratio = check_max_norm_ratio(ratio)
    found: dict[HookLocation, list[Tensor]] = {}
    unlimited = {
        one.location: one.location._replace(max_norm=None) for one in evaluations
    }
    for batch in batches:
        x = SplicedModel(model, batch, {*unlimited.values()}, to_logits=False).x
        for location, all_tokens in unlimited.items():
            found.setdefault(location, []).append(norms(x[all_tokens]).cpu())
    return {
        location: ratio * median(torch.cat(parts)) for location, parts in found.items()
    }


def _split(
    batches: Iterable[Tensor], tokens: int
) -> tuple[list[Tensor], Iterator[Tensor]]:
    """Return the first batches that have so many tokens, and the rest."""
    rest, first, count = iter(batches), [], 0
    while count < tokens and (batch := next(rest, None)) is not None:
        first.append(batch)
        count += batch.numel()
    return first, rest


class _Inputs:
    """Running statistics of the model's own activations at one location.

    Attributes:
        x: The moments of the activations.
        groups: Those in each group of contexts.
        norms: The norms of the first tokens, for the warning about a few of them.
        excluded_tokens: How many tokens were not evaluated.
        outlier_tokens: How many of these for their norms alone.
        ce_tokens: On how many the model was run to its logits.
        loss_clean: Their summed next-token loss, nats.
        loss_zeroed: The same with zeros in place of the activations.
    """

    def __init__(self, d_in: int) -> None:
        self.x = RunningMoments(d_in)
        self.groups = ContextGroups(d_in)
        self.norms: list[Tensor] = []
        self.excluded_tokens = self.outlier_tokens = self.ce_tokens = 0
        self.loss_clean = self.loss_zeroed = 0.0

    def add(
        self, spliced: SplicedModel, location: HookLocation, groups: Tensor
    ) -> None:
        x = spliced.x[location]
        if self.x.count < THRESHOLD_TOKENS:
            self.norms.append(norms(x).cpu())
        self.x.add(x)
        self.groups.add(x, groups)
        self.outlier_tokens += spliced.outliers[location]
        self.excluded_tokens += spliced.batch.numel() - len(x)
        if spliced.clean_logits is not None:
            zeroed = spliced.logits(location, torch.zeros_like(x))
            self.loss_zeroed += spliced.loss_and_kl_div(location, zeroed)[0]
            clean = spliced.clean_logits
            self.loss_clean += spliced.loss_and_kl_div(location, clean)[0]
            self.ce_tokens += len(x)


class _Evaluation:
    """The evaluation of one SAE in all its inference modes."""

    def __init__(self, name: str, sae: SAE[Any], ks: Sequence[int]) -> None:
        self.name, self.sae = name, sae
        self.location = HookLocation.of(sae)
        self.modes = InferenceModes(sae, ks)
        self.statistics: dict[tuple[str, int | None], ModeStatistics] = {}
        self._squared_errors: dict[tuple[str, int | None], Tensor] = {}
        self._growth = ErrorGrowth()

    def check_d_in(self, spliced: SplicedModel) -> None:
        width, d_in = spliced.x[self.location].shape[1], self.sae.cfg.d_in
        if width != d_in:
            raise ValueError(
                f"{self.name} has d_in = {d_in}, but {self.location.hook_name} is "
                f"{width} wide"
            )

    def add(self, spliced: SplicedModel, groups: Tensor, *, jumprelu: bool) -> None:
        activations = spliced.x[self.location]
        x = activations.to(self.sae.W_dec)
        for activation, k, x_hat, *sums in self.modes.run(x, jumprelu=jumprelu):
            if (activation, k) not in self.statistics:
                empty = ModeStatistics(self.sae.cfg.d_in, self.sae.cfg.d_sae)
                self.statistics[activation, k] = empty
            statistics = self.statistics[activation, k]
            own = activations.to(x_hat.device).float()
            statistics.add(own, x_hat.float(), *sums)
            squared = as_double(x_hat.float() - own).pow(2).sum(dim=-1)
            by_group = sum_by_group(squared, groups)
            before = self._squared_errors.get((activation, k), 0)
            self._squared_errors[activation, k] = before + by_group
            if activation == "topk" and k is not None:
                self._growth.add(k, squared)
            if spliced.clean_logits is not None:
                logits = spliced.logits(self.location, x_hat)
                loss, kl_div = spliced.loss_and_kl_div(self.location, logits)
                statistics.loss += loss
                statistics.kl_div += kl_div

    def warn_if_falling(self, rows: Sequence[BudgetMetrics]) -> None:
        """Warn where explained variance falls with k, up to the one trained at."""
        found = self._growth.worst(self.modes.trained_k or 0)
        if found is None:
            return
        ev = {row.k: row.explained_variance for row in rows if row.activation == "topk"}
        before, k = found
        logger.warning(
            f"{self.name}: explained variance falls from {ev[before]:.3f} at k = "
            f"{before} to {ev[k]:.3f} at k = {k}, by more than its noise, though more "
            "features should not do worse: if a few tokens of very large norm decide "
            "it, max_norm_ratio (--max-norm-ratio 3.5, say) leaves them out"
        )

    def rows(self, inputs: _Inputs) -> Iterator[BudgetMetrics]:
        tokens, variance = inputs.x.count, inputs.x.variance()
        ce_tokens = inputs.ce_tokens
        recoverable = inputs.loss_zeroed - inputs.loss_clean
        trained_k = self.modes.trained_k
        if trained_k is None:
            firings = self.statistics["own", None].firings
            trained_k = round(int(firings.sum()) / tokens)
        cosines = self.modes.cosines.mean().float().numpy()
        for (activation, k), statistics in self.statistics.items():
            firings, mse = statistics.firings, statistics.error.mean_square()
            recovered = inputs.loss_zeroed - statistics.loss
            squared_acts = statistics.squared_acts / firings
            yield BudgetMetrics(
                sae=self.name,
                architecture=self.modes.architecture,
                trained_k=trained_k,
                activation=activation,
                k=trained_k if k is None else k,
                tokens=tokens,
                ce_tokens=ce_tokens,
                excluded_tokens=inputs.excluded_tokens,
                outlier_tokens=inputs.outlier_tokens,
                max_norm=self.location.max_norm,
                l0=int(firings.sum()) / tokens,
                explained_variance=1 - mse / variance,
                explained_variance_se=inputs.groups.standard_error(
                    self._squared_errors[activation, k]
                ),
                fvu_centered=statistics.error.variance() / variance,
                mse=mse,
                cosine_similarity=statistics.cosine / tokens,
                ce_loss_score=recovered / recoverable if recoverable else math.nan,
                kl_div=statistics.kl_div / ce_tokens if ce_tokens else math.nan,
                dead_features=int((firings == 0).sum()),
                almost_dead_features=int(
                    (firings < ALMOST_DEAD_FREQUENCY * tokens).sum()
                ),
                frequency=(firings / tokens).float().numpy(),
                mean_squared_activation=squared_acts.float().numpy(),
                cosine_to_next=cosines[: k - 1]
                if activation == "topk" and k is not None
                else _EMPTY,
            )
