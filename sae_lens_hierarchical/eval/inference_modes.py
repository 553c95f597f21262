"""The inference modes of an SAE: top-k at any k, one threshold, or its own."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from sae_lens import SAE, GatedSAE, JumpReLUSAE, StandardSAE, TopKSAE
from torch import Tensor

from sae_lens_hierarchical.eval.statistics import NextRankCosines, as_double
from sae_lens_hierarchical.ops.budgets import check_ks
from sae_lens_hierarchical.saes import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    calibrate_thresholds,
)
from sae_lens_hierarchical.saes.assemble import sae_of_tensors, shared_settings
from sae_lens_hierarchical.saes.kinds import is_batchtopk, trained_k
from sae_lens_hierarchical.saes.normalization import normalize
from sae_lens_hierarchical.saes.ranked import decode_prefixes, rank
from sae_lens_hierarchical.saes.thresholds import above_threshold

__all__ = ["InferenceModes", "ModeOutput", "check_kind", "flat"]


class ModeOutput(NamedTuple):
    """An SAE's output for one batch in one inference mode, with sums by feature.

    Attributes:
        activation: ``topk``, ``jumprelu`` or ``own``, as in ``BudgetMetrics``.
        k: The number of features; None for ``own``.
        x_hat: The reconstruction, [tokens, d_in].
        firings: On how many tokens each feature was active, [d_sae], int64.
        squared_acts: The summed squares of each feature's activation times its decoder
            row's norm, [d_sae], float64.
    """

    activation: str
    k: int | None
    x_hat: Tensor
    firings: Tensor
    squared_acts: Tensor


def check_kind(sae: SAE[Any]) -> None:
    """Raise a ValueError if an SAE is of a kind without inference modes here."""
    # A subclass may choose features otherwise, as AbsTopK does.
    known = (TopKSAE, JumpReLUSAE, GatedSAE, StandardSAE)
    if not isinstance(sae, HierarchicalTopKSAE) and type(sae) not in known:
        raise ValueError(f"sweep does not know SAEs of type {type(sae).__name__}")


class InferenceModes:
    """Runs one SAE of any kind in every inference mode that it has.

    Attributes:
        sae: The SAE as it was given.
        ks: The k to evaluate, among them the one that it was trained at.
        architecture: As in ``BudgetMetrics``.
        cosines: The running cosines of the features of all batches.

    Raises:
        ValueError: If the SAE is of an unknown kind, or ``ks`` does not fit it.
    """

    def __init__(self, sae: SAE[Any], ks: Sequence[int]) -> None:
        check_kind(sae)
        ks = check_ks("ks", ks, sae.cfg.d_sae)
        self.sae = sae
        self.ks = sorted({*ks, self.trained_k or ks[-1]})
        self.architecture = sae.cfg.architecture()
        self.cosines = NextRankCosines(self.ks[-1] - 1)
        # The same weights as an SAE that runs at any k, where there is such a one.
        self._any_k: SAE[Any] = sae
        if isinstance(sae, TopKSAE) and not isinstance(sae, HierarchicalTopKSAE):
            self._any_k = HierarchicalTopKSAE.from_topk(sae)
        elif isinstance(sae, JumpReLUSAE) and is_batchtopk(sae):
            self.architecture = "batchtopk"
            self._any_k = _without_threshold(sae, self.trained_k or self.ks[-1])

    @property
    def trained_k(self) -> int | None:
        """The k that the SAE was trained at; None where it does not say."""
        return trained_k(self.sae)

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Calibrate the thresholds of an SAE that was not trained with any.

        Args:
            batches: The model's activations, [tokens, d_in] each.

        Raises:
            ValueError: If it is a HierarchicalTopK SAE whose checkpoint has none.
        """
        if isinstance(self.sae, HierarchicalTopKSAE):
            self.sae.threshold(self.sae.k_max)
        elif isinstance(self._any_k, HierarchicalTopKSAE):
            with flat(self._any_k):
                calibrate_thresholds(
                    self._any_k, (x.to(self.sae.W_dec) for x in batches)
                )

    def run(self, x: Tensor, *, jumprelu: bool) -> Iterator[ModeOutput]:
        """Yield the output in each mode for a batch, [tokens, d_in]: top-k first.

        Args:
            x: The model's activations.
            jumprelu: Whether to run with one threshold for all features as well.
        """
        with flat(self.sae), flat(self._any_k):
            yield from self._run_topk(x)
            if jumprelu and isinstance(self._any_k, HierarchicalTopKSAE):
                yield from _run_jumprelu(self._any_k, x, self.ks)
            if not isinstance(self.sae, TopKSAE):
                yield _decode_dense("own", None, self.sae, self.sae.encode(x))

    def _run_topk(self, x: Tensor) -> Iterator[ModeOutput]:
        sae = self._any_k
        if isinstance(sae, HierarchicalTopKSAE):
            ranked, output_map = sae.rank_features(x, self.ks[-1])
        else:
            ranked = rank(sae.encode(x), self.ks[-1])
            _, output_map = normalize(x, sae.cfg.normalize_activations)
        outputs = decode_prefixes(sae, ranked, self.ks, output_map)
        self.cosines.add(sae.W_dec, ranked)
        firings = torch.zeros(sae.cfg.d_sae, dtype=torch.int64, device=x.device)
        norms = _norms(sae)
        squared_acts = as_double(torch.zeros_like(norms))
        for before, k in pairwise([0, *self.ks]):
            values, indices = (part[:, before:k].flatten() for part in ranked)
            firings.index_add_(0, indices, (values > 0).long())
            scaled = as_double(values * norms[indices])
            squared_acts.index_add_(0, indices.to(squared_acts.device), scaled**2)
            yield ModeOutput("topk", k, next(outputs), firings, squared_acts)


