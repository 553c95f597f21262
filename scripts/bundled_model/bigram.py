"""An interpolated Kneser-Ney bigram model, the baseline for the bundled model."""

from __future__ import annotations

import torch
from torch import Tensor

DISCOUNTS = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def bigram_loss(train: Tensor, held_out: Tensor, vocab_size: int) -> float:
    """Return the bigram's held-out loss in nats per token.

    Both arguments are contexts, shape (contexts, tokens). The discount is the one
    best for the held-out text itself, which favours the bigram.
    """
    counts = torch.zeros(vocab_size, vocab_size, dtype=torch.float64)
    pairs = (train[:, :-1].flatten(), train[:, 1:].flatten())
    counts.index_put_(pairs, torch.ones((), dtype=torch.float64), accumulate=True)
    return min(_loss(counts, held_out, discount) for discount in DISCOUNTS)


def _loss(counts: Tensor, held_out: Tensor, discount: float) -> float:
    vocab_size = len(counts)
    seen = counts > 0
    # Kneser-Ney: back off to how many different tokens each token follows.
    continuations = seen.sum(0).double()
    kept = (continuations - discount).clamp(min=0) / continuations.sum()
    backoff = kept + (1 - kept.sum()) / vocab_size
    totals = counts.sum(1)
    context, target = held_out[:, :-1].flatten(), held_out[:, 1:].flatten()
    total = totals[context].clamp(min=1)
    direct = (counts[context, target] - discount).clamp(min=0) / total
    spared = discount * seen.sum(1)[context] / total
    weight = torch.where(totals[context] > 0, spared, torch.ones_like(spared))
    return -(direct + weight * backoff[target]).log().mean().item()
