"""What ``normalize_activations`` does to an output, as a scale and a zero."""

from __future__ import annotations

from typing import Any

from sae_lens import SAE
from torch import Tensor

__all__ = ["output_map"]


def output_map(sae: SAE[Any], like: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return (scale, zero) with x̂ = scale · Σ l_i e_i + zero for the last input.

    Call it once after ``sae.process_sae_in``, which takes the input's statistics;
    SAELens forgets them at the first output.

    Args:
        sae: Any SAE of SAELens.
        like: What ``process_sae_in`` gave, [..., d_in].

    Returns:
        ``scale``, [..., 1], or None where it is 1; ``zero``, the output without any
        feature, [d_in] where it is ``b_dec`` and otherwise [..., d_in].
    """
    if sae.cfg.normalize_activations == "constant_norm_rescale":
        scale = 1 / sae.x_norm_coeff  # type: ignore[operator]
    elif sae.cfg.normalize_activations == "layer_norm":
        scale = sae.ln_std
    else:
        return None, sae.b_dec
    return scale, sae.run_time_activation_norm_fn_out(sae.b_dec.expand_as(like))  # type: ignore[return-value]
