"""What a chat model's server sent: the answer in it, without what the model thought."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

__all__ = ["Answer", "read_answer"]

# <think>, [THINK], ◁think▷ and the like. A prompt's <<word>> is none of them.
_NAMES = r"(?:think|thinking|thought|reason|reasoning|reflection)"
_BEGIN = re.compile(rf"[<\[◁]{_NAMES}[>\]▷]", re.IGNORECASE)
_END = re.compile(rf"(?<!<)[<\[◁]/{_NAMES}[>\]▷]", re.IGNORECASE)


class Answer(NamedTuple):
    """An answer of a chat model.

    Attributes:
        text: What it says, without what it thought before; empty if it says nothing.
        is_cut_off: Whether the limit of tokens ended it.
    """

    text: str
    is_cut_off: bool


def read_answer(body: str) -> Answer | None:
    """Return the answer in a server's response; None if there is none in it."""
    try:
        choice = json.loads(body)["choices"][0]
        content = choice["message"]["content"]
        if content is not None and not isinstance(content, str):
            return None
        return Answer(_said(content or ""), choice.get("finish_reason") == "length")
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _said(content: str) -> str:
    # Chat templates may give the tag that begins it, so that only the other comes.
    said = _END.split(content)[-1].strip()
    return "" if _BEGIN.match(said) else said