def _run_jumprelu(
    sae: HierarchicalTopKSAE, x: Tensor, ks: Sequence[int]
) -> Iterator[ModeOutput]:
    hidden_pre = sae.hidden_pre(x)
    for k in ks:
        if k <= sae.k_max:
            sae.threshold(k)  # which raises where it is unknown
            acts = above_threshold(hidden_pre, sae.thresholds[k - 1 : k])
            yield _decode_dense("jumprelu", k, sae, acts)


def _decode_dense(
    activation: str, k: int | None, sae: SAE[Any], acts: Tensor
) -> ModeOutput:
    firings = (acts > 0).sum(dim=0)
    squared_acts = as_double(acts * _norms(sae)).pow(2).sum(dim=0)
    return ModeOutput(activation, k, sae.decode(acts), firings, squared_acts)


def _norms(sae: SAE[Any]) -> Tensor:
    """Return what makes activations l_i into l_i ‖e_i‖, [d_sae]."""
    norms = sae.W_dec.norm(dim=-1)
    rescaled = getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)
    return torch.ones_like(norms) if rescaled else norms


def _without_threshold(sae: JumpReLUSAE, k_max: int) -> HierarchicalTopKSAE:
    """Return an SAE with the very weights of a BatchTopK SAE, which runs at any k."""
    cfg = HierarchicalTopKSAEConfig(
        **shared_settings(sae), k_max=k_max, rescale_acts_by_decoder_norm=False
    )
    weights = {n: p for n, p in sae.state_dict().items() if n != "threshold"}
    return sae_of_tensors(HierarchicalTopKSAE, cfg, weights)


@contextmanager
def flat(sae: SAE[Any]) -> Generator[None]:
    """Let an SAE of hook_z take [tokens, heads · d_head] within a ``with`` block."""
    reshaping = sae.hook_z_reshaping_mode
    sae.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        if reshaping:
            sae.turn_on_forward_pass_hook_z_reshaping()
