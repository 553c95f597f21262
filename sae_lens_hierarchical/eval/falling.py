"""Whether an SAE's error grows with k, which more features should not do."""

from __future__ import annotations

from torch import Tensor

__all__ = ["ErrorGrowth"]

# Standard errors of the mean over tokens that a growth must exceed.
_NOISE = 3


class ErrorGrowth:
    """Compares a token's squared errors at each k and at the next one."""

    def __init__(self) -> None:
        self._tokens = 0
        self._previous: tuple[int, Tensor] | None = None
        self._sums: dict[tuple[int, int], tuple[float, float]] = {}

    def add(self, k: int, squared: Tensor) -> None:
        """Add a batch at one k; the k of a batch come in ascending order.

        Args:
            k: The number of features.
            squared: ‖x̂ - x‖², [tokens], float64.
        """
        if self._previous is None or k <= self._previous[0]:
            self._tokens += len(squared)
        else:
            before, smaller = self._previous
            growth = squared - smaller
            total, squares = self._sums.get((before, k), (0.0, 0.0))
            total, squares = (
                total + float(growth.sum()),
                squares + float(growth @ growth),
            )
            self._sums[before, k] = total, squares
        self._previous = k, squared

    def worst(self, largest_k: int) -> tuple[int, int] | None:
        """Return the two k, up to ``largest_k``, between which the error grows most.

        None if it grows nowhere by more than its noise.
        """
        growths: dict[tuple[int, int], float] = {}
        for ks, (total, squares) in self._sums.items():
            mean = total / self._tokens
            variance = max(0.0, squares / self._tokens - mean**2) / self._tokens
            if ks[1] <= largest_k and mean > _NOISE * variance**0.5:
                growths[ks] = mean
        return max(growths, key=growths.__getitem__) if growths else None
