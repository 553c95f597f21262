"""How good SAEs are at each k: many budgets from one encoding of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sae_lens.util import get_special_token_ids
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from sae_lens_hierarchical.ops.budgets import resolve_budgets
from sae_lens_hierarchical.saes import HierarchicalTopKSAE, RankedActs

__all__ = ["BudgetMetrics", "sweep"]


@dataclass(frozen=True)
class BudgetMetrics:
    """What one SAE does at one k, over all tokens but the special ones.

    Attributes:
        k: The number of active features.
        explained_variance: 1 − E‖x − x̂‖² / Var(x), as SAELens has it.
        fvu: Var(x − x̂) / Var(x) (paper §3.1).
        ce_loss_score: How much of the cross-entropy loss that zeros in place of the
            activations cost is won back by x̂: 1 is all of it.
        dead_features: Features that were active on no token.
    """

    k: int
    explained_variance: float
    fvu: float
    ce_loss_score: float
    dead_features: int


class _Moments:
    """Running mean and total variance (summed over d_in) of vectors, in float64."""

    def __init__(self, *shape: int) -> None:
        self.count = 0
        self.sum = torch.zeros(shape, dtype=torch.float64)
        self.sum_of_squares = torch.zeros(shape[:-1], dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Add vectors, [..., tokens, d_in]."""
        vectors = vectors.double()
        self.count += vectors.shape[-2]
        self.sum += vectors.sum(dim=-2).cpu()
        self.sum_of_squares += vectors.pow(2).sum(dim=(-1, -2)).cpu()

    def mean_square(self) -> Tensor:
        return self.sum_of_squares / self.count

    def variance(self) -> Tensor:
        return self.mean_square() - (self.sum / self.count).pow(2).sum(dim=-1)


@torch.no_grad()
def sweep(
    sae: HierarchicalTopKSAE,
    model: HookedTransformer,
    tokens: Tensor,
    ks: Sequence[int],
    *,
    batch_size: int = 16,
    progress: str | None = None,
) -> list[BudgetMetrics]:
    """Measure a SAE at each k.

    Special tokens (BOS and the like) keep their own activations and are not counted.

    Args:
        sae: The SAE; its metadata names the hook.
        model: The language model that it was trained on.
        tokens: Contexts, [n, context], int64.
        ks: Strictly increasing numbers of active features.
        batch_size: Contexts in one forward pass of the model.
        progress: The progress bar's label; None shows no bar.

    Raises:
        ValueError: If ``ks`` does not fit.
    """
    resolve_budgets(sae.cfg.d_sae, ks)
    hook_name = sae.cfg.metadata.hook_name
    special = torch.tensor(get_special_token_ids(model.tokenizer))  # type: ignore[arg-type]
    inputs, residuals = _Moments(sae.cfg.d_in), _Moments(len(ks), sae.cfg.d_in)
    best_rank = torch.full((sae.cfg.d_sae,), sae.cfg.d_sae)
    losses = torch.zeros(len(ks) + 2, dtype=torch.float64)
    batches = tokens.split(batch_size)
    for batch in tqdm(batches, desc=progress, leave=False, disable=progress is None):
        keep = ~torch.isin(batch, special)

        def loss_with(
            replacement: Tensor, batch: Tensor = batch, keep: Tensor = keep
        ) -> Tensor:
            def replace(activations: Tensor, hook: HookPoint) -> Tensor:
                return activations.masked_scatter(keep.unsqueeze(-1), replacement)

            loss = model.run_with_hooks(
                batch,
                return_type="loss",
                loss_per_token=True,
                fwd_hooks=[(str(hook_name), replace)],
            )
            return loss[keep[:, :-1]].double().sum().cpu()

        _, cache = model.run_with_cache(batch, names_filter=hook_name)
        x = cache[hook_name][keep]
        with sae.at_k(ks[-1]):
            ranked = sae.encode_ranked(x)
        reconstructions = sae.decode_ranked(ranked, ks)
        inputs.add(x)
        residuals.add(reconstructions - x)
        _update_best_rank(best_rank, ranked)
        replacements = [x, torch.zeros_like(x), *reconstructions]
        losses += torch.stack([loss_with(r) for r in replacements])

    explained = 1 - residuals.mean_square() / inputs.variance()
    fvu = residuals.variance() / inputs.variance()
    clean, zeroed = losses[:2]
    ce_loss_score = (zeroed - losses[2:]) / (zeroed - clean)
    return [
        BudgetMetrics(
            k=k,
            explained_variance=float(explained[n]),
            fvu=float(fvu[n]),
            ce_loss_score=float(ce_loss_score[n]),
            dead_features=int((best_rank >= k).sum()),
        )
        for n, k in enumerate(ks)
    ]


def _update_best_rank(best_rank: Tensor, ranked: RankedActs) -> None:
    """Lower each feature's best rank, from 0, to the best it has on these tokens."""
    active = ranked.values > 0
    ranks = torch.arange(active.shape[-1], device=active.device).expand_as(active)
    best_rank.scatter_reduce_(
        0, ranked.indices[active].cpu(), ranks[active].cpu(), reduce="amin"
    )
