"""The SAE in training: SAELens's TopK with the hierarchical loss (paper §2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_lens_hierarchical.defaults import ARCHITECTURE
from sae_lens_hierarchical.ops import (
    Backend,
    auxiliary_loss,
    check_backend,
    hierarchical_loss_with_residual,
    loss_budgets,
    octave_budgets,
    spread_budgets,
    stable_topk,
)
from sae_lens_hierarchical.ops.budgets import resolve_budgets
from sae_lens_hierarchical.ops.encode_topk import encode_topk_with_sample
from sae_lens_hierarchical.saes.base import HierarchicalBase, has_hooks
from sae_lens_hierarchical.saes.checks import check_flags, check_k, check_size
from sae_lens_hierarchical.saes.normalization import OutputMap
from sae_lens_hierarchical.saes.ranked import RankedActs, decode_prefixes
from sae_lens_hierarchical.saes.thresholds import (
    TRACKED_TOKENS,
    track_thresholds,
    unknown_thresholds,
)
from sae_lens_hierarchical.saes.unit_norm import (
    keep_unit_norm_decoder,
    normalize_decoder,
)

__all__ = [
    "HierarchicalTopKTrainingSAE",
    "HierarchicalTopKTrainingSAEConfig",
    "without_former_loss_every",
]


@dataclass
class HierarchicalTopKTrainingSAEConfig(TopKTrainingSAEConfig):
    """Configuration for training a HierarchicalTopK SAE.

    Args:
        k: K, the largest sparsity budget: the SAE serves every k up to it.
        loss_every: x of the paper's J_x (§3.4): the loss is taken at the budgets 1, x,
            2x, ... up to k. 1 is the paper's own loss. By default J is {1, 2, 4, ...,
            k}, with two thirds of the weight at k, which has been the better one.
        budgets: Any other J instead: strictly increasing, from 1 to k.
        budget_weights: One weight a budget; with ``loss_every`` or ``budgets`` 1/|J|
            each by default.
        backend: How to compute the loss: auto, or another name in ``ops.BACKENDS``.
        unit_norm_decoder: Keep the decoder's rows at norm 1 as the paper does (Table
            1): they start so, gradients lose their parallel part, and rows are divided
            by their norm after every step. ``decoder_init_norm`` is then 1. With False
            rows start at ``decoder_init_norm`` and move freely, as in SAELens, whose
            0.1 costs ours 0.01 to 0.035 explained variance; 1 is as good as unit norm.
        rescale_acts_by_decoder_norm: SAELens's way to the same end: rank activations
            as if the rows had norm 1. No effect while ``unit_norm_decoder`` is on.
        b_dec_init: Where b_dec starts: at the ``"mean"`` of the first batch, so that no
            feature has to stand for it, or at ``"zeros"`` as in SAELens. A b_dec that
            is not zero when training begins stays as it is.
        use_sparse_activations: Hand SAELens's trainer the activations as a sparse
            tensor, which saves a dense [batch, d_sae] one; the loss is the same.
            SAELens's own SAEs have False.
        aux_loss_coefficient: Weight of the dead-latent loss, as in
            ``TopKTrainingSAEConfig``, but for every ``normalize_activations``.

    Raises:
        ValueError: If a field does not fit, naming it and what is allowed.
    """

    k: int = 128
    loss_every: int | None = None
    budgets: list[int] | None = None
    budget_weights: list[float] | None = None
    backend: Backend = "auto"
    unit_norm_decoder: bool = True
    b_dec_init: Literal["mean", "zeros"] = "mean"
    use_sparse_activations: bool = True

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    @override
    def __post_init__(self) -> None:
        check_flags(
            self,
            "apply_b_dec_to_input",
            "rescale_acts_by_decoder_norm",
            "unit_norm_decoder",
            "use_sparse_activations",
        )
        self.d_in = check_size("d_in", self.d_in)
        self.d_sae = check_size("d_sae", self.d_sae)
        self.k = check_k("k", self.k, self.d_sae)
        check_backend(self.backend)
        if self.b_dec_init not in ("mean", "zeros"):
            raise ValueError(
                f"b_dec_init must be 'mean' or 'zeros', got {self.b_dec_init!r}"
            )
        budgets, _ = self.resolve_budgets()
        if self.loss_every is not None:
            self.loss_every = int(self.loss_every)
        if self.budgets is not None:
            self.budgets = budgets
        if self.unit_norm_decoder:
            self.decoder_init_norm = 1.0
        super().__post_init__()

    @property
    def k_max(self) -> int:
        """K, under the name that the inference config has for it."""
        return self.k

    @property
    def activation(self) -> str:
        """The activation that the trained SAE starts with."""
        return "topk"

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Any:
        # An SAE that was saved for inference has k as it was last set.
        if "k_max" in config_dict:
            config_dict = {**config_dict, "k": config_dict["k_max"]}
        # What does not say so, such as that SAE, has rows of any norm.
        config_dict = {"unit_norm_decoder": False, **config_dict}
        return super().from_dict(without_former_loss_every(config_dict))

    @override
    def to_dict(self) -> dict[str, Any]:
        # With k_max the folder of a training checkpoint loads for inference too.
        return {**super().to_dict(), "k_max": self.k_max}

    def resolve_budgets(self) -> tuple[list[int], list[float]]:
        """Return J and its weights.

        Raises:
            ValueError: If the fields do not fit each other.
        """
        if self.budgets is not None and self.loss_every is not None:
            raise ValueError(
                "budgets and loss_every both say where the loss is taken: set one of "
                f"them, got loss_every={self.loss_every!r}"
            )
        budgets, weights = self.budgets, self.budget_weights
        if self.loss_every is not None:
            try:
                budgets = loss_budgets(self.k, self.loss_every)
            except ValueError as error:
                raise ValueError(f"loss_{error}") from error
        elif budgets is None:
            budgets, by_default = octave_budgets(self.k)
            weights = by_default if weights is None else weights
        return resolve_budgets(self.k, budgets, weights)


def without_former_loss_every(config: dict[str, Any]) -> dict[str, Any]:
    """Return a saved config without ``loss_every``'s former default beside budgets.

    That was 1, which is saved with ``budgets`` too, where it had no meaning.
    """
    if config.get("budgets") is not None and config.get("loss_every") == 1:
        return {**config, "loss_every": None}
    return config


class HierarchicalTopKTrainingSAE(HierarchicalBase, TopKTrainingSAE):
    """A TopK SAE trained to reconstruct well at every budget in J.

    The trainer, the data and the dead-latent loss are SAELens's. The loss is the
    hierarchical one of ``sae_lens_hierarchical.ops``; the activations handed to hooks
    and to the trainer are for looking at, no gradient flows through them.
    """

    cfg: HierarchicalTopKTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, cfg: HierarchicalTopKTrainingSAEConfig, use_error_term: bool = False
    ) -> None:
        super().__init__(cfg, use_error_term)
        self.register_buffer("thresholds", unknown_thresholds(cfg.k, cfg.device))
        self._budgets, self._budget_weights = cfg.resolve_budgets()
        self._keep_unit_norm()

    def _keep_unit_norm(self) -> None:
        if self.cfg.unit_norm_decoder:
            keep_unit_norm_decoder(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._keep_unit_norm()  # a copy's rows, too

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Compute the loss and the metrics of one training step.

        Args:
            step_input: ``sae_in`` is [..., d_in] and finite.

        Returns:
            SAELens's step output. ``losses`` holds ``hierarchical_loss`` and
            ``auxiliary_reconstruction_loss``, which add up to ``loss``; ``metrics``
            holds ``mse_k{j}`` and ``explained_variance_k{j}`` for a handful of the
            budgets j in J. ``hidden_pre`` is empty: only where hooks are attached to
            ``hook_sae_acts_pre`` are all pre-activations made.

        Raises:
            ValueError: If ``sae_in`` holds NaN or infinity.
        """
        sae_in = step_input.sae_in
        _check_finite(sae_in)
        normalized, output_map = self.normalize_input(sae_in)
        if step_input.n_training_steps == 0 and self.cfg.b_dec_init == "mean":
            self._start_b_dec_at_mean(normalized)
        scale = None
        # Unit rows make the rescaling an identity that costs a pass over W_dec.
        if self.cfg.rescale_acts_by_decoder_norm and not self.cfg.unit_norm_decoder:
            scale = self._row_norms()
        encoder_b_dec = self._encoder_b_dec()
        ranked, hidden_pre = self._rank(normalized, encoder_b_dec, scale)
        feature_acts = self.hook_sae_acts_post(self._feature_acts(ranked))

        values, indices = ranked
        decoded = values if scale is None else values * (1 / scale)[indices]
        decoder_target = self._decoder_columns(sae_in)
        target, b_dec, output_scale = decoder_target, self.b_dec, output_map.scale
        if output_scale is not None:  # then b_dec is another one for every token
            target, decoded = target - output_map(b_dec), decoded * output_scale
            b_dec = torch.zeros_like(b_dec)
        loss, per_budget, residual = hierarchical_loss_with_residual(
            target.flatten(0, -2),
            indices.flatten(0, -2),
            decoded.flatten(0, -2),
            self.W_dec,
            b_dec,
            budgets=self._budgets,
            budget_weights=self._budget_weights,
            backend=self.cfg.backend,
        )
        sae_out = decoder_target + residual.view_as(decoder_target)
        if has_hooks(self.hook_sae_recons):
            sae_out = self._hooked_output(ranked, output_map)

        auxiliary = sae_out.new_tensor(0.0)
        mask = step_input.dead_neuron_mask
        if mask is not None and len(dead := mask.nonzero().squeeze(-1)):
            auxiliary = self.cfg.aux_loss_coefficient * self._auxiliary_loss(
                normalized.flatten(0, -2),
                (decoder_target - sae_out).flatten(0, -2),
                self.W_enc,
                self.b_enc,
                encoder_b_dec,
                self.W_dec,
                dead,
                scale=scale,
                output_scale=None
                if output_scale is None
                else output_scale.flatten(0, -2),
            )
        loss, auxiliary, per_budget = self._over_columns(loss, auxiliary, per_budget)
        return TrainStepOutput(
            sae_in=decoder_target,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=loss + auxiliary,
            losses={
                "hierarchical_loss": loss,
                "auxiliary_reconstruction_loss": auxiliary,
            },
            metrics=self._budget_metrics(sae_in, per_budget),
        )

    # ``ShardedTrainingSAE``, whose decoder is spread over processes by columns, gives
    # these another meaning.

    def _encoder_b_dec(self) -> Tensor | None:
        """Return what is subtracted from the encoder's input, [d_in], if anything."""
        return self.b_dec if self.cfg.apply_b_dec_to_input else None

    def _row_norms(self) -> Tensor:
        """Return the norms of the decoder's rows, [d_sae], with gradients."""
        return self.W_dec.norm(dim=-1)

    def _decoder_columns(self, x: Tensor) -> Tensor:
        """Return the columns of [..., d_in] that this decoder writes."""
        return x

    def _has_own_b_dec(self) -> Tensor:
        """Return whether any entry of the whole b_dec is not zero, a scalar."""
        return self.b_dec.any()

    @torch.no_grad()
    def _start_b_dec_at_mean(self, normalized: Tensor) -> None:
        x = self._decoder_columns(normalized).flatten(0, -2)
        mean = x.mean(dim=0, dtype=torch.promote_types(x.dtype, torch.float32))
        # Another than zero is the user's own. No branch: a compiled step has no break.
        own = self._has_own_b_dec()
        self.b_dec.copy_(torch.where(own, self.b_dec, mean.to(self.b_dec.dtype)))

    def _over_columns(
        self, loss: Tensor, auxiliary: Tensor, per_budget: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return sums over this decoder's columns as sums over all of them."""
        return loss, auxiliary, per_budget

    @property
    def _auxiliary_loss(self) -> Callable[..., Tensor]:
        """What takes the arguments of ``ops.auxiliary_loss``, for these columns."""
        return auxiliary_loss

    def _encode_topk(
        self, x: Tensor, b_dec: Tensor | None, scale: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the K largest pre-activations, their features, and a sample.

        The sample is what ``_track_thresholds`` takes.
        """
        return encode_topk_with_sample(
            x, self.W_enc, self.b_enc, b_dec, self.cfg.k, TRACKED_TOKENS, scale
        )

    def _track_thresholds(self, hidden_pre: Tensor) -> None:
        """Update the thresholds with pre-activations of ``TRACKED_TOKENS`` tokens."""
        track_thresholds(self.thresholds, hidden_pre)

    def _rank(
        self, normalized: Tensor, b_dec: Tensor | None, scale: Tensor | None
    ) -> tuple[RankedActs, Tensor]:
        """Return the K largest features, and all pre-activations where hooks see them.

        Thresholds follow the first tokens.
        """
        k, flat = self.cfg.k, normalized.flatten(0, -2)
        hidden_pre = normalized.new_empty(0)
        if has_hooks(self.hook_sae_acts_pre):
            encoder_in = normalized if b_dec is None else normalized - b_dec
            hidden_pre = self.hook_sae_acts_pre(encoder_in @ self.W_enc + self.b_enc)
            if scale is not None:
                hidden_pre = hidden_pre * scale
            values, indices = stable_topk(hidden_pre, k)
            first = hidden_pre.detach().flatten(0, -2)[:TRACKED_TOKENS]
        else:
            values, indices, first = self._encode_topk(flat, b_dec, scale)
        self._track_thresholds(first)
        shape = (*normalized.shape[:-1], k)
        return RankedActs(values.view(shape).relu(), indices.view(shape)), hidden_pre

    @torch.no_grad()
    def _feature_acts(self, ranked: RankedActs) -> Tensor:
        # torch.compile knows no sparse tensors.
        if not self.cfg.use_sparse_activations or torch.compiler.is_compiling():
            return ranked.to_dense(self.cfg.d_sae)
        values, indices = ranked
        positions = torch.arange(indices.numel(), device=indices.device)
        *batch, _ = torch.unravel_index(positions, indices.shape)
        return torch.sparse_coo_tensor(
            torch.stack([*batch, indices.flatten()]),
            values.flatten(),
            (*indices.shape[:-1], self.cfg.d_sae),
            check_invariants=False,
        )

    @torch.no_grad()
    def _hooked_output(self, ranked: RankedActs, output_map: OutputMap) -> Tensor:
        """Return the output with what hooks make of the reconstruction (as decode)."""
        (output,) = decode_prefixes(self, ranked, [self.cfg.k], output_map)
        return output

    @override
    @torch.no_grad()
    def log_histograms(self) -> dict[str, NDArray[np.generic]]:
        # In float32 norms that are nearly 1 leave numpy no room for bins.
        return {"weights/W_dec_norms": self._row_norms().double().cpu().numpy()}

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        # Stored by feature, as its gradient comes out: nothing has to be transposed.
        self.W_enc.data = self.W_enc.data.T.contiguous().T

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if self.cfg.unit_norm_decoder:
            rescaled = self.cfg.rescale_acts_by_decoder_norm
            normalize_decoder(state_dict, rescaled=rescaled)

    @torch.no_grad()
    def _budget_metrics(self, sae_in: Tensor, per_budget: Tensor) -> dict[str, Any]:
        """Return this batch's Pareto curve, which SAELens logs like its own metrics."""
        flat = sae_in.flatten(0, -2).to(per_budget.dtype)
        variance = (flat - flat.mean(dim=0)).pow(2).sum(dim=-1).mean()
        explained = 1 - per_budget / variance
        metrics: dict[str, Any] = {}
        for budget in spread_budgets(self._budgets):
            n = self._budgets.index(budget)
            metrics[f"mse_k{budget}"] = per_budget[n]
            metrics[f"explained_variance_k{budget}"] = explained[n]
        return metrics


def _check_finite(sae_in: Tensor) -> None:
    # One sum reads the batch once; NaN and infinity both survive it.
    finite = sae_in.detach().sum(dtype=torch.float32).isfinite()
    message = "sae_in must be finite, got an activation batch with NaN or infinity"
    if torch.compiler.is_compiling():
        torch._assert_async(finite, message)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
    elif not finite:
        raise ValueError(message)
