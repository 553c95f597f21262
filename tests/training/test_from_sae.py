"""Tests of turning pretrained TopK and BatchTopK SAEs into HierarchicalTopK ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata

from sae_lens_hierarchical import (
    HierarchicalTopKSAE,
    HierarchicalTopKTrainingSAE,
    LanguageModelSAETrainingRunner,
)
from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.data import (
    BUNDLED_DATASET_NAME,
    BUNDLED_HOOK_NAME,
    BUNDLED_MODEL_NAME,
)
from sae_lens_hierarchical.eval.folders import sweep_checkpoints
from sae_lens_hierarchical.loading import load_sae
from sae_lens_hierarchical.ops.topk import stable_topk
from sae_lens_hierarchical.training.fine_tuning import (
    fields_of_source,
    sae_from_pretrained,
)
from tests.helpers import MakeConfig
from tests.hub_server import HubServer
from tests.stranger import Stranger

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sae_lens")

KS = [1, 2, 4, 16]
SMALL = {
    "n_batches_for_norm_estimate": 5,
    "train_batch_size_tokens": 256,
    "lr": 0.002,
    "log_to_wandb": False,
    "checkpoint_path": None,
}


def options(**fields: Any) -> list[str]:
    given = {**SMALL, **fields}
    return [f"--{n}={v}" for n, v in given.items() if v is not None]


@pytest.fixture(scope="module")
def topk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TopK SAE of SAELens, trained at k = 16 for a while."""
    folder = tmp_path_factory.mktemp("topk")
    fields: dict[str, Any] = {
        "architecture": "topk",
        "model_name": BUNDLED_MODEL_NAME,
        "hook_name": BUNDLED_HOOK_NAME,
        "dataset_path": BUNDLED_DATASET_NAME,
        "streaming": False,
        "context_size": 64,
        "exclude_special_tokens": True,
        "d_in": 128,
        "d_sae": 256,
        "k": KS[-1],
        "n_batches_in_buffer": 32,
        "training_tokens": 40_000,
        "output_path": folder / "sae",
        "checkpoint_path": folder / "checkpoints",
    }
    assert main(["train", *options(**fields)]) == 0
    return folder / "sae"


def test_a_short_training_makes_a_topk_sae_good_at_small_k(
    topk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "ours"
    run = options(training_tokens=15_000, output_path=output)
    run.append(f"--checkpoint_path={tmp_path / 'checkpoints'}")

    assert main(["train", "--from-sae", str(topk), *run]) == 0

    assert f"The SAE: {output}" in capsys.readouterr().out
    ours = load_sae(output)
    assert isinstance(ours, HierarchicalTopKSAE)
    assert ours.k_max == 16
    source = load_sae(topk)
    for name in ("hook_name", "dataset_path", "context_size", "exclude_special_tokens"):
        assert ours.cfg.metadata[name] == source.cfg.metadata[name]
    table = sweep_checkpoints([topk, output], KS, contexts=24, ce_contexts=0)
    before, after = (
        [row.explained_variance for row in table.select(sae=name)]
        for name in ("sae", "ours")
    )
    assert after[0] > before[0] + 0.05
    assert after[1] > before[1] + 0.05
    assert after[3] > before[3] - 0.02


def test_it_starts_as_the_topk_sae(topk: Path, make_config: MakeConfig) -> None:
    source = load_sae(topk)
    fields = fields_of_source(topk)
    names = ("k", "d_sae", "rescale_acts_by_decoder_norm", "from_pretrained_path")
    cfg = make_config(**{name: fields[name] for name in names})

    sae = sae_from_pretrained(cfg.sae, topk, "cpu")

    x = source.b_dec + torch.randn(50, 128)
    with torch.no_grad():
        torch.testing.assert_close(sae(x), source(x))


@pytest.mark.parametrize("rescale", [True, False])
def test_a_batchtopk_sae_keeps_its_ranking(
    rescale: bool, make_config: MakeConfig, data: dict[str, Any], tmp_path: Path
) -> None:
    cfg = make_config(
        architecture="batchtopk", rescale_acts_by_decoder_norm=rescale, n_checkpoints=0
    )
    LanguageModelSAETrainingRunner(cfg, **data).run()
    source = SAE.load_from_disk(tmp_path / "output")
    assert isinstance(source, JumpReLUSAE)
    fields = fields_of_source(tmp_path / "output")
    assert fields["k"] == 8
    names = ("k", "from_pretrained_path", "rescale_acts_by_decoder_norm")
    names += ("unit_norm_decoder",)
    asked = {name: fields[name] for name in names}

    for changes in [{}, {"unit_norm_decoder": False}]:
        sae = LanguageModelSAETrainingRunner(make_config(**asked | changes), **data).sae

        assert isinstance(sae, HierarchicalTopKTrainingSAE)
        x = source.b_dec + torch.randn(50, 128)
        with torch.no_grad():
            hidden_pre = (x - source.b_dec) @ source.W_enc + source.b_enc
            values, indices = stable_topk(hidden_pre, 8)
            acts = torch.zeros_like(hidden_pre).scatter(-1, indices, values.relu())
            expected = acts @ source.W_dec + source.b_dec
            torch.testing.assert_close(sae(x), expected, rtol=1e-4, atol=1e-4)


def test_rows_of_different_norms_cannot_become_unit_rows(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    source = JumpReLUSAE(JumpReLUSAEConfig(d_in=128, d_sae=64))
    with torch.no_grad():
        source.W_dec.mul_(torch.rand(64, 1) + 0.5)
    source.save_model(tmp_path / "sae")
    cfg = make_config(unit_norm_decoder=True, rescale_acts_by_decoder_norm=False)

    with pytest.raises(ValueError, match="acts_by_decoder_norm: False -> True"):
        sae_from_pretrained(cfg.sae, tmp_path / "sae", "cpu")


@pytest.mark.parametrize(
    ("k", "expected"), [(8, 8), (8.0, 8), (8.5, None), (65, None), ("8", None)]
)
def test_saelens_notes_the_k_of_a_batchtopk_sae(
    k: object, expected: int | None, tmp_path: Path
) -> None:
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=128, d_sae=64))
    noted: dict[str, Any] = {"training_architecture_details": {"k": k}}
    source = save(sae, tmp_path / "it", training_architecture="batchtopk", **noted)

    assert fields_of_source(source).get("k") == expected


