"""Progress in a log: a line now and then in place of bars that redraw themselves."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from functools import partialmethod
from typing import Any, TextIO

__all__ = ["progress_for", "without_progress"]

_SECONDS_BETWEEN_LINES = 30


class _Lines:
    """A file for tqdm, which writes a line for what tqdm would draw over the last."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.replace("\x1b[A", "").strip():  # what moves the cursor up
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def progress_for(stream: TextIO) -> Generator[None]:
    """Let every bar of tqdm's write lines, with its ETA, where no terminal shows it.

    Those of SAELens and of the Hub's client too. A bar that ends before its first line
    would be due writes nothing.

    Args:
        stream: The process's standard error.
    """
    if stream.isatty():
        yield
        return
    with _every_bar(
        file=_Lines(stream),
        delay=_SECONDS_BETWEEN_LINES,
        mininterval=_SECONDS_BETWEEN_LINES,
        maxinterval=_SECONDS_BETWEEN_LINES,
    ):
        yield


def without_progress() -> AbstractContextManager[None]:
    """Show none of tqdm's bars."""
    return _every_bar(disable=True)


@contextmanager
def _every_bar(**options: Any) -> Generator[None]:
    from tqdm.std import tqdm

    bars = tqdm.__init__
    tqdm.__init__ = partialmethod(bars, **options)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        tqdm.__init__ = bars
