"""Fine-tuning: training that starts from another SAE's weights."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_lens import TopKSAE, TrainingSAE, TrainingSAEConfig

from sae_lens_hierarchical.loading import load_sae
from sae_lens_hierarchical.saes import (
    HierarchicalTopKSAE,
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)

__all__ = ["sae_from_pretrained"]

# Another value of these makes another function of the same weights.
_FUNCTION_FIELDS = (
    "d_in",
    "d_sae",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
)


def sae_from_pretrained(
    cfg: TrainingSAEConfig, source: Path, device: str
) -> TrainingSAE[Any]:
    """Return an SAE of the config ``cfg`` that starts with a trained SAE's weights.

    SAELens takes the fields of the one on disk. Here those of ``cfg`` hold.

    Args:
        cfg: What to train. For ``hierarchical_topk``, ``source`` may be one of ours, in
            training or saved, at any k, or SAELens's TopK; its activation scaling is
            folded into its weights, and its thresholds are kept as far as k goes. For
            another architecture it is an SAE in training of that architecture.
        source: The folder of the other one.
        device: Where to put it.

    Raises:
        ValueError: If a field would change what the weights do, or would not hold,
            naming the source's value and what was asked for.
    """
    if not isinstance(cfg, HierarchicalTopKTrainingSAEConfig):
        sae = TrainingSAE.load_from_disk(source, device)
        _check_equal(source, sae.cfg.to_dict(), cfg.to_dict())
        return sae
    weights = load_sae(source)
    if not isinstance(weights, HierarchicalTopKSAE | TopKSAE):
        raise ValueError(
            f"from_pretrained_path must be a hierarchical_topk or topk SAE, but "
            f"{source} is {weights.cfg.architecture()}"
        )
    was, asked = weights.cfg.to_dict(), cfg.to_dict()
    compared = {name: was[name] for name in _FUNCTION_FIELDS}
    norms = weights.W_dec.float().norm(dim=-1)
    # Rows of one norm are ranked alike with and without rescaling.
    if norms.max() - norms.min() > 1e-3 * norms.max():
        # Rows that are brought to norm 1 and kept there are what rescaling comes to.
        rescales = cfg.rescale_acts_by_decoder_norm or cfg.unit_norm_decoder
        asked["rescale_acts_by_decoder_norm"] = rescales
        compared["rescale_acts_by_decoder_norm"] = was["rescale_acts_by_decoder_norm"]
    _check_equal(source, compared, asked)
    if cfg.unit_norm_decoder and weights.cfg.rescale_acts_by_decoder_norm:
        weights.fold_W_dec_norm()

    # A b_dec of zeros is the source's, too.
    sae = HierarchicalTopKTrainingSAE(replace(deepcopy(cfg), b_dec_init="zeros"))
    state = weights.state_dict()
    state.pop("thresholds", None)  # another K has a table of another length
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict(state)
    if isinstance(weights, HierarchicalTopKSAE):
        known = min(len(weights.thresholds), len(sae.thresholds))
        sae.thresholds[:known] = weights.thresholds[:known]
    return sae


def _check_equal(source: Path, was: dict[str, Any], asked: dict[str, Any]) -> None:
    differing = [
        f"{name}: {was[name]!r} -> {asked[name]!r}"
        for name in was
        if name not in ("metadata", "device")
        and name in asked
        and was[name] != asked[name]
    ]
    if differing:
        raise ValueError(
            f"from_pretrained_path {source} cannot be trained on with other fields "
            f"(its own -> what was asked for): {', '.join(differing)}"
        )