def save(sae: SAE[Any], folder: Path, **metadata: Any) -> str:
    sae.cfg.metadata = SAEMetadata(**metadata)
    sae.save_model(folder)
    return str(folder)


def test_what_an_sae_does_not_say_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batchtopk = JumpReLUSAE(JumpReLUSAEConfig(d_in=128, d_sae=64))
    known = {"model_name": BUNDLED_MODEL_NAME, "hook_name": BUNDLED_HOOK_NAME}
    source = save(batchtopk, tmp_path / "it", **known)
    command = ["train", "--from-sae", source]

    for options in ([], ["--k=4"]):
        assert main([*command, *options]) == 2
        assert "--from-sae needs --training_tokens" in capsys.readouterr().err
    command.append("--training_tokens=100")
    assert main([*command, "--architecture=topk"]) == 2
    assert "has one architecture, hierarchical_topk" in capsys.readouterr().err
    assert main([*command, "--dataset_path=bundled"]) == 2
    assert "give --k and --context_size" in capsys.readouterr().err


def test_the_user_has_the_last_word(tmp_path: Path) -> None:
    topk = TopKSAE(TopKSAEConfig(d_in=128, d_sae=64, k=8))
    metadata: dict[str, Any] = {
        "model_name": "somebody/else",
        "model_from_pretrained_kwargs": {"trust_remote_code": True},
        "hook_name": BUNDLED_HOOK_NAME,
        "dataset_path": BUNDLED_DATASET_NAME,
        "context_size": 64,
        "seqpos_slice": [1, None],
        "exclude_special_tokens": [7, 8],
        "sequence_separator_token": "eos",
        "prepend_bos": False,
    }
    source = save(topk, tmp_path / "it", **metadata)
    changes: dict[str, Any] = {"model_name": BUNDLED_MODEL_NAME, "context_size": 32}
    changes |= {"k": 6, "output_path": tmp_path / "ours", "training_tokens": 1000}

    command = ["train", "--from-sae", source, *options(**changes)]
    assert main([*command, f"--checkpoint_path={tmp_path / 'checkpoints'}"]) == 0

    run = json.loads((tmp_path / "ours" / "runner_cfg.json").read_text())
    assert run["sae"]["k"] == 6
    assert (run["context_size"], run["seqpos_slice"]) == (32, [1, None])
    assert run["exclude_special_tokens"] == [7, 8]
    assert run["sequence_separator_token"] == "eos"
    assert run["prepend_bos"] is False
    assert run["from_pretrained_path"] == source


def test_contexts_without_a_separator_stay_so(tmp_path: Path) -> None:
    topk = TopKSAE(TopKSAEConfig(d_in=128, d_sae=64, k=8))
    source = save(topk, tmp_path / "it", sequence_separator_token=None)

    assert fields_of_source(source)["sequence_separator_token"] is None


def test_other_saes_are_refused(tmp_path: Path) -> None:
    jumprelu = JumpReLUSAE(JumpReLUSAEConfig(d_in=128, d_sae=64))
    jumprelu.threshold.data[3] = 1
    standard = StandardSAE(StandardSAEConfig(d_in=128, d_sae=64))
    for sae in (jumprelu, standard):
        sae.save_model(tmp_path / "it")

        with pytest.raises(ValueError, match=r"or a batchtopk one, .* but .* is "):
            fields_of_source(tmp_path / "it")


def test_a_strangers_model_runs_no_code(
    stranger: Stranger, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger.add_model_code()
    stranger.save_sae()
    stranger.sae.rename(hub.repo("user/repo") / "layer")
    run = options(training_tokens=256, output_path=stranger.sae)
    run.append(f"--checkpoint_path={stranger.sae}")

    assert main(["train", "--from-sae", "user/repo", *run]) == 2

    assert "only with --trust-remote-code" in capsys.readouterr().err
    assert not stranger.ran.exists()
