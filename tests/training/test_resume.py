"""Tests of which checkpoint a run goes on from, whether it may, and of divergence."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sae_lens
import torch
from datasets import Dataset
from sae_lens import (
    HookedSAETransformer,
    MultiSAETrainingRunner,
    TopKTrainingSAEConfig,
)
from safetensors.torch import load_file, save_file

from sae_lens_hierarchical import (
    HierarchicalTopKTrainingSAEConfig,
    LanguageModelSAETrainingRunner,
    TrainingDivergedError,
)
from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.data import load_bundled_dataset
from sae_lens_hierarchical.training.checkpoint import find_checkpoint
from sae_lens_hierarchical.training.multi_sae import MultiSAERunner, multi_sae_config
from sae_lens_hierarchical.training.resume import (
    _flat,  # pyright: ignore[reportPrivateUsage]
)
from sae_lens_hierarchical.training.run_folders import reserve_folders
from tests.helpers import MakeConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sae_lens")

Runner = LanguageModelSAETrainingRunner | MultiSAERunner


def several(make_config: MakeConfig, **changes: Any) -> Any:
    """Return the config of a run of two SAEs."""
    cfg = make_config(**changes)
    saes = {
        "a": cfg.sae,
        "b": TopKTrainingSAEConfig(
            d_in=128, d_sae=32, k=3, normalize_activations="expected_average_only_in"
        ),
    }
    together = multi_sae_config(cfg, saes, Path(str(cfg.output_path)))
    together.checkpoint_path = cfg.checkpoint_path
    return together


def checkpoints(cfg: Any) -> list[Path]:
    folders = Path(cfg.checkpoint_path).glob("[0-9]*")
    return sorted(folders, key=lambda folder: int(folder.name))


def maker(make_config: MakeConfig, several_saes: bool) -> Callable[..., Any]:
    """Return a function that gives the config of a run of one SAE, or of several."""
    if not several_saes:
        return make_config
    return lambda **changes: several(make_config, **changes)


def runner(cfg: Any, data: dict[str, Any]) -> Runner:
    one = hasattr(cfg, "sae")
    return (LanguageModelSAETrainingRunner if one else MultiSAERunner)(cfg, **data)


@pytest.mark.parametrize("several_saes", [False, True])
def test_the_seed_fixes_weights(
    several_saes: bool, make_config: MakeConfig, data: dict[str, Any]
) -> None:
    made: list[torch.Tensor] = []
    for seed in (1, 1, 2):
        torch.randn(3)
        run = runner(maker(make_config, several_saes)(seed=seed), data)
        sae = run.saes["a"] if isinstance(run, MultiSAERunner) else run.sae
        made.append(sae.W_enc)

    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.fixture(params=["one", "several"])
def trained(
    request: pytest.FixtureRequest, make_config: MakeConfig, data: dict[str, Any]
) -> Any:
    """The config of a run that has ended, with two checkpoints."""
    make = maker(make_config, request.param == "several")
    cfg = make(n_checkpoints=2)
    runner(cfg, data).run()
    # Another one, since SAELens folds what it scaled by into the SAEs' own configs.
    again = make(n_checkpoints=2)
    again.checkpoint_path = cfg.checkpoint_path
    return again


def test_the_most_trained_checkpoint_is_taken_whatever_the_files_times(
    trained: Any, data: dict[str, Any], tmp_path: Path
) -> None:
    first, last = checkpoints(trained)
    for path in first.rglob("*"):  # as after a copy
        os.utime(path, (2e9, 2e9))
    assert find_checkpoint(tmp_path) == last

    last.rename(last.with_name("5"))  # its own content says which it is
    assert find_checkpoint(trained.checkpoint_path) == last.with_name("5")
    trained.resume_from_checkpoint = trained.checkpoint_path
    runner(trained, data)
    assert trained.resume_from_checkpoint == str(last.with_name("5"))

    # Those of SAELens, and of earlier versions, have no manifest.
    for manifest in tmp_path.rglob("manifest.json"):
        manifest.unlink()
    assert find_checkpoint(tmp_path) == last.with_name("5")


def test_checkpoints_of_two_runs_are_listed(
    make_config: MakeConfig, data: dict[str, Any], tmp_path: Path
) -> None:
    for _ in range(2):
        cfg = make_config(n_checkpoints=2)
        runner(cfg, data).run()
    (one, other) = (tmp_path / "checkpoints").iterdir()

    with pytest.raises(ValueError, match="checkpoints of 2 runs") as refused:
        find_checkpoint(tmp_path)
    for folder in (one, other):
        assert str(find_checkpoint(folder)) in str(refused.value)
    # In one folder, too: a run's own id tells them apart.
    for checkpoint in other.iterdir():
        checkpoint.rename(one / f"{checkpoint.name}9")
    with pytest.raises(ValueError, match="checkpoints of 2 runs"):
        find_checkpoint(one)


def test_a_resumed_run_is_the_same_run(
    make_config: MakeConfig, data: dict[str, Any], tmp_path: Path
) -> None:
    cfg = make_config(n_checkpoints=2)
    runner(cfg, data).run()
    again = make_config(n_checkpoints=2, resume_from_checkpoint=cfg.checkpoint_path)
    again.training_tokens = 1280
    runner(again, data).run()  # with a folder of its own for checkpoints
    assert find_checkpoint(tmp_path) == checkpoints(again)[-1]


@pytest.mark.parametrize(
    "name",
    [
        "cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
        "trainer_state.pt",
        "activation_scaler.json",
        "activations_store_state.safetensors",
        "runner_cfg.json",
        "manifest.json",
    ],
)
def test_a_damaged_file_is_named(
    name: str, trained: Any, data: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = checkpoints(trained)[-1]
    paths = [*checkpoint.rglob(name)]
    assert paths
    for path in paths:
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = bytes([whole[middle] ^ 1])
        for damaged in (
            whole[:middle] + flipped + whole[middle + 1 :],
            whole[:middle],
            b"",
        ):
            path.write_bytes(damaged)
            trained.resume_from_checkpoint = str(checkpoint)
            with pytest.raises(ValueError, match=f"{path} is damaged"):
                runner(trained, data)
            if hasattr(trained, "sae"):
                with pytest.raises(ValueError, match=f"{path} is damaged"):
                    LanguageModelSAETrainingRunner.from_checkpoint(checkpoint, **data)
        path.unlink()
        if name != "manifest.json":
            with pytest.raises(ValueError, match=rf"lacks.*{name}"):
                runner(trained, data)
            if name != "sparsity.safetensors":  # which the manifest alone asks for
                with pytest.raises(ValueError, match=f"{checkpoint} .*lacks"):
                    find_checkpoint(checkpoint)
        path.write_bytes(whole)
    runner(trained, data)


@pytest.mark.parametrize(
    "name",
    [
        "cfg.json",
        "sae_weights.safetensors",
        "trainer_state.pt",
        "activation_scaler.json",
        "activations_store_state.safetensors",
        "runner_cfg.json",
    ],
)
def test_a_cut_off_file_is_named_without_a_manifest_too(
    name: str, trained: Any, data: dict[str, Any]
) -> None:
    checkpoint = checkpoints(trained)[-1]
    (checkpoint / "manifest.json").unlink()
    path = next(checkpoint.rglob(name))
    path.write_bytes(path.read_bytes()[:-20])
    trained.resume_from_checkpoint = str(checkpoint)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        runner(trained, data)


@pytest.mark.parametrize("several_saes", [False, True])
def test_saelens_own_checkpoints_resume(
    several_saes: bool,
    make_config: MakeConfig,
    data: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    make = maker(make_config, several_saes)
    theirs = (
        MultiSAETrainingRunner
        if several_saes
        else sae_lens.LanguageModelSAETrainingRunner
    )
    cfg = make(n_checkpoints=2)
    theirs(cfg, **data).run()

    resumed = make(resume_from_checkpoint=cfg.checkpoint_path, n_checkpoints=9)
    runner(resumed, data).run()

    assert resumed.resume_from_checkpoint == str(checkpoints(cfg)[-1])
    assert "has no manifest.json" in caplog.text
    assert "near the place it had reached" in caplog.text
    assert find_checkpoint(resumed.checkpoint_path) == checkpoints(resumed)[-1]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_trainers_state_runs_no_code(
    trained: Any,
    data: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    checkpoint = checkpoints(trained)[-1]
    trained.resume_from_checkpoint = str(checkpoint)
    (checkpoint / "manifest.json").unlink()
    runner(trained, data)  # an older one, without a manifest
    assert "has no manifest.json" in caplog.text
    state = next(checkpoint.rglob("trainer_state.pt"))
    torch.save({"n_training_samples": Bomb(tmp_path / "ran")}, state)

    with pytest.raises(ValueError, match=f"{state} .*more than tensors"):
        runner(trained, data).run()
    assert not (tmp_path / "ran").exists()


CHANGES: dict[str, Any] = {
    "dataset_path": "other",
    "seed": 3,
    "context_size": 64,
    "train_batch_size_tokens": 32,
    "lr": 0.5,
    "lr_warm_up_steps": 2,
    "normalize_activations": "layer_norm",
    "hook_name": "blocks.1.hook_resid_post",
    "loss_every": 2,
    "k": 4,
    "exclude_special_tokens": True,
}


def test_another_config_is_refused_with_what_differs(
    make_config: MakeConfig, data: dict[str, Any]
) -> None:
    for several_saes in (False, True):
        make = maker(make_config, several_saes)
        cfg = make(n_checkpoints=1)
        runner(cfg, data).run()
        other = make(**CHANGES, resume_from_checkpoint=cfg.checkpoint_path)
        with pytest.raises(ValueError, match="of a run with another config") as refused:
            runner(other, data)
        lines = str(refused.value).splitlines()[1:]
        named = {line.split(":")[0].split(".")[-1].strip() for line in lines}
        if several_saes:
            named = {name.replace("hook_names", "hook_name") for name in named}
        assert named == {*CHANGES, "lr_end", "k_max"}
        assert any(line.endswith("lr: 0.001 -> 0.5") for line in lines)
        assert any("k: 8 -> 4" in line for line in lines)


def test_an_older_run_with_budgets_can_be_resumed() -> None:
    """It has the former default of ``loss_every`` beside them."""
    asked = {"sae": {"budgets": [1, 4], "loss_every": None, "k": 8}}
    was = {"sae": {"budgets": [1, 4], "loss_every": 1, "k": 8}}
    papers = {"sae": {"budgets": None, "loss_every": 1, "k": 8}}

    assert _flat(was) == _flat(asked)
    assert _flat(papers)["sae.loss_every"] == 1


def test_other_saes_are_refused(make_config: MakeConfig, data: dict[str, Any]) -> None:
    cfg = several(make_config, n_checkpoints=1)
    runner(cfg, data).run()
    checkpoint = cfg.checkpoint_path
    one = make_config(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"saes: \['a', 'b'\] -> \[\]"):
        runner(one, data)
    with pytest.raises(ValueError, match="is of several SAEs"):
        LanguageModelSAETrainingRunner.from_checkpoint(checkpoint, **data)
    other = several(make_config, resume_from_checkpoint=checkpoint)
    other.saes = {"a": other.saes["a"], "c": other.saes["b"]}
    with pytest.raises(ValueError, match=r"saes: \['a', 'b'\] -> \['a', 'c'\]"):
        runner(other, data)


def test_what_may_differ_is_said(
    make_config: MakeConfig, data: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    cfg = make_config(n_checkpoints=1, lr_decay_steps=2)
    runner(cfg, data).run()
    changes: dict[str, Any] = {"training_tokens": 1280, "prefetch_llm_batches": True}
    more = make_config(
        **changes, lr_decay_steps=2, resume_from_checkpoint=cfg.checkpoint_path
    )
    with caplog.at_level("INFO"):
        runner(more, data).run()
    assert "another training_tokens: 640 -> 1280" in caplog.text
    assert "another prefetch_llm_batches: False -> True" in caplog.text
    assert "made for training_tokens=640" in caplog.text


@pytest.mark.parametrize("prefetch", [False, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_norm_ratio": 1.1},
        # Three sequences an epoch: the run wraps around its text several times.
        {"store_batch_size_prompts": 3, "context_size": 128, "training_tokens": 1280},
    ],
    ids=["plain", "limited", "wraps around"],
)
def test_a_resumed_run_of_several_saes_equals_an_uninterrupted_one(
    prefetch: int,
    changes: dict[str, Any],
    make_config: MakeConfig,
    model: HookedSAETransformer,
    text: Dataset,
    tmp_path: Path,
) -> None:
    if "context_size" in changes:
        text = text.select([0])
    data: dict[str, Any] = {"override_dataset": text, "override_model": model}

    def make(output: str, **more: Any) -> Any:
        cfg = make_config(
            **{**changes, **more},
            n_checkpoints=3,
            lr_decay_steps=4,
            prefetch_llm_batches=prefetch,
            output_path=str(tmp_path / output),
        )
        settings: dict[str, Any] = {"d_in": 128, "d_sae": 64, "k": 8}
        scaled = "expected_average_only_in"
        saes = {
            "ours": cfg.sae,
            "scaled": HierarchicalTopKTrainingSAEConfig(
                **settings, normalize_activations=scaled, unit_norm_decoder=True
            ),
            "topk": TopKTrainingSAEConfig(**settings),
        }
        together = multi_sae_config(cfg, saes, Path(str(cfg.output_path)))
        # Two hooks, whose activations must stay those of the same tokens.
        hooks = dict.fromkeys(saes, cfg.hook_name) | {"topk": "blocks.1.hook_mlp_out"}
        return dataclasses.replace(together, hook_names=hooks)

    torch.manual_seed(0)
    whole = make("whole")
    MultiSAERunner(whole, **data).run()
    middle = checkpoints(whole)[1]
    torch.manual_seed(1234)
    resumed = make("resumed", resume_from_checkpoint=str(middle))
    MultiSAERunner(resumed, **data).run()

    for name in whole.saes:
        for file in ("sae_weights.safetensors", "sparsity.safetensors"):
            expected = load_file(tmp_path / "whole" / name / file)
            actual = load_file(tmp_path / "resumed" / name / file)
            for key, value in expected.items():
                assert torch.equal(actual[key], value), f"{name}: {file}: {key}"


def poison(sae: Any, at_step: int) -> None:
    """Make an SAE's gradients infinite at a step, as a wild learning rate does."""
    steps = iter(range(1, 1000))

    def hook(parameter: torch.Tensor) -> None:
        if next(steps) == at_step and parameter.grad is not None:
            parameter.grad.fill_(math.inf)

    sae.b_dec.register_post_accumulate_grad_hook(hook)


