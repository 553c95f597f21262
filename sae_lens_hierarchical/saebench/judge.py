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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from openai import APIError, BadRequestError, OpenAI, OpenAIError

from sae_lens_hierarchical.saebench.answers import Answer, read_answer
from sae_lens_hierarchical.saebench.retries import (
    LONGEST_WAIT,
    RETRIES,
    may_pass,
    seconds_to_wait,
)

__all__ = [
    "Chat",
    "Estimate",
    "Judge",
    "JudgeError",
    "Messages",
    "StoppedError",
    "UnusableAnswerError",
]

Messages = list[dict[str, str]]

TRIES = 3  # for an answer of use
# Tokens on top of an answer's own limit, the more where it was cut off.
ROOMS = (0, 2_000, 8_000)
# OpenAI's reasoning models take it in place of max_tokens, which other servers know.
REASONING_LIMIT = "max_completion_tokens"
CHARACTERS_A_TOKEN = 4  # of English, by OpenAI's rule of thumb


class JudgeError(OSError):
    """The judge gave no answer, or may be asked no more."""


class UnusableAnswerError(JudgeError):
    """The judge answered, several times, but not what it was asked for."""


class StoppedError(JudgeError):
    """``Judge.stop`` was called while an answer was waited for."""


class Chat(NamedTuple):
    """What a judge is asked.

    Attributes:
        messages: The chat so far.
        max_tokens: The longest answer, without what the model may think before.
        is_usable: Tells whether an answer will do; others are not kept.
    """

    messages: Messages
    max_tokens: int
    is_usable: Callable[[str], object] = bool


class Estimate(NamedTuple):
    """What chats will take.

    Attributes:
        calls: How many are not in the cache.
        text: A line with that, and what they may cost.
    """

    calls: int
    text: str


