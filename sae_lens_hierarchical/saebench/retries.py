"""Which failures of the judge's server may pass, and how long to wait for that."""

# OpenAI's client comes with SAEBench, an extra, which a type checker need not find.
# pyright: reportMissingImports=false

from __future__ import annotations

import random
from contextlib import suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from openai import APIConnectionError, APIStatusError

__all__ = ["LONGEST_WAIT", "RETRIES", "may_pass", "seconds_to_wait"]

# With waits of 1, 2, 4, ... 60 s, less up to a half of each: four to seven minutes.
RETRIES = 11
LONGEST_BACKOFF = 60.0
LONGEST_WAIT = 300.0  # that a server may ask for, each time

# SAEBench draws from Python's own generator, which draws here would move on.
_jitter = random.Random()  # noqa: S311


def may_pass(error: Any) -> bool:
    """Tell whether the same request may succeed later, by an error of OpenAI's."""
    if isinstance(error, APIConnectionError):  # time-outs, too
        return True
    if not isinstance(error, APIStatusError):
        return False
    if error.status_code == 429:
        return "insufficient_quota" not in str(error)
    return error.status_code in (408, 409) or error.status_code >= 500


def seconds_to_wait(error: Any, retry: int) -> float:
    """Return how long to wait before a retry: what the server says, or a backoff.

    Args:
        error: What failed; None for an answer that could not be read.
        retry: Which one it is, from 0.
    """
    asked_for = _retry_after(error) if isinstance(error, APIStatusError) else None
    if asked_for is not None:
        return max(asked_for, 0.0)
    return min(2.0**retry, LONGEST_BACKOFF) * _jitter.uniform(0.5, 1)


def _retry_after(error: Any) -> float | None:
    headers = error.response.headers
    with suppress(KeyError, ValueError):
        return float(headers["retry-after-ms"]) / 1000
    with suppress(KeyError, ValueError):
        return float(headers["retry-after"])
    with suppress(KeyError, ValueError, TypeError):
        date = parsedate_to_datetime(headers["retry-after"])
        return (date - datetime.now(timezone.utc)).total_seconds()
    return None
