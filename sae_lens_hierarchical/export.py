"""Plain SAELens checkpoints out of one SAE, for programs without this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
from torch import Tensor

from sae_lens_hierarchical.defaults import EXPORTED_ARCHITECTURE
from sae_lens_hierarchical.files.atomic_directory import atomic_directory
from sae_lens_hierarchical.saes import HierarchicalTopKSAE
from sae_lens_hierarchical.saes.assemble import sae_of_tensors, shared_settings
from sae_lens_hierarchical.saes.checks import Activation, check_activation, check_k

__all__ = ["export", "export_all"]


def export(
    sae: HierarchicalTopKSAE,
    folder: str | Path,
    k: int,
    architecture: Activation = EXPORTED_ARCHITECTURE,
) -> Path:
    """Write an SAE at one k as a checkpoint of SAELens's own architectures.

    Args:
        sae: The SAE; it stays as it is.
        folder: The folder to write: it appears whole or not at all.
        k: The number of active features, from 1 to ``d_sae``; for ``jumprelu`` to
            ``k_max``.
        architecture: ``topk`` gives what ``sae`` gives at k; only where activations
            tie, SAELens may take other ones. ``jumprelu`` keeps every feature above
            ``sae.threshold(k)``, k of them on average.

    Returns:
        ``folder``.

    Raises:
        ValueError: If ``k`` or ``architecture`` is none of these, or if ``jumprelu`` is
            asked of an SAE without thresholds. Nothing is written then.
    """
    folder = Path(folder)
    k = _check(sae, k, architecture)
    plain = _plain(sae, k, architecture)
    with atomic_directory(folder) as staging:
        plain.save_model(staging)
    return folder


def export_all(
    sae: HierarchicalTopKSAE,
    folder: str | Path,
    ks: Sequence[int],
    architecture: Activation = EXPORTED_ARCHITECTURE,
) -> list[Path]:
    """Write an SAE at each k of ``ks``, one sub-folder a k: ``k_8``, ``k_32``, ...

    The folder is laid out as a Hub repository whose SAE ids are the sub-folders' names.

    Returns:
        The sub-folders.

    Raises:
        ValueError: As ``export`` does, for any of ``ks``; or if ``ks`` is empty.
            Nothing is written then.
    """
    if not ks:
        raise ValueError("ks must name at least one k, got none")
    for k in ks:
        _check(sae, k, architecture)
    return [export(sae, Path(folder) / f"k_{k}", k, architecture) for k in ks]


def _check(sae: HierarchicalTopKSAE, k: int, architecture: str) -> int:
    check_activation("architecture", architecture)
    k = check_k("k", k, sae.cfg.d_sae)
    if architecture == "jumprelu":
        sae.threshold(k)
    return k


@torch.no_grad()
def _plain(
    sae: HierarchicalTopKSAE, k: int, architecture: Activation
) -> TopKSAE | JumpReLUSAE:
    state = sae.state_dict()
    weights = {name: state[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    rescale = sae.cfg.rescale_acts_by_decoder_norm
    settings = shared_settings(sae)
    origin = {"architecture": sae.cfg.architecture(), "k": k, "k_max": sae.k_max}
    settings["metadata"].exported_from = origin
    if architecture == "topk":
        cfg = TopKSAEConfig(**settings, k=k, rescale_acts_by_decoder_norm=rescale)
        return sae_of_tensors(TopKSAE, cfg, weights)
    threshold = _round_down(sae.threshold(k), sae.dtype)
    weights["threshold"] = threshold.to(sae.device).expand(sae.cfg.d_sae).clone()
    if rescale:
        # JumpReLU SAEs cannot rescale: the decoder's norms go into the encoder.
        norms = sae.get_W_dec_norm()
        weights["W_enc"] = weights["W_enc"] * norms
        weights["b_enc"] = weights["b_enc"] * norms
        weights["W_dec"] = weights["W_dec"] / norms.unsqueeze(-1)
    return sae_of_tensors(JumpReLUSAE, JumpReLUSAEConfig(**settings), weights)


def _round_down(value: float, dtype: torch.dtype) -> Tensor:
    """Return the largest number of ``dtype`` that is at most ``value``.

    Activations of that dtype exceed it just when they exceed ``value``.
    """
    rounded = torch.tensor(value, dtype=torch.float64).to(dtype)
    if rounded.double() <= value:
        return rounded
    return rounded.nextafter(torch.tensor(-torch.inf, dtype=dtype))
