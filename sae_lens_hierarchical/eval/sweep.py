"""Evaluates many SAEs at every k on one stream of activations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from torch import Tensor
from transformer_lens import HookedTransformer

from sae_lens_hierarchical.eval.inference_modes import InferenceModes
from sae_lens_hierarchical.eval.splicing import HookLocation, SplicedModel
from sae_lens_hierarchical.eval.statistics import ModeStatistics, RunningMoments
from sae_lens_hierarchical.eval.table import BudgetMetrics

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
    progress: Callable[[], object] | None = None,
) -> list[BudgetMetrics]:
    """Evaluate SAEs at each k on the same tokens.

    The model runs once a batch, each SAE encodes it once for all k, and the memory that
    statistics take does not grow with the tokens. Special tokens (BOS and the like),
    and positions and tokens that an SAE was not trained on (``seqpos_slice`` and a list
    of ``exclude_special_tokens`` in its metadata), keep their own activations and are
    not evaluated.

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
        progress: Called after each batch of each SAE.

    Returns:
        For each SAE its metrics by activation and ascending k.

    Raises:
        ValueError: If ``ks`` does not fit, an SAE is of another kind, or there are no
            tokens to evaluate one on.
    """
    evaluations = [_Evaluation(name, sae, ks) for name, sae in saes.items()]
    for one in evaluations:
        if (hook_name := one.location.hook_name) not in model.hook_dict:
            raise ValueError(
                f"{one.name}'s hook_name {hook_name!r} is no hook of the model"
            )
    inputs = {one.location: _Inputs(one.sae.cfg.d_in) for one in evaluations}
    if jumprelu:
        first, batches = _split(batches, THRESHOLD_TOKENS)
        x = [SplicedModel(model, batch, inputs, to_logits=False).x for batch in first]
        for one in evaluations:
            one.modes.calibrate(by_location[one.location] for by_location in x)
        del x
        batches = itertools.chain(first, batches)
    for n, batch in enumerate(batches):
        to_logits = ce_batches is None or n < ce_batches
        spliced = SplicedModel(model, batch, inputs, to_logits=to_logits)
        for one in evaluations:
            one.check_d_in(spliced)
        for location, at in inputs.items():
            at.add(spliced, location)
        for one in evaluations:
            one.add(spliced, jumprelu=jumprelu)
            if progress is not None:
                progress()
    for one in evaluations:
        if not inputs[one.location].x.count:
            raise ValueError(
                "batches must hold tokens that are not special and that "
                f"{one.name} was trained on (seqpos_slice, exclude_special_tokens)"
                ", and have none"
            )
    return [row for one in evaluations for row in one.rows(inputs[one.location])]


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
        excluded_tokens: How many tokens were not evaluated.
        ce_tokens: On how many the model was run to its logits.
        loss_clean: Their summed next-token loss, nats.
        loss_zeroed: The same with zeros in place of the activations.
    """

    def __init__(self, d_in: int) -> None:
        self.x = RunningMoments(d_in)
        self.excluded_tokens = self.ce_tokens = 0
        self.loss_clean = self.loss_zeroed = 0.0

    def add(self, spliced: SplicedModel, location: HookLocation) -> None:
        x = spliced.x[location]
        self.x.add(x)
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

    def check_d_in(self, spliced: SplicedModel) -> None:
        width, d_in = spliced.x[self.location].shape[1], self.sae.cfg.d_in
        if width != d_in:
            raise ValueError(
                f"{self.name} has d_in = {d_in}, but {self.location.hook_name} is "
                f"{width} wide"
            )

    def add(self, spliced: SplicedModel, *, jumprelu: bool) -> None:
        activations = spliced.x[self.location]
        x = activations.to(self.sae.W_dec)
        for activation, k, x_hat, *sums in self.modes.run(x, jumprelu=jumprelu):
            empty = ModeStatistics(self.sae.cfg.d_in, self.sae.cfg.d_sae)
            statistics = self.statistics.setdefault((activation, k), empty)
            statistics.add(activations.to(x_hat.device).float(), x_hat.float(), *sums)
            if spliced.clean_logits is not None:
                logits = spliced.logits(self.location, x_hat)
                loss, kl_div = spliced.loss_and_kl_div(self.location, logits)
                statistics.loss += loss
                statistics.kl_div += kl_div

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
                l0=int(firings.sum()) / tokens,
                explained_variance=1 - mse / variance,
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
