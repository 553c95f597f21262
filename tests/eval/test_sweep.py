"""Tests of the metrics at many k, against SAELens's evals and against plain sums."""

from __future__ import annotations

import copy
import csv
import errno
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from sae_lens import (
    SAE,
    ActivationsStore,
    GatedSAE,
    HookedSAETransformer,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    TopKSAE,
    TopKSAEConfig,
    run_evals,
)
from sae_lens.evals import EvalConfig
from sae_lens.load_model import HookedProxyLM
from sae_lens.registry import get_sae_class
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from sae_lens_hierarchical import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    calibrate_thresholds,
)
from sae_lens_hierarchical.data import BUNDLED_HOOK_NAME, load_bundled_dataset
from sae_lens_hierarchical.eval.folders import default_batch_size, sweep_store
from sae_lens_hierarchical.eval.sweep import sweep
from sae_lens_hierarchical.eval.table import (
    BudgetMetrics,
    MetricsTable,
    read_table,
    write_table,
)
from tests.helpers import make_crude_sae, make_metrics

KS = [1, 3, 8]


@pytest.fixture(scope="module")
def sae(model: HookedSAETransformer) -> HierarchicalTopKSAE:
    return make_crude_sae(model)


@pytest.fixture(scope="module")
def store(model: HookedSAETransformer, sae: HierarchicalTopKSAE) -> ActivationsStore:
    return ActivationsStore.from_sae(
        model, sae, load_bundled_dataset("held_out"), streaming=False
    )


@pytest.fixture(scope="module")
def tokens(store: ActivationsStore) -> Tensor:
    return store.get_batch_tokens(6)


def evaluate(
    sae: SAE[Any],
    model: HookedSAETransformer,
    tokens: Tensor,
    ks: list[int],
    activation: str = "topk",
    **options: Any,
) -> list[BudgetMetrics]:
    """Sweep one SAE in batches of four contexts."""
    rows = sweep({"it": sae}, model, tokens.split(4), ks, **options)
    return MetricsTable(rows).select(activation=activation)


def saelens_metrics(
    sae: SAE[Any], model: HookedSAETransformer, tokens: Tensor
) -> dict[str, float]:
    store = ActivationsStore.from_sae(
        model, sae, load_bundled_dataset("held_out"), streaming=False
    )
    store.get_batch_tokens = lambda *_, **__: tokens
    metrics, _ = run_evals(
        sae,
        store,
        model,
        ActivationScaler(),
        EvalConfig(
            n_eval_reconstruction_batches=1,
            compute_kl=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
        ),
    )
    return {name: value for group in metrics.values() for name, value in group.items()}


def assert_saelens(result: BudgetMetrics, expected: dict[str, float]) -> None:
    for ours, theirs in {
        "explained_variance": "explained_variance",
        "mse": "mse",
        "cosine_similarity": "cossim",
        "l0": "l0",
        "kl_div": "kl_div_with_sae",
    }.items():
        assert getattr(result, ours) == pytest.approx(
            expected[theirs], rel=2e-4, abs=1e-4
        ), ours


