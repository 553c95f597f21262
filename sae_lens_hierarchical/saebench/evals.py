"""SAEBench's evals at every k. No other file knows SAEBench."""

# It is an extra, which a type checker need not find.
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import copy
import itertools
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from sae_lens import SAE, ActivationsStore, TopKSAE, TrainingSAE
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from sae_lens_hierarchical.eval.splicing import HookLocation
from sae_lens_hierarchical.loading import load_store
from sae_lens_hierarchical.ops.budgets import check_ks
from sae_lens_hierarchical.saes import HierarchicalTopKSAE
from sae_lens_hierarchical.saes.checks import check_size

try:
    import jaxtyping
    import pydantic

    # SAEBench's checks of types want a HookedTransformer, where a bridge does as well.
    jaxtyping.config.update("jaxtyping_disable", True)
    import sae_bench.evals.autointerp.eval_config as autointerp_config
    import sae_bench.evals.autointerp.eval_output as autointerp_output
    import sae_bench.evals.autointerp.main as autointerp_main
    import sae_bench.evals.core.eval_config as core_config
    import sae_bench.evals.core.main as core_main
    import sae_bench.evals.sparse_probing.eval_config as probing_config
    import sae_bench.evals.sparse_probing.eval_output as probing_output
    import sae_bench.evals.sparse_probing.main as probing_main
    from sae_bench.sae_bench_utils import (
        activation_collection,
        general_utils,
        get_eval_uuid,
    )

    from sae_lens_hierarchical.saebench.judge import Judge, JudgeError, Messages
except ImportError as error:
    raise ImportError(
        f"SAEBench cannot be imported ({error}): see SAEBench in the README of "
        "sae-lens-hierarchical, which says how to install it"
    ) from error

__all__ = ["SAEBench", "draw_tokens"]

# What SAEBench's own scripts measure with.
CONTEXT_SIZE = 128
CONTEXTS = 32_000
BATCH_SIZE = 16
LATENTS = 1_000
CORE_RECONSTRUCTION_CONTEXTS = 3_200
AUTOINTERP_TOKENS = 2_000_000
JUDGE_THREADS = 10
SEED = 42


