"""SIGINT and SIGTERM end training after a step, not within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from sae_lens import logger

from sae_lens_hierarchical.training.trainer import ResumableTrainerMixin

__all__ = ["stopping_on_signals"]


@contextmanager
def stopping_on_signals(trainer: ResumableTrainerMixin) -> Generator[None]:
    """Stop ``trainer`` after its step on SIGINT or SIGTERM; a second one kills."""
    what_stays = "with a checkpoint"
    if trainer.cfg.checkpoint_path is None:
        what_stays = "without a checkpoint, as checkpoint_path is None"
    # Python delivers signals to the main thread alone and takes handlers only there.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, _frame: Any) -> None:
        trainer.stop_requested = True
        logger.warning(f"Stopping after this step, {what_stays}")
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
