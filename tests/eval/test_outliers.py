"""Tests that a sweep leaves out outlying norms, and says when a curve is suspect."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from sae_lens import SAE, ActivationsStore, HookedSAETransformer
from torch import Tensor

from sae_lens_hierarchical import HierarchicalTopKSAE
from sae_lens_hierarchical.data import BUNDLED_HOOK_NAME, load_bundled_dataset
from sae_lens_hierarchical.eval.folders import sweep_store
from sae_lens_hierarchical.eval.sweep import sweep
from sae_lens_hierarchical.eval.table import BudgetMetrics
from sae_lens_hierarchical.report import terminal_tables
from tests.helpers import make_crude_sae, make_massive

KS = [1, 3, 8]


@pytest.fixture(scope="module")
def sae(model: HookedSAETransformer) -> HierarchicalTopKSAE:
    return make_crude_sae(model)


@pytest.fixture(scope="module")
def tokens(model: HookedSAETransformer, sae: HierarchicalTopKSAE) -> Tensor:
    text = load_bundled_dataset("held_out")
    return ActivationsStore.from_sae(
        model, sae, text, streaming=False
    ).get_batch_tokens(16)


@pytest.fixture(scope="module")
def massive(model: HookedSAETransformer, tokens: Tensor) -> HookedSAETransformer:
    values, counts = tokens.unique(return_counts=True)
    return make_massive(model, int(values[counts == 2][0]))


@pytest.fixture(scope="module")
def x(massive: HookedSAETransformer, tokens: Tensor) -> Tensor:
    """The massive model's activations of all but special tokens."""
    _, cache = massive.run_with_cache(tokens, names_filter=BUNDLED_HOOK_NAME)
    bos = massive.tokenizer.bos_token_id  # pyright: ignore[reportOptionalMemberAccess]
    return cache[BUNDLED_HOOK_NAME][tokens != bos]


def evaluate(sae: SAE[Any], model: Any, tokens: Tensor, **options: Any) -> Any:
    return sweep({"it": sae}, model, tokens.split(4), KS, **options)


def assert_on(rows: list[BudgetMetrics], sae: HierarchicalTopKSAE, x: Tensor) -> None:
    variance = x.var(0, correction=0).sum()
    for row in rows:
        with sae.at_k(row.k), torch.no_grad():
            error = (sae(x) - x).pow(2).sum(-1).mean()
        assert row.tokens == len(x)
        expected = float(1 - error / variance)
        assert row.explained_variance == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_an_saes_own_limit_holds_unless_another_is_asked_for(
    sae: HierarchicalTopKSAE, massive: HookedSAETransformer, tokens: Tensor, x: Tensor
) -> None:
    norms = x.norm(dim=-1)
    median = float(norms.median())
    limited = copy.deepcopy(sae)
    limited.cfg.metadata.max_norm = 1.1 * median

    own = evaluate(limited, massive, tokens)
    all_tokens = evaluate(limited, massive, tokens, max_norm_ratio=math.inf)
    asked = evaluate(sae, massive, tokens, max_norm_ratio=3)

    for rows, limit in (
        (own, 1.1 * median),
        (all_tokens, None),
        (asked, pytest.approx(3 * median, rel=1e-5)),
    ):
        largest = math.inf if limit is None else rows[0].max_norm
        assert_on(rows, sae, x[norms <= largest])
        assert rows[0].max_norm == limit
        assert rows[0].outlier_tokens == int((norms > largest).sum())
        special = tokens.numel() - len(x)
        assert rows[0].excluded_tokens == rows[0].outlier_tokens + special
    assert 0 < asked[0].outlier_tokens < own[0].outlier_tokens
    assert own[0].kl_div > 0


def test_left_out_tokens_keep_their_activations_in_the_model(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    _, cache = model.run_with_cache(tokens, names_filter=BUNDLED_HOOK_NAME)
    activations = cache[BUNDLED_HOOK_NAME]
    norms = activations.norm(dim=-1)
    limited = copy.deepcopy(sae)
    limited.cfg.metadata.max_norm = limit = 1.1 * float(norms.median())
    keep = (norms <= limit) & (tokens != model.tokenizer.bos_token_id)  # pyright: ignore[reportOptionalMemberAccess]

    row = evaluate(limited, model, tokens)[0]

    with limited.at_k(1), torch.no_grad():
        activations[keep] = limited(activations[keep])
    before = model(tokens).log_softmax(-1)

    def splice(_: Tensor, hook: Any) -> Tensor:
        return activations

    spliced = model.run_with_hooks(tokens, fwd_hooks=[(BUNDLED_HOOK_NAME, splice)])
    kl_div = (before.exp() * (before - spliced.log_softmax(-1))).sum(-1)[keep].mean()
    assert row.kl_div == pytest.approx(float(kl_div), rel=1e-3)
    assert row.ce_tokens == int(keep.sum())


def test_a_few_tokens_that_hold_most_are_a_warning(
    sae: HierarchicalTopKSAE,
    model: HookedSAETransformer,
    massive: HookedSAETransformer,
    tokens: Tensor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    evaluate(sae, massive, tokens)
    assert f"squares of the activations at {BUNDLED_HOOK_NAME}" in caplog.text
    assert "--max-norm-ratio" in caplog.text
    caplog.clear()
    evaluate(sae, model, tokens)
    evaluate(sae, massive, tokens, max_norm_ratio=3)
    assert "sum of squares" not in caplog.text


def test_a_falling_curve_is_a_warning(
    sae: HierarchicalTopKSAE,
    model: HookedSAETransformer,
    tokens: Tensor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    evaluate(sae, model, tokens)
    assert "falls" not in caplog.text

    rows = evaluate(make_crude_sae(model, encoder_scale=2), model, tokens)

    ev = {row.k: f"{row.explained_variance:.3f}" for row in rows}
    expected = f"it: explained variance falls from {ev[3]} at k = 3 to {ev[8]} at k = 8"
    assert expected in caplog.text
    assert "max_norm_ratio" in caplog.text


@pytest.mark.parametrize("ratio", [1, -2.0, math.nan])
def test_bad_ratios_are_refused(
    ratio: float, sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    with pytest.raises(ValueError, match="max_norm_ratio must be a finite number"):
        evaluate(sae, model, tokens, max_norm_ratio=ratio)


def test_the_tables_say_how_many_were_left_out(
    sae: HierarchicalTopKSAE, massive: HookedSAETransformer
) -> None:
    text = load_bundled_dataset("held_out")
    store = ActivationsStore.from_sae(massive, sae, text, streaming=False)

    table = sweep_store({"it": sae}, store, [8], contexts=16, max_norm_ratio=3)

    (row,) = table.rows
    assert row.outlier_tokens
    assert table.provenance["outlier_tokens"] == row.outlier_tokens
    assert table.provenance["max_norm"] == row.max_norm
    caption = str(terminal_tables(table, [8])[0].caption)
    assert f"{row.outlier_tokens} more were left out" in caption
