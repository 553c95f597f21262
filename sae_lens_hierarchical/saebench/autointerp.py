"""SAEBench's AutoInterp: a judge explains features, and is scored on examples."""

# A type checker need not find SAEBench.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_hierarchical.saebench.encodings import Encodings
from sae_lens_hierarchical.saebench.extra import (
    activation_collection,
    autointerp_config,
    autointerp_main,
    pydantic,
)
from sae_lens_hierarchical.saebench.judge import (
    TRIES,
    Chat,
    Judge,
    JudgeError,
    Messages,
    StoppedError,
    UnusableAnswerError,
)
from sae_lens_hierarchical.saebench.models import str_tokens

__all__ = ["AutoInterp", "AutoInterpConfig"]

JUDGE_THREADS = 10
USELESS = 2 * JUDGE_THREADS  # first answers, after which no more is asked


class _ScoringPrompts(list[dict[str, str]]):
    """A chat whose answer must be a list of numbers."""


@pydantic.dataclasses.dataclass
class AutoInterpConfig(autointerp_config.AutoInterpEvalConfig):
    """SAEBench's settings of AutoInterp, and which judge is asked.

    Attributes:
        judge: The judge's name.
        judge_url: Its server's address.
    """

    judge: str = ""
    judge_url: str = ""


@contextmanager
def _known(encodings: Encodings) -> Generator[None]:
    """Give SAEBench activations that are known, in place of running the model again."""

    def collect(
        tokens: Tensor, *_: Any, selected_latents: list[int], **__: Any
    ) -> Tensor:
        return encodings.of_features(selected_latents).to(tokens.device)

    before = activation_collection.collect_sae_activations
    activation_collection.collect_sae_activations = collect
    try:
        yield
    finally:
        activation_collection.collect_sae_activations = before


class AutoInterp(autointerp_main.AutoInterp):
    """SAEBench's AutoInterp of one SAE at one k, with a judge of one's choice.

    Attributes:
        examples: By feature, examples to explain it by and examples to score that on.
    """

    def __init__(
        self,
        config: Any,
        model: Any,
        sae_cfg: Any,
        tokens: Tensor,
        encodings: Encodings,
        judge: Judge,
    ) -> None:
        """Draw features, and gather their examples; the judge is not asked yet.

        Args:
            config: The settings.
            model: The language model, for the texts of tokens.
            sae_cfg: The SAE's configuration.
            tokens: The texts, [contexts, context].
            encodings: What the SAE makes of them at this k.
            judge: Who is to be asked.
        """
        self._judge, self._random = judge, threading.Lock()
        # SAEBench asks the model for the texts of tokens alone, and the SAE for its
        # configuration: what they make of the texts is known.
        texts: Any = SimpleNamespace(to_str_tokens=partial(str_tokens, model))
        sae: Any = SimpleNamespace(cfg=sae_cfg)
        frequency, device = encodings.frequency(), str(tokens.device)
        super().__init__(config, texts, sae, tokens, frequency, device, api_key="")
        with _known(encodings):
            generation, scoring = self.gather_data()
        self.examples = {n: (generation[n], scoring[n]) for n in sorted(generation)}

    def chats(self) -> Iterator[Chat]:
        """Yield what the judge will be asked.

        A prompt with an explanation that is not known yet has a stand-in for it, of
        about its length.
        """
        for generation, scoring in self.examples.values():
            chat = self._chat(
                self.get_generation_prompts(generation),
                self.cfg.max_tokens_in_explanation,
            )
            yield chat
            answer = self._judge.cached_answer(*chat)
            # The twenty words that SAEBench asks for take some hundred characters.
            explanation = (
                "_" * 100 if answer is None else self.parse_explanation(answer)
            )
            yield self._chat(
                self.get_scoring_prompts(explanation, scoring),
                self.cfg.max_tokens_in_prediction,
            )

    def ask(self) -> dict[int, Any]:
        """Ask the judge about every feature.

        Returns:
            SAEBench's result of each feature that got a score.

        Raises:
            JudgeError: If it fails, or if none of its first answers is of use.
        """
        self._judge.resume()
        results: dict[int, Any] = {}
        with ThreadPoolExecutor(JUDGE_THREADS) as threads:
            answers = threads.map(self._ask_about, self.examples)
            total = len(self.examples)
            bar = tqdm(answers, desc="Asking the judge", total=total, unit="feature")
            try:
                for asked, (latent, result) in enumerate(
                    zip(self.examples, bar, strict=True), start=1
                ):
                    if result is not None:
                        results[latent] = result
                    elif not results and asked == min(USELESS, len(self.examples)):
                        raise JudgeError(
                            f"{self._judge.model} gave no answer of use about the "
                            f"first {asked} features: its answers must be a sentence, "
                            "and then a list of numbers"
                        )
            except BaseException:
                self._judge.stop()
                raise
        if unscored := len(self.examples) - len(results):
            tqdm.write(
                f"{unscored} of {len(self.examples)} features are not scored: the "
                f"judge's answers were no sentence or no list of numbers, {TRIES} times"
            )
        return results

    def _ask_about(self, latent: int) -> dict[str, Any] | None:
        try:
            # A loop of its own: a notebook's thread has one running already.
            return asyncio.run(
                self.run_single_feature(None, latent, *self.examples[latent])
            )
        except (StoppedError, UnusableAnswerError):
            return None
        except BaseException:
            # Told at once: this thread would ask more before the main one looks.
            self._judge.stop()
            raise

    def get_api_response(
        self, messages: Messages, max_tokens: int, n_completions: int = 1
    ) -> tuple[list[str], str]:
        """Return the judge's answer, alone in a list, and the chat as text."""
        answer = self._judge.ask(*self._chat(messages, max_tokens))
        chat = [*messages, {"role": "assistant", "content": answer}]
        return [answer], autointerp_main.display_messages(chat)

    def _chat(self, messages: Messages, max_tokens: int) -> Chat:
        def is_list(answer: str) -> bool:
            return bool(answer) and self.parse_predictions(answer) is not None

        if isinstance(messages, _ScoringPrompts):
            return Chat(messages, max_tokens, is_list)
        return Chat(messages, max_tokens)

    def get_scoring_prompts(self, explanation: str, scoring_examples: Any) -> Messages:
        """Return the prompt to score an explanation, always the same for the same."""
        # SAEBench draws an example of an answer, in the order in which explanations
        # come in. The cache knows a prompt again only if it is always the same.
        with self._random:
            random.seed(f"{self.cfg.random_seed} {explanation}")
            return _ScoringPrompts(
                super().get_scoring_prompts(explanation, scoring_examples)
            )

    def parse_predictions(self, predictions: str) -> list[int] | None:
        """Return the examples that an answer names; None if it is no list."""
        try:
            return super().parse_predictions(predictions)
        except ValueError:  # "²" is a digit, but no number
            return None