@pytest.mark.parametrize(
    ("at_step", "noticed", "n_before"),
    # A loss tells it a step later, and before a checkpoint or the end the weights do.
    [(1, 2, 0), (6, 6, 1), (7, 8, 2), (10, 10, 3)],
)
def test_training_stops_where_it_diverges(
    at_step: int,
    noticed: int,
    n_before: int,
    make_config: MakeConfig,
    data: dict[str, Any],
    tmp_path: Path,
) -> None:
    for several_saes in (False, True):
        make = maker(make_config, several_saes)
        cfg = make(n_checkpoints=3)
        one = runner(cfg, data)
        poison(one.saes["b"] if isinstance(one, MultiSAERunner) else one.sae, at_step)

        with pytest.raises(TrainingDivergedError, match="training diverged") as stopped:
            one.run()

        message = str(stopped.value)
        if isinstance(one, MultiSAERunner):
            assert "of the SAE 'b'" in message
        assert f"step {noticed} ({64 * noticed} samples seen)" in message
        found = checkpoints(cfg) if Path(cfg.checkpoint_path).exists() else []
        if found:
            assert stopped.value.checkpoint == found[-1]
            assert str(found[-1]) in message
            for file in found[-1].rglob("sae_weights.safetensors"):
                weights = load_file(file)
                assert all(weights[n].isfinite().all() for n in ("W_enc", "b_dec"))
        else:
            assert "no checkpoint before it" in message
        assert len(found) == n_before
        assert not (tmp_path / "output").exists()


