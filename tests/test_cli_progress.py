"""Tests of progress bars in a log."""

from __future__ import annotations

import io

import pytest
from tqdm.auto import tqdm as auto_tqdm
from tqdm.std import tqdm

from sae_lens_hierarchical.cli import progress
from sae_lens_hierarchical.cli.progress import progress_for, without_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work() -> None:
    for _ in auto_tqdm(range(50), desc="Working"):
        for _ in tqdm(range(3), desc="Part", leave=False):
            pass


def test_short_work_leaves_no_trace_in_a_log() -> None:
    log = io.StringIO()

    with progress_for(log):
        work()

    assert log.getvalue() == ""


def test_a_log_has_whole_lines_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 1e-9)
    log = io.StringIO()

    with progress_for(log):
        work()

    text = log.getvalue()
    assert not {"\r", "\x1b"} & set(text)
    assert "" not in text.splitlines()
    halfway = [line for line in text.splitlines() if line.startswith("Working:  50%")]
    assert len(halfway) == 1
    assert "25/50 [00:00<00:00" in halfway[0]


def test_a_terminal_keeps_its_bars_and_so_does_what_comes_after() -> None:
    before = tqdm.__init__

    with progress_for(Terminal()):
        assert tqdm.__init__ is before
    with progress_for(io.StringIO()):
        assert tqdm.__init__ is not before
    assert tqdm.__init__ is before


def test_without_progress_there_are_no_bars(
    capsys: pytest.CaptureFixture[str],
) -> None:
    work()
    assert "Working" in capsys.readouterr().err

    with without_progress():
        work()

    assert capsys.readouterr().err == ""