class Judge:
    """A chat model whose answers are cached: it is never asked the same thing twice.

    Errors 408, 409, 429 and 5xx, time-outs, lost connections and answers that are no
    JSON are tried again for minutes: after as long as the server's Retry-After says, or
    else after ever longer waits. An answer that is not usable is asked for again, and
    one that was cut off with more room.
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
        sleep: Callable[[float], object] | None = None,
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
            sleep: Waits so many seconds before a retry; default until ``stop``.

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
                api_key=key, base_url=url, max_retries=0, timeout=timeout
            )
        except OpenAIError as error:
            raise JudgeError(str(error)) from error
        # Results name it, and people publish them: no password may be in it.
        shown = self._client.base_url.copy_with(userinfo=b"", query=None)
        self.url = str(shown).rstrip("/")
        self._limit = "max_tokens"
        self._room = 0  # which of ROOMS this model needs to think
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._lock = threading.Lock()
        cache.parent.mkdir(parents=True, exist_ok=True)
        # SQLite writes each answer whole or not at all, whenever the process dies.
        self._answers = sqlite3.connect(cache, timeout=60, check_same_thread=False)
        self._answers.execute(
            "CREATE TABLE IF NOT EXISTS answers (asked TEXT PRIMARY KEY, answer TEXT)"
        )

    def ask(
        self,
        messages: Messages,
        max_tokens: int,
        is_usable: Callable[[str], object] = bool,
    ) -> str:
        """Return the model's answer to a ``Chat``; threads may ask at the same time.

        Raises:
            UnusableAnswerError: If no answer in several is usable, or each is cut off.
            StoppedError: If ``stop`` was called.
            JudgeError: If the server refuses, gives no answer for minutes, or the calls
                are used up. Answers so far are kept.
        """
        chat = Chat(messages, max_tokens, is_usable)
        if (known := self.cached_answer(*chat)) is not None:
            return known
        room, unusable, text = 0, 0, ""
        while unusable < TRIES:
            room = max(room, self._room)
            try:
                text, is_cut_off = self._call(messages, max_tokens, room)
            except BadRequestError as error:
                if room <= self._room:
                    raise self._failed(error) from error
                break  # so much does not fit into the model's context
            if not is_cut_off and is_usable(text):
                self._store(chat, text)
                return text
            if not is_cut_off:
                unusable += 1
            elif room + 1 < len(ROOMS):
                room += 1
                if not text:  # it thinks, and so will it on the next question
                    self._room = max(self._room, room)
            else:
                break
        raise UnusableAnswerError(
            f"{self.model} at {self.url} gave no answer of use, last {text[:200]!r}"
        )

    def cached_answer(
        self,
        messages: Messages,
        max_tokens: int,
        is_usable: Callable[[str], object] = bool,
    ) -> str | None:
        """Return the answer to a ``Chat`` if it is in the cache, and None otherwise."""
        key = (self._key(messages, max_tokens),)
        query = "SELECT answer FROM answers WHERE asked = ?"
        with self._lock:
            found = self._answers.execute(query, key).fetchone()
        return None if found is None or not is_usable(found[0]) else found[0]

    def estimate(self, chats: Iterable[Chat]) -> Estimate:
        """Return how many calls chats need, and what these may cost."""
        unknown = {
            self._key(chat.messages, chat.max_tokens): chat
            for chat in chats
            if self.cached_answer(*chat) is None
        }
        characters = sum(
            len(message["content"])
            for chat in unknown.values()
            for message in chat.messages
        )
        answers = sum(chat.max_tokens for chat in unknown.values())
        prompts = characters // CHARACTERS_A_TOKEN
        text = (
            f"{len(unknown):,} calls to {self.model} at {self.url}: about {prompts:,} "
            f"tokens of prompts, at most {answers:,} of answers"
        )
        if self.price is not None:
            cost = (prompts * self.price[0] + answers * self.price[1]) / 1e6
            text += f", about ${cost:,.2f}"
        return Estimate(len(unknown), text)

    def check_limit(self, calls: int) -> None:
        """Raise a ValueError if so many more calls are above ``max_calls``."""
        needed = self.calls + calls
        if self.max_calls is not None and needed > self.max_calls:
            raise ValueError(
                f"max_calls must be at least {needed:,}, which the judge is to be "
                f"asked, got {self.max_calls:,}: raise it, or take fewer latents or k; "
                "nothing was asked"
            )

    def stop(self) -> None:
        """Let all who ask or wait get a StoppedError, until ``resume``."""
        self._stopped.set()

    def resume(self) -> None:
        """Let the judge be asked again after ``stop``."""
        self._stopped.clear()

    def _call(self, messages: Messages, max_tokens: int, room: int) -> Answer:
        with self._lock:
            if self.calls == self.max_calls:
                raise JudgeError(
                    f"the limit of {self.max_calls} calls to the judge is reached; "
                    "the answers are kept: the next run goes on from here"
                )
            self.calls += 1
        body, failure = "", None
        for retry in range(1 + RETRIES):
            if retry:
                self._wait(failure, retry - 1)
            if self._stopped.is_set():
                raise StoppedError("the judge was stopped")
            try:
                body, failure = self._create(messages, max_tokens, room), None
            except BadRequestError:
                raise
            except APIError as error:
                if not may_pass(error):
                    raise self._failed(error) from error
                failure = error
                continue
            if (answer := read_answer(body)) is not None:
                return answer
        if failure is not None:
            raise self._failed(failure) from failure
        raise JudgeError(
            f"{self.url} gave no answer in {1 + RETRIES} tries, last {body[:200]!r}"
        )

    def _wait(self, failure: Exception | None, retry: int) -> None:
        seconds = seconds_to_wait(failure, retry)
        if failure is not None and seconds > LONGEST_WAIT:
            raise JudgeError(
                f"{self.url} asks to be left alone for {seconds:,.0f} s: {failure}"
            ) from failure
        self._sleep(seconds)

    def _failed(self, error: Exception) -> JudgeError:
        return JudgeError(f"{self.url} gave no answer: {error}")

    def _create(self, messages: Messages, max_tokens: int, room: int) -> str:
        limit = self._limit
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=messages,
                **{limit: max_tokens + ROOMS[room]},
            )
        except BadRequestError as error:
            if limit == REASONING_LIMIT or REASONING_LIMIT not in str(error):
                raise
            # What it thinks counts towards that limit.
            self._limit, self._room = REASONING_LIMIT, max(self._room, 1)
            return self._create(messages, max_tokens, max(room, 1))
        return response.http_response.text

    def _store(self, chat: Chat, answer: str) -> None:
        row = (self._key(chat.messages, chat.max_tokens), answer)
        with self._lock, self._answers:
            self._answers.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", row)

    def _key(self, messages: Messages, max_tokens: int) -> str:
        request = [self.url, self.model, messages, max_tokens]
        return hashlib.sha256(json.dumps(request).encode()).hexdigest()
