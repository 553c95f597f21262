"""SAEBench's absorption at every k: do features of a first letter leave words out?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_hierarchical.saebench.bars import bars_of
from sae_lens_hierarchical.saebench.bench import Bench, folder_of_hook, seed
from sae_lens_hierarchical.saebench.extra import (
    absorption_common,
    absorption_config,
    absorption_main,
    absorption_output,
    absorption_vocab,
    feature_absorption,
    general_utils,
    k_sparse_probing,
)
from sae_lens_hierarchical.saebench.inputs import texts_sha256
from sae_lens_hierarchical.saebench.models import activations_at_hook, to_tokens
from sae_lens_hierarchical.saebench.pending import each_with_its_sae

__all__ = ["run_absorption", "words_of"]

# SAEBench's files have the names of SAE and model in their paths; a model's may be one.
_NAME = "it"
# A fifth of the words, drawn at random, is for tests: both parts need each letter.
_FEWEST_WORDS = 5


def run_absorption(
    bench: Bench, saes: Mapping[str, SAE[Any]], ks: Sequence[int], **settings: Any
) -> None:
    """Do what ``SAEBench.absorption`` says."""
    config = absorption_config.AbsorptionEvalConfig(**bench.config_fields, **settings)
    words = words_of(bench.model)
    note = {"vocabulary": texts_sha256(words)}
    planned = bench.pending("absorption", saes, ks, config, note)
    # The folder is for the probes of the model, which the SAEs of a hook share. Probes
    # are trained, for which gradients are needed.
    with TemporaryDirectory(dir=bench.output) as artifacts, torch.enable_grad():
        for pending, sae in each_with_its_sae(planned, saes, bench.facts.device):
            # As SAEBench does: activations are compared with the SAE's.
            sae.to(dtype=general_utils.str_to_dtype(bench.facts.dtype))
            with bars_of(pending):
                details = _letters(bench, config, sae, Path(artifacts))
            values = torch.tensor(
                [
                    (
                        detail.mean_absorption_fraction,
                        detail.full_absorption_rate,
                        detail.num_split_features,
                    )
                    for detail in details
                ],
                dtype=torch.float64,
            )
            mean = values.mean(dim=0).tolist()
            # One letter has no deviation, which JSON could not say.
            spread = values.std(dim=0, correction=len(values) > 1).tolist()
            metrics = absorption_output.AbsorptionMeanMetrics(
                mean_absorption_fraction_score=mean[0],
                mean_full_absorption_score=mean[1],
                mean_num_split_features=mean[2],
                std_dev_absorption_fraction_score=spread[0],
                std_dev_full_absorption_score=spread[1],
                std_dev_num_split_features=spread[2],
            )
            pending.write(
                absorption_output.AbsorptionEvalOutput,
                config,
                absorption_output.AbsorptionMetricCategories(mean=metrics),
                sae_cfg=sae.cfg.to_dict(),
                details=details,
                unstructured=None,
            )


def words_of(model: Any) -> list[str]:
    """Return the words of a model's tokenizer, of which SAEBench draws.

    Raises:
        ValueError: If a first letter has too few.
    """
    words = absorption_vocab.get_alpha_tokens(_in_order(model.tokenizer))
    letters = absorption_vocab.LETTERS
    count = Counter(word.strip()[0].lower() for word in words)
    if lacking := [letter for letter in letters if count[letter] < _FEWEST_WORDS]:
        raise ValueError(
            f"absorption needs at least {_FEWEST_WORDS} words of each first letter in "
            f"the tokenizer's vocabulary: it has fewer with {', '.join(lacking)}"
        )
    return words


def _letters(bench: Bench, config: Any, sae: Any, folder: Path) -> list[Any]:
    """Return SAEBench's result of each first letter that the model knows."""
    model = _at_hook(bench.model, sae)
    settings: dict[str, Any] = {
        "model": model,
        "sae": sae,
        "layer": sae.cfg.hook_layer,
        "sae_name": _NAME,
        "force": True,  # what is in the folder is of another SAE
        "max_k_value": config.max_k_value,
        "prompt_template": config.prompt_template,
        "prompt_token_pos": config.prompt_token_pos,
        "device": bench.facts.device,
        "probes_dir": folder_of_hook(folder, sae),
    }
    seed()
    absorption_common.load_or_train_probe(
        model=model,
        layer=sae.cfg.hook_layer,
        probes_dir=settings["probes_dir"],
        base_template=config.prompt_template,
        pos_idx=config.prompt_token_pos,
        device=bench.facts.device,
    )
    seed()  # a result is the same whether or not probes were there
    probing = k_sparse_probing.run_k_sparse_probing_experiment(
        **settings,
        experiment_dir=folder / "probing",
        f1_jump_threshold=config.f1_jump_threshold,
        k_sparse_probe_l1_decay=config.k_sparse_probe_l1_decay,
        k_sparse_probe_batch_size=config.k_sparse_probe_batch_size,
        k_sparse_probe_num_epochs=config.k_sparse_probe_num_epochs,
        precalc_k_sparse_probe_sae_acts=config.precalc_k_sparse_probe_sae_acts,
        eval_batch_size=config.eval_k_sparse_probe_batch_size,
        verbose=False,
    )
    known = set(probing["letter"][probing["f1_probe"] > config.min_GT_probe_f1])
    if len(known) < config.min_feats_for_eval:
        raise ValueError(
            "absorption needs a model that knows words' first letters: probes find "
            f"{len(known)} of 26 with an F1 above {config.min_GT_probe_f1}, and must "
            f"find {config.min_feats_for_eval} (in Python: min_GT_probe_f1 and "
            "min_feats_for_eval). SAEBench recommends at least 2B parameters"
        )
    found = feature_absorption.run_feature_absortion_experiment(
        **settings,
        experiment_dir=folder / "absorption",
        sparse_probing_experiment_dir=folder / "probing",
        feature_split_f1_jump_threshold=config.f1_jump_threshold,
        batch_size=config.llm_batch_size,
    )
    letters = absorption_main._aggregate_results_df(found).to_dict("records")
    return [
        absorption_output.AbsorptionResultDetail(
            first_letter=letter["letter"],
            mean_absorption_fraction=letter["mean_absorption_fraction"],
            full_absorption_rate=letter["full_absorption_rate"],
            num_full_absorption=letter["num_full_absorption"],
            num_probe_true_positives=letter["num_probe_true_positives"],
            num_split_features=letter["num_split_feats"],
        )
        for letter in letters
        if letter["letter"] in known
    ]


def _at_hook(model: Any, sae: Any) -> Any:
    """Return what SAEBench asks of a model, whose one hook is that of the SAE."""

    def run_with_cache(
        prompts: list[str], names_filter: list[str]
    ) -> tuple[None, dict[str, Any]]:
        tokens = to_tokens(model, prompts)
        x = activations_at_hook(model, tokens, sae.cfg.hook_name)
        return None, dict.fromkeys(names_filter, x)

    return SimpleNamespace(
        cfg=SimpleNamespace(model_name=_NAME, d_model=sae.cfg.d_in),
        tokenizer=_in_order(model.tokenizer),
        to_tokens=lambda prompt: to_tokens(model, [prompt]),
        run_with_cache=run_with_cache,
    )


def _in_order(tokenizer: Any) -> Any:
    """Return what SAEBench asks of a tokenizer, with its vocabulary by id."""
    # Fast tokenizers have it in another order each time, and words are drawn by order.
    vocabulary = tokenizer.get_vocab()
    return SimpleNamespace(
        vocab=dict(sorted(vocabulary.items(), key=itemgetter(1))),
        convert_tokens_to_string=tokenizer.convert_tokens_to_string,
    )
