"""Which next tokens a feature promotes and suppresses by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["LogitEffects", "logit_effects", "why_no_logits"]

# What is added to the residual stream, or is it; names of both kinds of hooked models.
_RESIDUAL = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "hook_embed",
)
_LOGITS_AT_ONCE = 2**25

# Token ids and their logits, largest effect first.
LogitEffects = list[tuple[int, float]]


def why_no_logits(model: Any, hook_name: str, d_in: int) -> str | None:
    """Return why decoder rows have no direct effect on logits; None where they do.

    Args:
        model: The language model.
        hook_name: Where the SAE reconstructs it.
        d_in: The SAE's.
    """
    if not hook_name.endswith(_RESIDUAL):
        return f"{hook_name} is not known to be in the residual stream or to add to it"
    W_U = getattr(model, "W_U", None)
    if not isinstance(W_U, Tensor):
        return "the model has no unembedding W_U"
    if W_U.shape[0] != d_in:
        return f"W_U is for {W_U.shape[0]} dimensions, and the SAE has {d_in}"
    return None


@torch.no_grad()
def logit_effects(
    model: Any, rows: Tensor, n: int
) -> Iterator[tuple[LogitEffects, LogitEffects]]:
    """Yield the tokens whose logits each decoder row raises and lowers most.

    The effect is ``row @ W_U``, of an activation of 1: straight from the hook to the
    logits, past the layers between, and with the weights of the last LayerNorm but not
    its division. The mean over the vocabulary, which no probability depends on, is
    taken off.

    Args:
        model: The language model, for which ``why_no_logits`` says None.
        rows: Decoder rows, [features, d_in].
        n: How many tokens to yield of each.
    """
    W_U = model.W_U
    # Folded into W_U, or none: then there is no w.
    scale = getattr(getattr(model, "ln_final", None), "w", None)
    if isinstance(scale, Tensor):
        rows = rows * scale.to(rows)
    n = min(n, W_U.shape[1])
    for some in rows.split(max(1, _LOGITS_AT_ONCE // W_U.shape[1])):
        logits = (some.to(W_U) @ W_U).float()
        logits = logits - logits.mean(dim=1, keepdim=True)
        largest, smallest = logits.topk(n), logits.topk(n, largest=False)
        for row in range(len(some)):
            yield _pairs(largest, row), _pairs(smallest, row)


def _pairs(found: Any, row: int) -> LogitEffects:
    ids, values = found.indices[row].tolist(), found.values[row].tolist()
    return list(zip(ids, values, strict=True))
