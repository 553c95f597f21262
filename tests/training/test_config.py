"""Tests of the runner config and the presets."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import sae_lens
import torch
from datasets import Dataset
from sae_lens import HookedSAETransformer, LoggingConfig, TopKTrainingSAEConfig

from sae_lens_hierarchical import (
    PRESETS,
    HierarchicalTopKTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    preset,
)
from sae_lens_hierarchical.ops import octave_budgets
from sae_lens_hierarchical.training.config import check_new_run
from sae_lens_hierarchical.training.multi_sae import multi_sae_config
from tests.helpers import MakeConfig


def test_architecture_by_name_equals_the_sae_config() -> None:
    by_name = LanguageModelSAERunnerConfig(
        architecture="hierarchical_topk",
        d_in=16,
        d_sae=64,
        k=8,
        loss_every=4,
        normalize_activations="layer_norm",
        lr=0.1,
        checkpoint_path=None,
    )
    by_config = LanguageModelSAERunnerConfig(
        sae=HierarchicalTopKTrainingSAEConfig(
            d_in=16, d_sae=64, k=8, loss_every=4, normalize_activations="layer_norm"
        ),
        lr=0.1,
        checkpoint_path=None,
    )

    assert isinstance(by_name, sae_lens.LanguageModelSAERunnerConfig)
    assert by_name.to_dict() == by_config.to_dict()


def test_shared_fields_go_to_the_sae_and_to_the_run(make_config: MakeConfig) -> None:
    cfg = make_config(dtype="bfloat16", device="meta")

    assert (cfg.dtype, cfg.device) == ("bfloat16", "meta")
    assert (cfg.sae.dtype, cfg.sae.device) == ("bfloat16", "meta")


def test_any_registered_architecture_can_be_named(make_config: MakeConfig) -> None:
    assert type(make_config(architecture="topk").sae) is TopKTrainingSAEConfig


def test_round_trip_through_json(make_config: MakeConfig) -> None:
    cfg = make_config(budgets=[1, 8], budget_weights=[1.0, 2.0], max_norm_ratio=3.5)

    restored = LanguageModelSAERunnerConfig.from_dict(
        json.loads(json.dumps(cfg.to_dict()))
    )

    assert type(restored) is LanguageModelSAERunnerConfig
    assert isinstance(restored.sae, HierarchicalTopKTrainingSAEConfig)
    assert json.dumps(restored.to_dict()) == json.dumps(cfg.to_dict())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"architecture": "hierarchical"},
            ValueError,
            r"architecture must be one of .*'hierarchical_topk'.* got 'hierarchical'",
        ),
        ({"learning_rate": 1}, TypeError, "unknown field 'learning_rate'"),
        ({"loss_evry": 8}, TypeError, "'loss_evry'; did you mean loss_every"),
        ({"matryoshka_widths": [1]}, TypeError, "unknown field 'matryoshka_widths'"),
        ({"k": 999}, ValueError, "k must be an integer from 1 to d_sae=64"),
        ({"architecture": None}, ValueError, "either architecture or sae"),
        ({"max_norm_ratio": 1}, ValueError, "max_norm_ratio must be a finite number"),
        ({"max_norm_ratio": "3"}, ValueError, "max_norm_ratio must be a finite number"),
        ({"max_norm_ratio": math.nan}, ValueError, "above 1, got nan"),
        ({"max_norm_ratio": math.inf}, ValueError, "above 1, got inf"),
    ],
)
def test_bad_fields_are_named(
    make_config: MakeConfig,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        make_config(**changes)


def test_fields_of_the_sae_beside_the_sae_are_refused() -> None:
    sae = HierarchicalTopKTrainingSAEConfig(d_in=16, d_sae=64, k=8)

    with pytest.raises(TypeError, match="unknown field 'k'"):
        LanguageModelSAERunnerConfig(sae=sae, k=4)
    with pytest.raises(ValueError, match="not both"):
        LanguageModelSAERunnerConfig(sae=sae, architecture="topk")


def test_missing_sizes_are_named() -> None:
    with pytest.raises(TypeError, match=r"needs the fields \['d_sae'\]"):
        LanguageModelSAERunnerConfig(architecture="hierarchical_topk", d_in=16)


@pytest.mark.parametrize(
    ("name", "d_in"), [("gemma-2-2b-layer-12", 2304), ("qwen-2.5-7b-layer-14", 3584)]
)
def test_presets_have_the_papers_sizes(name: str, d_in: int) -> None:
    cfg = preset(name, verbose=False)

    assert isinstance(cfg.sae, HierarchicalTopKTrainingSAEConfig)
    assert cfg.sae.d_in == d_in
    assert (cfg.sae.d_sae, cfg.sae.k) == (65_536, 128)
    assert cfg.sae.resolve_budgets() == octave_budgets(128)
    assert cfg.sae.unit_norm_decoder
    assert (cfg.lr, cfg.training_tokens) == (8e-4, 10**9)
    assert cfg.train_batch_size_tokens == 8096
    assert "fineweb" in cfg.dataset_path


def test_the_bundled_presets_schedule_follows_its_tokens() -> None:
    few = preset("bundled", training_tokens=51_200, verbose=False)

    assert (few.total_training_steps, few.lr_warm_up_steps) == (100, 20)
    assert (few.lr_decay_steps, few.logger.log_to_wandb) == (25, False)
    assert set(PRESETS) == {"gemma-2-2b-layer-12", "qwen-2.5-7b-layer-14", "bundled"}


@pytest.mark.parametrize(
    ("changes", "warm_up", "decay"),
    [
        ({"lr_decay_steps": 97}, 3, 97),
        ({"lr_warm_up_steps": 100}, 100, 0),
        ({"lr_scheduler_name": "cosineannealing"}, 20, 0),
    ],
)
def test_a_presets_schedule_leaves_room_for_what_is_given(
    changes: dict[str, Any], warm_up: int, decay: int
) -> None:
    cfg = preset("bundled", training_tokens=51_200, verbose=False, **changes)

    assert (cfg.lr_warm_up_steps, cfg.lr_decay_steps) == (warm_up, decay)
    check_new_run(cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_decay_steps": 11}, "lr_decay_steps=11 .* together at most 10"),
        ({"lr_warm_up_steps": -1}, "lr_warm_up_steps=-1 .* at least 0"),
        (
            {"lr_warm_up_steps": 10, "lr_scheduler_name": "cosineannealing"},
            "together at most 9",
        ),
        ({"k": 4, "loss_every": 5}, "loss_every must be at most k=4, got 5"),
    ],
)
def test_new_runs_are_refused_what_older_ones_may_have(
    changes: dict[str, Any], message: str, make_config: MakeConfig, data: dict[str, Any]
) -> None:
    cfg = make_config(**changes)
    again = LanguageModelSAERunnerConfig.from_dict(cfg.to_dict())

    assert again.to_dict() == cfg.to_dict()  # a checkpoint's config can be read
    with pytest.raises(ValueError, match=message):
        LanguageModelSAETrainingRunner(cfg, **data)


@pytest.mark.parametrize(
    ("changes", "warns"),
    [
        ({}, False),
        ({"loss_every": 3}, False),
        ({"loss_every": 4}, True),
        ({"budgets": [1, 5]}, True),
    ],
)
def test_a_loss_that_leaves_k_out_is_warned_of(
    changes: dict[str, Any], warns: bool, make_config: MakeConfig
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_new_run(make_config(k=6, **changes))

    said = [str(warning.message) for warning in caught]
    assert any("active features, but k is 6" in text for text in said) == warns


def test_presets_can_be_changed_and_bad_names_are_refused() -> None:
    cfg = preset("gemma-2-2b-layer-12", k=64, lr=1e-4, verbose=False)

    assert (cfg.sae.k, cfg.lr, cfg.sae.d_in) == (64, 1e-4, 2304)
    with pytest.raises(ValueError, match=r"preset must be one of .* got 'gemma'"):
        preset("gemma")


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_matmul_precision_holds_while_a_run_lasts(
    precision: Any, make_config: MakeConfig, model: HookedSAETransformer, text: Dataset
) -> None:
    cfg = make_config(matmul_precision=precision)
    assert cfg.to_dict()["matmul_precision"] == precision
    runner = LanguageModelSAETrainingRunner(
        cfg, override_dataset=text, override_model=model
    )
    seen: set[str] = set()
    runner.sae.b_dec.register_post_accumulate_grad_hook(
        lambda _: seen.add(torch.get_float32_matmul_precision())
    )
    before = torch.get_float32_matmul_precision()

    runner.run()

    assert seen == {precision}
    assert torch.get_float32_matmul_precision() == before


def test_several_saes_take_the_precision_of_the_one(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    cfg = make_config(matmul_precision="medium")

    several = multi_sae_config(cfg, {"a": cfg.sae}, tmp_path)

    assert several.matmul_precision == "medium"
    assert several.to_dict()["matmul_precision"] == "medium"
    with pytest.raises(ValueError, match="matmul_precision must be one of"):
        make_config(matmul_precision="low")


def test_several_saes_have_a_folder_and_a_name_of_their_own(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    cfg = make_config()
    name = cfg.logger.run_name

    several = multi_sae_config(cfg, {"a": cfg.sae, "b": cfg.sae}, tmp_path)

    assert Path(str(several.checkpoint_path)).parent == tmp_path / "checkpoints"
    assert several.checkpoint_path != cfg.checkpoint_path
    assert str(several.logger.run_name).startswith("multi-hierarchical_topk-N2-")
    assert cfg.logger.run_name == name
    cfg.checkpoint_path = "set/later"
    several = multi_sae_config(cfg, {"a": cfg.sae}, tmp_path)
    assert Path(str(several.checkpoint_path)).parent == Path("set/later")


def test_several_saes_keep_the_names_that_were_given(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    log = LoggingConfig(log_to_wandb=False, run_name="mine", wandb_id="abc")
    cfg = make_config(logger=log)

    several = multi_sae_config(cfg, {"a": cfg.sae}, tmp_path)

    assert (several.logger.run_name, several.logger.wandb_id) == ("mine", "abc")
    assert several.checkpoint_path == str(tmp_path / "checkpoints" / "abc")
    cfg = make_config(checkpoint_path=None)
    assert multi_sae_config(cfg, {"a": cfg.sae}, tmp_path).checkpoint_path is None
