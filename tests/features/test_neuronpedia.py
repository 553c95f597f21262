"""Tests of the files for Neuronpedia, against SAEDashboard 0.8.0's fields and types."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sae_lens import HookedSAETransformer

from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.data import load_bundled_dataset
from sae_lens_hierarchical.features import (
    FeatureTable,
    features_of_checkpoint,
    neuronpedia_batch,
    to_json,
    write_features,
)
from tests.helpers import make_crude_sae

# Of NeuronpediaDashboardBatch, -Feature and -Activation at commit db4839a; the
# direct feature attribution (dfa_*), which is of attention, may be left out.
BATCH = {
    "model_id": str,
    "layer": int,
    "sae_set": str,
    "sae_id_suffix": str,
    "features": dict,
}
FEATURE = {
    "feature_index": int,
    "neuron_alignment_indices": [int],
    "neuron_alignment_values": [float],
    "neuron_alignment_l1": [float],
    "correlated_neurons_indices": [int],
    "correlated_neurons_l1": [float],
    "correlated_neurons_pearson": [float],
    "correlated_features_indices": [int],
    "correlated_features_l1": [float],
    "correlated_features_pearson": [float],
    "neg_str": [str],
    "neg_values": [float],
    "pos_str": [str],
    "pos_values": [float],
    "frac_nonzero": float,
    "freq_hist_data_bar_values": [float],
    "freq_hist_data_bar_heights": [int],
    "logits_hist_data_bar_heights": [int],
    "logits_hist_data_bar_values": [float],
    "n_prompts_total": int,
    "n_tokens_in_prompt": int,
    "dataset": str,
    "decoder_weights_dist": [float],
    "activations": [dict],
    "vector": [float],
}
ACTIVATION = {
    "bin_min": float,
    "bin_max": float,
    "bin_contains": float,
    "tokens": [str],
    "values": [float],
    "qualifying_token_index": int,
}


def check(found: dict[str, Any], schema: dict[str, Any]) -> None:
    assert found.keys() == schema.keys()
    for name, kind in schema.items():
        values = found[name] if isinstance(kind, list) else [found[name]]
        (kind,) = kind if isinstance(kind, list) else [kind]
        assert all(type(value) is kind for value in values), name


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, model: HookedSAETransformer
) -> Path:
    folder = tmp_path_factory.mktemp("saes") / "ours"
    make_crude_sae(model).save_model(folder)
    return folder


@pytest.fixture(scope="module")
def table(folder: Path) -> FeatureTable:
    return features_of_checkpoint(folder, range(96), contexts=20)


def test_the_command_writes_a_batch_for_each_k(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "features"
    options = ["--features", "12,40", "--contexts", "20", "--output", str(output)]

    assert main(["features", str(folder), "--neuronpedia", *options]) == 0

    paths = sorted((output / "neuronpedia").rglob("*.json"))
    assert [path.parent.name for path in paths] == ["k_1", "k_2", "k_4", "k_8"]
    for path in paths:
        batch = json.loads(path.read_text(encoding="utf-8"))
        features = batch.pop("features")
        check(batch | {"features": {}}, BATCH)
        assert [one["feature_index"] for one in features] == [12, 40]
        assert batch["sae_id_suffix"] == path.parent.name
        for one in features:
            check(one, FEATURE)
            assert one["activations"]
            for activation in one["activations"]:
                check(activation, ACTIVATION)

    paths[0].with_name("note.txt").touch()
    assert main(["features", str(folder), "--force", *options]) == 0

    # Those were of other features.
    left = [path.name for path in output.rglob("*") if path.is_file()]
    assert sorted(left) == ["features.html", "features.json", "note.txt"]


def test_the_contexts_are_those_that_were_read(folder: Path, tmp_path: Path) -> None:
    text = load_bundled_dataset("held_out").select(range(2))
    text.to_json(tmp_path / "text.jsonl")

    table = features_of_checkpoint(folder, [12], dataset=str(tmp_path), contexts=10_000)

    read = table.provenance["contexts"]
    # Of each context all tokens but the first, which is special, count.
    assert 30 * read < table.tokens <= 31 * read
    (one,) = neuronpedia_batch(table, 8)["features"]
    assert one["n_prompts_total"] == read


def test_a_hook_in_no_layer_has_a_page_all_the_same(
    table: FeatureTable, tmp_path: Path
) -> None:
    nowhere = replace(table, provenance=table.provenance | {"hooks": ["hook_embed"]})

    with pytest.warns(UserWarning, match="no files for Neuronpedia: .* 'hook_embed'"):
        paths = write_features(tmp_path, nowhere, neuronpedia=True)

    assert [path.name for path in paths] == ["features.html", "features.json"]
    assert {*paths} == {*tmp_path.iterdir()}


def test_a_model_and_a_dataset_in_folders_go_by_their_names(
    table: FeatureTable,
) -> None:
    local = {"model": "/home/me/gpt2", "dataset": "/home/me/text"}
    table = replace(table, provenance=table.provenance | local)

    batch = neuronpedia_batch(table, 8)

    assert batch["model_id"] == "gpt2"
    assert {one["dataset"] for one in batch["features"]} == {"text"}
    assert json.loads(to_json(table))["provenance"]["model"] == "…/gpt2"


def test_at_k_a_feature_is_active_where_its_rank_is_at_most_k(
    table: FeatureTable,
) -> None:
    for k in table.ks:
        batch = neuronpedia_batch(table, k)
        for one, found in zip(table.features, batch["features"], strict=True):
            firings = sum(one.ranks[:k])
            assert found["frac_nonzero"] == pytest.approx(firings / table.tokens)
            assert sum(found["freq_hist_data_bar_heights"]) == firings
            values = [activation["values"] for activation in found["activations"]]
            assert bool(values) == (firings > 0)
            assert len(values) <= 10
            strongest = [max(of_context) for of_context in values]
            assert strongest == sorted(strongest, reverse=True)
            for activation in found["activations"]:
                peak = activation["qualifying_token_index"]
                assert activation["values"][peak] == activation["bin_max"] > 0
                assert len(activation["values"]) == len(activation["tokens"])


def test_tokens_on_which_it_enters_at_a_larger_k_have_no_activation(
    table: FeatureTable,
) -> None:
    for one in table.features:
        if not one.contexts:  # it is dead
            continue
        strongest = one.contexts[0]
        for k in (k for k in table.ks if k >= strongest.rank):
            (found,) = neuronpedia_batch(replace(table, features=[one]), k)["features"]
            values = found["activations"][0]["values"]
            shown = {place for place, value in enumerate(values) if value > 0}
            assert shown == {place for place, _, rank in strongest.active if rank <= k}


def test_what_neuronpedia_cannot_be_told_is_an_error(table: FeatureTable) -> None:
    with pytest.raises(ValueError, match=r"k must be one of \[1, 2, 4, 8\], got 3"):
        neuronpedia_batch(table, 3)
    with pytest.raises(ValueError, match="must be from features_of_checkpoint"):
        neuronpedia_batch(replace(table, provenance={}), 8)
    nowhere = replace(table, provenance=table.provenance | {"hooks": ["hook_embed"]})
    with pytest.raises(ValueError, match="the hook 'hook_embed' is in none"):
        neuronpedia_batch(nowhere, 8)
