"""How good SAEs are at each k: many SAEs and budgets from one stream of activations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sae_lens import SAE
from torch import Tensor
from transformer_lens import HookedTransformer

from sae_lens_hierarchical.eval.model_run import ModelRun, Site
from sae_lens_hierarchical.eval.readings import Reader
from sae_lens_hierarchical.eval.statistics import Moments, Outputs
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
    """Measure SAEs at each k on the same tokens.

    The model runs once a batch, each SAE encodes it once for all k, and the memory that
    statistics take does not grow with the tokens. Special tokens (BOS and the like),
    and positions and tokens that a SAE was not trained on (``seqpos_slice`` and a list
    of ``exclude_special_tokens`` in its metadata), keep their own activations and are
    not counted.

    Every SAE is read by its k largest features. Of a JumpReLU, gated or standard SAE
    these are the largest of those that it lets through; the one threshold of a
    BatchTopK or Matryoshka SAE stands for the k that it was trained at, and does not
    bound others. These SAEs are measured as they are as well.

    Args:
        saes: HierarchicalTopK, TopK, JumpReLU, gated or standard SAEs by name; their
            metadata name the hook.
        model: The language model that they were trained on.
        batches: Contexts, [n, context], int64, such as ``tokens.split(16)``.
        ks: Strictly increasing numbers of features. Each SAE is also read at the k that
            it was trained at, which the paper's figures mark.
        ce_batches: On how many of the batches, the first ones, to run the model with
            each SAE's output for each k, which takes most of the time; default all.
        jumprelu: Whether to read HierarchicalTopK, TopK and BatchTopK SAEs by a
            threshold as well (B.5), at every k up to the one they were trained at. For
            all but HierarchicalTopK SAEs, which were trained with thresholds, the first
            65,536 tokens set them.
        progress: Called after each batch of each SAE.

    Returns:
        For each SAE its metrics by activation and ascending k.

    Raises:
        ValueError: If ``ks`` does not fit, a SAE is of another kind, or there are no
            tokens to measure one on.
    """
    subjects = [_Subject(name, sae, ks) for name, sae in saes.items()]
    for subject in subjects:
        if (hook_name := subject.site.hook_name) not in model.hook_dict:
            raise ValueError(
                f"{subject.name}'s hook_name {hook_name!r} is no hook of the model"
            )
    inputs = {subject.site: Moments(subject.sae.cfg.d_in) for subject in subjects}
    if jumprelu:
        first, batches = _split(batches, THRESHOLD_TOKENS)
        x = [ModelRun(model, batch, inputs, to_logits=False).x for batch in first]
        for subject in subjects:
            subject.reader.calibrate(one[subject.site] for one in x)
        del x
        batches = itertools.chain(first, batches)
    totals = {site: _Totals() for site in inputs}
    for n, batch in enumerate(batches):
        with_model = ce_batches is None or n < ce_batches
        run = ModelRun(model, batch, inputs, to_logits=with_model)
        for subject in subjects:
            subject.check_d_in(run)
        for site, x in run.x.items():
            inputs[site].add(x)
            totals[site].excluded_tokens += batch.numel() - len(x)
            if run.clean is not None:
                zeroed = run.logits(site, torch.zeros_like(x))
                totals[site].loss_zeroed += run.loss_and_kl_div(site, zeroed)[0]
                totals[site].loss_clean += run.loss_and_kl_div(site, run.clean)[0]
                totals[site].ce_tokens += len(x)
        for subject in subjects:
            subject.add(run, jumprelu=jumprelu)
            if progress is not None:
                progress()
    for subject in subjects:
        if not inputs[subject.site].count:
            raise ValueError(
                "batches must hold tokens that are not special and that "
                f"{subject.name} was trained on (seqpos_slice, exclude_special_tokens)"
                ", and have none"
            )
    return [
        row
        for subject in subjects
        for row in subject.rows(inputs[subject.site], totals[subject.site])
    ]


def _split(
    batches: Iterable[Tensor], tokens: int
) -> tuple[list[Tensor], Iterator[Tensor]]:
    """Return the first batches that have so many tokens, and the rest."""
    rest, first, count = iter(batches), [], 0
    while count < tokens and (batch := next(rest, None)) is not None:
        first.append(batch)
        count += batch.numel()
    return first, rest


@dataclass
class _Totals:
    """What is summed over the batches of one site, besides its activations."""

    excluded_tokens: int = 0
    ce_tokens: int = 0
    loss_clean: float = 0.0
    loss_zeroed: float = 0.0


class _Subject:
    """A SAE under measurement."""

    def __init__(self, name: str, sae: SAE[Any], ks: Sequence[int]) -> None:
        self.name, self.sae = name, sae
        self.site = Site.of(sae)
        self.reader = Reader(sae, ks)
        self.outputs: dict[tuple[str, int | None], Outputs] = {}

    def check_d_in(self, run: ModelRun) -> None:
        width, d_in = run.x[self.site].shape[1], self.sae.cfg.d_in
        if width != d_in:
            raise ValueError(
                f"{self.name} has d_in = {d_in}, but {self.site.hook_name} is {width} "
                "wide"
            )

    def add(self, run: ModelRun, *, jumprelu: bool) -> None:
        activations = run.x[self.site]
        x = activations.to(self.sae.W_dec)
        for activation, k, x_hat, *sums in self.reader.read(x, jumprelu=jumprelu):
            empty = Outputs(self.sae.cfg.d_in, self.sae.cfg.d_sae)
            outputs = self.outputs.setdefault((activation, k), empty)
            outputs.add(activations.to(x_hat.device).float(), x_hat.float(), *sums)
            if run.clean is not None:
                logits = run.logits(self.site, x_hat)
                loss, kl_div = run.loss_and_kl_div(self.site, logits)
                outputs.loss += loss
                outputs.kl_div += kl_div

    def rows(self, inputs: Moments, totals: _Totals) -> Iterator[BudgetMetrics]:
        tokens, variance = inputs.count, inputs.variance()
        ce_tokens = totals.ce_tokens
        to_win = totals.loss_zeroed - totals.loss_clean
        trained_k = self.reader.trained_k
        if trained_k is None:
            trained_k = round(int(self.outputs["own", None].firings.sum()) / tokens)
        cosines = self.reader.cosines.mean().float().numpy()
        for (activation, k), outputs in self.outputs.items():
            firings = outputs.firings
            won_back = totals.loss_zeroed - outputs.loss
            yield BudgetMetrics(
                sae=self.name,
                architecture=self.reader.architecture,
                trained_k=trained_k,
                activation=activation,
                k=trained_k if k is None else k,
                tokens=tokens,
                ce_tokens=ce_tokens,
                excluded_tokens=totals.excluded_tokens,
                l0=int(firings.sum()) / tokens,
                explained_variance=1 - outputs.error.mean_square() / variance,
                fvu=outputs.error.variance() / variance,
                mse=outputs.error.mean_square(),
                cosine_similarity=outputs.cosine / tokens,
                ce_loss_score=won_back / to_win if to_win else math.nan,
                kl_div=outputs.kl_div / ce_tokens if ce_tokens else math.nan,
                dead_features=int((firings == 0).sum()),
                almost_dead_features=int(
                    (firings < ALMOST_DEAD_FREQUENCY * tokens).sum()
                ),
                frequency=(firings / tokens).float().numpy(),
                mean_squared_activation=(outputs.squares / firings).float().numpy(),
                cosine_to_next=cosines[: k - 1]
                if activation == "topk" and k is not None
                else _EMPTY,
            )
