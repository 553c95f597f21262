"""Tests that tokens with outlying norms are left out of training where asked for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import HookedSAETransformer, TopKTrainingSAEConfig

from sae_lens_hierarchical import LanguageModelSAETrainingRunner
from sae_lens_hierarchical.data import BUNDLED_HOOK_NAME
from sae_lens_hierarchical.defaults import MEDIAN_TOKENS
from sae_lens_hierarchical.training.activations_store import ResumableActivationsStore
from sae_lens_hierarchical.training.multi_sae import MultiSAERunner, multi_sae_config
from tests.helpers import MakeConfig, make_massive

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sae_lens")

RATIO = 3.5


@pytest.fixture(scope="module")
def massive(model: HookedSAETransformer, text: Dataset) -> HookedSAETransformer:
    """The bundled model, where one rare token has activations of enormous norm."""
    return make_massive(model, rare_token(model, text))


def rare_token(model: HookedSAETransformer, text: Dataset) -> int:
    of_all = [model.to_tokens(str(t), prepend_bos=False)[0] for t in text["text"]]
    first = torch.cat(of_all)[: MEDIAN_TOKENS // 2]
    values, counts = first.unique(return_counts=True)
    return int(values[counts == 2][0])


def store_of(runner: Any) -> ResumableActivationsStore:
    assert isinstance(runner.activations_store, ResumableActivationsStore)
    return runner.activations_store


def test_outliers_are_left_out_and_counted(
    make_config: MakeConfig,
    massive: HookedSAETransformer,
    text: Dataset,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cfg = make_config(max_norm_ratio=RATIO)
    runner = LanguageModelSAETrainingRunner(cfg, text, massive)
    store = store_of(runner)
    # The same contexts from a store of all tokens.
    plain = LanguageModelSAETrainingRunner(make_config(), text, massive)
    everything = store_of(plain)
    first = torch.cat(
        [everything.get_filtered_llm_batch() for _ in range(MEDIAN_TOKENS // (8 * 32))]
    ).norm(dim=-1)
    limit = RATIO * float(first.median())

    assert store.max_norms() == {BUNDLED_HOOK_NAME: pytest.approx(limit, rel=1e-6)}
    assert (limit * 5 < first).any()
    seen = torch.cat([next(store) for _ in range(100)])
    assert seen.norm(dim=-1).max() <= limit
    assert store.norm_limit is not None
    assert store.norm_limit.tokens == len(first)
    assert store.norm_limit.outliers == int((first > limit).sum())

    runner.run()

    saved = json.loads(Path(f"{cfg.output_path}/cfg.json").read_text())
    assert saved["metadata"]["max_norm"] == pytest.approx(limit, rel=1e-6)
    left_out, tokens = store.norm_limit.outliers, store.norm_limit.tokens
    assert f"max_norm_ratio=3.5 left {left_out:,} of {tokens:,} tokens" in caplog.text


def test_without_a_limit_few_large_tokens_are_a_warning(
    make_config: MakeConfig,
    model: HookedSAETransformer,
    massive: HookedSAETransformer,
    text: Dataset,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for one, warned in ((model, False), (massive, True)):
        caplog.clear()
        cfg = make_config(exclude_special_tokens=True)
        store = store_of(LanguageModelSAETrainingRunner(cfg, text, one))
        for _ in range(MEDIAN_TOKENS // 64 + 32):
            next(store)
        assert ("hold half of the sum of squares" in caplog.text) == warned
        assert ("max_norm_ratio" in caplog.text) == warned


def test_a_token_is_left_out_at_all_hooks(
    make_config: MakeConfig,
    massive: HookedSAETransformer,
    text: Dataset,
    tmp_path: Path,
) -> None:
    cfg = make_config(max_norm_ratio=RATIO)
    other = TopKTrainingSAEConfig(d_in=128, d_sae=32, k=3)
    several = multi_sae_config(cfg, {"a": cfg.sae, "b": other}, tmp_path / "several")
    assert several.max_norm_ratio == RATIO
    hooks = {"a": BUNDLED_HOOK_NAME, "b": "blocks.1.hook_mlp_out"}
    several = dataclasses.replace(several, hook_names=hooks)
    runner = MultiSAERunner(several, text, massive)
    store = store_of(runner)

    runner.run()

    limits = store.max_norms()
    assert set(limits) == set(hooks.values())
    assert store.norm_limit is not None
    assert 0 < store.norm_limit.outliers < store.norm_limit.tokens / 10
    batch = store.split_by_hook(next(store.buffer))
    for name, hook in hooks.items():
        assert batch[hook].norm(dim=-1).max() <= limits[hook]
        saved = json.loads((tmp_path / "several" / name / "cfg.json").read_text())
        assert saved["metadata"]["max_norm"] == limits[hook]


def test_a_limit_that_does_not_fit_is_refused(
    make_config: MakeConfig, model: HookedSAETransformer, text: Dataset
) -> None:
    cfg = make_config()
    cfg.max_norm_ratio = 0.5
    with pytest.raises(ValueError, match="max_norm_ratio must be a finite number"):
        LanguageModelSAETrainingRunner(cfg, text, model)


def test_another_limit_is_another_run(
    make_config: MakeConfig, data: dict[str, Any]
) -> None:
    cfg = make_config(max_norm_ratio=RATIO, n_checkpoints=1)
    LanguageModelSAETrainingRunner(cfg, **data).run()
    again = make_config(max_norm_ratio=4, resume_from_checkpoint=cfg.checkpoint_path)
    with pytest.raises(ValueError, match=r"max_norm_ratio: 3\.5 -> 4"):
        LanguageModelSAETrainingRunner(again, **data)
