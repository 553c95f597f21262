"""Tests that need the extra [saebench]: ``make saebench-test`` runs them.

Elsewhere they are not collected, since its numpy and datasets are older than ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from sae_lens import HookedSAETransformer

from sae_lens_hierarchical import HierarchicalTopKSAE
from tests.helpers import make_crude_sae
from tests.saebench.judge_server import JudgeServer, judge_server

_NEED_IT = [
    "test_absorption.py",
    "test_command.py",
    "test_encodings.py",
    "test_evals.py",
    "test_judge.py",
    "test_relied_on.py",
    "test_scr_and_tpp.py",
]
collect_ignore = [] if find_spec("sae_bench") else _NEED_IT


@pytest.fixture(scope="session")
def sae(model: HookedSAETransformer) -> HierarchicalTopKSAE:
    # Rows that are not of norm 1, which SAEBench wants.
    return make_crude_sae(
        model,
        decoder_norm=1.5,
        encoder_scale=0.6,
        rescale_acts_by_decoder_norm=True,
    )


@pytest.fixture
def checkpoint(sae: HierarchicalTopKSAE, tmp_path: Path) -> Path:
    sae.save_model(tmp_path / "ours")
    return tmp_path / "ours"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with judge_server() as server:
        yield server
