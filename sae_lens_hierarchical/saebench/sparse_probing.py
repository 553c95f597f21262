"""SAEBench's sparse probing at every k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_hierarchical.saebench.bars import bars_of
from sae_lens_hierarchical.saebench.bench import Bench, folder_of_hook
from sae_lens_hierarchical.saebench.extra import (
    probing_config,
    probing_main,
    probing_output,
)
from sae_lens_hierarchical.saebench.inputs import folders_sha256
from sae_lens_hierarchical.saebench.labelled import (
    PROBING_DATASETS,
    check_names,
    folders_of,
)
from sae_lens_hierarchical.saebench.pending import each_with_its_sae

__all__ = ["run_sparse_probing"]


def run_sparse_probing(
    bench: Bench,
    saes: Mapping[str, SAE[Any]],
    ks: Sequence[int],
    datasets: Sequence[str],
    **sizes: int,
) -> None:
    """Do what ``SAEBench.sparse_probing`` says."""
    check_names("probing_datasets", datasets, PROBING_DATASETS)
    names = {"dataset_names": list(datasets)} if datasets else {}
    config = probing_config.SparseProbingEvalConfig(
        **bench.config_fields, **names, **sizes
    )
    note = {"labelled data": folders_sha256(folders_of(config.dataset_names))}
    planned = bench.pending("sparse_probing", saes, ks, config, note)
    # The folder is for the model's activations, which the SAEs of a hook share. The
    # gradient mode, which SAEBench sets, is restored in the end.
    with TemporaryDirectory(dir=bench.output) as artifacts, torch.enable_grad():
        for pending, sae in each_with_its_sae(planned, saes, bench.facts.device):
            with bars_of(pending):
                results, by_class = probing_main.run_eval_single_sae(
                    config,
                    sae,
                    bench.model,
                    bench.facts.device,
                    str(folder_of_hook(artifacts, sae)),
                )
            metrics = probing_output.SparseProbingMetricCategories(
                llm=probing_output.SparseProbingLlmMetrics(
                    **{n: v for n, v in results.items() if n.startswith("llm_")}
                ),
                sae=probing_output.SparseProbingSaeMetrics(
                    **{n: v for n, v in results.items() if n.startswith("sae_")}
                ),
            )
            pending.write(
                probing_output.SparseProbingEvalOutput,
                config,
                metrics,
                sae_cfg=sae.cfg.to_dict(),
                details=[
                    probing_output.SparseProbingResultDetail(
                        dataset_name=name, **result
                    )
                    for name, result in results.items()
                    if isinstance(result, dict)
                ],
                unstructured=by_class,
            )
