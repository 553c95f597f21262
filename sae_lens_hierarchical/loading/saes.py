"""SAEs from disk, as they are to be used: whole, finite, with nothing left to fold."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lens import SAE, TopKSAE
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATION_WHITENING_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
)
from sae_lens.loading.pretrained_sae_loaders import read_sae_components_from_disk
from sae_lens.saes.sae import SAEConfig
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from sae_lens_hierarchical.defaults import DEVICE
from sae_lens_hierarchical.loading.config import check_config
from sae_lens_hierarchical.loading.files import (
    read_json,
    read_tensors_checked,
)
from sae_lens_hierarchical.loading.models import allowed_model_kwargs
from sae_lens_hierarchical.loading.sources import SAESource, find_sae
from sae_lens_hierarchical.saes.checks import check_k

__all__ = ["load_sae", "load_saes"]

# What SAELens folds into the weights when training ends.
_FOLDED = ("expected_average_only_in", "covariance_whitening")


def load_saes(
    sources: Mapping[str, str | Path | SAESource],
    device: str = DEVICE,
    model_name: str | None = None,
) -> dict[str, SAE[Any]]:
    """Load SAEs that are to be compared, by name.

    Args:
        sources: Where they lie, as ``load_sae`` takes them.
        device: Where to put them.
        model_name: Their model; default the one that their metadata name. For a model
            that the user names, arguments that metadata may not set, and the revision
            of another model, are left out with a warning.

    Raises:
        ValueError: If one cannot be loaded, or they say nothing of their model, or have
            different ones.
    """
    saes = {name: load_sae(source, device) for name, source in sources.items()}
    if model_name is not None:
        for name, sae in saes.items():
            metadata = sae.cfg.metadata
            kwargs, refused = allowed_model_kwargs(
                metadata.model_from_pretrained_kwargs
            )
            if revision := kwargs.pop("revision", None):
                refused["revision"] = revision
            refused.pop("trust_remote_code", None)  # that is the user's to say
            if refused:
                warnings.warn(
                    f"{name}: {model_name} is loaded without {refused}, which its "
                    "metadata ask for",
                    stacklevel=2,
                )
            metadata.model_name = model_name
            metadata.model_from_pretrained_kwargs = kwargs
    names = {name: sae.cfg.metadata.model_name for name, sae in saes.items()}
    if None in names.values() or len(set(names.values())) > 1:
        raise ValueError(f"the SAEs must name one model in their metadata, got {names}")
    return saes


def load_sae(source: str | Path | SAESource, device: str = DEVICE) -> SAE[Any]:
    """Load any SAE of SAELens that was saved, or a checkpoint of its training.

    Nothing that lies with it runs. A release's files are read by SAELens, in float32.

    SAELens folds what activations were normalized by into the weights when training
    ends. Until then it lies beside the weights, and is folded here: ``cfg.json`` says
    whether that is still to be done. One without ``dtype`` means float32.

    Args:
        source: The SAE's folder, or another one that ``find_sae`` takes.
        device: Where to put it.

    Raises:
        ValueError: If there is no SAE, naming those close by; or if a file is missing,
            broken or does not fit, or a weight is not finite, naming it.
        OSError: If a file may not be read.
    """
    if not isinstance(source, SAESource):
        source = find_sae(source)
    try:
        sae = _load(source.place)
        _check_ks(sae)
        for name, tensor in sae.state_dict().items():
            # An unknown threshold is NaN.
            if name != "thresholds" and not tensor.isfinite().all():
                raise ValueError(f"{SAE_WEIGHTS_FILENAME}: {name} is not finite")
    except (OSError, MemoryError):
        raise
    # A stranger's config and tensors may make SAELens and torch raise anything.
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(
            f"the SAE in {source.id} cannot be loaded: {kind}{error}"
        ) from error
    return sae.to(device=device)


def _load(place: Path | tuple[str, str]) -> SAE[Any]:
    if isinstance(place, Path):
        sae = SAE.load_from_disk(place, converter=_read_sae)
        _fold_normalization(sae, place)
        return sae
    sae = SAE.from_pretrained(*place)
    check_config(sae.cfg.to_dict())
    if sae.cfg.normalize_activations in _FOLDED:
        raise ValueError(
            f"normalize_activations is {sae.cfg.normalize_activations!r}, and SAELens "
            "does not say what is to be folded into the weights"
        )
    return sae


def _read_sae(
    path: str | Path, device: str = DEVICE, cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an SAE's config and weights with SAELens's disk loader, checked before."""
    folder = Path(path)
    defaults = {"dtype": SAEConfig.dtype}
    given = {"device": device, **(cfg_overrides or {})}
    cfg = defaults | read_json(folder / SAE_CFG_FILENAME) | given
    check_config(cfg)
    weights = folder / SAE_WEIGHTS_FILENAME
    # Thresholds have a dtype of their own, and SAELens would cast them.
    thresholds = read_tensors_checked(weights, unchecked="thresholds")
    cfg, state_dict = read_sae_components_from_disk(cfg, weights, device)
    return cfg, state_dict | thresholds


def _check_ks(sae: SAE[Any]) -> None:
    if isinstance(sae, TopKSAE):
        check_k("k", sae.cfg.k, sae.cfg.d_sae)
    if (trained_k := sae.cfg.metadata.trained_k) is not None:
        check_k("metadata.trained_k", trained_k, sae.cfg.d_sae)


def _fold_normalization(sae: SAE[Any], folder: Path) -> None:
    """Fold into the weights what the config says is not folded yet."""
    normalization = sae.cfg.normalize_activations
    path = folder / ACTIVATION_SCALER_CFG_FILENAME
    if normalization not in _FOLDED:
        return
    if not path.exists():
        raise ValueError(
            f"{SAE_CFG_FILENAME} says normalize_activations={normalization!r}, but "
            f"{path.name}, which has what is still to be folded, is missing"
        )
    factor: Any = read_json(path).get("scaling_factor")
    if normalization == "expected_average_only_in":
        number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not number or not 0 < factor < math.inf:
            raise ValueError(
                f"{path.name}: scaling_factor must be above 0 and finite, "
                f"got {repr(factor)[:200]}"
            )
        sae.fold_activation_norm_scaling_factor(factor)
        return
    read_tensors_checked(folder / ACTIVATION_WHITENING_FILENAME)
    scaler = ActivationScaler()
    scaler.load(path)
    if scaler.whitening is None:
        raise ValueError(f"{path.name} says that there is no whitening")
    d_in = sae.cfg.d_in
    tensors = {
        "mean": (scaler.whitening.mean, [d_in]),
        "matrix": (scaler.whitening.matrix, [d_in, d_in]),
        "inverse_matrix": (scaler.whitening.inverse_matrix, [d_in, d_in]),
    }
    for name, (tensor, shape) in tensors.items():
        if list(tensor.shape) != shape or not tensor.isfinite().all():
            raise ValueError(
                f"{ACTIVATION_WHITENING_FILENAME}: {name} must be {shape} and finite, "
                f"got {list(tensor.shape)}"
            )
    sae.fold_activation_whitening(*(tensor for tensor, _ in tensors.values()))
