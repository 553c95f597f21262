"""Tests of thresholds, budgets by error, and the compact form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lens_hierarchical import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
    calibrate_thresholds,
)

D_IN, D_SAE, K_MAX = 12, 40, 8


def make_sae(dtype: str = "float32", **options: Any) -> HierarchicalTopKSAE:
    torch.manual_seed(0)
    cfg = HierarchicalTopKSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k_max=K_MAX, dtype=dtype, **options
    )
    return HierarchicalTopKSAE(cfg)


def activations(tokens: int = 500, seed: int = 1) -> Tensor:
    return torch.randn(tokens, D_IN, generator=torch.Generator().manual_seed(seed))


def average_l0(sae: HierarchicalTopKSAE, x: Tensor) -> float:
    return (sae.encode(x) != 0).sum(-1).double().mean().item()


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_calibrated_thresholds_let_k_features_through_on_average(
    rescale: bool, dtype: str
) -> None:
    sae = make_sae(dtype, rescale_acts_by_decoder_norm=rescale)
    x = activations()

    thresholds = calibrate_thresholds(sae, x.split(64))

    assert (thresholds.diff() <= 0).all()
    assert torch.equal(thresholds, sae.thresholds)
    sae.activation = "jumprelu"
    # bfloat16 activations tie, and a threshold cannot part a tie.
    tolerance = 0.01 if dtype == "float32" else 0.1
    for k in range(1, K_MAX + 1):
        sae.k = k
        assert average_l0(sae, x) == pytest.approx(k, abs=tolerance * k)


def test_calibration_is_exact_but_for_its_bins() -> None:
    sae = make_sae()
    x = activations()

    thresholds = calibrate_thresholds(sae, x)

    sae.k = D_SAE
    ranked = sae.encode(x).flatten().sort(descending=True).values
    for k in range(1, K_MAX + 1):
        exact = ranked[k * len(x) - 1].item()
        assert thresholds[k - 1] == pytest.approx(exact, rel=2**-14)
        assert thresholds[k - 1] < exact


def test_streaming_does_not_change_the_thresholds() -> None:
    sae, x = make_sae(), activations()

    whole = calibrate_thresholds(sae, x)

    assert torch.equal(whole, calibrate_thresholds(sae, (part for part in x.split(7))))
    assert torch.equal(whole, calibrate_thresholds(sae, x.view(5, 100, D_IN)))


def test_jumprelu_keeps_what_exceeds_the_threshold_unchanged() -> None:
    sae, x = make_sae(), activations()
    calibrate_thresholds(sae, x)
    sae.k = D_SAE
    every = sae.encode(x)
    sae.k = 3

    sae.activation = "jumprelu"

    acts = sae.encode(x)
    assert torch.equal(acts, every * (every > sae.threshold(3)))
    sae.activation = "topk"
    assert (sae.encode(x) != 0).sum(-1).max() == 3


def test_few_positive_features_give_the_threshold_zero() -> None:
    sae = make_sae()
    with torch.no_grad():
        sae.b_enc.fill_(-1e3)
        sae.b_enc[:2] = 1e3  # two features are always active, the others never

    thresholds = calibrate_thresholds(sae, activations())

    assert (thresholds[:2] > 0).all()
    assert (thresholds[2:] == 0).all()
    sae.activation = "jumprelu"
    assert average_l0(sae, activations()) == 2


def test_unknown_thresholds_are_refused_with_the_remedy() -> None:
    sae = make_sae()

    for use in (
        lambda: sae.threshold(3),
        lambda: setattr(sae, "activation", "jumprelu"),
    ):
        with pytest.raises(ValueError, match="calibrate_thresholds"):
            use()
    assert sae.activation == "topk"
    calibrate_thresholds(sae, activations())
    sae.activation = "jumprelu"
    with pytest.raises(ValueError, match="from 1 to k_max=8, got 9"):
        sae.k = 9
    with pytest.raises(ValueError, match="activation must be one of"):
        sae.activation = "relu"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="activation must be one of"):
        make_sae(activation="relu")
    assert (sae.k, sae.activation) == (8, "jumprelu")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.full((3, D_IN), torch.nan), "activations must be finite"),
        (torch.full((3, D_IN), torch.inf), "activations must be finite"),
        (torch.zeros(0, D_IN), "at least one token"),
        ([], "at least one token"),
    ],
)
def test_calibration_refuses_bad_activations(bad: Any, message: str) -> None:
    sae = make_sae()

    with pytest.raises(ValueError, match=message):
        calibrate_thresholds(sae, bad)
    assert sae.thresholds.isnan().all()


def test_thresholds_travel_with_the_checkpoint(tmp_path: Path) -> None:
    sae, x = make_sae(), activations()
    calibrate_thresholds(sae, x)
    sae.activation, sae.k = "jumprelu", 3
    sae.save_model(tmp_path)

    loaded = SAE.load_from_disk(tmp_path)

    assert isinstance(loaded, HierarchicalTopKSAE)
    assert (loaded.activation, loaded.k) == ("jumprelu", 3)
    torch.testing.assert_close(loaded(x), sae(x))
    weights = load_file(tmp_path / "sae_weights.safetensors")
    short = {**weights, "thresholds": weights["thresholds"][:-1].clone()}
    save_file(short, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ValueError, match=r"thresholds is \[7\].*k_max=8.*\[8\]"):
        SAE.load_from_disk(tmp_path)
    del weights["thresholds"]
    save_file(weights, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ValueError, match="thresholds are missing"):
        SAE.load_from_disk(tmp_path)


def train_steps(sae: TrainingSAE[Any], scale: float = 1.0) -> None:
    for n in range(400):
        step_input = TrainStepInput(scale * activations(64, seed=n), {}, None, n, False)
        sae.training_forward_pass(step_input=step_input)


@pytest.mark.parametrize("unit_norm_decoder", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_training_tracks_the_thresholds(
    tmp_path: Path, unit_norm_decoder: bool, rescale: bool
) -> None:
    torch.manual_seed(0)
    trained = HierarchicalTopKTrainingSAE(
        HierarchicalTopKTrainingSAEConfig(
            d_in=D_IN,
            d_sae=D_SAE,
            k=K_MAX,
            unit_norm_decoder=unit_norm_decoder,
            rescale_acts_by_decoder_norm=rescale,
            normalize_activations="expected_average_only_in",
        )
    )
    train_steps(trained, scale=3.0)
    trained.fold_activation_norm_scaling_factor(3.0)
    trained.save_inference_model(tmp_path)

    sae = SAE.load_from_disk(tmp_path)

    assert isinstance(sae, HierarchicalTopKSAE)
    sae.activation = "jumprelu"
    for k in (1, 4, 8):
        sae.k = k
        assert average_l0(sae, activations(2000)) == pytest.approx(k, rel=0.1)


NORMALIZATIONS = ["none", "layer_norm", "constant_norm_rescale"]


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("rescale", [True, False])
def test_compact_form_is_the_dense_one(normalize: str, rescale: bool) -> None:
    options = {"normalize_activations": normalize}
    sae = make_sae(**options, rescale_acts_by_decoder_norm=rescale)
    sae.b_dec.data.normal_()
    x = activations(30).view(3, 10, D_IN)
    sae.k = 5

    ranked = sae.encode_ranked(x)
    decoded = sae.decode_ranked(ranked)

    assert ranked.values.shape == ranked.indices.shape == (3, 10, 5)
    assert (ranked.values.diff(dim=-1) <= 0).all()
    assert torch.equal(ranked.to_dense(D_SAE), sae.encode(x))
    torch.testing.assert_close(decoded, sae(x))
    sae.encode_ranked(x)
    with pytest.raises(ValueError, match=r"ks must .* from 1 to 5"):
        sae.decode_ranked(ranked, [6])


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("max_fvu", [0.0, 0.3, 0.6, 1.0])
def test_adaptive_k_is_the_smallest_that_meets_the_target(
    normalize: str, max_fvu: float
) -> None:
    sae = make_sae(normalize_activations=normalize)
    with torch.no_grad():
        sae.W_enc.mul_(0.3)
    x = activations(60).view(6, 10, D_IN)

    adaptive = sae.encode_adaptive(x, max_fvu)

    outputs = sae.reconstruct(x, range(1, K_MAX + 1))
    fvu = (outputs - x).var(-1, correction=0) / x.var(-1, correction=0)
    for index in torch.cartesian_prod(torch.arange(6), torch.arange(10)).tolist():
        by_k = fvu[:, index[0], index[1]].tolist()
        met = [k for k, value in enumerate(by_k, start=1) if value <= max_fvu]
        expected = met[0] if met else K_MAX
        assert adaptive.k[tuple(index)] == expected
        assert adaptive.fvu[tuple(index)] == pytest.approx(by_k[expected - 1], rel=1e-4)
    used = (adaptive.ranked.values > 0).sum(-1)
    assert (used <= adaptive.k).all()
    assert sae.k == K_MAX


def test_adaptive_output_is_that_of_each_tokens_k() -> None:
    sae = make_sae()
    x = activations(50)

    ranked, k, _ = sae.encode_adaptive(x, max_fvu=0.5)

    outputs = sae.reconstruct(x, range(1, K_MAX + 1))
    expected = outputs[k - 1, torch.arange(50)]
    torch.testing.assert_close(sae.decode_ranked(ranked), expected)
    assert 1 <= k.min() < k.max() <= K_MAX


def test_token_without_variance() -> None:
    sae = make_sae()
    with torch.no_grad():
        sae.b_dec.fill_(2.0)
    met = torch.full((1, D_IN), 2.0)  # b_dec alone is exact, and all features are 0
    unmet = torch.full((1, D_IN), 5.0)

    adaptive = sae.encode_adaptive(torch.cat([met, unmet]), max_fvu=0.2)

    assert adaptive.k.tolist() == [1, K_MAX]
    assert adaptive.fvu.tolist() == [0.0, float("inf")]


@pytest.mark.parametrize(
    ("x", "max_fvu", "message"),
    [
        (activations(3), -0.1, "max_fvu must lie between 0 and 1, got -0.1"),
        (activations(3), float("nan"), "max_fvu must lie"),
        (activations(0), 0.2, "x must hold at least one token"),
        (torch.full((2, D_IN), torch.nan), 0.2, "x must .* be finite"),
    ],
)
def test_adaptive_refuses_bad_input(x: Tensor, max_fvu: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sae().encode_adaptive(x, max_fvu)


def test_compact_form_needs_topk() -> None:
    sae = make_sae()
    calibrate_thresholds(sae, activations())
    sae.activation = "jumprelu"

    with pytest.raises(ValueError, match="needs activation='topk'"):
        sae.encode_ranked(activations())


def test_many_budgets_of_a_bfloat16_sae_lose_nothing() -> None:
    cfg = HierarchicalTopKSAEConfig(
        d_in=64,
        d_sae=512,
        k_max=128,
        dtype="bfloat16",
        rescale_acts_by_decoder_norm=False,
    )
    sae = HierarchicalTopKSAE(cfg)
    x = torch.randn(50, 64).bfloat16()
    values, indices = sae.encode_ranked(x)
    terms = values[..., None].double() * sae.W_dec[indices].double()

    for k, x_hat in zip([8, 128], sae.reconstruct(x, [8, 128]), strict=True):
        exact = terms[:, :k].sum(dim=1) + sae.b_dec
        assert (x_hat - exact).norm() < 0.003 * exact.norm()
