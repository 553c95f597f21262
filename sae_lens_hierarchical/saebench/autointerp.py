"""SAEBench's AutoInterp: a judge explains features, and is scored on examples."""

# A type checker need not find SAEBench.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sae_lens import SAE
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from sae_lens_hierarchical.saebench.extra import (
    activation_collection,
    autointerp_config,
    autointerp_main,
    pydantic,
)
from sae_lens_hierarchical.saebench.judge import Judge, Messages

__all__ = ["AutoInterp", "AutoInterpConfig"]

JUDGE_THREADS = 10


@pydantic.dataclasses.dataclass
class AutoInterpConfig(autointerp_config.AutoInterpEvalConfig):
    """SAEBench's settings of AutoInterp, and which judge is asked.

    Attributes:
        judge: The judge's name.
        judge_url: Its server's address.
    """

    judge: str = ""
    judge_url: str = ""


class AutoInterp(autointerp_main.AutoInterp):
    """SAEBench's AutoInterp of one SAE at one k, with a judge of one's choice.

    Attributes:
        examples: By feature, examples to explain it by and examples to score that on.
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
        generation, scoring = self.gather_data()
        self.examples = {n: (generation[n], scoring[n]) for n in sorted(generation)}

    def chats(self) -> Iterator[tuple[Messages, int]]:
        """Yield the prompts for the judge and the max_tokens of each answer.

        A prompt with an explanation that is not known yet has a stand-in for it, of
        about its length.
        """
        for generation, scoring in self.examples.values():
            request = self.get_generation_prompts(generation)
            yield request, self.cfg.max_tokens_in_explanation
            answer = self._judge.cached_answer(
                request, self.cfg.max_tokens_in_explanation
            )
            # The twenty words that SAEBench asks for take some hundred characters.
            explanation = (
                "_" * 100 if answer is None else self.parse_explanation(answer)
            )
            request = self.get_scoring_prompts(explanation, scoring)
            yield request, self.cfg.max_tokens_in_prediction

    def ask(self, label: str) -> dict[int, Any]:
        """Ask the judge about every feature.

        Args:
            label: What the progress bar says.

        Returns:
            SAEBench's result of each feature that got a score.
        """
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
        """Return the judge's answer, alone in a list, and the chat as text."""
        answer = self._judge.ask(messages, max_tokens)
        chat = [*messages, {"role": "assistant", "content": answer}]
        return [answer], autointerp_main.display_messages(chat)

    def get_scoring_prompts(self, explanation: str, scoring_examples: Any) -> Messages:
        """Return the prompt to score an explanation, always the same for the same."""
        # SAEBench draws an example of an answer, in the order in which explanations
        # come in. The cache knows a prompt again only if it is always the same.
        with self._random:
            random.seed(f"{self.cfg.random_seed} {explanation}")
            return super().get_scoring_prompts(explanation, scoring_examples)

    def parse_predictions(self, predictions: str) -> list[int] | None:
        """Return the examples that an answer names; None if it is no list."""
        try:
            return super().parse_predictions(predictions)
        except ValueError:  # "²" is a digit, but no number
            return None
