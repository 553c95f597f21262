"""Tests of the metrics at many k, against SAELens's evals and against plain sums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sae_lens import (
    ActivationsStore,
    HookedSAETransformer,
    TopKSAE,
    TopKSAEConfig,
    run_evals,
)
from sae_lens.evals import EvalConfig
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from sae_lens_hierarchical import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from sae_lens_hierarchical.data import BUNDLED_HOOK_NAME, load_bundled_text
from sae_lens_hierarchical.eval.plots import plot_curves
from sae_lens_hierarchical.eval.sweep import BudgetMetrics, sweep
from sae_lens_hierarchical.eval.table import Curve, read_curves, write_curves

KS = [1, 3, 8]


@pytest.fixture(scope="module")
def sae(model: HookedSAETransformer) -> HierarchicalTopKSAE:
    """A crude SAE: activations of real tokens as its features."""
    torch.manual_seed(0)
    cfg = HierarchicalTopKSAEConfig(d_in=128, d_sae=96, k_max=8)
    sae = HierarchicalTopKSAE(cfg)
    metadata = sae.cfg.metadata
    metadata.hook_name = BUNDLED_HOOK_NAME
    metadata.context_size, metadata.prepend_bos = 32, True
    tokens = model.to_tokens(load_bundled_text("train")[0]["text"])[:, :100]
    _, cache = model.run_with_cache(tokens, names_filter=BUNDLED_HOOK_NAME)
    x = cache[BUNDLED_HOOK_NAME][0, 1:97]
    with torch.no_grad():
        sae.b_dec[:] = x.mean(0)
        sae.W_dec[:] = torch.nn.functional.normalize(x - x.mean(0))
        sae.W_enc[:] = 0.6 * sae.W_dec.T
    return sae


@pytest.fixture(scope="module")
def store(model: HookedSAETransformer, sae: HierarchicalTopKSAE) -> ActivationsStore:
    return ActivationsStore.from_sae(
        model, sae, load_bundled_text("held_out"), streaming=False
    )


@pytest.fixture(scope="module")
def tokens(store: ActivationsStore) -> Tensor:
    return store.get_batch_tokens(6)


def test_metrics_are_saelens_at_each_k(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    results = sweep(sae, model, tokens, KS, batch_size=4)

    for result in results:
        with sae.at_k(result.k):
            store = ActivationsStore.from_sae(
                model, sae, load_bundled_text("held_out"), streaming=False
            )
            store.get_batch_tokens = lambda *_, **__: tokens  # type: ignore[method-assign]
            metrics, _ = run_evals(
                sae,
                store,
                model,
                ActivationScaler(),
                EvalConfig(
                    n_eval_reconstruction_batches=1,
                    compute_ce_loss=True,
                    compute_variance_metrics=True,
                ),
            )
        quality = metrics["reconstruction_quality"]
        assert result.explained_variance == pytest.approx(
            quality["explained_variance"], abs=1e-4
        )


def test_fvu_and_dead_features_are_the_papers(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    results = sweep(sae, model, tokens, KS, batch_size=4)

    _, cache = model.run_with_cache(tokens, names_filter=BUNDLED_HOOK_NAME)
    bos = model.tokenizer.bos_token_id  # type: ignore[union-attr]
    x = cache[BUNDLED_HOOK_NAME][tokens != bos]
    for result in results:
        with sae.at_k(result.k), torch.no_grad():
            acts = sae.encode(x)
            error = x - sae.decode(acts)
        fvu = error.var(0, correction=0).sum() / x.var(0, correction=0).sum()
        assert result.fvu == pytest.approx(float(fvu), rel=1e-4)
        assert result.dead_features == int((acts.amax(0) == 0).sum())


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

    (perfect,) = sweep(identity, model, tokens, [128])
    crude = sweep(sae, model, tokens, KS)

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
        normalize_activations=normalize,  # type: ignore[arg-type]
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


def test_plain_topk_can_be_read_at_any_k() -> None:
    topk = TopKSAE(TopKSAEConfig(d_in=12, d_sae=40, k=5))

    sae = HierarchicalTopKSAE.from_topk(topk)

    x = torch.randn(9, 12)
    assert (sae.k, sae.k_max) == (5, 5)
    torch.testing.assert_close(sae(x), topk(x))
    sae.k = 2
    assert (sae.encode(x) != 0).sum(-1).max() == 2
    assert topk.cfg.k == 5


def test_plot_has_a_line_for_each_sae_and_a_dot_at_its_k(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    metrics = sweep(sae, model, tokens, KS)

    figure = plot_curves({"ours": Curve(None, metrics), "TopK-3": Curve(3, metrics)})

    explained, *_ = figure.axes
    assert [line.get_label() for line in explained.lines[:2]] == ["ours", "TopK-3"]
    (dot,) = [line for line in explained.lines if line.get_marker() == "o"]
    assert dot.get_xydata().tolist() == [[3, metrics[1].explained_variance]]  # type: ignore[union-attr]


def test_table_round_trips(tmp_path: Path) -> None:
    curves = {
        "ours": Curve(None, [BudgetMetrics(k, 0.1 * k, 1 / 3, -0.5, 7) for k in KS]),
        "TopK-3": Curve(3, [BudgetMetrics(3, 0.25, 0.5, 0.75, 0)]),
    }
    path = tmp_path / "metrics.csv"

    write_curves(path, curves)

    assert read_curves(path) == curves
    path.write_text("sae,k\nours,1\n")
    with pytest.raises(ValueError, match=r"lacks the columns \['ce_loss_score'"):
        read_curves(path)
