"""The SAE at inference: one checkpoint, any k."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor
from typing_extensions import Self, override

from sae_lens_hierarchical.defaults import ARCHITECTURE
from sae_lens_hierarchical.ops.budgets import check_ks
from sae_lens_hierarchical.saes.assemble import sae_of_tensors, shared_settings
from sae_lens_hierarchical.saes.base import HierarchicalBase, has_hooks
from sae_lens_hierarchical.saes.checks import (
    Activation,
    check_activation,
    check_flags,
    check_k,
    check_size,
)
from sae_lens_hierarchical.saes.normalization import OutputMap
from sae_lens_hierarchical.saes.ranked import (
    AdaptiveActs,
    RankedActs,
    decode_prefixes,
    rank,
)
from sae_lens_hierarchical.saes.thresholds import (
    above_threshold,
    check_threshold_k,
    unknown_thresholds,
)

__all__ = ["HierarchicalTopKSAE", "HierarchicalTopKSAEConfig"]


@dataclass
class HierarchicalTopKSAEConfig(TopKSAEConfig):
    """Configuration of a trained HierarchicalTopK SAE.

    Args:
        k_max: K, the largest number of active features it was trained with. Required.
        k: The number of active features in use, from 1 to ``d_sae``; default
            ``k_max``. Above ``k_max`` the SAE extrapolates (paper, figure 3).
        activation: ``"topk"`` keeps the k largest features of each token,
            ``"jumprelu"`` all above a threshold that k exceed on average (B.5).
        rescale_acts_by_decoder_norm: See SAELens's ``TopKSAEConfig``; so for the rest.

    Raises:
        ValueError: If a field does not fit, naming it and what is allowed.
    """

    k: int = None  # pyright: ignore[reportAssignmentType]
    k_max: int = None  # pyright: ignore[reportAssignmentType]
    activation: Activation = "topk"

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_flags(self, "apply_b_dec_to_input", "rescale_acts_by_decoder_norm")
        self.d_in = check_size("d_in", self.d_in)
        self.d_sae = check_size("d_sae", self.d_sae)
        self.k_max = check_k("k_max", self.k_max, self.d_sae)
        # Whatever the field's type says: None stands for k_max until here.
        k = self.k_max if self.k is None else self.k  # pyright: ignore[reportUnnecessaryComparison]
        self.k = check_k("k", k, self.d_sae)
        check_activation("activation", self.activation)
        if self.activation == "jumprelu":
            check_threshold_k(self.k, self.k_max)


class HierarchicalTopKSAE(HierarchicalBase, TopKSAE):
    """A TopK SAE whose k can be set at any time.

    ``sae.k = 32`` sets it, ``with sae.at_k(32): ...`` sets it for a while. ``encode``
    gives at most k non-zero features: the k largest of those that it gives at
    ``k_max``. After ``sae.activation = "jumprelu"`` it gives all that exceed θ(k)
    instead: k on average. Everything else is as in SAELens's ``TopKSAE``.
    """

    cfg: HierarchicalTopKSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, cfg: HierarchicalTopKSAEConfig, use_error_term: bool = False
    ) -> None:
        super().__init__(cfg, use_error_term)
        self.register_buffer("thresholds", unknown_thresholds(cfg.k_max, cfg.device))

    @property
    def k(self) -> int:
        """The number of active features in use; setting it to a bad k raises."""
        return self.cfg.k

    @k.setter
    def k(self, k: int) -> None:
        k = check_k("k", k, self.cfg.d_sae)
        if self.activation == "jumprelu":
            self.threshold(k)
        self.cfg.k = k

    @property
    def k_max(self) -> int:
        """K, the largest number of active features that the SAE was trained with."""
        return self.cfg.k_max

    @property
    def activation(self) -> Activation:
        """``"topk"`` or ``"jumprelu"``, which raises where there are no thresholds."""
        return self.cfg.activation

    @activation.setter
    def activation(self, activation: Activation) -> None:
        check_activation("activation", activation)
        if activation == "jumprelu":
            self.threshold(self.k)
        self.cfg.activation = activation

    def threshold(self, k: int) -> float:
        """Return θ(k), which k features of a token exceed on average.

        It is in the units of what ``encode`` gives.

        Raises:
            ValueError: If ``k`` is no integer from 1 to ``k_max``, or θ(k) is unknown.
        """
        k = check_k("k", k, self.cfg.d_sae)
        check_threshold_k(k, self.k_max)
        if math.isnan(theta := self.thresholds[k - 1].item()):
            raise ValueError(
                "this SAE has no thresholds for jumprelu: set them with "
                "sae_lens_hierarchical.calibrate_thresholds(sae, activations)"
            )
        return theta

    @contextmanager
    def at_k(self, k: int) -> Generator[Self]:
        """Use ``k`` active features within a ``with`` block.

        Like setting ``k``, this holds for everyone who uses this SAE meanwhile, other
        threads too. ``encode_ranked(x, k)``, ``reconstruct(x, ks)`` and
        ``encode_adaptive`` leave the SAE's ``k`` alone.

        Raises:
            ValueError: If ``k`` does not fit, as in setting ``k``.
        """
        before = self.k
        self.k = k
        try:
            yield self
        finally:
            self.cfg.k = before

    @classmethod
    def from_topk(cls, topk: TopKSAE) -> Self:
        """Return an SAE with the weights of a plain TopK SAE, to use it at any k.

        Its ``k_max`` is the k that ``topk`` was trained with. The tensors are those of
        ``topk`` themselves: what changes one SAE's in place changes the other's. For
        tensors of its own take ``from_topk(copy.deepcopy(topk))``.
        """
        cfg = HierarchicalTopKSAEConfig(
            **shared_settings(topk),
            k_max=topk.cfg.k,
            rescale_acts_by_decoder_norm=topk.cfg.rescale_acts_by_decoder_norm,
        )
        return sae_of_tensors(cls, cfg, topk.state_dict())

    def hidden_pre(self, x: Tensor) -> Tensor:
        """Return what features are ranked by, before ReLU, [..., d_sae].

        As after ``encode``, ``decode`` then gives outputs in the units of ``x``.

        Args:
            x: Activations, [..., d_in].
        """
        hidden_pre, self._output_map = self._hidden_pre(x)
        return hidden_pre

    def rank_features(self, x: Tensor, k: int) -> tuple[RankedActs, OutputMap]:
        """Encode to the ``k`` largest features, whatever the SAE's k and activation.

        The SAE stays as it is.

        Args:
            x: Activations, [..., d_in].
            k: From 1 to ``d_sae``.

        Returns:
            The features, [..., k], and what turns their reconstruction into one of
            ``x``.

        Raises:
            ValueError: If ``k`` does not fit, or hooks are attached to
                ``hook_sae_acts_post``, which only ``encode`` calls.
        """
        k = check_k("k", k, self.cfg.d_sae)
        if has_hooks(self.hook_sae_acts_post):
            raise ValueError(
                "hooks on hook_sae_acts_post change activations of all features, which "
                "the compact form does not have: remove them, or use encode and decode"
            )
        hidden_pre, output_map = self._hidden_pre(x)
        return rank(hidden_pre, k), output_map

    def encode_ranked(self, x: Tensor, k: int | None = None) -> RankedActs:
        """Encode to the largest features alone, without the zeros of the others.

        Args:
            x: Activations, [..., d_in].
            k: How many, from 1 to ``d_sae``; default the SAE's ``k``.

        Raises:
            ValueError: If ``activation`` is ``"jumprelu"``, which sets no number; or as
                ``rank_features`` does.
        """
        self._check_topk()
        ranked, self._output_map = self.rank_features(x, self.k if k is None else k)
        return ranked

    def decode_ranked(
        self, ranked: RankedActs, ks: Sequence[int] | None = None
    ) -> Tensor:
        """Decode activations in compact form.

        Where ``normalize_activations`` is by token, ``ranked`` must be what this SAE
        encoded last: as SAELens's do, it keeps the statistics of its last input.

        Args:
            ranked: From ``encode_ranked``, [..., k].
            ks: Decode the first k features for each of these instead, strictly
                increasing, from 1 to the k of ``ranked``.

        Returns:
            The output, [..., d_in]; with ``ks`` one for each, [len(ks), ..., d_in].

        Raises:
            ValueError: If ``ks`` does not fit.
            RuntimeError: If nothing was encoded that ``normalize_activations`` needs.
        """
        k = ranked.values.shape[-1]
        wanted = [k] if ks is None else check_ks("ks", ks, k)
        outputs = list(decode_prefixes(self, ranked, wanted, self.last_output_map()))
        return outputs[0] if ks is None else torch.stack(outputs)

    def reconstruct(self, x: Tensor, ks: Sequence[int]) -> Tensor:
        """Reconstruct at many budgets from one encoding.

        Args:
            x: Activations, [..., d_in].
            ks: Numbers of active features, strictly increasing, from 1 to ``d_sae``.

        Returns:
            x̂_k for each k of ``ks``, [len(ks), ..., d_in]: equal to the output of the
            SAE at that k, up to rounding and without an error term; hooks on
            ``hook_sae_output`` do not see it, as they do not see that of ``decode``.

        Raises:
            ValueError: If ``ks`` does not fit, or as ``encode_ranked`` does.
        """
        self._check_topk()
        ks = check_ks("ks", ks, self.cfg.d_sae)
        ranked, output_map = self.rank_features(x, ks[-1])
        return torch.stack(list(decode_prefixes(self, ranked, ks, output_map)))

    @torch.no_grad()
    def encode_adaptive(self, x: Tensor, max_fvu: float) -> AdaptiveActs:
        """Encode each token at the smallest k whose FVU of that token is low enough.

        A token is explained well enough when Var(x − x̂_k) / Var(x), the variances over
        its d_in entries, is at most ``max_fvu``. One that no k up to ``k_max`` explains
        so gets ``k_max``; so does a token without variance, unless x̂_k has none of its
        own either.

        Args:
            x: Activations, [..., d_in].
            max_fvu: The fraction of variance that may stay unexplained, from 0 to 1.

        Returns:
            The features, each token's k, and the fraction that it leaves unexplained.

        Raises:
            ValueError: If ``max_fvu`` does not fit, ``x`` is empty or not finite, or as
                ``encode_ranked`` does.
        """
        self._check_topk()
        if not 0 <= max_fvu <= 1:
            raise ValueError(f"max_fvu must lie between 0 and 1, got {max_fvu!r}")
        if x.numel() == 0 or not x.isfinite().all():
            raise ValueError("x must hold at least one token and be finite")
        ranked, output_map = self.rank_features(x, self.k_max)
        token_dims = (-2, -1) if self.hook_z_reshaping_mode else (-1,)
        variance = x.float().var(dim=token_dims, correction=0)
        k = torch.full(ranked.values.shape[:-1], self.k_max, device=x.device)
        fvu = torch.full_like(variance, torch.inf)
        ks = range(1, self.k_max + 1)
        outputs = decode_prefixes(self, ranked, ks, output_map)
        for k_here, output in zip(ks, outputs, strict=True):
            unexplained = (output - x).float().var(dim=token_dims, correction=0)
            # 0 / 0 is a token without variance that is met exactly.
            fvu_here = torch.where(unexplained == 0, 0.0, unexplained / variance)
            unmet = fvu > max_fvu
            fvu = torch.where(unmet, fvu_here, fvu)
            k = torch.where(unmet & (fvu <= max_fvu), k_here, k)
        used = torch.arange(self.k_max, device=x.device) < k.unsqueeze(-1)
        return AdaptiveActs(
            RankedActs(ranked.values * used, ranked.indices), k=k, fvu=fvu
        )

    def _hidden_pre(self, x: Tensor) -> tuple[Tensor, OutputMap]:
        encoder_in, output_map = self.encoder_input(x)
        hidden_pre = self.hook_sae_acts_pre(encoder_in @ self.W_enc + self.b_enc)
        if self.cfg.rescale_acts_by_decoder_norm:
            hidden_pre = hidden_pre * self.W_dec.norm(dim=-1)
        return hidden_pre, output_map

    def _check_topk(self) -> None:
        if self.activation == "jumprelu":
            raise ValueError("the compact form needs activation='topk'")

    def _activate(self, hidden_pre: Tensor) -> Tensor:
        # cfg.k may have been set past the property.
        k = check_k("k", self.k, self.cfg.d_sae)
        if self.activation == "jumprelu":
            check_threshold_k(k, self.k_max)
            return above_threshold(hidden_pre, self.thresholds[k - 1 : k])
        return rank(hidden_pre, k).to_dense(hidden_pre.shape[-1])

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return self._activate

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if self.activation == "jumprelu" and state_dict["thresholds"].isnan().any():
            raise ValueError("activation is 'jumprelu', but thresholds are missing")
