"""SAEBench's evals at every k, each of which a module of its own runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from sae_lens import SAE
from torch import Tensor

from sae_lens_hierarchical.defaults import JUDGED_LATENTS
from sae_lens_hierarchical.loading import load_store
from sae_lens_hierarchical.saebench.absorption import run_absorption
from sae_lens_hierarchical.saebench.autointerp_eval import run_autointerp
from sae_lens_hierarchical.saebench.bench import SEED, Bench
from sae_lens_hierarchical.saebench.core import run_core
from sae_lens_hierarchical.saebench.judge import Judge
from sae_lens_hierarchical.saebench.models import ModelFacts
from sae_lens_hierarchical.saebench.scr_and_tpp import run_scr_and_tpp
from sae_lens_hierarchical.saebench.sparse_probing import run_sparse_probing
from sae_lens_hierarchical.saes.checks import check_size

__all__ = ["SAEBench", "draw_tokens"]

CONTEXT_SIZE = 128  # as in SAEBench's own scripts


class SAEBench(Bench):
    """Runs SAEBench on one language model and one dataset, for any SAEs at any k.

    Each eval writes SAEBench's own result files, one for each SAE and k, into the
    folder of ``output`` with the eval's name: ``core/NAME_k_8_eval_results.json``.
    HierarchicalTopK and TopK SAEs are evaluated at each k; other ones as they are, with
    SAEBench's ``custom_sae`` in place of ``k_8``. A result notes the checksums of what
    it was made from. One that is there already, of the same SAE, data and settings, is
    taken as done; another one is made again. A line says which and why. No result is
    ever there in part.

    Its attributes are those of ``Bench``.
    """

    def core(self, saes: Mapping[str, SAE[Any]], ks: Sequence[int]) -> None:
        """Evaluate L0, loss recovered, reconstruction and statistics of the features.

        SAEBench's ``explained_variance`` is not that of a sweep: see ``BudgetMetrics``.

        Args:
            saes: SAEs by name.
            ks: Numbers of features.

        Raises:
            ValueError: If a k does not fit, or an SAE's metadata lack model or hook.
        """
        run_core(self, saes, ks)

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
        run_autointerp(self, saes, ks, judge, latents)

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
        run_sparse_probing(self, saes, ks, datasets, **sizes)

    def absorption(
        self, saes: Mapping[str, SAE[Any]], ks: Sequence[int], **settings: Any
    ) -> None:
        """Evaluate how often features for a word's first letter leave it to others.

        The words are those of the tokenizer, and no dataset is used. SAEBench reads the
        residual stream after a layer; here it is the SAE's own hook.

        Args:
            saes: SAEs by name.
            ks: Numbers of features that are active.
            settings: Fields of SAEBench's ``AbsorptionEvalConfig``, such as
                ``max_k_value``.

        Raises:
            ValueError: As ``core``; or if the tokenizer lacks words, or the model does
                not know enough first letters.
        """
        run_absorption(self, saes, ks, **settings)

    def scr_and_tpp(
        self,
        saes: Mapping[str, SAE[Any]],
        ks: Sequence[int],
        datasets: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        """Evaluate what a few features do to probes of classes when they are ablated.

        In SCR a probe must get rid of a spurious correlation, in TPP one class alone
        must be harmed. Results go into the folders ``scr`` and ``tpp``. Datasets are
        found as by ``sparse_probing``; those of SAEBench's names with ``_class_set1``
        are in the folder without that.

        Args:
            saes: SAEs by name.
            ks: Numbers of features that are active; ``n_values`` are how many are
                ablated.
            datasets: Names of SAEBench's datasets; default both.
            settings: Fields of SAEBench's ``ScrAndTppEvalConfig``, such as
                ``train_set_size``.

        Raises:
            ValueError: As ``core``; or if a dataset cannot be had, or has too few rows.
        """
        run_scr_and_tpp(self, saes, ks, datasets, **settings)


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