def test_metrics_are_saelens_at_each_k(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    for result in evaluate(sae, model, tokens, KS):
        with sae.at_k(result.k):
            assert_saelens(result, saelens_metrics(sae, model, tokens))


@pytest.mark.parametrize("sae_class", [StandardSAE, JumpReLUSAE, GatedSAE])
def test_saes_without_k_are_evaluated_with_their_largest_features(
    sae_class: type[SAE[Any]],
    sae: HierarchicalTopKSAE,
    model: HookedSAETransformer,
    tokens: Tensor,
) -> None:
    config_class = get_sae_class(sae_class.__name__[:-3].lower())[1]
    other = sae_class(config_class(d_in=128, d_sae=96, metadata=sae.cfg.metadata))
    shared = {n: p for n, p in sae.state_dict().items() if n in other.state_dict()}
    other.load_state_dict(shared, strict=False)

    narrow, everything = evaluate(other, model, tokens, [4, 96])
    (own,) = evaluate(other, model, tokens, [4], "own")

    expected = saelens_metrics(other, model, tokens)
    assert_saelens(own, expected)
    assert_saelens(everything, expected)
    assert narrow.l0 <= 4 < everything.l0
    assert own.k == own.trained_k == narrow.trained_k == round(own.l0)


@pytest.mark.parametrize("head", [None, 1])
def test_heads_are_spliced_in(
    model: HookedSAETransformer, tokens: Tensor, head: int | None
) -> None:
    width = 128 if head is None else 32
    cfg = HierarchicalTopKSAEConfig(
        d_in=width,
        d_sae=2 * width,
        k_max=width,
        reshape_activations="hook_z" if head is None else "none",
        rescale_acts_by_decoder_norm=False,
    )
    cfg.metadata.hook_name = "blocks.1.attn.hook_z"
    cfg.metadata.hook_head_index = head
    identity = HierarchicalTopKSAE(cfg)
    with torch.no_grad():
        identity.W_enc[:] = torch.cat([torch.eye(width), -torch.eye(width)], dim=1)
        identity.W_dec[:] = identity.W_enc.T

    plain = TopKSAE(
        TopKSAEConfig(
            d_in=width,
            d_sae=2 * width,
            k=width,
            reshape_activations=cfg.reshape_activations,
            rescale_acts_by_decoder_norm=False,
            metadata=cfg.metadata,
        )
    )
    plain.load_state_dict(identity.state_dict(), strict=False)

    few, perfect = evaluate(identity, model, tokens, [1, width])
    by_threshold = evaluate(plain, model, tokens, [8], "jumprelu", jumprelu=True)

    assert perfect.explained_variance == pytest.approx(1, abs=1e-4)
    assert perfect.kl_div == pytest.approx(0, abs=1e-4)
    assert few.kl_div > 1e-3
    assert by_threshold[0].l0 == pytest.approx(8, rel=1e-3)
    assert identity.hook_z_reshaping_mode == (head is None)


def test_other_saes_are_refused(model: HookedSAETransformer, tokens: Tensor) -> None:
    sizes = {"d_in": 8, "d_sae": 9, "d_out": 8}
    transcoder = SAE.from_dict(
        {"architecture": "transcoder", "apply_b_dec_to_input": False, **sizes}
    )

    with pytest.raises(ValueError, match="does not know SAEs of type Transcoder"):
        evaluate(transcoder, model, tokens, [1])
    absolute = SAE.from_dict({"architecture": "abstopk", "k": 2, "d_in": 8, "d_sae": 9})
    with pytest.raises(ValueError, match="does not know SAEs of type AbsTopKSAE"):
        evaluate(absolute, model, tokens, [1])


def test_what_does_not_fit_is_named(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    narrow = HierarchicalTopKSAE(replace(sae.cfg, d_in=64))
    with pytest.raises(ValueError, match=r"d_in = 64, but blocks\.2\.\w+ is 128 wide"):
        evaluate(narrow, model, tokens, KS)
    lost = copy.deepcopy(sae)
    lost.cfg.metadata.hook_name = "blocks.2.hook_resid"
    with pytest.raises(ValueError, match=r"'blocks\.2\.hook_resid' is no hook of the"):
        evaluate(lost, model, tokens, KS)
    only_bos = tokens[:, :1].expand(-1, 4)
    for nothing in (only_bos, tokens[:0]):
        with pytest.raises(ValueError, match="batches must hold different tokens"):
            evaluate(sae, model, nothing, KS)


def test_one_token_a_context_has_no_next_one(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    (result,) = evaluate(sae, model, tokens[:, 5:6], [8])

    assert math.isnan(result.ce_loss_score)
    assert result.kl_div > 0


def test_a_hugging_face_models_logits_are_those_of_ours(
    model: HookedSAETransformer, tmp_path: Path
) -> None:
    """SAELens loads models as they are at Hugging Face, too: other names of hooks."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=4096, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    proxy = HookedProxyLM(GPT2LMHeadModel(config).eval(), model.tokenizer)  # pyright: ignore[reportArgumentType]
    cfg = HierarchicalTopKSAEConfig(d_in=16, d_sae=32, k_max=8)
    cfg.metadata.model_name, cfg.metadata.hook_name = "tiny", "transformer.h.0"
    cfg.metadata.context_size, cfg.metadata.prepend_bos = 32, True
    sae = HierarchicalTopKSAE(cfg)
    text = load_bundled_dataset("held_out").select(range(2))
    store = ActivationsStore.from_sae(proxy, sae, text, streaming=False)

    table = sweep_store({"it": sae}, store, [1, 8], contexts=4)

    assert [row.k for row in table.rows] == [1, 8]
    assert table.rows[0].kl_div > 0


def real_activations(model: HookedSAETransformer, tokens: Tensor) -> Tensor:
    _, cache = model.run_with_cache(tokens, names_filter=BUNDLED_HOOK_NAME)
    bos = model.tokenizer.bos_token_id  # pyright: ignore[reportOptionalMemberAccess]
    return cache[BUNDLED_HOOK_NAME][tokens != bos]


def test_variances_and_dead_features_are_those_of_a_plain_computation(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    results = evaluate(sae, model, tokens, KS)

    x = real_activations(model, tokens)
    for result in results:
        with sae.at_k(result.k), torch.no_grad():
            acts = sae.encode(x)
            error = x - sae.decode(acts)
        variance = x.var(0, correction=0).sum()
        fvu = float(error.pow(2).sum(-1).mean() / variance)
        fvu_centered = float(error.var(0, correction=0).sum() / variance)
        bias = float(error.mean(0).pow(2).sum() / variance)
        assert bias > 0.1
        assert result.fvu == pytest.approx(fvu, rel=1e-4)
        assert result.explained_variance == pytest.approx(1 - fvu, abs=1e-4)
        assert result.fvu_centered == pytest.approx(fvu_centered, rel=1e-4)
        assert result.bias == pytest.approx(bias, rel=1e-3)
        assert result.dead_features == int((acts.amax(0) == 0).sum())
        assert result.almost_dead_features == result.dead_features
        assert result.tokens == len(x)


@pytest.mark.parametrize("rescale", [True, False])
def test_latents_statistics_are_those_of_dense_activations(
    rescale: bool, model: HookedSAETransformer, tokens: Tensor
) -> None:
    cfg = HierarchicalTopKSAEConfig(
        d_in=128, d_sae=64, k_max=8, rescale_acts_by_decoder_norm=rescale
    )
    cfg.metadata.hook_name = BUNDLED_HOOK_NAME
    sae = HierarchicalTopKSAE(cfg)
    sae.W_dec.data *= torch.linspace(0.5, 2, 64)[:, None]

    results = evaluate(sae, model, tokens, KS)

    x = real_activations(model, tokens)
    norms = sae.W_dec.detach().norm(dim=-1)
    for result in results:
        with sae.at_k(result.k), torch.no_grad():
            acts = sae.encode(x)
        firings = (acts > 0).sum(0)
        # As rescaled, activations have the decoder's norms in them already.
        squares = (acts if rescale else acts * norms).pow(2).sum(0)
        np.testing.assert_allclose(result.frequency, firings / len(x), rtol=1e-6)
        np.testing.assert_allclose(
            result.mean_squared_activation, squares / firings, rtol=1e-4
        )
    rows = torch.nn.functional.normalize(sae.W_dec.detach(), dim=-1)
    values, indices = sae.encode_ranked(x)
    for i in range(7):
        both = values[:, i + 1] > 0
        first, second = rows[indices[both, i]], rows[indices[both, i + 1]]
        expected = float((first * second).sum(-1).mean())
        assert results[-1].cosine_to_next[i] == pytest.approx(expected, abs=1e-5)
    assert [len(result.cosine_to_next) for result in results] == [0, 2, 7]


@pytest.mark.parametrize("exclude", [True, [17, 300]])
def test_what_was_never_trained_on_is_left_out(
    exclude: bool | list[int],
    sae: HierarchicalTopKSAE,
    model: HookedSAETransformer,
    tokens: Tensor,
) -> None:
    """All metrics are those of a plain computation on the positions trained on."""
    tokens = tokens.clone()
    tokens[:, 7] = 17
    narrow = copy.deepcopy(sae)
    narrow.cfg.metadata.seqpos_slice = [3, -2]  # as JSON has it
    narrow.cfg.metadata.exclude_special_tokens = exclude
    saes: dict[str, SAE[Any]] = {"narrow": narrow, "all": sae}

    table = MetricsTable(sweep(saes, model, tokens.split(4), KS))

    keep = torch.zeros_like(tokens, dtype=torch.bool)
    keep[:, 3:-2] = True
    keep &= tokens != model.tokenizer.bos_token_id  # pyright: ignore[reportOptionalMemberAccess]
    if exclude is not True:
        keep &= ~torch.isin(tokens, torch.tensor(exclude))
    logits: Any
    logits, cache = model.run_with_cache(tokens, names_filter=BUNDLED_HOOK_NAME)
    activations = cache[BUNDLED_HOOK_NAME]
    x = activations[keep]

    def loss_and_kl_div(x_hat: Tensor) -> tuple[float, float]:
        spliced = activations.clone()
        spliced[keep] = x_hat

        def splice(_: Tensor, hook: Any) -> Tensor:
            return spliced

        other = model.run_with_hooks(tokens, fwd_hooks=[(BUNDLED_HOOK_NAME, splice)])
        before, after = logits.log_softmax(-1), other.log_softmax(-1)
        following = after[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        kl_div = (before.exp() * (before - after)).sum(-1)[keep].mean()
        return -float(following[keep[:, :-1]].mean()), float(kl_div)

    clean = loss_and_kl_div(x)[0]
    zeroed = loss_and_kl_div(torch.zeros_like(x))[0]
    for row in table.select(sae="narrow"):
        with narrow.at_k(row.k), torch.no_grad():
            acts = narrow.encode(x)
            x_hat = narrow.decode(acts)
        error = (x_hat - x).pow(2).sum(-1).mean()
        variance = x.var(0, correction=0).sum()
        loss, kl_div = loss_and_kl_div(x_hat)
        assert (row.tokens, row.ce_tokens) == (len(x), len(x))
        assert row.excluded_tokens == tokens.numel() - len(x)
        assert row.l0 == pytest.approx(float((acts > 0).sum(-1).float().mean()))
        assert row.mse == pytest.approx(float(error), rel=1e-4)
        expected = pytest.approx(float(1 - error / variance), rel=1e-4)
        assert row.explained_variance == expected
        score = (zeroed - loss) / (zeroed - clean)
        assert row.ce_loss_score == pytest.approx(score, rel=1e-3)
        assert row.kl_div == pytest.approx(kl_div, rel=1e-3)
    everywhere = evaluate(sae, model, tokens, KS)
    for row, alone in zip(table.select(sae="all"), everywhere, strict=True):
        assert row.explained_variance == pytest.approx(alone.explained_variance)
        assert row.kl_div == pytest.approx(alone.kl_div)
        assert row.tokens == alone.tokens > len(x)


def test_the_provenance_says_what_each_sae_was_evaluated_on(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer
) -> None:
    narrow = copy.deepcopy(sae)
    narrow.cfg.metadata.seqpos_slice = (3, -2)
    store = ActivationsStore.from_sae(
        model, sae, load_bundled_dataset("held_out"), streaming=False
    )

    both = sweep_store({"all": sae, "narrow": narrow}, store, [8], contexts=4)
    alone = sweep_store({"narrow": narrow}, store, [8], contexts=4)

    rows = {row.sae: row for row in both.rows}
    for name in ("tokens", "ce_tokens", "excluded_tokens"):
        counts = {sae: getattr(row, name) for sae, row in rows.items()}
        assert both.provenance[name] == counts
        assert alone.provenance[name] == getattr(alone.rows[0], name)
    assert rows["all"].tokens + rows["all"].excluded_tokens == 4 * 32  # pyright: ignore[reportOperatorIssue]
    assert rows["narrow"].excluded_tokens >= 4 * 5  # pyright: ignore[reportOptionalOperand]


def test_an_empty_choice_of_positions_is_named(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    nowhere = copy.deepcopy(sae)
    nowhere.cfg.metadata.seqpos_slice = (32, None)
    with pytest.raises(ValueError, match="that it was trained on"):
        evaluate(nowhere, model, tokens, KS)


def test_many_saes_share_one_stream_of_any_batches(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    topk = TopKSAE(TopKSAEConfig(d_in=128, d_sae=64, k=3, metadata=sae.cfg.metadata))
    saes: dict[str, SAE[Any]] = {"ours": sae, "topk": topk}

    table = MetricsTable(sweep(saes, model, iter(tokens.split(1)), KS))

    assert table.saes() == ["ours", "topk"]
    assert [row.trained_k for row in table.rows] == [8, 8, 8, 3, 3, 3]
    for name, one in saes.items():
        for row, alone in zip(
            table.select(sae=name), evaluate(one, model, tokens, KS), strict=True
        ):
            for metric in (
                "explained_variance",
                "fvu_centered",
                "ce_loss_score",
                "kl_div",
            ):
                expected = pytest.approx(getattr(alone, metric), rel=1e-4, abs=1e-5)
                assert getattr(row, metric) == expected
            assert row.l0 == alone.l0


def test_the_model_runs_on_as_many_batches_as_asked(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    first = evaluate(sae, model, tokens[:4], KS)
    partly = evaluate(sae, model, tokens, KS, ce_batches=1)
    never = evaluate(sae, model, tokens, KS, ce_batches=0)
    everywhere = evaluate(sae, model, tokens, KS)

    for few, some, none, all_ in zip(first, partly, never, everywhere, strict=True):
        assert some.kl_div == pytest.approx(few.kl_div)
        assert some.ce_loss_score == pytest.approx(few.ce_loss_score)
        assert none.explained_variance == some.explained_variance
        assert some.explained_variance == pytest.approx(all_.explained_variance)
        assert (few.ce_tokens, none.ce_tokens) == (some.ce_tokens, 0)
        assert math.isnan(none.ce_loss_score)
        assert math.isnan(none.kl_div)


@pytest.mark.parametrize(
    ("context_size", "d_vocab", "contexts"),
    [(128, 4096, 16), (1024, 50_257, 10), (1024, 256_128, 2), (8192, 256_128, 1)],
)
def test_a_large_vocabulary_gets_fewer_default_batch_size(
    context_size: int, d_vocab: int, contexts: int
) -> None:
    with torch.device("meta"):
        config = GPT2Config(vocab_size=d_vocab, n_embd=2, n_layer=1, n_head=1)
        proxy = HookedProxyLM(GPT2LMHeadModel(config), None)  # pyright: ignore[reportArgumentType]
    assert default_batch_size(proxy, context_size) == contexts
    bundled = SimpleNamespace(cfg=SimpleNamespace(d_vocab=d_vocab))
    assert default_batch_size(bundled, context_size) == contexts


def test_the_jumprelu_mode_is_that_of_the_sae(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    ours = copy.deepcopy(sae)
    with pytest.raises(ValueError, match="has no thresholds"):
        evaluate(ours, model, tokens, KS, jumprelu=True)
    x = real_activations(model, tokens)
    calibrate_thresholds(ours, x)

    results = evaluate(ours, model, tokens, KS, "jumprelu", jumprelu=True)

    assert ours.activation == "topk"
    ours.activation = "jumprelu"
    for result in results:
        with ours.at_k(result.k), torch.no_grad():
            error = ours(x) - x
        assert result.l0 == pytest.approx(result.k, rel=1e-3)
        mse = float(error.pow(2).sum(-1).mean())
        assert result.mse == pytest.approx(mse, rel=1e-5)


def test_topk_saes_get_thresholds_up_to_their_k(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    cfg = TopKSAEConfig(d_in=128, d_sae=96, k=3, metadata=sae.cfg.metadata)
    topk = TopKSAE(cfg)
    topk.load_state_dict(sae.state_dict(), strict=False)

    results = evaluate(topk, model, tokens, KS, "jumprelu", jumprelu=True)

    assert [result.k for result in results] == [1, 3]
    for result in results:
        assert result.l0 == pytest.approx(result.k, rel=1e-3)


def test_a_batchtopk_sae_runs_past_its_threshold(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    """A TopK SAE with the same weights gives the same at each k, and its own at 3."""
    twin = HierarchicalTopKSAE(replace(sae.cfg, rescale_acts_by_decoder_norm=False))
    twin.load_state_dict(sae.state_dict())
    x = real_activations(model, tokens)
    calibrate_thresholds(twin, x)
    metadata = copy.deepcopy(sae.cfg.metadata)
    cfg = JumpReLUSAEConfig(d_in=128, d_sae=96, metadata=metadata)
    batchtopk = JumpReLUSAE(cfg)
    batchtopk.load_state_dict(sae.state_dict(), strict=False)
    batchtopk.threshold.data[:] = twin.threshold(3)

    rows = sweep({"it": batchtopk}, model, tokens.split(4), KS, jumprelu=True)

    table = MetricsTable(rows)
    assert {row.architecture for row in rows} == {"batchtopk"}
    assert {row.trained_k for row in rows} == {3}
    by_rank = table.select(activation="topk")
    for row, expected in zip(by_rank, evaluate(twin, model, tokens, KS), strict=True):
        assert row.mse == pytest.approx(expected.mse, rel=1e-5)
    (own,) = table.select(activation="own")
    calibrated = table.select(activation="jumprelu", k=3)
    assert (own.k, own.l0) == (3, pytest.approx(3, rel=1e-3))
    assert calibrated[0].mse == pytest.approx(own.mse, rel=1e-3)

    batchtopk.cfg.metadata.trained_k = 5
    told = sweep({"it": batchtopk}, model, tokens.split(4), KS, jumprelu=True)
    assert {row.trained_k for row in told} == {5}
    ks = {
        mode: [row.k for row in told if row.activation == mode]
        for mode in ("topk", "jumprelu", "own")
    }
    assert ks == {"topk": [1, 3, 5, 8], "jumprelu": [1, 3, 5], "own": [5]}


def test_ce_loss_score_is_one_for_a_perfect_sae_and_grows_with_k(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    identity = HierarchicalTopKSAE(
        HierarchicalTopKSAEConfig(d_in=128, d_sae=256, k_max=128)
    )
    identity.cfg.metadata.hook_name = BUNDLED_HOOK_NAME
    with torch.no_grad():
        identity.W_enc[:] = torch.cat([torch.eye(128), -torch.eye(128)], dim=1)
        identity.W_dec[:] = identity.W_enc.T

    (perfect,) = evaluate(identity, model, tokens, [128])
    crude = evaluate(sae, model, tokens, KS)

    assert perfect.ce_loss_score == pytest.approx(1, abs=1e-3)
    assert perfect.explained_variance == pytest.approx(1, abs=1e-4)
    assert crude[0].ce_loss_score < crude[-1].ce_loss_score < 1


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("rescale", [True, False])
def test_reconstruct_equals_a_run_at_each_k(normalize: str, rescale: bool) -> None:
    torch.manual_seed(0)
    cfg = HierarchicalTopKSAEConfig(
        d_in=12,
        d_sae=40,
        k_max=8,
        normalize_activations=normalize,  # pyright: ignore[reportArgumentType]
        rescale_acts_by_decoder_norm=rescale,
    )
    sae = HierarchicalTopKSAE(cfg)
    sae.b_dec.data.normal_()
    x = torch.randn(3, 5, 12)

    outputs = sae.reconstruct(x, [1, 4, 11])

    assert outputs.shape == (3, 3, 5, 12)
    for k, output in zip([1, 4, 11], outputs, strict=True):
        with sae.at_k(k):
            torch.testing.assert_close(output, sae(x))
    assert sae.k == 8
    with pytest.raises(ValueError, match="ks must"):
        sae.reconstruct(x, [4, 1])


def test_plain_topk_runs_at_any_k() -> None:
    topk = TopKSAE(TopKSAEConfig(d_in=12, d_sae=40, k=5))
    topk.cfg.metadata.hook_name = "here"
    random_state = torch.get_rng_state()

    sae = HierarchicalTopKSAE.from_topk(topk)

    assert torch.equal(torch.get_rng_state(), random_state)
    x = torch.randn(9, 12)
    assert (sae.k, sae.k_max) == (5, 5)
    assert (sae.cfg.device, sae.device) == ("cpu", torch.device("cpu"))
    sae.cfg.metadata.hook_name = "elsewhere"
    assert topk.cfg.metadata.hook_name == "here"
    torch.testing.assert_close(sae(x), topk(x))
    sae.k = 2
    assert (sae.encode(x) != 0).sum(-1).max() == 2
    assert topk.cfg.k == 5


def test_a_topk_sae_stays_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device than the CPU, without values to check."""
    monkeypatch.setattr(Tensor, "all", lambda self: True)
    topk = TopKSAE(TopKSAEConfig(d_in=12, d_sae=40, k=5, device="meta"))

    sae = HierarchicalTopKSAE.from_topk(topk)

    tensors = sae.state_dict()
    assert "thresholds" in tensors
    assert {tensor.device.type for tensor in tensors.values()} == {"meta"}
    assert sae.cfg.device == "meta"


def test_table_round_trips(tmp_path: Path) -> None:
    rows = [make_metrics(k, 1 / 3 / k) for k in KS]
    rows.append(make_metrics(2, 0.5, sae="JumpReLU", activation="own", l0=1.9))
    table = MetricsTable(rows, {"versions": {"torch": "2.13.0"}, "tokens": 1000})
    path = tmp_path / "metrics.parquet"

    write_table(path, table)

    read = read_table(path)
    assert read == table
    for row, expected in zip(read.rows, rows, strict=True):
        for name in ("frequency", "mean_squared_activation", "cosine_to_next"):
            np.testing.assert_array_equal(getattr(row, name), getattr(expected, name))
    plain = pd.read_csv(path.with_suffix(".csv"))
    assert not {"frequency", "cosine_to_next"} & set(plain)
    for frame in (pd.read_parquet(path), plain):
        for name in ("l0", "explained_variance", "fvu", "fvu_centered", "bias"):
            assert frame[name].tolist() == [getattr(row, name) for row in rows]


@pytest.mark.parametrize("failing", [(pq, "write_table"), (csv, "writer")])
def test_a_table_that_cannot_be_written_leaves_the_old_one(
    failing: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.parquet"
    write_table(path, MetricsTable([make_metrics(2, 0.7)]))
    old = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*given: Any, **_: Any) -> None:
        if isinstance(given[-1], Path):
            given[-1].write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*failing, fail)
    with pytest.raises(OSError, match="No space left"):
        write_table(path, MetricsTable([make_metrics(4, 0.9)]))

    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == old


def test_tables_of_an_older_version_are_converted(tmp_path: Path) -> None:
    """They called the paper's centered FVU fvu, and did not count excluded tokens."""
    path = tmp_path / "metrics.parquet"
    write_table(path, MetricsTable([make_metrics(2, 0.7, fvu_centered=0.25)]))
    new = pd.read_parquet(path)
    old = new.drop(columns=["fvu", "bias", "excluded_tokens"])
    old.rename(columns={"fvu_centered": "fvu"}).to_parquet(path)

    (row,) = read_table(path).rows

    assert row.explained_variance == 0.7
    assert row.fvu == pytest.approx(0.3)
    assert row.fvu_centered == 0.25
    assert row.bias == pytest.approx(0.05)
    assert row.excluded_tokens is None


def test_the_published_comparison_can_be_read() -> None:
    folder = Path(__file__).parents[2] / "docs" / "comparison"

    table = read_table(folder / "metrics.parquet")

    plain = pd.read_csv(folder / "metrics.csv")
    for name in ("explained_variance", "fvu", "fvu_centered", "bias"):
        values = [getattr(row, name) for row in table.rows]
        assert plain[name].tolist() == pytest.approx(values, abs=1e-12)


def test_other_files_are_no_tables(tmp_path: Path) -> None:
    path = tmp_path / "metrics.parquet"
    pd.DataFrame({"sae": ["it"], "k": [1]}).to_parquet(path)

    with pytest.raises(ValueError, match=r"lacks the columns \['activation', 'almost"):
        read_table(path)
    path.write_text("sae,k\nit,1\n")
    with pytest.raises(ValueError, match="is no parquet file"):
        read_table(path)
