"""Fine-tuning: training that starts from another SAE's weights."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_lens import SAE, TopKSAE, TrainingSAE, TrainingSAEConfig

from sae_lens_hierarchical.defaults import ARCHITECTURE
from sae_lens_hierarchical.loading import load_sae
from sae_lens_hierarchical.saes import (
    HierarchicalTopKSAE,
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)
from sae_lens_hierarchical.saes.kinds import is_batchtopk, trained_k

__all__ = ["fields_of_source", "sae_from_pretrained"]

# Another value of these makes another function of the same weights.
_FUNCTION_FIELDS = (
    "d_in",
    "d_sae",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
)
_SEPARATOR = "sequence_separator_token"
# What the metadata of an SAE say of the run that trained it.
_RUN_FIELDS = (
    "model_name",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "hook_name",
    "hook_head_index",
    "dataset_path",
    "context_size",
    "prepend_bos",
    "exclude_special_tokens",
    "seqpos_slice",
    _SEPARATOR,
    "disable_concat_sequences",
)


def fields_of_source(source: str | Path) -> dict[str, Any]:
    """Return the fields of a run that turns a pretrained SAE into a HierarchicalTopK.

    Args:
        source: The SAE, as ``find_sae`` takes it: one of ours, TopK or BatchTopK.

    Returns:
        Fields of ``LanguageModelSAERunnerConfig`` that the SAE and its metadata say,
        ``k`` among them if they say at which it was trained. The metadata are their
        author's text: ``LanguageModelSAETrainingRunner.of_untrusted`` takes it
        as such.

    Raises:
        ValueError: If there is no such SAE.
    """
    sae = _load_source(source)
    metadata = sae.cfg.metadata
    said = {"k": trained_k(sae)} | {name: metadata[name] for name in _RUN_FIELDS}
    known = {name: value for name, value in said.items() if value is not None}
    if _SEPARATOR in metadata:  # where None means that there was none
        known[_SEPARATOR] = metadata[_SEPARATOR]
    return {
        "architecture": ARCHITECTURE,
        "from_pretrained_path": str(source),
        **{name: getattr(sae.cfg, name) for name in _FUNCTION_FIELDS},
        "rescale_acts_by_decoder_norm": _rescales(sae),
        # Rows of other norms, ranked without them, would be ranked anew at norm 1.
        "unit_norm_decoder": _rescales(sae) or _has_rows_of_one_norm(sae),
        **known,
    }


def sae_from_pretrained(
    cfg: TrainingSAEConfig, source: str | Path, device: str
) -> TrainingSAE[Any]:
    """Return an SAE of the config ``cfg`` that starts with a trained SAE's weights.

    SAELens takes the fields of the one on disk. Here those of ``cfg`` hold.

    Args:
        cfg: What to train. For ``hierarchical_topk``, ``source`` may be one of ours, in
            training or saved, at any k, or SAELens's TopK or BatchTopK; its activation
            scaling is folded into its weights, and the thresholds of one of ours are
            kept as far as k goes. For another architecture it is an SAE in training of
            that architecture.
        source: The other one, as ``find_sae`` takes it; for another architecture its
            folder.
        device: Where to put it.

    Raises:
        ValueError: If a field would change what the weights do, or would not hold,
            naming the source's value and what was asked for.
    """
    if not isinstance(cfg, HierarchicalTopKTrainingSAEConfig):
        sae = TrainingSAE.load_from_disk(source, device)
        _check_equal(source, sae.cfg.to_dict(), cfg.to_dict())
        return sae
    weights = _load_source(source)
    was, asked = weights.cfg.to_dict(), cfg.to_dict()
    compared = {name: was[name] for name in _FUNCTION_FIELDS}
    # Rows that are brought to norm 1 and kept there are what rescaling comes to.
    rescales = cfg.rescale_acts_by_decoder_norm or cfg.unit_norm_decoder
    # Rows of one norm are ranked alike with and without rescaling.
    if not _has_rows_of_one_norm(weights):
        asked["rescale_acts_by_decoder_norm"] = rescales
        compared["rescale_acts_by_decoder_norm"] = _rescales(weights)
    _check_equal(source, compared, asked)
    # But what is ranked is larger by that norm, and so are the thresholds.
    unit = float(weights.W_dec.float().norm(dim=-1).mean())
    threshold_scale = unit ** (rescales - _rescales(weights))
    if cfg.unit_norm_decoder and _rescales(weights):
        weights.fold_W_dec_norm()

    # A b_dec of zeros is the source's, too.
    sae = HierarchicalTopKTrainingSAE(replace(deepcopy(cfg), b_dec_init="zeros"))
    state = weights.state_dict()
    state.pop("thresholds", None)  # another K has a table of another length
    state.pop("threshold", None)  # of a BatchTopK SAE
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict(state)
    if isinstance(weights, HierarchicalTopKSAE):
        known = min(len(weights.thresholds), len(sae.thresholds))
        sae.thresholds[:known] = weights.thresholds[:known] * threshold_scale
    return sae


def _load_source(source: str | Path) -> SAE[Any]:
    sae = load_sae(source)
    # A subclass may choose features otherwise, as AbsTopK does.
    if (
        isinstance(sae, HierarchicalTopKSAE)
        or type(sae) is TopKSAE
        or is_batchtopk(sae)
    ):
        return sae
    raise ValueError(
        "from_pretrained_path must be a hierarchical_topk or topk SAE, or a batchtopk "
        "one, which is saved as jumprelu with one threshold for all features, but "
        f"{source} is {sae.cfg.architecture()}"
    )


def _rescales(sae: SAE[Any]) -> bool:
    return getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)


def _has_rows_of_one_norm(sae: SAE[Any]) -> bool:
    norms = sae.W_dec.float().norm(dim=-1)
    return bool(norms.max() - norms.min() <= 1e-3 * norms.max())


def _check_equal(
    source: str | Path, was: dict[str, Any], asked: dict[str, Any]
) -> None:
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
