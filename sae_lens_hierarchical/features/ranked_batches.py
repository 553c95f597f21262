"""The ranked features of a language model's activations, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from sae_lens import SAE, TopKSAE
from torch import Tensor
from transformer_lens import HookedTransformer

from sae_lens_hierarchical.eval.inference_modes import flat
from sae_lens_hierarchical.eval.splicing import HookLocation, SplicedModel
from sae_lens_hierarchical.saes import HierarchicalTopKSAE

__all__ = ["RankedBatch", "ranked_batches", "with_ranks"]


class RankedBatch(NamedTuple):
    """Some contexts, and the features that are active in them, on the CPU.

    Attributes:
        tokens: [contexts, length], int64.
        positions: Where the tokens stand that count, in ``tokens`` laid out flat,
            ascending, [kept], int64.
        values: The K largest activations of each of these, [kept, K], float32; zeros
            stand last.
        indices: Their features, [kept, K], int64.
    """

    tokens: Tensor
    positions: Tensor
    values: Tensor
    indices: Tensor


def with_ranks(name: str, sae: SAE[Any]) -> HierarchicalTopKSAE:
    """Return an SAE whose features have ranks; its ``k_max`` is K.

    Args:
        name: What errors call it.
        sae: A HierarchicalTopK SAE, which is returned, or SAELens's TopK SAE.

    Raises:
        ValueError: If it is of another kind.
    """
    if isinstance(sae, HierarchicalTopKSAE):
        return sae
    if type(sae) is TopKSAE:  # a subclass may choose features otherwise
        return HierarchicalTopKSAE.from_topk(sae)
    raise ValueError(
        f"{name} is a {sae.cfg.architecture()} SAE, which has no K largest features: "
        "features is for hierarchical_topk and topk SAEs"
    )


@torch.no_grad()
def ranked_batches(
    name: str,
    sae: HierarchicalTopKSAE,
    model: HookedTransformer,
    batches: Iterable[Tensor],
) -> Iterator[RankedBatch]:
    """Yield the K largest features of the tokens that ``sweep`` would evaluate.

    Args:
        name: What errors call the SAE.
        sae: The SAE; its metadata name the hook.
        model: The language model that it was trained on.
        batches: Contexts, [contexts, length], int64.

    Raises:
        ValueError: If the model has no such hook, or one of another width.
    """
    location = HookLocation.of(sae)
    location.check_is_of(model, name)
    for batch in batches:
        spliced = SplicedModel(model, batch, [location], to_logits=False)
        x = spliced.x[location]
        if x.shape[1] != sae.cfg.d_in:
            raise ValueError(
                f"{name} has d_in = {sae.cfg.d_in}, but {location.hook_name} is "
                f"{x.shape[1]} wide"
            )
        with flat(sae):
            ranked, _ = sae.rank_features(x.to(sae.W_dec), sae.k_max)
        kept = spliced.keep[location].flatten().nonzero().squeeze(1)
        values = ranked.values.float().cpu()
        yield RankedBatch(batch.cpu(), kept.cpu(), values, ranked.indices.cpu())
