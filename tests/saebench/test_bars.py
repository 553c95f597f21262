"""Tests that SAEBench's progress bars say what they are of."""

from __future__ import annotations

import pytest
import tqdm.auto
from tqdm import tqdm as plain

from sae_lens_hierarchical.saebench.bars import bars_of


def test_bars_begin_with_the_sae_and_its_k(capsys: pytest.CaptureFixture[str]) -> None:
    with bars_of("ours at k = 8"):
        list(plain(range(2)))
        list(tqdm.auto.tqdm(range(2), "Encoding", leave=False))
        with bars_of("step 1"):
            list(plain(range(2), desc="Collecting"))
    shown = capsys.readouterr().err
    for start in (
        "ours at k = 8: 100%",
        "ours at k = 8: Encoding: ",
        "ours at k = 8: step 1: Collecting: ",
    ):
        assert start in shown

    list(plain(range(2), desc="Other"))
    assert "ours" not in capsys.readouterr().err
