"""Tests of the judge against a server that answers, and fails, as the API does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sae_lens_hierarchical.saebench.judge import (
    TRIES,
    Chat,
    Judge,
    JudgeError,
    Messages,
    StoppedError,
    UnusableAnswerError,
)
from sae_lens_hierarchical.saebench.retries import RETRIES
from tests.saebench.judge_server import JudgeServer

TOKENS = 30


@pytest.fixture
def waits() -> list[float]:
    """How long the judge would have waited, for each retry."""
    return []


@pytest.fixture
def judge(server: JudgeServer, tmp_path: Path, waits: list[float]) -> Judge:
    server.answers["?"] = "because"
    return Judge(
        "small", tmp_path / "answers", url=server.url, timeout=1, sleep=waits.append
    )


def chat(text: str) -> Messages:
    return [{"role": "user", "content": f"{text}?"}]


def test_it_asks_the_model_and_remembers(
    judge: Judge, server: JudgeServer, tmp_path: Path
) -> None:
    assert judge.cached_answer(chat("why"), TOKENS) is None
    assert judge.ask(chat("why"), TOKENS) == "because"
    again = Judge("small", tmp_path / "answers", url=server.url)
    assert again.ask(chat("why"), TOKENS) == "because"

    (asked,) = server.asked
    assert asked == {
        "path": "/v1/chat/completions",
        "model": "small",
        "messages": chat("why"),
        "max_tokens": TOKENS,
    }
    assert server.keys == {"Bearer none"}


def test_another_model_server_or_question_is_asked(
    judge: Judge, server: JudgeServer, tmp_path: Path
) -> None:
    judge.ask(chat("why"), TOKENS)
    judge.ask(chat("why"), TOKENS + 1)
    judge.ask(chat("who"), TOKENS)
    Judge("large", tmp_path / "answers", url=server.url).ask(chat("why"), TOKENS)
    other_url = server.url.replace("127.0.0.1", "localhost")
    Judge("small", tmp_path / "answers", url=other_url).ask(chat("why"), TOKENS)

    assert len(server.asked) == 5


@pytest.mark.parametrize(
    "failure",
    [
        429,
        500,
        503,
        "time-out",
        "reset",
        "cut off",
        "half JSON",
        "no choices",
        "null",
        "page",
        "nothing",
    ],
)
def test_it_tries_again(judge: Judge, server: JudgeServer, failure: int | str) -> None:
    server.failures = [failure]

    assert judge.ask(chat("why"), TOKENS) == "because"

    assert len(server.asked) == 2


def test_it_waits_as_long_as_it_is_told(
    judge: Judge, server: JudgeServer, waits: list[float]
) -> None:
    server.failures = [429, 503, 429]

    judge.ask(chat("why"), TOKENS)

    assert waits == [0.05, 0.005, 0.05]


@pytest.mark.parametrize("failure", [429, 500, 503, "reset", "page"])
def test_it_waits_ever_longer_for_minutes_where_it_is_told_nothing(
    judge: Judge, server: JudgeServer, failure: int | str, waits: list[float]
) -> None:
    server.retry_after = False
    server.failures = [failure] * RETRIES

    assert judge.ask(chat("why"), TOKENS) == "because"

    assert all(0.5 * 2**n <= waits[n] <= 2**n for n in range(6))
    assert all(30 <= wait <= 60 for wait in waits[6:])
    assert 180 < sum(waits) < 480
    assert len(set(waits[6:])) > 1  # not all threads at once
    assert judge.calls == 1


def test_it_does_not_wait_for_hours_or_for_money(
    judge: Judge, server: JudgeServer, waits: list[float]
) -> None:
    server.retry_after, server.headers["Retry-After"] = False, "7200"
    server.failures = [429]
    with pytest.raises(JudgeError, match="asks to be left alone for 7,200 s"):
        judge.ask(chat("why"), TOKENS)
    server.headers.clear()
    server.error = "You exceeded your current quota: insufficient_quota"
    server.failures = [429]
    with pytest.raises(JudgeError, match="insufficient_quota"):
        judge.ask(chat("why"), TOKENS)

    assert waits == []
    assert len(server.asked) == 2


def test_who_waits_can_be_stopped(server: JudgeServer, tmp_path: Path) -> None:
    server.failures = [429] * 100
    server.retry_after = False
    judge = Judge("small", tmp_path / "answers", url=server.url)

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(judge.ask, chat("why"), TOKENS)
        while not server.asked:
            pass
        judge.stop()
        assert isinstance(waiting.exception(timeout=30), StoppedError)
    server.failures = []
    server.answers["?"] = "because"
    judge.resume()
    assert judge.ask(chat("why"), TOKENS) == "because"


@pytest.mark.parametrize(
    "said",
    [
        "<think>It says <<why>>, so:\n1, 2?</think>\n\nbecause",
        "<thinking>so</thinking> because",
        "[THINK]so[/THINK]because",
        "◁think▷so◁/think▷because",
        "the template began it</think>because",
    ],
)
def test_what_a_judge_thinks_is_no_part_of_its_answer(
    judge: Judge, server: JudgeServer, said: str
) -> None:
    server.script = [(said, "stop")]

    assert judge.ask(chat("why"), TOKENS) == "because"
    assert judge.cached_answer(chat("why"), TOKENS) == "because"


def test_a_prompts_marks_are_no_thoughts(judge: Judge, server: JudgeServer) -> None:
    said = "This neuron activates on <<think>> and on <</think>>"
    server.script = [(said, "stop")]

    assert judge.ask(chat("why"), TOKENS) == said


def test_unusable_answers_are_asked_for_again_and_not_kept(
    judge: Judge, server: JudgeServer
) -> None:
    question = (chat("how many"), TOKENS, str.isdigit)
    server.answers["?"] = "many"
    with pytest.raises(UnusableAnswerError, match="no answer of use, last 'many'"):
        judge.ask(*question)
    assert len(server.asked) == TRIES
    assert judge.cached_answer(*question) is None

    server.script = [("very many", "stop"), (None, "stop"), ("7", "stop")]
    assert judge.ask(*question) == "7"
    assert judge.ask(*question) == "7"
    assert len(server.asked) == 2 * TRIES


def test_a_cache_with_an_unusable_answer_is_mended(
    judge: Judge, server: JudgeServer
) -> None:
    judge.ask(chat("how many"), TOKENS)
    server.answers["?"] = "7"

    assert judge.ask(chat("how many"), TOKENS, str.isdigit) == "7"
    assert judge.cached_answer(chat("how many"), TOKENS) == "7"


def test_an_answer_that_is_cut_off_gets_more_room(
    judge: Judge, server: JudgeServer
) -> None:
    server.script = [("because of", "length"), ("because", "stop")]
    assert judge.ask(chat("why"), TOKENS) == "because"
    # A long answer says nothing of the next one's; a thought does.
    server.script = [("<think>Well, the", "length"), ("<think>so</think>it", "stop")]
    assert judge.ask(chat("who"), TOKENS) == "it"
    assert judge.ask(chat("when"), TOKENS) == "because"

    limits = [body["max_tokens"] for body in server.asked]
    assert limits == [TOKENS, 2_000 + TOKENS, TOKENS, 2_000 + TOKENS, 2_000 + TOKENS]


def test_more_room_has_an_end(judge: Judge, server: JudgeServer) -> None:
    server.script = [("because of", "length")] * 100

    with pytest.raises(UnusableAnswerError):
        judge.ask(chat("why"), TOKENS)

    assert [b["max_tokens"] for b in server.asked] == [TOKENS, 2_030, 8_030]
    server.asked.clear()
    server.script, server.failures = [("because of", "length")], [None, 400]
    with pytest.raises(UnusableAnswerError):  # the model's context has no such room
        judge.ask(chat("why"), TOKENS)
    assert len(server.asked) == 2


def test_reasoning_models_get_the_limit_that_they_take(
    judge: Judge, server: JudgeServer
) -> None:
    server.reasons = True

    for question in ("why", "who"):
        assert judge.ask(chat(question), TOKENS) == "because"

    limits = [body.get("max_completion_tokens") for body in server.asked]
    assert limits == [None, 2_000 + TOKENS, 2_000 + TOKENS]  # what it thinks counts


def test_a_password_is_not_shown(server: JudgeServer, tmp_path: Path) -> None:
    url = server.url.replace("//", "//me:secret@")

    assert Judge("small", tmp_path / "answers", url=url).url == server.url


@pytest.mark.parametrize("failure", [500, "half JSON"])
def test_it_gives_up_in_the_end(
    judge: Judge, server: JudgeServer, failure: int | str
) -> None:
    server.failures = [failure] * 100

    with pytest.raises(JudgeError, match=f"{server.url} gave no answer"):
        judge.ask(chat("why"), TOKENS)

    assert len(server.asked) == 1 + RETRIES
    server.failures = []
    assert judge.ask(chat("why"), TOKENS) == "because"


def test_a_refusal_is_final(judge: Judge, server: JudgeServer) -> None:
    server.failures = [401]

    with pytest.raises(JudgeError, match="401"):
        judge.ask(chat("why"), TOKENS)

    assert len(server.asked) == 1


def test_the_environment_names_server_and_key(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JudgeError, match="OPENAI_API_KEY"):
        Judge("small", tmp_path / "answers")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.answers["?"] = "because"

    judge = Judge("small", tmp_path / "answers")

    assert judge.ask(chat("why"), TOKENS) == "because"
    assert server.keys == {"Bearer secret"}
    assert b"secret" not in (tmp_path / "answers").read_bytes()


def test_the_limit_holds_among_threads(server: JudgeServer, tmp_path: Path) -> None:
    server.answers["?"] = "because"
    judge = Judge("small", tmp_path / "answers", url=server.url, max_calls=5)
    judge.ask(chat("0"), TOKENS)

    with ThreadPoolExecutor(8) as threads:
        tasks = [threads.submit(judge.ask, chat(str(n)), TOKENS) for n in range(20)]
    errors = [error for task in tasks if (error := task.exception())]

    assert len(server.asked) == 5
    assert len(errors) == 15
    assert "the limit of 5 calls" in str(errors[0])
    again = Judge("small", tmp_path / "answers", url=server.url)
    for n in range(20):
        again.ask(chat(str(n)), TOKENS)
    assert len(server.asked) == 20


def test_the_estimate_leaves_out_what_is_known(
    server: JudgeServer, tmp_path: Path
) -> None:
    server.answers["?"] = "because"
    judge = Judge("small", tmp_path / "answers", url=server.url, price=(2, 10))
    chats = [Chat(chat("x" * 4_000_000), 100_000), Chat(chat("why"), TOKENS)]

    judge.ask(*chats[1])

    # The same question twice is asked once.
    calls, text = judge.estimate([*chats, chats[0]])
    assert calls == 1
    assert text == (
        f"1 calls to small at {server.url}: about 1,000,000 tokens of prompts, at most "
        "100,000 of answers, about $3.00"
    )
    judge.price = None
    assert judge.estimate(chats).text.endswith("100,000 of answers")


class DyingConnection(sqlite3.Connection):
    """Dies within the third answer's transaction, after it was written."""

    written = 0

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        result = super().execute(sql, *parameters)
        self.written += sql.startswith("INSERT")
        if self.written == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def ask_until_killed(cache: Path, url: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        connect = partial(sqlite3.connect, factory=DyingConnection)
        patch.setattr(sqlite3, "connect", connect)
        judge = Judge("small", cache, url=url)
    for n in range(5):
        judge.ask(chat(str(n)), TOKENS)


def test_answers_outlive_a_process_killed_in_mid_write(
    server: JudgeServer, tmp_path: Path
) -> None:
    server.answers["?"] = "because"
    cache = tmp_path / "answers"
    process = multiprocessing.get_context("fork").Process(
        target=ask_until_killed, args=(cache, server.url)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(server.asked) == 3

    judge = Judge("small", cache, url=server.url)

    for n in range(5):
        assert judge.ask(chat(str(n)), TOKENS) == "because"
    assert len(server.asked) == 3 + 3
