"""Tests of training that starts from another SAE's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

from sae_lens_hierarchical import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    HierarchicalTopKTrainingSAE,
    LanguageModelSAETrainingRunner,
    calibrate_thresholds,
)
from sae_lens_hierarchical.loading import load_sae
from sae_lens_hierarchical.training.checkpoint import find_checkpoint
from tests.helpers import MakeConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sae_lens")


def tuned(cfg: Any, data: dict[str, Any]) -> HierarchicalTopKTrainingSAE:
    sae = LanguageModelSAETrainingRunner(cfg, **data).sae
    assert isinstance(sae, HierarchicalTopKTrainingSAE)
    return sae


def loaded(source: Path, k: int) -> HierarchicalTopKSAE:
    sae = load_sae(source)
    assert isinstance(sae, HierarchicalTopKSAE)
    sae.k = k
    return sae


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
@pytest.mark.parametrize("k", [4, 16])
def test_what_was_asked_for_holds(
    k: int,
    normalize: str,
    make_config: MakeConfig,
    data: dict[str, Any],
    tmp_path: Path,
) -> None:
    cfg = make_config(normalize_activations=normalize, n_checkpoints=9)
    LanguageModelSAETrainingRunner(cfg, **data).run()
    # An SAE saved at another k is the same one.
    loaded(tmp_path / "output", 3).save_model(tmp_path / "at 3")
    sources = [find_checkpoint(tmp_path), tmp_path / "output", tmp_path / "at 3"]
    x = torch.randn(50, 128)
    asked: dict[str, Any] = {"k": k, "loss_every": 2, "aux_loss_coefficient": 0.25}
    for source in sources:
        asked["from_pretrained_path"] = str(source)
        sae = tuned(make_config(**asked), data)

        for name in ("k", "loss_every", "aux_loss_coefficient"):
            assert getattr(sae.cfg, name) == asked[name]
        assert sae.cfg.normalize_activations == "none"  # folded into the weights
        weights = loaded(source, k)
        with torch.no_grad():
            torch.testing.assert_close(sae(x), weights(x))
        known = sae.thresholds.isfinite()
        assert known.tolist() == [i < 8 for i in range(k)]
        torch.testing.assert_close(sae.thresholds[known], weights.thresholds[:k])

    cfg = make_config(**asked, unit_norm_decoder=True)
    trained = LanguageModelSAETrainingRunner(cfg, **data).run()
    torch.testing.assert_close(trained.W_dec.norm(dim=-1), torch.ones(64))
    assert load_sae(tmp_path / "output").cfg.k_max == k


def test_unit_rows_keep_the_function(
    make_config: MakeConfig, data: dict[str, Any], tmp_path: Path
) -> None:
    source = TopKSAE(
        TopKSAEConfig(d_in=128, d_sae=64, k=5, rescale_acts_by_decoder_norm=True)
    )
    with torch.no_grad():
        source.W_dec.mul_(torch.rand(64, 1) * 3 + 0.5)
        source.b_enc.add_(torch.randn(64))
    source.save_model(tmp_path / "topk")
    cfg = make_config(
        k=5, unit_norm_decoder=True, from_pretrained_path=str(tmp_path / "topk")
    )

    sae = tuned(cfg, data)

    x = torch.randn(50, 128)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(64))
    with torch.no_grad():
        torch.testing.assert_close(sae(x), source(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"unit_norm_decoder": True},
        {"unit_norm_decoder": True, "rescale_acts_by_decoder_norm": False},
        {"unit_norm_decoder": False},
        {"unit_norm_decoder": False, "rescale_acts_by_decoder_norm": False},
    ],
    ids=str,
)
def test_thresholds_of_rows_of_another_norm_keep_their_meaning(
    changes: dict[str, Any],
    rescaled: bool,
    make_config: MakeConfig,
    data: dict[str, Any],
    tmp_path: Path,
) -> None:
    source = HierarchicalTopKSAE(
        HierarchicalTopKSAEConfig(
            d_in=128, d_sae=64, k_max=5, rescale_acts_by_decoder_norm=rescaled
        )
    )
    x = torch.randn(50, 128)
    with torch.no_grad():
        source.W_dec.mul_(0.1 / source.W_dec.norm(dim=-1, keepdim=True))
    calibrate_thresholds(source, x)
    source.save_model(tmp_path / "source")
    cfg = make_config(k=5, from_pretrained_path=str(tmp_path / "source"), **changes)

    tuned(cfg, data).save_inference_model(tmp_path / "tuned")

    sae = loaded(tmp_path / "tuned", 5)
    for one in (source, sae):
        one.activation = "jumprelu"
    with torch.no_grad():
        assert (sae.encode(x) > 0).sum(-1).float().mean() == pytest.approx(5, abs=0.1)
        torch.testing.assert_close(sae(x), source(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_sae": 32, "k": 4}, "d_sae: 64 -> 32"),
        ({"normalize_activations": "layer_norm"}, "'none' -> 'layer_norm'"),
        ({"apply_b_dec_to_input": True}, "apply_b_dec_to_input: False -> True"),
        (
            {"rescale_acts_by_decoder_norm": True},
            "rescale_acts_by_decoder_norm: False -> True",
        ),
        ({"unit_norm_decoder": True}, "rescale_acts_by_decoder_norm: False -> True"),
    ],
    ids=str,
)
def test_what_would_be_another_function_is_refused(
    changes: dict[str, Any],
    message: str,
    make_config: MakeConfig,
    data: dict[str, Any],
    tmp_path: Path,
) -> None:
    source = TopKSAE(TopKSAEConfig(d_in=128, d_sae=64, k=5, apply_b_dec_to_input=False))
    with torch.no_grad():
        source.W_dec.mul_(3)
    source.save_model(tmp_path / "topk")
    settings: dict[str, Any] = {
        "apply_b_dec_to_input": False,
        "rescale_acts_by_decoder_norm": False,
        "unit_norm_decoder": False,
        "from_pretrained_path": str(tmp_path / "topk"),
    }
    tuned(make_config(**settings), data)

    with pytest.raises(ValueError, match=message):
        tuned(make_config(**settings | changes), data)


def test_another_architecture_keeps_its_own_fields_or_says_so(
    make_config: MakeConfig, data: dict[str, Any], tmp_path: Path
) -> None:
    def standard(l1_coefficient: float, **changes: Any) -> Any:
        sae = StandardTrainingSAEConfig(
            d_in=128, d_sae=64, l1_coefficient=l1_coefficient
        )
        return make_config(sae=sae, **changes)

    LanguageModelSAETrainingRunner(standard(2.0, n_checkpoints=1), **data).run()
    source = str(find_checkpoint(tmp_path))
    again = standard(2.0, from_pretrained_path=source)
    LanguageModelSAETrainingRunner(again, **data).run()
    with pytest.raises(ValueError, match=r"l1_coefficient: 2\.0 -> 3\.0"):
        LanguageModelSAETrainingRunner(
            standard(3.0, from_pretrained_path=source), **data
        )
    ours = make_config(from_pretrained_path=source)
    with pytest.raises(ValueError, match="must be a hierarchical_topk or topk SAE"):
        tuned(ours, data)


def test_a_resumed_fine_tuning_needs_its_source_no_more(
    make_config: MakeConfig, data: dict[str, Any], tmp_path: Path
) -> None:
    LanguageModelSAETrainingRunner(make_config(), **data).run()
    (tmp_path / "output").rename(tmp_path / "source")
    source = str(tmp_path / "source")
    cfg = make_config(from_pretrained_path=source, n_checkpoints=1)
    expected = LanguageModelSAETrainingRunner(cfg, **data).run()
    (tmp_path / "source").rename(tmp_path / "gone")

    actual = LanguageModelSAETrainingRunner.from_checkpoint(
        str(cfg.checkpoint_path), **data
    ).run()

    assert torch.equal(actual.W_dec, expected.W_dec)