@dataclass(frozen=True, kw_only=True)
class SAEBench:
    """SAEBench on one language model and one text, for any SAEs at any k.

    Each eval writes SAEBench's own result files, one for each SAE and k, into the
    folder of ``output`` with the eval's name: ``core/NAME_k_8_eval_results.json``.
    HierarchicalTopK and TopK SAEs are read at each k; other ones as they are, with
    SAEBench's ``custom_sae`` in place of ``k_8``. A result that is there already is
    not made again, and none is ever there in part.

    Attributes:
        model: The language model that the SAEs were trained on.
        tokens: The text, [contexts, context], int64.
        text_name: What the results are to call the text.
        output: Where the results go.
        batch_size: Contexts in one forward pass of the model.
        force: Whether to make results again that are there.
    """

    model: HookedTransformer
    tokens: Tensor
    text_name: str
    output: Path
    batch_size: int = BATCH_SIZE
    force: bool = False

    def __post_init__(self) -> None:
        check_size("batch_size", self.batch_size)

    def core(self, saes: Mapping[str, SAE[Any]], ks: Sequence[int]) -> None:
        """Measure l0, loss recovered, reconstruction and statistics of the features.

        Raises:
            ValueError: If a k does not fit, or a SAE's metadata lack model or hook.
        """
        batch_size = min(self.batch_size, len(self.tokens))
        batches = len(self.tokens) // batch_size
        text = Dataset.from_dict(
            {"tokens": self.tokens[: batches * batch_size].cpu().numpy()}
        )
        config = core_config.CoreEvalConfig(
            model_name=self.model.cfg.model_name,
            llm_dtype=general_utils.dtype_to_str(self.model.cfg.dtype),
            batch_size_prompts=batch_size,
            n_eval_reconstruction_batches=min(
                batches, -(-CORE_RECONSTRUCTION_CONTEXTS // batch_size)
            ),
            n_eval_sparsity_variance_batches=batches,
            dataset=self.text_name,
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
        for entry in self._missing("core", saes, ks):
            metrics, features = core_main.run_evals(
                entry.sae,
                ActivationsStore.from_sae(
                    self.model,
                    entry.sae,
                    text,
                    context_size=config.context_size,
                    total_tokens=len(text),
                    device=self._device,
                ),
                self.model,
                config,
                ignore_tokens={*special, *HookLocation.of(saes[entry.name]).excluded} - {None},
                verbose=True,
            )
            metrics["misc_metrics"] = core_main.calculate_misc_metrics(features)
            result = {
                "sae_set": entry.name,
                "sae_id": entry.sae_id,
                "eval_cfg": config,
                "metrics": metrics,
                "feature_metrics": features,
            }
            with _whole_file(entry.path) as partial:
                core_main.save_single_eval_result(
                    core_main.replace_nans_with_negative_one(result),
                    get_eval_uuid(),
                    version("sae-lens"),
                    version("sae-bench"),
                    str(partial),
                    entry.sae,
                )

    def autointerp(
        self,
        saes: Mapping[str, SAE[Any]],
        ks: Sequence[int],
        judge: Judge,
        latents: int = LATENTS,
    ) -> None:
        """Let a judge explain features, and tell by that where they are active.

        At each k SAEBench draws the features from those active at that k. All prompts
        are gathered, and their cost printed, before the judge is asked.

        Args:
            saes: SAEs by name.
            ks: Numbers of features.
            judge: The judge.
            latents: How many features to explain of each SAE at each k.

        Raises:
            ValueError: As ``core``; or if the text shows too little of the features.
            JudgeError: If the judge fails; what it has answered is kept.
        """
        check_size("latents", latents)
        contexts = AUTOINTERP_TOKENS // self.tokens.shape[1]
        tokens = self.tokens[:contexts].to(self._device)
        config = _AutoInterpConfig(
            judge=judge.model,
            judge_url=judge.url,
            model_name=self.model.cfg.model_name,
            n_latents=latents,
            random_seed=SEED,
            dataset_name=self.text_name,
            llm_context_size=tokens.shape[1],
            llm_batch_size=self.batch_size,
            llm_dtype=general_utils.dtype_to_str(self.model.cfg.dtype),
            total_tokens=tokens.numel(),
        )
        runs = []
        for entry in self._missing("autointerp", saes, ks):
            random.seed(SEED)
            torch.manual_seed(SEED)
            run = _AutoInterp(config, self.model, entry.sae, tokens, judge)
            if not run.examples:
                raise ValueError(
                    f"no feature of {entry} is active often enough in "
                    f"{tokens.numel():,} tokens: AutoInterp needs more text"
                )
            runs.append((entry, run))
        if runs:
            chats = [chat for _, run in runs for chat in run.chats()]
            tqdm.write(f"AutoInterp: {judge.estimate(chats)}")
        for entry, run in runs:
            results = run.ask(f"Asking about {entry}")
            if not results:
                raise JudgeError(
                    f"{judge.model} said of no feature of {entry} where it is active: "
                    "none of its answers is a list of numbers"
                )
            scores = torch.tensor([result["score"] for result in results.values()])
            metrics = autointerp_output.AutoInterpMetrics(
                autointerp_score=scores.mean().item(),
                # Of one score SAEBench has NaN, which JSON has not.
                autointerp_std_dev=scores.std(correction=len(scores) > 1).item(),
            )
            self._write(
                entry,
                autointerp_output.AutoInterpEvalOutput,
                config,
                autointerp_output.AutoInterpMetricCategories(autointerp=metrics),
                details=[],
                unstructured=results,
            )

    def sparse_probing(
        self,
        saes: Mapping[str, SAE[Any]],
        ks: Sequence[int],
        datasets: Sequence[str] = (),
        **sizes: int,
    ) -> None:
        """Train probes on a few features, for labelled texts that SAEBench knows.

        SAEBench asks ``datasets.load_dataset`` for them, which takes a folder in the
        working directory before the Hub: ``fancyzhx/ag_news/train.csv``.

        Args:
            saes: SAEs by name.
            ks: Numbers of features that are active; how many of them a probe sees is
                up to SAEBench.
            datasets: Names of SAEBench's data sets; default all.
            sizes: Fields of SAEBench's ``SparseProbingEvalConfig``, such as
                ``probe_train_set_size``.

        Raises:
            ValueError: As ``core``.
        """
        names = {"dataset_names": list(datasets)} if datasets else {}
        config = probing_config.SparseProbingEvalConfig(
            model_name=self.model.cfg.model_name,
            random_seed=SEED,
            llm_batch_size=self.batch_size,
            llm_dtype=general_utils.dtype_to_str(self.model.cfg.dtype),
            **names,
            **sizes,
        )
        self.output.mkdir(parents=True, exist_ok=True)
        # The folder is for the model's activations, which the SAEs of a hook share. The
        # gradients, which SAEBench turns on and leaves on, are as before in the end.
        with TemporaryDirectory(dir=self.output) as artifacts, torch.enable_grad():
            for entry in self._missing("sparse_probing", saes, ks):
                results, by_class = probing_main.run_eval_single_sae(
                    config,
                    entry.sae,
                    self.model,
                    self._device,
                    str(Path(artifacts) / entry.sae.cfg.hook_name),
                )
                metrics = probing_output.SparseProbingMetricCategories(
                    llm=probing_output.SparseProbingLlmMetrics(
                        **{n: v for n, v in results.items() if n.startswith("llm_")}
                    ),
                    sae=probing_output.SparseProbingSaeMetrics(
                        **{n: v for n, v in results.items() if n.startswith("sae_")}
                    ),
                )
                self._write(
                    entry,
                    probing_output.SparseProbingEvalOutput,
                    config,
                    metrics,
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
    def _device(self) -> str:
        return str(self.model.cfg.device)

    def _missing(
        self, eval_type: str, saes: Mapping[str, SAE[Any]], ks: Sequence[int]
    ) -> Iterator[_Entry]:
        """Yield the SAEs at the k of which there is no result, each set to it."""
        for name, sae in saes.items():
            check_ks("ks", ks, sae.cfg.d_sae)
            if isinstance(sae, TrainingSAE):
                raise ValueError(f"{name} is a SAE in training: save it and load it")
        folder = self.output / eval_type
        folder.mkdir(parents=True, exist_ok=True)
        for name, original in saes.items():
            # SAEBench writes into the SAE's metadata.
            sae = copy.deepcopy(original).to(self._device)
            # It wants decoder rows of norm 1. Where a TopK SAE cannot have them without
            # becoming another one, it warns.
            with suppress(NotImplementedError):
                sae.fold_W_dec_norm()
            custom_id, *_ = general_utils.load_and_format_sae(name, sae, self._device)
            for k in ks if isinstance(sae, TopKSAE) else [None]:
                sae_id = custom_id if k is None else f"k_{k}"
                path = Path(
                    general_utils.get_results_filepath(str(folder), name, sae_id)
                )
                if self.force or not path.exists():
                    if k is not None:
                        _set_k(sae, k)
                    yield _Entry(name, sae_id, path, sae, sae.cfg.to_dict())
                else:
                    tqdm.write(f"{path} is there already: not made again")

    def _write(
        self,
        entry: _Entry,
        output_class: Any,
        config: Any,
        metrics: Any,
        *,
        details: list[Any],
        unstructured: Any,
    ) -> None:
        output = output_class(
            eval_config=config,
            eval_id=get_eval_uuid(),
            datetime_epoch_millis=time.time_ns() // 1_000_000,
            eval_result_metrics=metrics,
            eval_result_details=details,
            eval_result_unstructured=unstructured,
            sae_bench_commit_hash=version("sae-bench"),
            sae_lens_id=entry.sae_id,
            sae_lens_release_id=entry.name,
            sae_lens_version=version("sae-lens"),
            sae_cfg_dict=entry.sae_cfg,
        )
        with _whole_file(entry.path) as partial:
            output.to_json_file(str(partial))


def draw_tokens(
    model: HookedTransformer, sae: SAE[Any], text: str | Dataset, contexts: int
) -> Tensor:
    """Return contexts as long as SAEBench's of a text that SAEBench's seed shuffles.

    Args:
        model: The language model, whose tokenizer is used.
        sae: Any SAE of it; its metadata say whether contexts begin with BOS.
        text: A data set, or its name on the Hub or path.
        contexts: How many, where the text has as many.

    Raises:
        ValueError: If ``contexts`` is not at least 1, or the text has not one.
    """
    check_size("contexts", contexts)
    device = str(model.cfg.device)
    store = load_store(model, sae, text, context_size=CONTEXT_SIZE, device=device)
    store.shuffle_input_dataset(SEED)
    drawn = list(itertools.islice(store.iterable_sequences, contexts))
    if not drawn:
        raise ValueError(f"the text must have at least {CONTEXT_SIZE} tokens")
    return torch.stack(drawn)


@dataclass(frozen=True)
class _Entry:
    """A SAE at one k, of which a result is to be made.

    Attributes:
        name: The SAE's name, SAEBench's "release".
        sae_id: Which k it is.
        path: The result's file.
        sae: The SAE, at this k until the next entry is asked for.
        sae_cfg: Its configuration at this k.
    """

    name: str
    sae_id: str
    path: Path
    sae: Any
    sae_cfg: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name} at {self.sae_id}"


def _set_k(sae: Any, k: int) -> None:
    if isinstance(sae, HierarchicalTopKSAE):
        sae.k = k
    else:
        sae.cfg.k = k
        sae.activation_fn = sae.get_activation_fn()


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Give a file to write that becomes ``path`` once the block is through."""
    # Not a name in which SAEBench sees a result.
    partial = path.with_suffix(".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@pydantic.dataclasses.dataclass
class _AutoInterpConfig(autointerp_config.AutoInterpEvalConfig):
    """SAEBench's, which knows one judge and need not say which."""

    judge: str = ""
    judge_url: str = ""


class _AutoInterp(autointerp_main.AutoInterp):
    """SAEBench's AutoInterp of one SAE at one k, with our judge.

    Attributes:
        examples: By feature, texts to explain it by and texts to test that on.
    """

    def __init__(
        self,
        config: Any,
        model: HookedTransformer,
        sae: SAE[Any],
        tokens: Tensor,
        judge: Judge,
    ) -> None:
        sparsity = activation_collection.get_feature_activation_sparsity(
            tokens,
            model,
            sae,
            config.llm_batch_size,
            sae.cfg.hook_layer,
            sae.cfg.hook_name,
            mask_bos_pad_eos_tokens=True,
        )
        device = str(tokens.device)
        super().__init__(config, model, sae, tokens, sparsity, device, api_key="")
        self._judge, self._random = judge, threading.Lock()
        to_explain, to_test = self.gather_data()
        self.examples = {n: (to_explain[n], to_test[n]) for n in sorted(to_explain)}

    def chats(self) -> Iterator[tuple[Messages, int]]:
        """Yield what the judge is to be asked, so far as that is known."""
        for to_explain, to_test in self.examples.values():
            request = self.get_generation_prompts(to_explain)
            yield request, self.cfg.max_tokens_in_explanation
            answer = self._judge.recall(request, self.cfg.max_tokens_in_explanation)
            # The twenty words that SAEBench asks for take some hundred characters.
            explanation = (
                "_" * 100 if answer is None else self.parse_explanation(answer)
            )
            request = self.get_scoring_prompts(explanation, to_test)
            yield request, self.cfg.max_tokens_in_prediction

    def ask(self, label: str) -> dict[int, Any]:
        """Return SAEBench's result of each feature that got a score."""
        failed = threading.Event()

        def ask_about(latent: int) -> dict[str, Any] | None:
            if failed.is_set():
                return None
            try:
                # A loop of its own: a notebook's thread has one running already.
                return asyncio.run(
                    self.run_single_feature(None, latent, *self.examples[latent])
                )
            except BaseException:
                # Told at once: this thread would ask more before the main one looks.
                failed.set()
                raise

        with ThreadPoolExecutor(JUDGE_THREADS) as threads:
            answers = threads.map(ask_about, self.examples)
            bar = tqdm(answers, desc=label, total=len(self.examples), unit="feature")
            results = dict(zip(self.examples, bar, strict=True))
        scored = {n: result for n, result in results.items() if result is not None}
        if unscored := len(results) - len(scored):
            tqdm.write(f"{unscored} answers were no list of numbers: not scored")
        return scored

    def get_api_response(
        self, messages: Messages, max_tokens: int, n_completions: int = 1
    ) -> tuple[list[str], str]:
        answer = self._judge.ask(messages, max_tokens)
        chat = [*messages, {"role": "assistant", "content": answer}]
        return [answer], autointerp_main.display_messages(chat)

    def get_scoring_prompts(self, explanation: str, scoring_examples: Any) -> Messages:
        # SAEBench draws an example of an answer, in the order in which explanations
        # come in. The cache knows a prompt again only if it is always the same.
        with self._random:
            random.seed(f"{self.cfg.random_seed} {explanation}")
            return super().get_scoring_prompts(explanation, scoring_examples)

    def parse_predictions(self, predictions: str) -> list[int] | None:
        try:
            return super().parse_predictions(predictions)
        except ValueError:  # "²" is a digit, but no number
            return None
