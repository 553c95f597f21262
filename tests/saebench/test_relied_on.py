"""What our package ``saebench`` relies on in SAEBench, name by name.

Where a new version of SAEBench breaks us, this says by what.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from pkgutil import resolve_name
from typing import Any

import pytest

# Functions and methods, with the parameters that they are given.
CALLED = {
    "evals.core.main:run_evals": (
        "sae activation_store model eval_config ignore_tokens verbose"
    ),
    "evals.core.main:calculate_misc_metrics": "feature_metrics",
    "evals.core.main:replace_nans_with_negative_one": "obj",
    "evals.core.main:save_single_eval_result": (
        "result eval_instance_id sae_lens_version sae_bench_commit_hash json_path sae"
    ),
    "evals.absorption.common:load_or_train_probe": (
        "model base_template pos_idx layer probes_dir device"
    ),
    "evals.absorption.feature_absorption:run_feature_absortion_experiment": (
        "model sae layer sae_name max_k_value prompt_template prompt_token_pos device "
        "experiment_dir sparse_probing_experiment_dir probes_dir force "
        "feature_split_f1_jump_threshold batch_size"
    ),
    "evals.absorption.k_sparse_probing:run_k_sparse_probing_experiment": (
        "model sae layer sae_name max_k_value prompt_template prompt_token_pos device "
        "experiment_dir probes_dir force f1_jump_threshold k_sparse_probe_l1_decay "
        "k_sparse_probe_batch_size k_sparse_probe_num_epochs "
        "precalc_k_sparse_probe_sae_acts eval_batch_size verbose"
    ),
    "evals.absorption.main:_aggregate_results_df": "df",
    "evals.absorption.vocab:get_alpha_tokens": "tokenizer",
    "evals.autointerp.main:display_messages": "messages",
    "evals.autointerp.main:AutoInterp": (
        "cfg model sae tokenized_dataset sparsity device api_key"
    ),
    "evals.autointerp.main:AutoInterp.gather_data": "self",
    "evals.autointerp.main:AutoInterp.get_api_response": (
        "self messages max_tokens n_completions"
    ),
    "evals.autointerp.main:AutoInterp.get_generation_prompts": (
        "self generation_examples"
    ),
    "evals.autointerp.main:AutoInterp.get_scoring_prompts": (
        "self explanation scoring_examples"
    ),
    "evals.autointerp.main:AutoInterp.parse_explanation": "self explanation",
    "evals.autointerp.main:AutoInterp.parse_predictions": "self predictions",
    "evals.autointerp.main:AutoInterp.run_single_feature": (
        "self executor latent generation_examples scoring_examples explanation_override"
    ),
    "evals.scr_and_tpp.main:run_eval_single_sae": (
        "config sae model device artifacts_folder save_activations"
    ),
    "evals.sparse_probing.main:run_eval_single_sae": (
        "config sae model device artifacts_folder save_activations"
    ),
    # Ours takes its place, with the tokens first.
    "sae_bench_utils.activation_collection:collect_sae_activations": (
        "tokens selected_latents"
    ),
    "sae_bench_utils.activation_collection:get_bos_pad_eos_mask": "tokens tokenizer",
    "sae_bench_utils.general_utils:dtype_to_str": "dtype",
    "sae_bench_utils.general_utils:get_results_filepath": (
        "output_path sae_release sae_id"
    ),
    "sae_bench_utils.general_utils:load_and_format_sae": (
        "sae_release_or_unique_id sae_object_or_sae_lens_id device"
    ),
    "sae_bench_utils:get_eval_uuid": "",
}

RESULT = (
    "eval_config eval_id datetime_epoch_millis eval_result_metrics eval_result_details "
    "eval_result_unstructured sae_bench_commit_hash sae_lens_id sae_lens_release_id "
    "sae_lens_version sae_cfg_dict"
)
# Dataclasses, with the fields that are set or read.
FILLED = {
    "evals.absorption.eval_config:AbsorptionEvalConfig": (
        "model_name random_seed f1_jump_threshold max_k_value prompt_template "
        "prompt_token_pos llm_batch_size llm_dtype k_sparse_probe_l1_decay "
        "k_sparse_probe_batch_size k_sparse_probe_num_epochs min_GT_probe_f1 "
        "min_feats_for_eval eval_k_sparse_probe_batch_size "
        "precalc_k_sparse_probe_sae_acts"
    ),
    "evals.absorption.eval_output:AbsorptionEvalOutput": RESULT,
    "evals.absorption.eval_output:AbsorptionMeanMetrics": (
        "mean_absorption_fraction_score mean_full_absorption_score "
        "mean_num_split_features std_dev_absorption_fraction_score "
        "std_dev_full_absorption_score std_dev_num_split_features"
    ),
    "evals.absorption.eval_output:AbsorptionMetricCategories": "mean",
    "evals.absorption.eval_output:AbsorptionResultDetail": (
        "first_letter mean_absorption_fraction full_absorption_rate "
        "num_full_absorption num_probe_true_positives num_split_features"
    ),
    "evals.core.eval_config:CoreEvalConfig": (
        "model_name llm_dtype batch_size_prompts n_eval_reconstruction_batches "
        "n_eval_sparsity_variance_batches dataset context_size compute_kl "
        "compute_ce_loss compute_l2_norms compute_sparsity_metrics "
        "compute_variance_metrics compute_featurewise_density_statistics "
        "compute_featurewise_weight_based_metrics "
        "exclude_special_tokens_from_reconstruction"
    ),
    "evals.core.eval_output:CoreEvalOutput": RESULT,
    "evals.autointerp.eval_config:AutoInterpEvalConfig": (
        "model_name n_latents random_seed dataset_name llm_context_size llm_batch_size "
        "llm_dtype total_tokens max_tokens_in_explanation"
    ),
    "evals.autointerp.eval_output:AutoInterpEvalOutput": RESULT,
    "evals.autointerp.eval_output:AutoInterpMetricCategories": "autointerp",
    "evals.autointerp.eval_output:AutoInterpMetrics": (
        "autointerp_score autointerp_std_dev"
    ),
    "evals.scr_and_tpp.eval_config:ScrAndTppEvalConfig": (
        "random_seed dataset_names perform_scr train_set_size test_set_size "
        "llm_batch_size llm_dtype model_name n_values column1_vals_lookup"
    ),
    "evals.scr_and_tpp.eval_output:ScrEvalOutput": RESULT,
    "evals.scr_and_tpp.eval_output:ScrMetricCategories": "scr_metrics",
    "evals.scr_and_tpp.eval_output:ScrResultDetail": "dataset_name",
    "evals.scr_and_tpp.eval_output:TppEvalOutput": RESULT,
    "evals.scr_and_tpp.eval_output:TppMetricCategories": "tpp_metrics",
    "evals.scr_and_tpp.eval_output:TppResultDetail": "dataset_name",
    "evals.sparse_probing.eval_config:SparseProbingEvalConfig": (
        "model_name random_seed llm_batch_size llm_dtype dataset_names"
    ),
    "evals.sparse_probing.eval_output:SparseProbingEvalOutput": RESULT,
    "evals.sparse_probing.eval_output:SparseProbingMetricCategories": "llm sae",
    "evals.sparse_probing.eval_output:SparseProbingResultDetail": "dataset_name",
}


def find(name: str) -> Any:
    return resolve_name(f"sae_bench.{name}")


@pytest.mark.parametrize("name", CALLED)
def test_functions_take_what_they_are_given(name: str) -> None:
    given = CALLED[name].split()

    taken = inspect.signature(find(name)).parameters

    assert [parameter for parameter in taken if parameter in given] == given


@pytest.mark.parametrize("name", FILLED)
def test_dataclasses_have_the_fields(name: str) -> None:
    assert set(FILLED[name].split()) <= {field.name for field in fields(find(name))}


def test_answers_have_a_limit_that_follows_from_the_config() -> None:
    config = find("evals.autointerp.eval_config:AutoInterpEvalConfig")()

    assert config.max_tokens_in_prediction > 0


def test_defaults_are_what_ours_stand_for() -> None:
    """Where SAEBench evaluates on something else, our constants should follow."""
    config = find("evals.autointerp.eval_config:AutoInterpEvalConfig")()
    assert (config.total_tokens, config.llm_context_size) == (2_000_000, 128)
    assert (config.n_latents, config.random_seed) == (1000, 42)
