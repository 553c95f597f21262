"""How good SAEs are at each k: many budgets from one encoding of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from sae_lens import SAE, GatedSAE, JumpReLUSAE, StandardSAE, TopKSAE
from sae_lens.util import get_special_token_ids
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from sae_lens_hierarchical.ops.budgets import check_ks
from sae_lens_hierarchical.saes import HierarchicalTopKSAE, RankedActs
from sae_lens_hierarchical.saes.ranked import decode_prefixes

__all__ = ["BudgetMetrics", "sweep"]

ALMOST_DEAD_FREQUENCY = 1e-5


@dataclass(frozen=True, kw_only=True)
class BudgetMetrics:
    """What one SAE does at one k, over all tokens but the special ones.

    Attributes:
        k: The number of features kept, the largest ones.
        tokens: How many tokens were measured.
        l0: The mean number of active features, at most k (§3.1).
        explained_variance: 1 − E‖x − x̂‖² / Var(x), as SAELens has it.
        fvu: Var(x − x̂) / Var(x) (§3.1).
        mse: E‖x − x̂‖², summed over d_in.
        cosine_similarity: The mean cosine of x and x̂.
        ce_loss_score: How much of the cross-entropy loss that zeros in place of the
            activations cost is won back by x̂: 1 is all of it.
        kl_div: KL of the model's next-token distribution with x̂ from that with x, nats.
        dead_features: Features that were active on no token.
        almost_dead_features: Features active on fewer than one token in 10⁵ (§3.5);
            these are the dead ones where fewer tokens than that were measured.
    """

    k: int
    tokens: int
    l0: float
    explained_variance: float
    fvu: float
    mse: float
    cosine_similarity: float
    ce_loss_score: float
    kl_div: float
    dead_features: int
    almost_dead_features: int


class _Moments:
    """Running mean and total variance (summed over d_in) of vectors, in float64."""

    def __init__(self, d_in: int) -> None:
        self.count = 0
        self.sum = torch.zeros(d_in, dtype=torch.float64)
        self.sum_of_squares = 0.0

    def add(self, vectors: Tensor) -> None:
        """Add vectors, [tokens, d_in]."""
        vectors = vectors.double()
        self.count += len(vectors)
        self.sum += vectors.sum(dim=0).cpu()
        self.sum_of_squares += float(vectors.pow(2).sum())

    def mean_square(self) -> float:
        return self.sum_of_squares / self.count

    def variance(self) -> float:
        return self.mean_square() - float((self.sum / self.count).pow(2).sum())


@torch.no_grad()
def sweep(
    sae: SAE[Any],
    model: HookedTransformer,
    tokens: Tensor,
    ks: Sequence[int],
    *,
    batch_size: int = 16,
    progress: str | None = None,
) -> list[BudgetMetrics]:
    """Measure a SAE at each k.

    Special tokens (BOS and the like) keep their own activations and are not counted. A
    JumpReLU, gated or standard SAE has no k of its own: of what it lets through, the k
    largest are kept. BatchTopK and Matryoshka SAEs are JumpReLU SAEs after training.

    Args:
        sae: A HierarchicalTopK, TopK, JumpReLU, gated or standard SAE; its metadata
            names the hook.
        model: The language model that it was trained on.
        tokens: Contexts, [n, context], int64.
        ks: Strictly increasing numbers of features.
        batch_size: Contexts in one forward pass of the model.
        progress: The progress bar's label; None shows no bar.

    Raises:
        ValueError: If ``ks`` does not fit, or the SAE is of another kind.
    """
    check_ks("ks", ks, sae.cfg.d_sae)
    if isinstance(sae, TopKSAE) and not isinstance(sae, HierarchicalTopKSAE):
        sae = HierarchicalTopKSAE.from_topk(sae)
    if not isinstance(sae, (HierarchicalTopKSAE, JumpReLUSAE, GatedSAE, StandardSAE)):
        raise ValueError(f"sweep does not know SAEs of type {type(sae).__name__}")
    reshaping = sae.hook_z_reshaping_mode
    sae.turn_off_forward_pass_hook_z_reshaping()
    try:
        return _sweep(sae, model, tokens, ks, batch_size, progress)
    finally:
        if reshaping:
            sae.turn_on_forward_pass_hook_z_reshaping()


def _sweep(
    sae: SAE[Any],
    model: HookedTransformer,
    tokens: Tensor,
    ks: Sequence[int],
    batch_size: int,
    progress: str | None,
) -> list[BudgetMetrics]:
    special = torch.tensor(get_special_token_ids(model.tokenizer))  # type: ignore[arg-type]
    inputs, errors = _Moments(sae.cfg.d_in), [_Moments(sae.cfg.d_in) for _ in ks]
    cosines, kls = torch.zeros(2, len(ks), dtype=torch.float64)
    firings = torch.zeros(len(ks), sae.cfg.d_sae, dtype=torch.int64)
    loss_clean, loss_zeroed = 0.0, 0.0
    losses = torch.zeros(len(ks), dtype=torch.float64)
    batches = tokens.split(batch_size)
    for batch in tqdm(batches, desc=progress, leave=False, disable=progress is None):
        run = _Run(model, batch, ~torch.isin(batch, special.to(batch.device)), sae)
        inputs.add(run.x)
        loss_clean += run.loss(run.clean)
        loss_zeroed += run.loss(run.log_probs(torch.zeros_like(run.x)))
        ranked = _encode(sae, run.x.to(sae.device), ks[-1])
        _count_firings(firings, ranked, ks)
        for n, output in enumerate(decode_prefixes(sae, ranked, ks)):
            x_hat = output.to(run.x)
            errors[n].add(x_hat - run.x)
            cosines[n] += F.cosine_similarity(x_hat, run.x).sum().cpu()
            log_probs = run.log_probs(x_hat)
            losses[n] += run.loss(log_probs)
            kls[n] += run.kl_div(log_probs)

    variance = inputs.variance()
    return [
        BudgetMetrics(
            k=k,
            tokens=inputs.count,
            l0=int(firings[n].sum()) / inputs.count,
            explained_variance=1 - errors[n].mean_square() / variance,
            fvu=errors[n].variance() / variance,
            mse=errors[n].mean_square(),
            cosine_similarity=float(cosines[n]) / inputs.count,
            ce_loss_score=float(loss_zeroed - losses[n]) / (loss_zeroed - loss_clean),
            kl_div=float(kls[n]) / inputs.count,
            dead_features=int((firings[n] == 0).sum()),
            almost_dead_features=int(
                (firings[n] < ALMOST_DEAD_FREQUENCY * inputs.count).sum()
            ),
        )
        for n, k in enumerate(ks)
    ]


class _Run:
    """A batch's runs through the model, with other activations at the SAE's hook.

    Attributes:
        x: The model's own activations at the tokens that count, [tokens, d_in].
        clean: Its own next-token log-probabilities, [n, context, vocab].
    """

    def __init__(
        self, model: HookedTransformer, batch: Tensor, keep: Tensor, sae: SAE[Any]
    ) -> None:
        self.model, self.batch, self.keep = model, batch, keep
        self.hook_name = str(sae.cfg.metadata.hook_name)
        self.head = sae.cfg.metadata.hook_head_index
        logits, cache = model.run_with_cache(batch, names_filter=self.hook_name)
        self.clean = _log_probs(logits)
        activations = cache[self.hook_name]
        if self.head is not None:
            activations = activations[:, :, self.head]
        self.x = activations[keep].flatten(1)

    def log_probs(self, replacement: Tensor) -> Tensor:
        """Run with other activations, [tokens, d_in]; return [n, context, vocab]."""

        def replace(activations: Tensor, hook: HookPoint) -> Tensor:
            here = activations if self.head is None else activations[:, :, self.head]
            mask = self.keep.view(*self.keep.shape, *[1] * (here.ndim - 2))
            replaced = here.masked_scatter(mask, replacement)
            if self.head is None:
                return replaced
            activations = activations.clone()
            activations[:, :, self.head] = replaced
            return activations

        hooks: Any = [(self.hook_name, replace)]
        return _log_probs(self.model.run_with_hooks(self.batch, fwd_hooks=hooks))

    def loss(self, log_probs: Tensor) -> float:
        """Return the summed next-token loss after the tokens that count."""
        of_next = log_probs[:, :-1].gather(-1, self.batch[:, 1:, None]).squeeze(-1)
        return -float(of_next[self.keep[:, :-1]].double().sum())

    def kl_div(self, log_probs: Tensor) -> float:
        """Return KL(clean, other), summed over the tokens that count."""
        other, clean = log_probs[self.keep], self.clean[self.keep]
        return float(F.kl_div(other, clean, reduction="sum", log_target=True))


def _log_probs(logits: Any) -> Tensor:
    return logits.float().log_softmax(dim=-1)


def _encode(sae: SAE[Any], x: Tensor, k: int) -> RankedActs:
    if isinstance(sae, HierarchicalTopKSAE):
        with sae.at_k(k):
            return sae.encode_ranked(x)
    return RankedActs(*sae.encode(x).topk(k, dim=-1))


def _count_firings(firings: Tensor, ranked: RankedActs, ks: Sequence[int]) -> None:
    """Add to each row how often each feature is active among a token's first k."""
    so_far = torch.zeros_like(firings[0])
    for n, (before, k) in enumerate(pairwise([0, *ks])):
        values, indices = (part[..., before:k] for part in ranked)
        active = indices[values > 0].cpu()
        so_far += torch.bincount(active, minlength=len(so_far))
        firings[n] += so_far
