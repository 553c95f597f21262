"""SAEs from disk, as they are to be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME
from sae_lens.training.activation_scaler import ActivationScaler

__all__ = ["load_sae"]


def load_sae(folder: Path, device: str = "cpu") -> SAE[Any]:
    """Load any SAE of SAELens that was saved, or a checkpoint of its training.

    SAELens folds what activations were normalized by into the weights when training
    ends. Until then it lies beside the weights, and is folded here.

    Args:
        folder: The SAE's folder.
        device: Where to put it.
    """
    sae = SAE.load_from_disk(folder, device=device)
    path = folder / ACTIVATION_SCALER_CFG_FILENAME
    if path.is_file():
        scaler = ActivationScaler()
        scaler.load(path)
        if scaler.scaling_factor is not None:
            sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
        if scaler.whitening is not None:
            sae.fold_activation_whitening(
                mean=scaler.whitening.mean,
                whitening_matrix=scaler.whitening.matrix,
                unwhitening_matrix=scaler.whitening.inverse_matrix,
            )
    return sae
