"""The SAE at inference: one checkpoint, any k."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor, nn
from typing_extensions import Self, override

from sae_lens_hierarchical.saes.checks import check_k, check_state_dict

__all__ = ["HierarchicalTopKSAE", "HierarchicalTopKSAEConfig"]

ARCHITECTURE = "hierarchical_topk"


@dataclass
class HierarchicalTopKSAEConfig(TopKSAEConfig):
    """Configuration of a trained HierarchicalTopK SAE.

    Args:
        k_max: K, the largest number of active features it was trained with. Required.
        k: The number of active features in use, from 1 to ``d_sae``; default
            ``k_max``. Above ``k_max`` the SAE extrapolates (paper, figure 3).
        rescale_acts_by_decoder_norm: See SAELens's ``TopKSAEConfig``; so for the rest.

    Raises:
        ValueError: If ``k`` or ``k_max`` is no integer from 1 to ``d_sae``.
    """

    k: int = None  # type: ignore[assignment]
    k_max: int = None  # type: ignore[assignment]

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_k("k_max", self.k_max, self.d_sae)
        if self.k is None:
            self.k = self.k_max
        check_k("k", self.k, self.d_sae)


class PrefixTopK(nn.Module):
    """Keep the ``cfg.k`` largest entries, after ReLU; zero the others.

    Entries are ranked once for ``cfg.k_max``, whatever k, so that a smaller k keeps
    just the first of what a larger one keeps, even where entries tie.
    """

    def __init__(self, cfg: HierarchicalTopKSAEConfig) -> None:
        super().__init__()
        self.cfg = cfg

    @override
    def forward(self, hidden_pre: Tensor) -> Tensor:
        ranked = hidden_pre.topk(max(self.cfg.k, self.cfg.k_max), dim=-1)
        values = ranked.values[..., : self.cfg.k].relu()
        indices = ranked.indices[..., : self.cfg.k]
        return torch.zeros_like(hidden_pre).scatter_(-1, indices, values)


class HierarchicalTopKSAE(TopKSAE):
    """A TopK SAE whose k can be set at any time.

    ``sae.k = 32`` sets it, ``with sae.at_k(32): ...`` sets it for a while. ``encode``
    gives at most k non-zero features: the k largest of those that it gives at
    ``k_max``. Everything else is as in SAELens's ``TopKSAE``.
    """

    cfg: HierarchicalTopKSAEConfig

    @property
    def k(self) -> int:
        """The number of active features in use; setting it to a bad k raises."""
        return self.cfg.k

    @k.setter
    def k(self, k: int) -> None:
        check_k("k", k, self.cfg.d_sae)
        self.cfg.k = k

    @property
    def k_max(self) -> int:
        """K, the largest number of active features that the SAE was trained with."""
        return self.cfg.k_max

    @contextmanager
    def at_k(self, k: int) -> Iterator[Self]:
        """Use ``k`` active features within a ``with`` block.

        Raises:
            ValueError: If ``k`` is no integer from 1 to ``d_sae``.
        """
        before = self.k
        self.k = k
        try:
            yield self
        finally:
            self.k = before

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return PrefixTopK(self.cfg)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        check_state_dict(self, state_dict)