def fill_disk(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[Path], bool]) -> None:
    """Let SAEs' weights not be written where ``is_full`` says so."""

    def save_or_fail(tensors: Any, path: Path) -> None:
        if is_full(Path(path)):
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr("sae_lens.saes.sae.save_file", save_or_fail)


@pytest.mark.parametrize("several_saes", [False, True])
def test_a_full_disk_at_a_checkpoint_names_the_one_before(
    several_saes: bool,
    make_config: MakeConfig,
    data: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = maker(make_config, several_saes)
    cfg = make(n_checkpoints=3)
    fill_disk(monkeypatch, lambda _: bool(checkpoints(cfg)))

    with pytest.raises(OSError, match=r"No space left.*before it is whole") as ended:
        runner(cfg, data).run()

    (checkpoint,) = checkpoints(cfg)
    assert str(checkpoint) in str(ended.value)
    assert find_checkpoint(cfg.checkpoint_path) == checkpoint
    assert [*Path(cfg.checkpoint_path).iterdir()] == [checkpoint]


@pytest.mark.parametrize("several_saes", [False, True])
def test_an_output_that_cannot_be_written_at_the_end_is_kept(
    several_saes: bool,
    make_config: MakeConfig,
    data: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = maker(make_config, several_saes)
    cfg = make(checkpoint_path=None)
    output = Path(cfg.output_path)
    fill_disk(monkeypatch, lambda path: path.is_relative_to(output))

    with pytest.raises(OSError, match="what was trained is in ") as ended:
        runner(cfg, data).run()

    kept = Path(str(ended.value).split("what was trained is in ")[1])
    assert len([*kept.rglob("sae_weights.safetensors")]) == (2 if several_saes else 1)
    shutil.rmtree(kept)
    assert not output.exists()


def from_elsewhere(trained: Any, tmp_path: Path, **changes: Any) -> Path:
    """Move a checkpoint, and change what its run says of itself, as anyone could."""
    checkpoint = tmp_path / "downloaded"
    shutil.move(checkpoints(trained)[-1], checkpoint)
    (checkpoint / "manifest.json").unlink()
    path = checkpoint / "runner_cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return checkpoint


@pytest.fixture
def one_trained(make_config: MakeConfig, data: dict[str, Any]) -> Any:
    cfg = make_config(n_checkpoints=2)
    runner(cfg, data).run()
    return cfg


def test_a_checkpoint_from_elsewhere_writes_where_the_user_says(
    one_trained: Any,
    data: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = tmp_path / "theirs"
    checkpoint = from_elsewhere(
        one_trained,
        tmp_path,
        output_path=str(there / "output"),
        checkpoint_path=str(there / "checkpoints"),
        n_checkpoints=9,
    )
    with pytest.raises(ValueError, match="is not where its run wrote it"):
        LanguageModelSAETrainingRunner.from_checkpoint(checkpoint, **data)
    assert main(["train", "--resume", str(checkpoint)]) == 2
    assert "--output FOLDER" in capsys.readouterr().err

    mine = tmp_path / "mine"
    resumed = LanguageModelSAETrainingRunner.from_checkpoint(
        checkpoint, **data, output=mine
    )
    assert resumed.cfg.dataset_trust_remote_code is False
    resumed.run()

    assert not there.exists()
    assert (mine / "cfg.json").is_file()
    assert find_checkpoint(mine / "checkpoints").parent == mine / "checkpoints"


def test_a_checkpoint_from_elsewhere_runs_no_code(
    one_trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = tmp_path / "model"
    hostile.mkdir()
    config = {
        "model_type": "evil",
        "architectures": ["Evil"],
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
    }
    (hostile / "config.json").write_text(json.dumps(config))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nraise RuntimeError('the code ran')\n"
    (hostile / "evil.py").write_text(code)
    checkpoint = from_elsewhere(
        one_trained,
        tmp_path,
        model_class_name="AutoModelForCausalLM",
        model_name=str(hostile),
        model_from_pretrained_kwargs={"trust_remote_code": True},
    )
    resume = ["train", "--resume", str(checkpoint), "--output", str(tmp_path / "mine")]

    assert main(resume) == 2

    assert "{'trust_remote_code': True}" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "mine").exists()
    with pytest.raises(RuntimeError, match="the code ran"):
        main([*resume, "--trust-remote-code"])
    assert (tmp_path / "ran").exists()  # so the code would have run


def test_resumings_options_are_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--output", "x", "--k", "4"]) == 2
    assert "--output is for --resume" in capsys.readouterr().err


@pytest.mark.parametrize("make_text", ["empty", "short"])
def test_a_dataset_without_a_context_is_refused(
    make_text: str, make_config: MakeConfig, model: HookedSAETransformer, tmp_path: Path
) -> None:
    texts = [] if make_text == "empty" else ["a few words", "and some more"]
    text = Dataset.from_dict({"text": texts})
    for several_saes in (False, True):
        make = maker(make_config, several_saes)
        cfg = make()
        with pytest.raises(ValueError, match=r"the dataset .*must have at least one"):
            runner(cfg, {"override_dataset": text, "override_model": model})
    assert list(tmp_path.iterdir()) == []


def test_saelens_topk_with_sparse_activations_and_rescaling_is_refused(
    make_config: MakeConfig, data: dict[str, Any], tmp_path: Path
) -> None:
    topk = TopKTrainingSAEConfig(d_in=128, d_sae=64, k=8, use_sparse_activations=True)
    message = "cannot have use_sparse_activations=True together with"
    with pytest.raises(ValueError, match=f"b {message}"):
        multi_sae_config(make_config(), {"b": topk}, tmp_path)
    with pytest.raises(ValueError, match=f"sae {message}"):
        runner(make_config(sae=topk), data)
    topk.rescale_acts_by_decoder_norm = False
    runner(make_config(sae=topk), data).run()


@pytest.mark.parametrize("several_saes", [False, True])
def test_a_runs_folders_are_its_own_and_checked_at_once(
    several_saes: bool, make_config: MakeConfig, data: dict[str, Any], tmp_path: Path
) -> None:
    make = maker(make_config, several_saes)
    (tmp_path / "file").write_text("")
    # There is no such model: it was not looked for.
    for field, path in (
        ("output_path", str(tmp_path / "file")),
        ("checkpoint_path", str(tmp_path / "file")),
    ):
        cfg = make(model_name="no such model", **{field: path})
        with pytest.raises(ValueError, match=f"{field} must be a folder that can be"):
            runner(cfg, {})
    cfg = make(n_checkpoints=1)
    earlier = runner(cfg, data)
    for field in ("output_path", "checkpoint_path"):
        other = make(checkpoint_path=None)
        setattr(other, field, getattr(cfg, field))
        with reserve_folders(other):
            with pytest.raises(ValueError, match=r"is being written by another run"):
                runner(cfg, data)
            with pytest.raises(ValueError, match=r"is being written by another run"):
                earlier.run()
    assert {path.name for path in tmp_path.iterdir()} == {"file"}
    earlier.run()
    assert not [*tmp_path.rglob(".*")]  # no lock, no half-full folder


@pytest.mark.parametrize("several_saes", [False, True])
def test_the_output_may_be_on_another_file_system(
    several_saes: bool,
    make_config: MakeConfig,
    data: dict[str, Any],
    tmp_path: Path,
    other_disk: Path,
) -> None:
    (tmp_path / "output").symlink_to(other_disk, target_is_directory=True)
    for _ in range(2):
        cfg = maker(make_config, several_saes)()
        runner(cfg, data).run()
        found = {path.parent.name for path in other_disk.rglob("cfg.json")}
        assert found == ({"a", "b"} if several_saes else {other_disk.name})


def test_a_dataset_of_excluded_tokens_alone_is_refused(
    make_config: MakeConfig, model: HookedSAETransformer, tmp_path: Path
) -> None:
    text = Dataset.from_dict({"text": ["<|endoftext|>" * 200] * 3})
    options: dict[str, Any] = {"override_dataset": text, "override_model": model}
    for several_saes in (False, True):
        make = maker(make_config, several_saes)
        cfg = make(exclude_special_tokens=True)
        with pytest.raises(ValueError, match="must have tokens that exclude_special_"):
            runner(cfg, options).run()
        assert not list(tmp_path.rglob("cfg.json"))


@pytest.mark.parametrize("several_saes", [False, True])
def test_another_dataset_is_refused_on_resuming(
    several_saes: bool, make_config: MakeConfig, data: dict[str, Any]
) -> None:
    make = maker(make_config, several_saes)
    cfg = make(n_checkpoints=2)
    runner(cfg, data).run()
    other = {**data, "override_dataset": load_bundled_dataset("held_out")}
    resumed = make(resume_from_checkpoint=str(checkpoints(cfg)[-1]))

    with pytest.raises(ValueError, match="must be the one that the run was trained on"):
        runner(resumed, other).run()


def test_a_relative_path_makes_no_checkpoint_the_users_own(
    one_trained: Any,
    data: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stranger knows what a clone will be called, and could name it."""
    checkpoint = from_elsewhere(
        one_trained,
        tmp_path,
        checkpoint_path=".",
        output_path=str(tmp_path / "the users own"),
    )
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match="is not where its run wrote it"):
        LanguageModelSAETrainingRunner.from_checkpoint(checkpoint.name, **data)


def test_a_runs_own_relative_folders_resume_from_anywhere(
    make_config: MakeConfig,
    data: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = make_config(n_checkpoints=2, checkpoint_path="here", output_path="there")
    runner(cfg, data).run()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    LanguageModelSAETrainingRunner.from_checkpoint(tmp_path / "here", **data).run()

    assert (tmp_path / "there" / "cfg.json").is_file()
    assert list((tmp_path / "elsewhere").iterdir()) == []
