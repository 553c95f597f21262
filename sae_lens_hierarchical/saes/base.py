"""What the training and the inference SAE share: a table of thresholds."""

from __future__ import annotations

from typing import Any

from sae_lens import SAE
from torch import Tensor
from typing_extensions import override

from sae_lens_hierarchical.saes.checks import check_state_dict
from sae_lens_hierarchical.saes.thresholds import rescale_thresholds

__all__ = ["SAEWithThresholds"]


class SAEWithThresholds(SAE[Any]):
    """A SAE with a buffer ``thresholds``, which its checkpoints may lack.

    Attributes:
        thresholds: θ(k) for k = 1 to K, [K]; NaN where unknown. Training tracks them,
            and ``calibrate_thresholds`` computes them.
    """

    thresholds: Tensor

    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        rescale_thresholds(self, scaling_factor)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        check_state_dict(self, state_dict)
