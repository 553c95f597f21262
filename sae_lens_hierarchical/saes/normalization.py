"""What ``normalize_activations`` does to each token, without keeping state.

SAELens keeps the statistics of the last input in the SAE. A function of the input that
returns them lets many calls run at once, and no copy of an SAE use another's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["OutputMap", "normalize"]

_LAYER_NORM_EPSILON = 1e-5  # SAELens's


class OutputMap(NamedTuple):
    """What turns a reconstruction of normalized activations into one of the input.

    Attributes:
        scale: [..., 1], or None where it is 1.
        shift: [..., 1], or None where it is 0.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None

    def __call__(self, reconstruction: Tensor) -> Tensor:
        """Return ``reconstruction`` · scale + shift, [..., d_in]."""
        if self.scale is not None:
            reconstruction = reconstruction * self.scale
        return reconstruction if self.shift is None else reconstruction + self.shift

    def detach(self) -> OutputMap:
        """Return the same map, through which no gradients flow."""
        return OutputMap(*(None if part is None else part.detach() for part in self))


def normalize(x: Tensor, normalize_activations: str) -> tuple[Tensor, OutputMap]:
    """Normalize activations as SAELens does at run time.

    A token of zeros, which has no direction, stays one under
    ``"constant_norm_rescale"``, and so does its reconstruction: SAELens divides by its
    norm and gets NaN.

    Args:
        x: Activations, [..., d_in].
        normalize_activations: The field of the SAE's config. All but
            ``"constant_norm_rescale"`` and ``"layer_norm"`` leave ``x`` as it is: they
            are folded into the weights.

    Returns:
        The normalized activations, [..., d_in], and the way back.
    """
    # In float16 the norm of ordinary tokens can overflow.
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    if normalize_activations == "constant_norm_rescale":
        norm, wanted = exact.norm(dim=-1, keepdim=True), x.shape[-1] ** 0.5
        normalized = exact * (wanted / norm.where(norm > 0, 1))
        return normalized.to(x.dtype), OutputMap((norm / wanted).to(x.dtype))
    if normalize_activations == "layer_norm":
        mean = exact.mean(dim=-1, keepdim=True)
        centered = exact - mean
        std = (
            centered.std(dim=-1, keepdim=True)
            if x.shape[-1] > 1
            else torch.zeros_like(mean)  # where torch has NaN
        )
        normalized = centered / (std + _LAYER_NORM_EPSILON)
        return normalized.to(x.dtype), OutputMap(std.to(x.dtype), mean.to(x.dtype))
    return x, OutputMap()
