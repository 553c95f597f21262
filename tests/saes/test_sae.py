"""Tests of the SAE at inference: variable k, saving, loading."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class, get_sae_training_class
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lens_hierarchical import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)

D_IN, D_SAE, K_MAX = 12, 40, 8


def make_sae(**options: Any) -> HierarchicalTopKSAE:
    torch.manual_seed(0)
    cfg = HierarchicalTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k_max=K_MAX, **options)
    return HierarchicalTopKSAE(cfg)


def activations(*shape: int) -> Tensor:
    return torch.randn(*shape, D_IN, generator=torch.Generator().manual_seed(1))


def save_trained(folder: Path, **options: Any) -> HierarchicalTopKTrainingSAE:
    torch.manual_seed(0)
    cfg = HierarchicalTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=K_MAX, loss_every=4, **options
    )
    sae = HierarchicalTopKTrainingSAE(cfg)
    with torch.no_grad():
        sae.b_enc.normal_()
        sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
    sae.save_inference_model(folder)
    return sae


def test_k_starts_at_k_max_and_can_be_set() -> None:
    sae = make_sae()
    assert (sae.k, sae.k_max, sae.cfg.k) == (K_MAX, K_MAX, K_MAX)

    sae.k = 3

    assert (sae.k, sae.k_max, sae.cfg.k) == (3, K_MAX, 3)
    assert (sae.encode(activations(20)) != 0).sum(-1).max() == 3


def test_at_k_restores_k_even_after_an_error() -> None:
    sae = make_sae(k=5)

    with sae.at_k(2) as same:
        assert same is sae
        assert sae.k == 2
    assert sae.k == 5

    with pytest.raises(RuntimeError, match="inside"), sae.at_k(2):
        raise RuntimeError("inside")
    assert sae.k == 5


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("shape", [(50,), (4, 7)])
def test_features_at_k_are_the_k_largest_of_k_max(
    rescale: bool, shape: tuple[int, ...]
) -> None:
    sae = make_sae(rescale_acts_by_decoder_norm=rescale)
    full = sae.encode(activations(*shape))

    for k in range(1, K_MAX + 1):
        with sae.at_k(k):
            acts = sae.encode(activations(*shape))
        kept = full.topk(k, dim=-1)
        expected = torch.zeros_like(full).scatter(-1, kept.indices, kept.values)
        assert torch.equal(acts, expected)


def test_a_smaller_k_keeps_a_subset_even_among_ties() -> None:
    sae = make_sae()
    with torch.no_grad():
        sae.W_enc[:] = sae.W_enc[:, :1]  # every feature ties

    supports = []
    for k in range(1, K_MAX + 1):
        with sae.at_k(k):
            supports.append(sae.encode(activations(30)) != 0)

    for smaller, larger in itertools.pairwise(supports):
        assert not (smaller & ~larger).any()


def test_k_above_k_max_extrapolates() -> None:
    sae = make_sae()
    sae.b_enc.data += 10
    sae.k = D_SAE

    assert (sae.encode(activations(20)) != 0).sum(-1).min() > K_MAX


@pytest.mark.parametrize("bad", [0, -1, D_SAE + 1, 2.0, True, "8", None])
def test_bad_k_is_refused_and_changes_nothing(bad: Any) -> None:
    sae = make_sae()

    with pytest.raises(ValueError, match=f"k must be .* from 1 to d_sae={D_SAE}"):
        sae.k = bad
    with pytest.raises(ValueError, match="k must be"), sae.at_k(bad):
        pass

    assert sae.k == K_MAX


def test_bad_config_is_refused() -> None:
    with pytest.raises(ValueError, match=r"k_max must be .* got None"):
        HierarchicalTopKSAEConfig(d_in=D_IN, d_sae=D_SAE)
    with pytest.raises(ValueError, match=r"k must be .* got 99"):
        make_sae(k=99)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("unit", [True, False])
def test_training_sae_is_saved_for_inference(
    tmp_path: Path, rescale: bool, unit: bool
) -> None:
    options = {"rescale_acts_by_decoder_norm": rescale, "unit_norm_decoder": unit}
    trained = save_trained(tmp_path, **options)

    sae = SAE.load_from_disk(tmp_path)

    assert isinstance(sae, HierarchicalTopKSAE)
    assert (sae.k, sae.k_max) == (K_MAX, K_MAX)
    details = sae.cfg.metadata.get("training_architecture_details")
    assert details["loss_every"] == 4
    torch.testing.assert_close(sae(activations(30)), trained(activations(30)))


def test_budget_in_use_is_saved(tmp_path: Path) -> None:
    sae = make_sae()
    sae.k = 3
    sae.save_model(tmp_path)

    loaded = SAE.load_from_disk(tmp_path)

    assert isinstance(loaded, HierarchicalTopKSAE)
    assert (loaded.k, loaded.k_max) == (3, K_MAX)
    assert torch.equal(loaded.encode(activations(9)), sae.encode(activations(9)))


def test_training_checkpoint_loads_for_inference_too(tmp_path: Path) -> None:
    trained = HierarchicalTopKTrainingSAE(
        HierarchicalTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K_MAX)
    )
    trained.save_model(tmp_path)

    sae = SAE.load_from_disk(tmp_path)

    assert isinstance(sae, HierarchicalTopKSAE)
    torch.testing.assert_close(sae(activations(9)), trained(activations(9)))


def edit_json(path: Path, **changes: Any) -> None:
    cfg = {**json.loads(path.read_text()), **changes}
    kept = {name: value for name, value in cfg.items() if value is not ...}
    path.write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k_max": ...}, "k_max must be an integer .* got None"),
        ({"k": 0}, "k must be an integer from 1"),
        ({"k": "auto"}, "k must be an integer .* got 'auto'"),
        ({"d_in": 13}, r"b_dec is \[12\], but .*d_in=13.* asks for \[13\]"),
    ],
)
def test_broken_config_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save_trained(tmp_path)
    edit_json(tmp_path / "cfg.json", **changes)

    with pytest.raises(ValueError, match=message):
        SAE.load_from_disk(tmp_path)


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    save_trained(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    weights = load_file(path)

    save_file({n: t for n, t in weights.items() if n != "b_enc"}, path)
    with pytest.raises(ValueError, match=r"no tensor b_enc \[40\]"):
        SAE.load_from_disk(tmp_path)

    save_file({**weights, "W_dec": weights["W_dec"][:-1].clone()}, path)
    with pytest.raises(ValueError, match=r"W_dec is \[39, 12\]"):
        SAE.load_from_disk(tmp_path)


def test_saelens_finds_the_classes_by_the_architectures_name() -> None:
    assert get_sae_class("hierarchical_topk")[0] is HierarchicalTopKSAE
    trained = get_sae_training_class("hierarchical_topk")[0]
    assert trained is HierarchicalTopKTrainingSAE
