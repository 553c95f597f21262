"""AutoInterp's judge: any chat model behind OpenAI's API, with a cache of answers."""

# OpenAI's client comes with SAEBench, an extra, which a type checker need not find.
# pyright: reportMissingImports=false

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path

from openai import APIError, BadRequestError, OpenAI, OpenAIError

__all__ = ["Judge", "JudgeError", "Messages"]

Messages = list[dict[str, str]]

# Of each request: after an error, each time later, or after no usable answer.
RETRIES = 5
# OpenAI's reasoning models take it in place of max_tokens, which other servers know.
REASONING_LIMIT = "max_completion_tokens"
REASONING_TOKENS = 2_000  # which count towards that limit, too
CHARACTERS_A_TOKEN = 4  # of English, by OpenAI's rule of thumb


class JudgeError(OSError):
    """The judge gave no answer, or may be asked no more."""


class Judge:
    """A chat model whose answers are cached: it is never asked the same thing twice.

    Errors 408, 409, 429 and 5xx, time-outs and lost connections are tried again by
    OpenAI's client, which waits as long as the server's Retry-After says; answers that
    are empty or no JSON are asked for again here.
    """

    def __init__(
        self,
        model: str,
        cache: Path,
        *,
        url: str | None = None,
        max_calls: int | None = None,
        price: tuple[float, float] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Set up a judge; nothing is asked yet.

        Args:
            model: The model's name, as the server has it.
            cache: The SQLite file of answers, made if missing; judges may share it.
            url: The API's address, such as ``http://localhost:8000/v1`` for vLLM;
                default the environment's ``OPENAI_BASE_URL``, or OpenAI. The key is
                the environment's ``OPENAI_API_KEY``.
            max_calls: How many answers this judge may ask for, errors that are tried
                again not counted; None sets no limit.
            price: Dollars for a million tokens of prompts and of answers, to estimate
                the costs.
            timeout: Seconds to wait for an answer.

        Raises:
            JudgeError: If there is no key for OpenAI.
            ValueError: If ``max_calls`` or a price is negative.
        """
        if max_calls is not None and max_calls < 0:
            raise ValueError(f"max_calls must be at least 0, got {max_calls}")
        if price is not None and not all(0 <= p < math.inf for p in price):
            raise ValueError(f"price must be two numbers of at least 0, got {price}")
        self.model, self.max_calls, self.price = model, max_calls, price
        self.calls = 0
        url = url or os.environ.get("OPENAI_BASE_URL")
        # A server of one's own needs no key, but the client does.
        key = os.environ.get("OPENAI_API_KEY", "none" if url else None)
        try:
            self._client = OpenAI(
                api_key=key, base_url=url, max_retries=RETRIES, timeout=timeout
            )
        except OpenAIError as error:
            raise JudgeError(str(error)) from error
        # Results name it, and people publish them: no password may be in it.
        shown = self._client.base_url.copy_with(userinfo=b"", query=None)
        self.url = str(shown).rstrip("/")
        self._is_reasoning_model = False
        self._lock = threading.Lock()
        cache.parent.mkdir(parents=True, exist_ok=True)
        # SQLite writes each answer whole or not at all, whenever the process dies.
        self._answers = sqlite3.connect(cache, timeout=60, check_same_thread=False)
        self._answers.execute(
            "CREATE TABLE IF NOT EXISTS answers (asked TEXT PRIMARY KEY, answer TEXT)"
        )

    def ask(self, messages: Messages, max_tokens: int) -> str:
        """Return the model's answer to a chat; threads may ask at the same time.

        Raises:
            JudgeError: If the server refuses, gives no answer in several tries, or
                the calls are used up. Answers so far are kept.
        """
        if (known := self.cached_answer(messages, max_tokens)) is not None:
            return known
        body = ""
        for _ in range(1 + RETRIES):
            body = self._call(messages, max_tokens)
            try:
                answer = json.loads(body)["choices"][0]["message"]["content"].strip()
            except (ValueError, LookupError, TypeError, AttributeError):
                continue
            if answer:
                self._store(messages, max_tokens, answer)
                return answer
        raise JudgeError(
            f"{self.url} gave no answer in {1 + RETRIES} tries, last {body[:200]!r}"
        )

    def cached_answer(self, messages: Messages, max_tokens: int) -> str | None:
        """Return the answer to a chat if it is in the cache, and None otherwise."""
        key = (self._key(messages, max_tokens),)
        query = "SELECT answer FROM answers WHERE asked = ?"
        with self._lock:
            found = self._answers.execute(query, key).fetchone()
        return None if found is None else found[0]

    def estimate(self, chats: Iterable[tuple[Messages, int]]) -> str:
        """Return a line that says how many calls these are, and what they may cost.

        Args:
            chats: Messages and ``max_tokens`` of each.
        """
        calls, characters, answers = 0, 0, 0
        for messages, max_tokens in chats:
            if self.cached_answer(messages, max_tokens) is None:
                calls += 1
                characters += sum(len(message["content"]) for message in messages)
                answers += max_tokens
        prompts = characters // CHARACTERS_A_TOKEN
        text = (
            f"{calls:,} calls to {self.model} at {self.url}: about {prompts:,} tokens "
            f"of prompts, at most {answers:,} of answers"
        )
        if self.price is None:
            return text
        cost = (prompts * self.price[0] + answers * self.price[1]) / 1e6
        return f"{text}, about ${cost:,.2f}"

    def _call(self, messages: Messages, max_tokens: int) -> str:
        with self._lock:
            if self.calls == self.max_calls:
                raise JudgeError(
                    f"the limit of {self.max_calls} calls to the judge is reached; "
                    "the answers are kept: the next run goes on from here"
                )
            self.calls += 1
        try:
            try:
                return self._create(messages, max_tokens)
            except BadRequestError as error:
                if REASONING_LIMIT not in str(error):
                    raise
                self._is_reasoning_model = True
                return self._create(messages, max_tokens)
        except APIError as error:
            raise JudgeError(f"{self.url} gave no answer: {error}") from error

    def _create(self, messages: Messages, max_tokens: int) -> str:
        limit = {"max_tokens": max_tokens}
        if self._is_reasoning_model:
            limit = {REASONING_LIMIT: max_tokens + REASONING_TOKENS}
        response = self._client.chat.completions.with_raw_response.create(
            model=self.model, messages=messages, **limit
        )
        return response.http_response.text

    def _store(self, messages: Messages, max_tokens: int, answer: str) -> None:
        row = (self._key(messages, max_tokens), answer)
        with self._lock, self._answers:
            self._answers.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", row)

    def _key(self, messages: Messages, max_tokens: int) -> str:
        request = [self.url, self.model, messages, max_tokens]
        return hashlib.sha256(json.dumps(request).encode()).hexdigest()
