"""Features as SAEDashboard writes them for Neuronpedia, which shows one k at a time.

The fields are those of ``NeuronpediaDashboardBatch`` in SAEDashboard 0.8.0
(https://github.com/jbloomAus/SAEDashboard, commit db4839a).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens.util import extract_layer_from_tlens_hook_name

from sae_lens_hierarchical.features.table import (
    Context,
    FeatureStatistics,
    FeatureTable,
)

__all__ = ["neuronpedia_batch"]

_CONTEXTS = 10
# SAEDashboard too leaves lists empty of what it was not asked to measure.
_NOT_MEASURED = (
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_l1",
    "correlated_neurons_pearson",
    "correlated_features_indices",
    "correlated_features_l1",
    "correlated_features_pearson",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
    "decoder_weights_dist",
    "vector",
)


def neuronpedia_batch(table: FeatureTable, k: int) -> dict[str, Any]:
    """Return features at one k as the content of a ``batch-N.json`` of SAEDashboard.

    A feature is active on the tokens where its rank is at most k. Its contexts are the
    10 with its largest activations there.

    Args:
        table: From ``features_of_checkpoint``, which notes model, hook and dataset.
        k: One of ``table.ks``.

    Returns:
        Plain data, which can be written as JSON. ``sae_id_suffix`` is ``k_8`` at 8.

    Raises:
        ValueError: If ``k`` is none of them, the table does not say where it is from,
            or the hook is in no layer.
    """
    if k not in table.ks:
        raise ValueError(f"k must be one of {table.ks}, got {k!r}")
    if "hooks" not in table.provenance:
        raise ValueError(
            "table must be from features_of_checkpoint: its provenance has no model, "
            "hook and dataset, which Neuronpedia asks for"
        )
    (hook_name,) = table.provenance["hooks"]
    layer = extract_layer_from_tlens_hook_name(hook_name)
    if layer is None:
        raise ValueError(
            f"Neuronpedia asks for a layer, and the hook {hook_name!r} is in none"
        )
    data = {
        "n_prompts_total": table.provenance["contexts"],
        "n_tokens_in_prompt": table.provenance["context_size"],
        "dataset": _without_folders(table.provenance["dataset"]),
    }
    return {
        "model_id": _without_folders(table.provenance["model"]),
        "layer": layer,
        "sae_set": table.sae,
        "sae_id_suffix": f"k_{k}",
        "features": [_feature(one, table.ks, k) | data for one in table.features],
    }


def _without_folders(name: str) -> str:
    """Return the last part of an absolute path: the rest says nothing to others."""
    return Path(name).name if Path(name).is_absolute() else name


def _feature(one: FeatureStatistics, ks: list[int], k: int) -> dict[str, Any]:
    at = ks.index(k)
    heights = [sum(counts) for counts in zip(*one.activations[: at + 1], strict=True)]
    promoted, suppressed = one.promoted or [], one.suppressed or []
    return {name: [] for name in _NOT_MEASURED} | {
        "feature_index": one.feature,
        "pos_str": [token for token, _ in promoted],
        "pos_values": [effect for _, effect in promoted],
        "neg_str": [token for token, _ in suppressed],
        "neg_values": [effect for _, effect in suppressed],
        "frac_nonzero": one.frequency[at],
        "freq_hist_data_bar_values": [
            (n + 0.5) * one.bin_width for n in range(len(heights))
        ],
        "freq_hist_data_bar_heights": heights,
        "activations": [_activation(context, k) for context in _strongest(one, k)],
    }


def _strongest(one: FeatureStatistics, k: int) -> list[Context]:
    by_context: dict[int, Context] = {}
    for context in one.contexts:  # the largest activation first
        if context.rank <= k:
            by_context.setdefault(context.context, context)
    return [*by_context.values()][:_CONTEXTS]


def _activation(context: Context, k: int) -> dict[str, Any]:
    values = [0.0] * len(context.tokens)
    for place, activation, rank in context.active:
        if rank <= k:
            values[place] = activation
    # A bin from -1 with a share of -1 is how SAEDashboard marks the strongest.
    return {
        "tokens": context.tokens,
        "values": values,
        "qualifying_token_index": context.peak,
        "bin_min": -1.0,
        "bin_max": context.activation,
        "bin_contains": -1.0,
    }
