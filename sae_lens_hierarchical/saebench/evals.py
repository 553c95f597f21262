"""SAEBench's evals at every k: core, AutoInterp and sparse probing."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from sae_lens import SAE, ActivationsStore
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_hierarchical.defaults import JUDGED_LATENTS, STORE_BATCH_SIZE
from sae_lens_hierarchical.eval.splicing import HookLocation
from sae_lens_hierarchical.loading import load_store
from sae_lens_hierarchical.saebench.autointerp import AutoInterp, AutoInterpConfig
from sae_lens_hierarchical.saebench.bars import bars_of
from sae_lens_hierarchical.saebench.encodings import encode, record_activations
from sae_lens_hierarchical.saebench.extra import (
    activation_collection,
    autointerp_output,
    core_config,
    core_main,
    probing_config,
    probing_main,
    probing_output,
    sae_bench_utils,
)
from sae_lens_hierarchical.saebench.inputs import folders_sha256, numbers_sha256
from sae_lens_hierarchical.saebench.judge import Judge
from sae_lens_hierarchical.saebench.models import ModelFacts
from sae_lens_hierarchical.saebench.pending import (
    PendingResult,
    each_with_its_sae,
    pending_results,
    prepared_sae,
    set_k,
)
from sae_lens_hierarchical.saes.checks import check_size

__all__ = ["SAEBench", "draw_tokens"]

# As in SAEBench's own scripts.
CONTEXT_SIZE = 128
CORE_RECONSTRUCTION_CONTEXTS = 3_200
AUTOINTERP_TOKENS = 2_000_000
SEED = 42


@dataclass(frozen=True, kw_only=True)
class SAEBench:
    """Runs SAEBench on one language model and one dataset, for any SAEs at any k.

    Each eval writes SAEBench's own result files, one for each SAE and k, into the
    folder of ``output`` with the eval's name: ``core/NAME_k_8_eval_results.json``.
    HierarchicalTopK and TopK SAEs are evaluated at each k; other ones as they are, with
    SAEBench's ``custom_sae`` in place of ``k_8``. A result notes the checksums of what
    it was made from. One that is there already, of the same SAE, data and settings, is
    taken as done; another one is made again. A line says which and why. No result is
    ever there in part.

    Attributes:
        model: The language model that the SAEs were trained on: TransformerLens's, or
            SAELens's ``HookedProxyLM`` around one of Hugging Face.
        tokens: The dataset's tokens, [contexts, context], int64.
        dataset_name: The dataset's name in the results.
        output: Where the results go.
        batch_size: Contexts in one forward pass of the model.
        force: Whether to make results again that are there.
    """

    model: Any
    tokens: Tensor
    dataset_name: str
    output: Path
    batch_size: int = STORE_BATCH_SIZE
    force: bool = False

    def __post_init__(self) -> None:
        check_size("batch_size", self.batch_size)

    def core(self, saes: Mapping[str, SAE[Any]], ks: Sequence[int]) -> None:
        """Evaluate L0, loss recovered, reconstruction and statistics of the features.

        SAEBench's ``explained_variance`` is not that of a sweep: see ``BudgetMetrics``.

        Args:
            saes: SAEs by name.
            ks: Numbers of features.

        Raises:
            ValueError: If a k does not fit, or an SAE's metadata lack model or hook.
        """
        batch_size = min(self.batch_size, len(self.tokens))
        batches = len(self.tokens) // batch_size
        dataset = Dataset.from_dict(
            {"tokens": self.tokens[: batches * batch_size].cpu().numpy()}
        )
        config = core_config.CoreEvalConfig(
            model_name=self._model.name,
            llm_dtype=self._model.dtype,
            batch_size_prompts=batch_size,
            n_eval_reconstruction_batches=min(
                batches, -(-CORE_RECONSTRUCTION_CONTEXTS // batch_size)
            ),
            n_eval_sparsity_variance_batches=batches,
            dataset=self.dataset_name,
            context_size=self.tokens.shape[1],
            compute_kl=True,
            compute_ce_loss=True,
            compute_l2_norms=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            exclude_special_tokens_from_reconstruction=True,
        )
        tokenizer: Any = self.model.tokenizer
        names = ("pad_token_id", "eos_token_id", "bos_token_id")
        special = {getattr(tokenizer, name) for name in names}
        note = {"tokens": numbers_sha256(self.tokens)}
        planned = self._pending("core", saes, ks, config, note)
        for pending, sae in each_with_its_sae(planned, saes, self._model.device):
            excluded = HookLocation.of(sae).excluded
            store = ActivationsStore.from_sae(
                self.model,
                sae,
                dataset,
                context_size=config.context_size,
                total_tokens=len(dataset),
                device=self._model.device,
            )
            with bars_of(pending):
                metrics, features = core_main.run_evals(
                    sae,
                    store,
                    self.model,
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

    def autointerp(
        self,
        saes: Mapping[str, SAE[Any]],
        ks: Sequence[int],
        judge: Judge,
        latents: int = JUDGED_LATENTS,
    ) -> None:
        """Score how well a judge explains features: it must tell where they are active.

        At each k SAEBench draws the features from those active at that k. All prompts
        are gathered, and their cost printed, before the judge is asked.

        Args:
            saes: SAEs by name.
            ks: Numbers of features.
            judge: The chat model to ask.
            latents: How many features to explain of each SAE at each k.

        Raises:
            ValueError: As ``core``; or if no feature is active often enough in the
                dataset, or the judge may not be asked as often as is needed.
            JudgeError: If the judge fails; its answers so far are kept.
        """
        check_size("latents", latents)
        contexts = AUTOINTERP_TOKENS // self.tokens.shape[1]
        tokens = self.tokens[:contexts].to(self._model.device)
        config = AutoInterpConfig(
            judge=judge.model,
            judge_url=judge.url,
            model_name=self._model.name,
            n_latents=latents,
            random_seed=SEED,
            dataset_name=self.dataset_name,
            llm_context_size=tokens.shape[1],
            llm_batch_size=self.batch_size,
            llm_dtype=self._model.dtype,
            total_tokens=tokens.numel(),
        )
        note = {"tokens": numbers_sha256(tokens)}
        planned = self._pending("autointerp", saes, ks, config, note)
        if not planned:
            return
        runs = list(self._gather(planned, saes, config, tokens, judge))
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
        self,
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
            tokens, self.model.tokenizer
        ).cpu()
        with TemporaryDirectory(dir=self.output) as folder:
            recorded = record_activations(
                self.model,
                tokens,
                sorted(set(hooks.values())),
                self.batch_size,
                Path(folder),
            )
            for name, of_sae in groupby(planned, key=attrgetter("name")):
                results = list(of_sae)
                with prepared_sae(name, saes, self._model.device) as sae:
                    largest = results[-1].k  # ks ascend
                    set_k(sae, largest)
                    x = recorded[hooks[name]]
                    with bars_of(name):
                        encodings = encode(sae, largest, x, counted, self.batch_size)
                    for pending in results:
                        set_k(sae, pending.k)
                        random.seed(SEED)
                        torch.manual_seed(SEED)
                        at_k = encodings.at_k(pending.k)
                        with bars_of(pending):
                            run = AutoInterp(
                                config, self.model, sae.cfg, tokens, at_k, judge
                            )
                        if not run.examples:
                            raise ValueError(
                                f"no feature of {pending} is active often enough in "
                                f"{tokens.numel():,} tokens: AutoInterp needs a larger "
                                "dataset"
                            )
                        yield pending, run, sae.cfg.to_dict()

    def sparse_probing(
        self,
        saes: Mapping[str, SAE[Any]],
        ks: Sequence[int],
        datasets: Sequence[str] = (),
        **sizes: int,
    ) -> None:
        """Evaluate probes on a few features, trained on SAEBench's labelled datasets.

        SAEBench asks ``datasets.load_dataset`` for them, which takes a folder in the
        working directory before the Hub: ``fancyzhx/ag_news/train.csv``.

        Args:
            saes: SAEs by name.
            ks: Numbers of features that are active; how many of them a probe sees is
                up to SAEBench.
            datasets: Names of SAEBench's datasets; default all.
            sizes: Fields of SAEBench's ``SparseProbingEvalConfig``, such as
                ``probe_train_set_size``.

        Raises:
            ValueError: As ``core``.
        """
        names = {"dataset_names": list(datasets)} if datasets else {}
        config = probing_config.SparseProbingEvalConfig(
            model_name=self._model.name,
            random_seed=SEED,
            llm_batch_size=self.batch_size,
            llm_dtype=self._model.dtype,
            **names,
            **sizes,
        )
        note = {"labelled data": folders_sha256(config.dataset_names)}
        planned = self._pending("sparse_probing", saes, ks, config, note)
        # The folder is for the model's activations, which the SAEs of a hook share. The
        # gradients, which SAEBench turns on and leaves on, are as before in the end.
        with TemporaryDirectory(dir=self.output) as artifacts, torch.enable_grad():
            for pending, sae in each_with_its_sae(planned, saes, self._model.device):
                with bars_of(pending):
                    results, by_class = probing_main.run_eval_single_sae(
                        config,
                        sae,
                        self.model,
                        self._model.device,
                        str(Path(artifacts) / sae.cfg.hook_name),
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

    @property
    def _model(self) -> ModelFacts:
        return ModelFacts.of(self.model)

    def _pending(
        self,
        eval_type: str,
        saes: Mapping[str, SAE[Any]],
        ks: Sequence[int],
        config: Any,
        note: Mapping[str, str],
    ) -> list[PendingResult]:
        folder = self.output / eval_type
        return pending_results(folder, saes, ks, config, note, force=self.force)


def draw_tokens(
    model: Any, sae: SAE[Any], dataset: str | Dataset, contexts: int
) -> Tensor:
    """Return contexts, as long as SAEBench's, of a dataset shuffled by its seed.

    Args:
        model: The language model, whose tokenizer is used.
        sae: Any SAE of it; its metadata say whether contexts begin with BOS.
        dataset: A dataset, or its name on the Hub or path.
        contexts: How many, where the dataset has as many.

    Returns:
        The tokens, [contexts, 128], int64.

    Raises:
        ValueError: If ``contexts`` is not at least 1, or the dataset has not one.
    """
    check_size("contexts", contexts)
    device = ModelFacts.of(model).device
    store = load_store(model, sae, dataset, context_size=CONTEXT_SIZE, device=device)
    store.shuffle_input_dataset(SEED)
    drawn = list(itertools.islice(store.iterable_sequences, contexts))
    if not drawn:
        raise ValueError(f"the dataset must have at least {CONTEXT_SIZE} tokens")
    return torch.stack(drawn)
