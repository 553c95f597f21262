"""Tests of the metrics at many k, against SAELens's evals and against plain sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    ActivationsStore,
    GatedSAE,
    HookedSAETransformer,
    JumpReLUSAE,
    StandardSAE,
    TopKSAE,
    TopKSAEConfig,
    run_evals,
)
from sae_lens.evals import EvalConfig
from sae_lens.registry import get_sae_class
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from sae_lens_hierarchical import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from sae_lens_hierarchical.data import BUNDLED_HOOK_NAME, load_bundled_text
from sae_lens_hierarchical.eval.plots import plot_curves
from sae_lens_hierarchical.eval.sweep import BudgetMetrics, sweep
from sae_lens_hierarchical.eval.table import Curve, read_curves, write_curves
from tests.conftest import make_metrics

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


def saelens_metrics(
    sae: SAE[Any], model: HookedSAETransformer, tokens: Tensor
) -> dict[str, float]:
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
    for result in sweep(sae, model, tokens, KS, batch_size=4):
        with sae.at_k(result.k):
            assert_saelens(result, saelens_metrics(sae, model, tokens))


@pytest.mark.parametrize("sae_class", [StandardSAE, JumpReLUSAE, GatedSAE])
def test_saes_without_k_are_read_by_their_largest_features(
    sae_class: type[SAE[Any]],
    sae: HierarchicalTopKSAE,
    model: HookedSAETransformer,
    tokens: Tensor,
) -> None:
    config_class = get_sae_class(sae_class.__name__[:-3].lower())[1]
    other = sae_class(config_class(d_in=128, d_sae=96, metadata=sae.cfg.metadata))
    shared = {n: p for n, p in sae.state_dict().items() if n in other.state_dict()}
    other.load_state_dict(shared, strict=False)

    narrow, everything = sweep(other, model, tokens, [4, 96])

    assert_saelens(everything, saelens_metrics(other, model, tokens))
    assert narrow.l0 <= 4 < everything.l0


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

    few, perfect = sweep(identity, model, tokens, [1, width])

    assert perfect.explained_variance == pytest.approx(1, abs=1e-4)
    assert perfect.kl_div == pytest.approx(0, abs=1e-4)
    assert few.kl_div > 1e-3
    assert identity.hook_z_reshaping_mode == (head is None)


def test_other_saes_are_refused(model: HookedSAETransformer, tokens: Tensor) -> None:
    sizes = {"d_in": 8, "d_sae": 9, "d_out": 8}
    transcoder = SAE.from_dict(
        {"architecture": "transcoder", "apply_b_dec_to_input": False, **sizes}
    )

    with pytest.raises(ValueError, match="does not know SAEs of type Transcoder"):
        sweep(transcoder, model, tokens, [1])


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
        assert result.almost_dead_features == result.dead_features
        assert result.tokens == len(x)


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


def test_plot_takes_any_number_of_saes() -> None:
    curves = {f"TopK-{k}": Curve(k, [make_metrics(k, 0.5)]) for k in range(1, 8)}

    figure = plot_curves(curves)

    labels = {line.get_label() for line in figure.axes[0].lines}
    assert labels >= curves.keys()


def test_table_round_trips(tmp_path: Path) -> None:
    curves = {
        "ours": Curve(None, [make_metrics(k, 1 / 3 / k) for k in KS]),
        "TopK-3": Curve(3, [make_metrics(3, 0.25)]),
    }
    path = tmp_path / "metrics.csv"

    write_curves(path, curves)

    assert read_curves(path) == curves
    path.write_text("sae,k\nours,1\n")
    with pytest.raises(ValueError, match=r"lacks the columns \['almost_dead"):
        read_curves(path)
