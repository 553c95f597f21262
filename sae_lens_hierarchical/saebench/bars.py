"""Says in SAEBench's progress bars what they are of."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from tqdm.std import tqdm

__all__ = ["bars_of"]


@contextmanager
def bars_of(subject: object) -> Generator[None]:
    """Let every bar of tqdm's within the block begin with a subject.

    Args:
        subject: What is worked on, such as an SAE at a k; written as text.
    """
    before = tqdm.__init__

    def start(
        bar: Any, iterable: Any = None, desc: Any = None, *args: Any, **kwargs: Any
    ):
        about = f"{subject}: {desc}" if desc else str(subject)
        before(bar, iterable, about, *args, **kwargs)

    tqdm.__init__ = start  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        tqdm.__init__ = before
