"""What the SAEs in training and at inference share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE, logger
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATION_WHITENING_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.util import dtype_to_str
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from typing_extensions import Self, override

from sae_lens_hierarchical.saes.checks import check_state_dict
from sae_lens_hierarchical.saes.normalization import OutputMap, normalize
from sae_lens_hierarchical.saes.thresholds import encode_thresholds, rescale_thresholds

__all__ = ["HierarchicalBase", "has_hooks"]


def has_hooks(point: HookPoint) -> bool:
    """Tell whether any forward or backward hook is attached to a hook point."""
    return bool(point._forward_hooks or point._backward_hooks)  # pyright: ignore[reportPrivateUsage]


class HierarchicalBase(SAE[Any]):
    """An SAE with a buffer ``thresholds``, whose copies are independent of it.

    SAELens's normalization and reshaping are closures over one SAE, which its copies
    would go on using; here they belong to each SAE.

    ``decode`` goes with the last input that was encoded, as in SAELens: with
    ``normalize_activations`` by token, threads that share an SAE are to use
    ``reconstruct``.

    Attributes:
        thresholds: θ(k) for k = 1 to K, [K], float32 whatever the SAE's dtype; NaN
            where unknown. Training tracks them, ``calibrate_thresholds`` computes them,
            and checkpoints may lack them.
    """

    thresholds: Tensor
    # The size of a head, of the first input with heads.
    d_head: int | None = None
    # Of the last input, for ``decode``.
    _output_map: OutputMap | None = None

    def encoder_input(self, x: Tensor) -> tuple[Tensor, OutputMap]:
        """Prepare activations for the encoder; the SAE stays as it is.

        Args:
            x: Activations, [..., d_in].

        Returns:
            What is multiplied with ``W_enc``, [..., d_in], and what turns
            reconstructions of it into those of ``x``.
        """
        normalized, output_map = self.normalize_input(x)
        return normalized - self.b_dec * self.cfg.apply_b_dec_to_input, output_map

    def normalize_input(self, x: Tensor) -> tuple[Tensor, OutputMap]:
        """Return normalized activations, [..., d_in], and what undoes it."""
        sae_in = self.hook_sae_input(self.reshape_fn_in(x.to(self.dtype)))
        return normalize(sae_in, self.cfg.normalize_activations)

    @override
    def process_sae_in(self, sae_in: Tensor) -> Tensor:
        encoder_in, self._output_map = self.encoder_input(sae_in)
        return encoder_in

    def run_time_activation_norm_fn_in(self, x: Tensor) -> Tensor:
        """Normalize an input, [..., d_in], whose statistics ``decode`` will use."""
        normalized, self._output_map = normalize(x, self.cfg.normalize_activations)
        return normalized

    def run_time_activation_norm_fn_out(self, x: Tensor) -> Tensor:
        """Return a reconstruction in the units of the last input that was encoded.

        Raises:
            RuntimeError: If none was.
        """
        return self.last_output_map()(x)

    def last_output_map(self) -> OutputMap:
        """Return the output map of the last input that was encoded.

        Raises:
            RuntimeError: If ``normalize_activations`` is by token and none was.
        """
        if self._output_map is not None:
            return self._output_map
        how = self.cfg.normalize_activations
        if how in ("constant_norm_rescale", "layer_norm"):
            raise RuntimeError(
                f"with normalize_activations={how!r} decoding needs the statistics of "
                "an input: encode it first"
            )
        return OutputMap()

    @override
    def _setup_activation_normalization(self) -> None:
        pass  # SAELens's closures are methods here

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["reshape_fn_in"], state["reshape_fn_out"]
        if self._output_map is not None:
            state["_output_map"] = self._output_map.detach()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.hook_z_reshaping_mode:
            self.turn_on_forward_pass_hook_z_reshaping()
        else:
            self.turn_off_forward_pass_hook_z_reshaping()

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        device, dtype = self.W_dec.device, self.W_dec.dtype
        # As integers they are moved like everything else, but never rounded.
        self.thresholds = self.thresholds.view(torch.int32)
        try:
            super()._apply(fn, recurse)
        finally:
            self.thresholds = self.thresholds.view(torch.float32)
        # SAELens notes these in ``to`` alone, not in ``half`` or ``cuda``.
        if self.W_dec.dtype != dtype:
            self.dtype = self.W_dec.dtype
            self.cfg.dtype = dtype_to_str(self.dtype)
            tracked = isinstance(self, TrainingSAE)  # then they follow by themselves
            if not tracked and not self.thresholds.isnan().all():
                logger.warning(
                    f"The thresholds are of activations in {dtype}: an SAE in "
                    f"{self.dtype} computes other ones. Set them anew with "
                    "calibrate_thresholds, so that l0 is k again"
                )
        if self.W_dec.device != device:
            self.device = self.W_dec.device
            self.cfg.device = str(self.device)
        return self

    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        rescale_thresholds(self, scaling_factor)

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        # Of another SAE that was there: SAELens would leave them to this one.
        for name in (
            ACTIVATION_SCALER_CFG_FILENAME,
            ACTIVATION_WHITENING_FILENAME,
            SPARSITY_FILENAME,
        ):
            Path(path, name).unlink(missing_ok=True)
        return super().save_model(path)

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        state_dict["thresholds"] = encode_thresholds(state_dict["thresholds"])

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        check_state_dict(self, state_dict)
