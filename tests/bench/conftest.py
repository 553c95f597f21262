"""Tests that need the extra [bench]: ``make bench-test`` runs them.

Elsewhere they are not collected, since its numpy and datasets are older than ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from sae_lens import HookedSAETransformer

from sae_lens_hierarchical import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from sae_lens_hierarchical.data import (
    BUNDLED_HOOK_NAME,
    BUNDLED_MODEL_NAME,
    load_bundled_text,
)
from tests.bench.judge_server import JudgeServer, judge_server

collect_ignore_glob = [] if find_spec("sae_bench") else ["*"]


@pytest.fixture(scope="session")
def sae(model: HookedSAETransformer) -> HierarchicalTopKSAE:
    """A crude SAE: activations of real tokens as its features."""
    cfg = HierarchicalTopKSAEConfig(
        d_in=128, d_sae=96, k_max=8, rescale_acts_by_decoder_norm=True
    )
    sae = HierarchicalTopKSAE(cfg)
    metadata = sae.cfg.metadata
    metadata.model_name, metadata.hook_name = BUNDLED_MODEL_NAME, BUNDLED_HOOK_NAME
    metadata.context_size, metadata.prepend_bos = 32, True
    tokens = model.to_tokens(load_bundled_text("train")[0]["text"])[:, :100]
    _, cache = model.run_with_cache(tokens, names_filter=BUNDLED_HOOK_NAME)
    x = cache[BUNDLED_HOOK_NAME][0, 1:97]
    with torch.no_grad():
        sae.b_dec[:] = x.mean(0)
        # Rows that are not of norm 1, which SAEBench wants.
        sae.W_dec[:] = 1.5 * torch.nn.functional.normalize(x - x.mean(0))
        sae.W_enc[:] = 0.4 * sae.W_dec.T
    return sae


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
