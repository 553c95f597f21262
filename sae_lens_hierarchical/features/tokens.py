"""Token ids as text, one by one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["token_texts"]

_SENTENCEPIECE_SPACE = "▁"
_NO_CHARACTER = "\ufffd"


def token_texts(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """Return the text of each token by itself.

    Args:
        tokenizer: A tokenizer of transformers.
        ids: Token ids.
    """
    return {i: _text(tokenizer, i) for i in ids}


def _text(tokenizer: Any, i: int) -> str:
    text: str = tokenizer.decode([i], clean_up_tokenization_spaces=False)
    token = str(tokenizer.convert_ids_to_tokens(i))
    if _NO_CHARACTER in text:  # some bytes of one: told apart by how they are spelled
        return token
    # SentencePiece's decoder drops the space before what it takes for a first word.
    spaced = token.startswith(_SENTENCEPIECE_SPACE) and not text.startswith(" ")
    return f" {text}" if spaced else text
