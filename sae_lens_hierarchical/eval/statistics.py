"""Running statistics over a stream of tokens: sums in float64, in constant memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_lens_hierarchical.saes import RankedActs

__all__ = ["ModeStatistics", "NextRankCosines", "RunningMoments", "as_double"]


def as_double(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on its device or, where that has none, the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


class RunningMoments:
    """Mean square and total variance (summed over d_in) of a stream of vectors.

    Attributes:
        count: How many vectors were added.
    """

    def __init__(self, d_in: int) -> None:
        self.count = 0
        self._sum = torch.zeros(d_in, dtype=torch.float64)
        self._sum_of_squares = 0.0

    def add(self, vectors: Tensor) -> None:
        """Add vectors, [tokens, d_in]."""
        vectors = as_double(vectors)
        self.count += len(vectors)
        self._sum += vectors.sum(dim=0).cpu()
        self._sum_of_squares += float(vectors.pow(2).sum())

    def mean_square(self) -> float:
        """Return E‖v‖²."""
        return self._sum_of_squares / self.count

    def variance(self) -> float:
        """Return the total variance E‖v - E v‖²."""
        return self.mean_square() - float((self._sum / self.count).pow(2).sum())


class ModeStatistics:
    """Running statistics of one SAE in one inference mode at one k.

    Attributes:
        error: The moments of x̂ - x.
        firings: How often each feature was active, [d_sae], int64.
        squared_acts: The summed squares of each feature's activation, [d_sae], float64.
        cosine: The summed cosine similarity of x and x̂.
        loss: The summed next-token loss with x̂ in place of x, nats.
        kl_div: The summed KL divergence from the model's own prediction, nats.
    """

    def __init__(self, d_in: int, d_sae: int) -> None:
        self.error = RunningMoments(d_in)
        self.firings = torch.zeros(d_sae, dtype=torch.int64)
        self.squared_acts = torch.zeros(d_sae, dtype=torch.float64)
        self.cosine = self.loss = self.kl_div = 0.0

    def add(
        self, x: Tensor, x_hat: Tensor, firings: Tensor, squared_acts: Tensor
    ) -> None:
        """Add a batch: x and x̂, [tokens, d_in], and its sums by feature, [d_sae]."""
        self.error.add(x_hat - x)
        self.cosine += float(as_double(F.cosine_similarity(x_hat, x)).sum())
        self.firings += firings.cpu()
        self.squared_acts += squared_acts.cpu()


class NextRankCosines:
    """Mean cosine of the decoder rows of a token's i-th and next largest features.

    The paper's B.2.
    """

    def __init__(self, ranks: int) -> None:
        self._sum = torch.zeros(ranks, dtype=torch.float64)
        self._count = torch.zeros(ranks, dtype=torch.int64)

    def add(self, W_dec: Tensor, ranked: RankedActs) -> None:
        """Add the ranked features of a batch, [tokens, ranks + 1]."""
        values, indices = ranked
        rows = F.normalize(W_dec[indices[:, 0]], dim=-1)
        # A rank at a time: all of [tokens, ranks, d_in] might not fit.
        for i in range(len(self._sum)):
            following = F.normalize(W_dec[indices[:, i + 1]], dim=-1)
            both_active = values[:, i + 1] > 0  # the larger one is active then, too
            cosines = (rows * following).sum(dim=-1) * both_active
            self._sum[i] += float(as_double(cosines).sum())
            self._count[i] += int(both_active.sum())
            rows = following

    def mean(self) -> Tensor:
        """Return the means, [ranks]; NaN where no token had that many features."""
        return self._sum / self._count
