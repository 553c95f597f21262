"""Runs AutoInterp at every k: all prompts are gathered before the judge is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_hierarchical.saebench.autointerp import AutoInterp, AutoInterpConfig
from sae_lens_hierarchical.saebench.bars import bars_of
from sae_lens_hierarchical.saebench.bench import Bench, seed
from sae_lens_hierarchical.saebench.encodings import encode, record_activations
from sae_lens_hierarchical.saebench.extra import (
    activation_collection,
    autointerp_output,
)
from sae_lens_hierarchical.saebench.inputs import numbers_sha256
from sae_lens_hierarchical.saebench.judge import Judge
from sae_lens_hierarchical.saebench.pending import (
    PendingResult,
    prepared_sae,
    set_k,
)
from sae_lens_hierarchical.saes.checks import check_size

__all__ = ["run_autointerp"]

MOST_TOKENS = 2_000_000  # as in SAEBench's own scripts


def run_autointerp(
    bench: Bench,
    saes: Mapping[str, SAE[Any]],
    ks: Sequence[int],
    judge: Judge,
    latents: int,
) -> None:
    """Do what ``SAEBench.autointerp`` says."""
    check_size("latents", latents)
    contexts = MOST_TOKENS // bench.tokens.shape[1]
    tokens = bench.tokens[:contexts].to(bench.facts.device)
    config = AutoInterpConfig(
        judge=judge.model,
        judge_url=judge.url,
        n_latents=latents,
        dataset_name=bench.dataset_name,
        llm_context_size=tokens.shape[1],
        total_tokens=tokens.numel(),
        **bench.config_fields,
    )
    note = {"tokens": numbers_sha256(tokens)}
    planned = bench.pending("autointerp", saes, ks, config, note)
    if not planned:
        return
    runs = list(_gather(bench, planned, saes, config, tokens, judge))
    chats = [chat for _, run, _ in runs for chat in run.chats()]
    estimate = judge.estimate(chats)
    tqdm.write(f"AutoInterp: {estimate.text}")
    judge.check_limit(estimate.calls)
    for pending, run, sae_cfg in runs:
        with bars_of(pending):
            results = run.ask()
        scores = torch.tensor([result["score"] for result in results.values()])
        metrics = autointerp_output.AutoInterpMetrics(
            autointerp_score=scores.mean().item(),
            # Of one score SAEBench has NaN, which JSON has not.
            autointerp_std_dev=scores.std(correction=len(scores) > 1).item(),
        )
        pending.write(
            autointerp_output.AutoInterpEvalOutput,
            config,
            autointerp_output.AutoInterpMetricCategories(autointerp=metrics),
            sae_cfg=sae_cfg,
            details=[],
            unstructured=results,
            latents=numbers_sha256(run.examples),
        )


def _gather(
    bench: Bench,
    planned: Sequence[PendingResult],
    saes: Mapping[str, SAE[Any]],
    config: Any,
    tokens: Tensor,
    judge: Judge,
) -> Iterator[tuple[PendingResult, AutoInterp, dict[str, Any]]]:
    """Yield each result with its examples and its SAE's configuration.

    The model runs on the texts once, and each SAE encodes them once.
    """
    hooks = {r.name: str(saes[r.name].cfg.metadata.hook_name) for r in planned}
    counted = activation_collection.get_bos_pad_eos_mask(
        tokens, bench.model.tokenizer
    ).cpu()
    with TemporaryDirectory(dir=bench.output) as folder:
        recorded = record_activations(
            bench.model,
            tokens,
            sorted(set(hooks.values())),
            bench.batch_size,
            Path(folder),
        )
        for name, of_sae in groupby(planned, key=attrgetter("name")):
            results = list(of_sae)
            with prepared_sae(name, saes, bench.facts.device) as sae:
                largest = results[-1].k  # ks ascend
                set_k(sae, largest)
                x = recorded[hooks[name]]
                with bars_of(name):
                    encodings = encode(sae, largest, x, counted, bench.batch_size)
                for pending in results:
                    set_k(sae, pending.k)
                    seed()
                    at_k = encodings.at_k(pending.k)
                    with bars_of(pending):
                        run = AutoInterp(
                            config, bench.model, sae.cfg, tokens, at_k, judge
                        )
                    if not run.examples:
                        raise ValueError(
                            f"no feature of {pending} is active often enough in "
                            f"{tokens.numel():,} tokens: AutoInterp needs a larger "
                            "dataset"
                        )
                    yield pending, run, sae.cfg.to_dict()
