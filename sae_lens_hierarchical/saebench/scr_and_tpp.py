"""SAEBench's SCR and TPP at every k: what becomes of probes if features are ablated?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_hierarchical.saebench.bars import bars_of
from sae_lens_hierarchical.saebench.bench import Bench, folder_of_hook
from sae_lens_hierarchical.saebench.extra import (
    general_utils,
    scr_and_tpp_config,
    scr_and_tpp_main,
    scr_and_tpp_output,
)
from sae_lens_hierarchical.saebench.inputs import folders_sha256
from sae_lens_hierarchical.saebench.labelled import (
    SCR_DATASETS,
    check_names,
    check_rows,
    folders_of,
)
from sae_lens_hierarchical.saebench.pending import PendingResult, each_with_its_sae

__all__ = ["check_features", "run_scr_and_tpp"]


def run_scr_and_tpp(
    bench: Bench,
    saes: Mapping[str, SAE[Any]],
    ks: Sequence[int],
    datasets: Sequence[str],
    **settings: Any,
) -> None:
    """Do what ``SAEBench.scr_and_tpp`` says."""
    check_names("scr_datasets", datasets, SCR_DATASETS)
    if datasets:
        settings["dataset_names"] = list(datasets)
    runs: list[tuple[Any, list[PendingResult]]] = []
    for eval_type in ("scr", "tpp"):
        config = scr_and_tpp_config.ScrAndTppEvalConfig(
            perform_scr=eval_type == "scr",
            **bench.config_fields,
            **settings,
        )
        check_features(saes, config.n_values)
        note = {"labelled data": folders_sha256(folders_of(config.dataset_names))}
        runs.append((config, bench.pending(eval_type, saes, ks, config, note)))
    # Both before either: they may take hours.
    for config, planned in runs:
        if planned:
            check_rows(config)
    for config, planned in runs:
        _run(bench, saes, config, planned)


def _run(
    bench: Bench,
    saes: Mapping[str, SAE[Any]],
    config: Any,
    planned: Sequence[PendingResult],
) -> None:
    # The folder is for the model's activations, which the SAEs of a hook share. The
    # gradient mode, which SAEBench sets, is restored in the end.
    with TemporaryDirectory(dir=bench.output) as artifacts, torch.enable_grad():
        for pending, sae in each_with_its_sae(planned, saes, bench.facts.device):
            # As SAEBench does: probes of the model see what the SAE decodes.
            sae.to(dtype=general_utils.str_to_dtype(bench.facts.dtype))
            with bars_of(pending):
                results, by_class = scr_and_tpp_main.run_eval_single_sae(
                    config,
                    sae,
                    bench.model,
                    bench.facts.device,
                    str(folder_of_hook(artifacts, sae)),
                )
            overall = {n: v for n, v in results.items() if not isinstance(v, dict)}
            by_dataset = {n: v for n, v in results.items() if isinstance(v, dict)}
            output_class, metrics, detail = _outputs(config.perform_scr, overall)
            pending.write(
                output_class,
                config,
                metrics,
                sae_cfg=sae.cfg.to_dict(),
                details=[detail(dataset_name=n, **v) for n, v in by_dataset.items()],
                unstructured=by_class,
            )


def _outputs(perform_scr: bool, overall: Mapping[str, float]) -> tuple[Any, Any, Any]:
    """Return SAEBench's class of results, its metrics, and its class of details."""
    output = scr_and_tpp_output
    if perform_scr:
        metrics = output.ScrMetricCategories(scr_metrics=output.ScrMetrics(**overall))
        return output.ScrEvalOutput, metrics, output.ScrResultDetail
    metrics = output.TppMetricCategories(tpp_metrics=output.TppMetrics(**overall))
    return output.TppEvalOutput, metrics, output.TppResultDetail


def check_features(
    saes: Mapping[str, SAE[Any]], n_values: Sequence[int] | None = None
) -> None:
    """Raise a ValueError if an SAE has fewer features than are to be ablated.

    Args:
        saes: SAEs by name.
        n_values: How many are; default SAEBench's.
    """
    n_values = n_values or scr_and_tpp_config.ScrAndTppEvalConfig().n_values
    for name, sae in saes.items():
        if max(n_values) > sae.cfg.d_sae:
            raise ValueError(
                f"scr_and_tpp ablates up to {max(n_values)} features, and {name} has "
                f"{sae.cfg.d_sae} (in Python: n_values must be at most that)"
            )
