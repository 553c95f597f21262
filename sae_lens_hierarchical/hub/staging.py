"""The files of SAEs that are pushed, each written anew from what was loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SPARSITY_FILENAME
from sae_lens.loading.pretrained_sae_loaders import load_safetensors_weights
from safetensors import SafetensorError
from safetensors.torch import save_file

from sae_lens_hierarchical.hub.facts import check_pushable, sae_facts, training_facts
from sae_lens_hierarchical.loading import load_sae

__all__ = ["Staged", "stage"]


@dataclass(frozen=True)
class Staged:
    """What is to be pushed.

    Attributes:
        sae: The SAE, or the first of several.
        names: Each one's sub-folder; "" is the folder itself.
        ks: The k of exported SAEs; none of another one.
        folder: The SAE's own, or the first one's of several; None of a loaded SAE.
    """

    sae: SAE[Any]
    names: list[str] = field(default_factory=lambda: [""])
    ks: list[int] = field(default_factory=list)
    folder: Path | None = None


def stage(sae_or_folder: SAE[Any] | str | Path, staging: Path) -> Staged:
    """Write the SAEs to push into ``staging``, each after it has been loaded.

    So nothing else that lies in a folder is pushed, and nothing that does not load.

    Raises:
        ValueError: If there is no SAE, or if one card does not fit all.
    """
    if isinstance(sae_or_folder, SAE):
        check_pushable(sae_or_folder)
        sae_or_folder.save_model(staging)
        return Staged(sae_or_folder, ks=_exported_k(sae_or_folder))
    folder = Path(sae_or_folder)
    names = [""]
    if not (folder / SAE_CFG_FILENAME).is_file():
        # A name with a dot in front is what a killed export left.
        names = [cfg.parent.name for cfg in folder.glob(f"[!.]*/{SAE_CFG_FILENAME}")]
        names.sort(key=lambda name: (len(name), name))  # k_8 before k_16
    staged = None
    for name in names:
        sae = load_sae(folder / name)
        if staged is None:
            staged = Staged(sae, names, folder=folder / name)
        if differences := _differences(sae, staged.sae):
            raise ValueError(
                f"the SAEs in {folder} would share one card, but {names[0]} and {name} "
                f"differ in {', '.join(differences)}: push them one by one"
            )
        staged.ks.extend(_exported_k(sae))
        sae.save_model(staging / name)
        _stage_sparsity(folder / name, staging / name)
    # load_sae says that there is none, and where some are.
    return Staged(load_sae(folder)) if staged is None else staged


def _exported_k(sae: SAE[Any]) -> list[int]:
    origin = sae.cfg.metadata.exported_from
    return [] if origin is None else [origin.get("k")]


def _differences(sae: SAE[Any], other: SAE[Any]) -> list[str]:
    """Return what a card says of one SAE and not of the other."""
    ours, others = (
        sae_facts(one) | training_facts(one.cfg.metadata) for one in (sae, other)
    )
    return [n for n in {**ours, **others} if ours.get(n) != others.get(n)]


def _stage_sparsity(folder: Path, staging: Path) -> None:
    """Write an SAE's sparsity into ``staging``, read: a link may lead anywhere."""
    if (folder / SPARSITY_FILENAME).is_file():
        try:
            tensors = load_safetensors_weights(folder / SPARSITY_FILENAME)
        except SafetensorError as error:
            raise ValueError(
                f"{folder / SPARSITY_FILENAME} is no whole safetensors file: {error}"
            ) from None
        save_file(tensors, staging / SPARSITY_FILENAME)
