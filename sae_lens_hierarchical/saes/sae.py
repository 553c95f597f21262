"""The SAE at inference: one checkpoint, any k."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor, nn
from typing_extensions import Self, override

from sae_lens_hierarchical.ops.budgets import resolve_budgets
from sae_lens_hierarchical.saes.checks import check_k, check_state_dict
from sae_lens_hierarchical.saes.normalization import output_map

__all__ = ["HierarchicalTopKSAE", "HierarchicalTopKSAEConfig", "RankedActs"]

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


class RankedActs(NamedTuple):
    """The k largest features of each token, largest first.

    Attributes:
        values: Activations after ReLU, [..., k]; zeros stand last.
        indices: Their features, [..., k], int64.
    """

    values: Tensor
    indices: Tensor


def rank(hidden_pre: Tensor, cfg: HierarchicalTopKSAEConfig) -> RankedActs:
    """Return the ``cfg.k`` largest entries along the last dimension, after ReLU.

    Entries are ranked for ``cfg.k_max``, whatever k, so that a smaller k keeps just the
    first of what a larger one keeps, even where entries tie.
    """
    values, indices = hidden_pre.topk(max(cfg.k, cfg.k_max), dim=-1)
    return RankedActs(values[..., : cfg.k].relu(), indices[..., : cfg.k])


class PrefixTopK(nn.Module):
    """Zero all but the ``cfg.k`` largest entries."""

    def __init__(self, cfg: HierarchicalTopKSAEConfig) -> None:
        super().__init__()
        self.cfg = cfg

    @override
    def forward(self, hidden_pre: Tensor) -> Tensor:
        values, indices = rank(hidden_pre, self.cfg)
        return torch.zeros_like(hidden_pre).scatter_(-1, indices, values)


class HierarchicalTopKSAE(TopKSAE):
    """A TopK SAE whose k can be set at any time.

    ``sae.k = 32`` sets it, ``with sae.at_k(32): ...`` sets it for a while. ``encode``
    gives at most k non-zero features: the k largest of those that it gives at
    ``k_max``. Everything else is as in SAELens's ``TopKSAE``.
    """

    cfg: HierarchicalTopKSAEConfig  # type: ignore[assignment]

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

    @classmethod
    def from_topk(cls, topk: TopKSAE) -> Self:
        """Return a SAE with the very weights of a plain TopK SAE, to read it at any k.

        Its ``k_max`` is the k that ``topk`` was trained with.
        """
        settings = {f.name: getattr(topk.cfg, f.name) for f in fields(topk.cfg)}
        sae = cls(HierarchicalTopKSAEConfig(**settings, k_max=topk.cfg.k))
        sae.load_state_dict(topk.state_dict(), assign=True)
        return sae

    def encode_ranked(self, x: Tensor) -> RankedActs:
        """Encode to the ``k`` largest features alone, without the zeros of the others.

        Args:
            x: Activations, [..., d_in].
        """
        sae_in = self.process_sae_in(x)
        hidden_pre = self.hook_sae_acts_pre(sae_in @ self.W_enc + self.b_enc)
        if self.cfg.rescale_acts_by_decoder_norm:
            hidden_pre = hidden_pre * self.W_dec.norm(dim=-1)
        return rank(hidden_pre, self.cfg)

    def reconstruct(self, x: Tensor, ks: Sequence[int]) -> Tensor:
        """Reconstruct at many budgets from one encoding.

        Args:
            x: Activations, [..., d_in].
            ks: Numbers of active features, strictly increasing, from 1 to ``d_sae``.

        Returns:
            x̂_k for each k of ``ks``, [len(ks), ..., d_in]: equal to the output of the
            SAE at that k.

        Raises:
            ValueError: If ``ks`` does not fit.
        """
        resolve_budgets(self.cfg.d_sae, ks)
        with self.at_k(ks[-1]):
            return self.decode_ranked(self.encode_ranked(x), ks)

    def decode_ranked(self, ranked: RankedActs, ks: Sequence[int]) -> Tensor:
        """Decode the first k features of each token, for each k of ``ks``.

        Where ``normalize_activations`` is by token, ``ranked`` must be what was encoded
        last: SAELens's SAEs keep the statistics of their last input.

        Args:
            ranked: From ``encode_ranked``, [..., k].
            ks: Strictly increasing, from 1 to the k of ``ranked``.

        Returns:
            The outputs, [len(ks), ..., d_in].

        Raises:
            ValueError: If ``ks`` does not fit.
        """
        values, indices = ranked
        resolve_budgets(values.shape[-1], ks)
        if self.cfg.rescale_acts_by_decoder_norm:
            values = values / self.W_dec.norm(dim=-1)[indices]
        sums = values.new_zeros(len(ks), *values.shape[:-1], self.cfg.d_in)
        running = sums[0].clone()
        for n, (before, k) in enumerate(pairwise([0, *ks])):
            for i in range(before, k):
                running.addcmul_(self.W_dec[indices[..., i]], values[..., i, None])
            sums[n] = running
        scale, zero = output_map(self, running)
        sums = sums + zero if scale is None else sums * scale + zero
        return self.reshape_fn_out(self.hook_sae_recons(sums), self.d_head)

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return PrefixTopK(self.cfg)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        check_state_dict(self, state_dict)
