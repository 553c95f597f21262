"""Leaves tokens with outlying norms out of what an SAE is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from sae_lens import logger
from torch import Tensor

from sae_lens_hierarchical.defaults import MEDIAN_TOKENS
from sae_lens_hierarchical.ops.norms import (
    check_max_norm_ratio,
    describe_concentration,
    median,
    norms,
)

__all__ = ["NormLimit", "warn_of_outliers"]


class NormLimit:
    """A limit on a token's norm: a multiple of the median norm of the first tokens.

    With several hooks a token is left out if its norm is above the limit at any.

    Args:
        ratio: What multiple, above 1.
        widths: Of each hook the width, by its name, as activations lie side by side.

    Attributes:
        medians: The median norm at each hook; None until it is estimated.
        tokens: How many tokens were looked at.
        outliers: How many of them were left out.

    Raises:
        ValueError: If ``ratio`` does not fit.
    """

    def __init__(self, ratio: float, widths: Mapping[str, int]) -> None:
        self.ratio = check_max_norm_ratio(ratio)
        self._widths = dict(widths)
        self.medians: list[float] | None = None
        self.tokens = self.outliers = 0

    def limits(self) -> dict[str, float]:
        """Return the largest norm that is kept at each hook, once it is known."""
        medians = self.medians or []
        return {n: self.ratio * m for n, m in zip(self._widths, medians, strict=False)}

    def apply(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield batches, [tokens, d_in], without the outliers.

        An unknown median is estimated on the first tokens, which come as one batch, so
        that no checkpoint is written half-way through them.
        """
        if self.medians is None:
            first = [next(batches)]
            while sum(map(len, first)) < MEDIAN_TOKENS:
                first.append(next(batches))
            batch = torch.cat(first)
            self.medians = [median(part) for part in self._norms(batch)]
            yield self._without_outliers(batch)
        for batch in batches:
            yield self._without_outliers(batch)

    def summary(self) -> str:
        """Return a sentence on what was left out."""
        listed = ", ".join(f"{v:.4g} at {n}" for n, v in self.limits().items())
        share = self.outliers / max(1, self.tokens)
        return (
            f"max_norm_ratio={self.ratio:g} left {self.outliers:,} of {self.tokens:,} "
            f"tokens ({share:.2%}) out of training: those with a norm above {listed}"
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state, in which the medians are exact."""
        state = {"norm_counts": torch.tensor([self.tokens, self.outliers])}
        if self.medians is not None:
            state["norm_medians"] = torch.tensor(self.medians, dtype=torch.float64)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of ``state_dict``, among whatever else is in ``state``."""
        if "norm_medians" in state:
            self.medians = state["norm_medians"].tolist()
            self.tokens, self.outliers = state["norm_counts"].tolist()

    def _norms(self, batch: Tensor) -> list[Tensor]:
        parts = batch.split([*self._widths.values()], dim=1)
        return [norms(part) for part in parts]

    def _without_outliers(self, batch: Tensor) -> Tensor:
        limits = self.limits().values()
        above = [n > v for n, v in zip(self._norms(batch), limits, strict=True)]
        # NaN is above no limit: training ends with an error about it.
        kept = batch[~torch.stack(above).any(dim=0)]
        self.tokens += len(batch)
        self.outliers += len(batch) - len(kept)
        return kept


def warn_of_outliers(
    batches: Iterator[Tensor], widths: Mapping[str, int]
) -> Iterator[Tensor]:
    """Yield batches as they are, and warn once if few tokens outweigh the others.

    Args:
        batches: Activations, [tokens, d_in].
        widths: As in ``NormLimit``.
    """
    seen: list[Tensor] = []
    count = 0
    for batch in batches:
        if count < MEDIAN_TOKENS:
            parts = batch.split([*widths.values()], dim=1)
            seen.append(torch.stack([norms(part) for part in parts]))
            count += len(batch)
            if count >= MEDIAN_TOKENS:
                for name, found in zip(widths, torch.cat(seen, dim=1), strict=True):
                    if sentence := describe_concentration(found, name):
                        logger.warning(sentence)
                seen.clear()
        yield batch
