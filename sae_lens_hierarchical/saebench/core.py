"""SAEBench's core eval at every k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from datasets import Dataset
from sae_lens import SAE, ActivationsStore

from sae_lens_hierarchical.eval.splicing import HookLocation
from sae_lens_hierarchical.saebench.bars import bars_of
from sae_lens_hierarchical.saebench.bench import Bench
from sae_lens_hierarchical.saebench.extra import (
    core_config,
    core_main,
    sae_bench_utils,
)
from sae_lens_hierarchical.saebench.inputs import numbers_sha256
from sae_lens_hierarchical.saebench.pending import each_with_its_sae

__all__ = ["run_core"]

RECONSTRUCTION_CONTEXTS = 3_200  # as in SAEBench's own scripts


def run_core(bench: Bench, saes: Mapping[str, SAE[Any]], ks: Sequence[int]) -> None:
    """Do what ``SAEBench.core`` says."""
    batch_size = min(bench.batch_size, len(bench.tokens))
    batches = len(bench.tokens) // batch_size
    dataset = Dataset.from_dict(
        {"tokens": bench.tokens[: batches * batch_size].cpu().numpy()}
    )
    config = core_config.CoreEvalConfig(
        model_name=bench.facts.name,
        llm_dtype=bench.facts.dtype,
        batch_size_prompts=batch_size,
        n_eval_reconstruction_batches=min(
            batches, -(-RECONSTRUCTION_CONTEXTS // batch_size)
        ),
        n_eval_sparsity_variance_batches=batches,
        dataset=bench.dataset_name,
        context_size=bench.tokens.shape[1],
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
    )
    tokenizer: Any = bench.model.tokenizer
    names = ("pad_token_id", "eos_token_id", "bos_token_id")
    special = {getattr(tokenizer, name) for name in names}
    note = {"tokens": numbers_sha256(bench.tokens)}
    planned = bench.pending("core", saes, ks, config, note)
    for pending, sae in each_with_its_sae(planned, saes, bench.facts.device):
        excluded = HookLocation.of(sae).excluded
        store = ActivationsStore.from_sae(
            bench.model,
            sae,
            dataset,
            context_size=config.context_size,
            total_tokens=len(dataset),
            device=bench.facts.device,
        )
        with bars_of(pending):
            metrics, features = core_main.run_evals(
                sae,
                store,
                bench.model,
                config,
                ignore_tokens={*special, *excluded} - {None},
                verbose=True,
            )
        metrics["misc_metrics"] = core_main.calculate_misc_metrics(features)
        result = {
            "sae_set": pending.name,
            "sae_id": pending.sae_id,
            "eval_cfg": config,
            "metrics": metrics,
            "feature_metrics": features,
        }
        with pending.atomic_file() as partial:
            core_main.save_single_eval_result(
                core_main.replace_nans_with_negative_one(result),
                sae_bench_utils.get_eval_uuid(),
                version("sae-lens"),
                version("sae-bench"),
                str(partial),
                sae,
            )
