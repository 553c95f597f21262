"""Runs SAEBench on saved SAEs, whose metadata name the model and the dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sae_lens_hierarchical.defaults import (
    DEVICE,
    JUDGED_LATENTS,
    SAEBENCH_CONTEXTS,
    STORE_BATCH_SIZE,
)
from sae_lens_hierarchical.loading import (
    find_saes,
    load_model_and_dataset,
    load_saes,
)
from sae_lens_hierarchical.saebench.absorption import words_of
from sae_lens_hierarchical.saebench.evals import SAEBench, draw_tokens
from sae_lens_hierarchical.saebench.judge import Judge
from sae_lens_hierarchical.saebench.labelled import (
    PROBING_DATASETS,
    SCR_DATASETS,
    check_names,
)
from sae_lens_hierarchical.saebench.results import RESULT_FOLDERS
from sae_lens_hierarchical.saebench.scr_and_tpp import check_features

__all__ = ["saebench_checkpoints"]

EVALS = tuple(RESULT_FOLDERS)
# SAEBench's other eval, and why it does not run here.
_NOT_HERE = {
    "unlearning": "needs WMDP's corpus bio-forget-corpus, a gated download that no "
    "other text can stand in for, and does not run here",
}


def saebench_checkpoints(
    checkpoints: Sequence[str | Path],
    ks: Sequence[int],
    evals: Sequence[str],
    output: Path,
    judge: Judge | None = None,
    *,
    model_name: str | None = None,
    dataset: str | None = None,
    contexts: int = SAEBENCH_CONTEXTS,
    latents: int = JUDGED_LATENTS,
    probing_datasets: Sequence[str] = (),
    scr_datasets: Sequence[str] = (),
    batch_size: int = STORE_BATCH_SIZE,
    device: str = DEVICE,
    force: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Run evals of SAEBench on SAEs at each k; see ``SAEBench``.

    Args:
        checkpoints: SAEs of SAELens that were trained on one model, as ``find_saes``
            takes them: folders, or ids on the Hub or of SAELens's releases.
        ks: Strictly increasing numbers of features.
        evals: Some of ``core``, ``autointerp``, ``sparse_probing``, ``absorption`` and
            ``scr_and_tpp``.
        output: Where the results go.
        judge: The chat model that AutoInterp asks.
        model_name: A model on the Hub or on disk; default the SAEs' own.
        dataset: A dataset on the Hub or on disk; default what the first SAE was
            trained on, or for the bundled model its held-out dataset.
        contexts: How many contexts of it to use, where it has as many.
        latents: How many features AutoInterp explains for each SAE and k.
        probing_datasets: Some of SAEBench's datasets for sparse probing; default all.
        scr_datasets: Some of its datasets for SCR and TPP; default both.
        batch_size: Contexts in one forward pass of the model.
        device: Where to put the model and the SAEs.
        force: Whether to make results again that are there.
        trust_remote_code: Whether Python that lies with the model may run.

    Raises:
        ValueError: If an argument does not fit, or the SAEs have not one model.
        JudgeError: If the judge fails.
    """
    for name in evals:
        if name in _NOT_HERE:
            reason = _NOT_HERE[name]
            raise ValueError(f"{name} {reason}: evals must be some of {EVALS}")
    if unknown := sorted(set(evals) - set(EVALS)):
        raise ValueError(f"evals must be some of {EVALS}, got {unknown}")
    if judge is None and "autointerp" in evals:
        raise ValueError("autointerp needs a judge, and no model was named for it")
    for field, datasets, eval_type, known in (
        ("probing_datasets", probing_datasets, "sparse_probing", PROBING_DATASETS),
        ("scr_datasets", scr_datasets, "scr_and_tpp", SCR_DATASETS),
    ):
        check_names(field, datasets, known)
        if datasets and eval_type not in evals:
            raise ValueError(f"{field} is for {eval_type}, which evals does not have")
    # Each goes to the device when its turn comes.
    saes = load_saes(find_saes(checkpoints), model_name=model_name)
    model, data, dataset_name = load_model_and_dataset(
        saes, dataset, device, trust_remote_code=trust_remote_code
    )
    # What the last evals need is checked before the first.
    if "absorption" in evals:
        words_of(model)
    if "scr_and_tpp" in evals:
        check_features(saes)
    first = next(iter(saes.values()))
    bench = SAEBench(
        model=model,
        tokens=draw_tokens(model, first, data, contexts),
        dataset_name=dataset_name,
        output=output,
        batch_size=batch_size,
        force=force,
    )
    if "core" in evals:
        bench.core(saes, ks)
    if judge is not None and "autointerp" in evals:
        bench.autointerp(saes, ks, judge, latents)
    if "sparse_probing" in evals:
        bench.sparse_probing(saes, ks, probing_datasets)
    if "absorption" in evals:
        bench.absorption(saes, ks)
    if "scr_and_tpp" in evals:
        bench.scr_and_tpp(saes, ks, scr_datasets)
