"""Tests of the paper's comparison, and of training SAEs side by side."""

from __future__ import annotations

import itertools
import json
import shlex
import signal
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    HookedSAETransformer,
    LoggingConfig,
    StandardTrainingSAEConfig,
)

from sae_lens_hierarchical import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    HierarchicalTopKTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    TrainingInterrupted,
)
from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.comparison import compare
from sae_lens_hierarchical.eval.table import read_table
from sae_lens_hierarchical.training.baselines import paper_comparison
from sae_lens_hierarchical.training.multi_sae import MultiSAERunner, multi_sae_config
from tests.helpers import MakeConfig


def ours(k: int, **changes: Any) -> HierarchicalTopKTrainingSAEConfig:
    return HierarchicalTopKTrainingSAEConfig(d_in=8, d_sae=256, k=k, **changes)


def test_the_papers_saes() -> None:
    configs = paper_comparison(ours(128, budgets=[1, 128]), steps=100)

    losses = {f"HierarchicalTopK-J{x}": x for x in (1, 8, 16, 32, 64)}
    baselines = [
        f"{kind}-{k}"
        for kind in ("TopK", "BatchTopK", "JumpReLU")
        for k in (32, 64, 128)
    ]
    assert list(configs) == ["HierarchicalTopK", *losses, *baselines]
    assert cast("Any", configs["HierarchicalTopK"]).budgets == [1, 128]
    for name, x in losses.items():
        cfg = configs[name]
        assert isinstance(cfg, HierarchicalTopKTrainingSAEConfig)
        assert (cfg.k, cfg.loss_every, cfg.budgets) == (128, x, None)
    for name in baselines:
        cfg, k = configs[name], int(name.split("-")[1])
        assert (cfg.d_in, cfg.d_sae) == (8, 256)
        assert getattr(cfg, "target_l0" if "JumpReLU" in name else "k") == k
    metadata = [id(cfg.metadata) for cfg in configs.values()]
    assert len(set(metadata)) == len(metadata)


def test_no_loss_is_trained_twice() -> None:
    configs = paper_comparison(ours(128, loss_every=1), steps=1)

    assert "HierarchicalTopK-J1" not in configs
    assert {"HierarchicalTopK", "HierarchicalTopK-J8"} <= configs.keys()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_small_k_leave_fewer_saes(k: int) -> None:
    configs = paper_comparison(ours(k), steps=1)

    losses = {"HierarchicalTopK"} | ({"HierarchicalTopK-J1"} if k > 1 else set())
    assert losses | {f"TopK-{k}", "BatchTopK-1"} <= configs.keys()


def test_compare_on_the_bundled_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"d_sae": 64, "k": 2, "training_tokens": 4096, "contexts": 2}
    options = [f"--{name}={value}" for name, value in sizes.items()]

    assert main(["compare", *options, "--output", str(tmp_path)]) == 0

    table = read_table(tmp_path / "metrics.parquet")
    assert {row.architecture for row in table.rows} == {
        "hierarchical_topk",
        "topk",
        "batchtopk",
        "jumprelu",
    }
    names = {folder.name for folder in (tmp_path / "saes").iterdir() if folder.is_dir()}
    assert set(table.saes()) == names
    assert {row.k for row in table.select(sae="TopK-2", activation="topk")} == {
        *(1, 2, 3, 4, 6, 8)
    }
    assert table.select(sae="HierarchicalTopK-J1", activation="jumprelu", k=2)
    assert table.select(sae="JumpReLU-2", activation="own")
    assert table.provenance["training"]["training_tokens"] == 4096
    assert table.provenance["training"]["checkpoint_path"] is None
    assert table.provenance["dataset"] == "bundled, held out"
    assert "BatchTopK-2" in capsys.readouterr().out
    # A comparison that was stopped after training goes on with sweep.
    (tmp_path / "metrics.parquet").unlink()
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "saes" / "training_metrics.csv").touch()
    assert main(["compare", *options, "--output", str(tmp_path)]) == 2
    *_, sweep = capsys.readouterr().err.splitlines()
    assert main(shlex.split(sweep)[1:]) == 0
    again = read_table(tmp_path / "metrics.parquet")
    for name in names:
        assert again.select(sae=name) == table.select(sae=name)
    sae = SAE.load_from_disk(tmp_path / "saes" / "HierarchicalTopK-J1")
    assert isinstance(sae, HierarchicalTopKSAE)
    assert sae.k_max == 2


def test_compare_measures_on_what_follows_in_the_text(
    make_config: MakeConfig, tmp_path: Path, model: HookedSAETransformer, text: Dataset
) -> None:
    cfg = make_config(k=2, checkpoint_path=None)

    table = compare(cfg, tmp_path, contexts=4, model=model, text=text)

    assert table.rows[0].tokens <= 4 * 31
    assert table.provenance["dataset"] == cfg.dataset_path
    assert {row.k for row in table.rows} >= {1, 2, 3, 4, 6, 8}
    other = make_config(sae=StandardTrainingSAEConfig(d_in=128, d_sae=64))
    with pytest.raises(ValueError, match="must train a hierarchical_topk SAE"):
        compare(other, tmp_path, model=model, text=text)


def test_compare_with_a_preset(
    make_config: MakeConfig,
    tmp_path: Path,
    model: HookedSAETransformer,
    text: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = "sae_lens.multi_sae_training_runner.load_model"
    store = "sae_lens.training.activations_store.load_dataset"
    monkeypatch.setattr(runner, lambda *_, **__: model)
    monkeypatch.setattr(store, lambda *_, **__: text)
    cfg = make_config()
    names = (
        "hook_name context_size store_batch_size_prompts n_batches_in_buffer "
        "train_batch_size_tokens streaming checkpoint_path device"
    )
    small = {name: getattr(cfg, name) for name in names.split()}
    small |= {"d_in": 128, "d_sae": 64, "k": 2, "log_to_wandb": False}
    options = [f"--{name}={value}" for name, value in small.items()]
    compare = ["compare", "--preset", "gemma-2-2b-layer-12", "--contexts", "2"]
    output = tmp_path / "out"

    assert (
        main([*compare, "--training_tokens=640", *options, "--output", str(output)])
        == 0
    )

    training = read_table(output / "metrics.parquet").provenance["training"]
    assert (training["training_tokens"], training["lr"]) == (640, 8e-4)
    assert training["saes"]["HierarchicalTopK-J1"]["unit_norm_decoder"] is True
    checkpoints = Path(training["checkpoint_path"])
    assert len(list(checkpoints.iterdir())) == 1


SMALL = [
    *("compare", "--contexts=2", "--training_tokens=1024", "--d_sae=64", "--k=2"),
    "--train_batch_size_tokens=256",
]


@pytest.mark.parametrize("own_model", [True, False])
@pytest.mark.parametrize("own_text", [True, False])
def test_compare_trains_on_what_is_named(
    own_model: bool,
    own_text: bool,
    tmp_path: Path,
    model: HookedSAETransformer,
    text: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded: list[str] = []

    def load_model(_class: str, name: str, **_: Any) -> HookedSAETransformer:
        loaded.append(name)
        return model

    def load_dataset(name: str, **_: Any) -> Dataset:
        loaded.append(name)
        return text

    runner = "sae_lens.multi_sae_training_runner.load_model"
    monkeypatch.setattr(runner, load_model)
    store = "sae_lens.training.activations_store.load_dataset"
    monkeypatch.setattr(store, load_dataset)
    names = ["--model_name=EleutherAI/pythia-14m"] if own_model else []
    names += ["--dataset_path=user/my_texts"] if own_text else []

    assert main([*SMALL, *names, "--output", str(tmp_path)]) == 0

    assert loaded == [name.partition("=")[2] for name in names]
    table = read_table(tmp_path / "metrics.parquet")
    dataset = "user/my_texts" if own_text else "bundled, held out"
    assert table.provenance["dataset"] == dataset
    (tmp_path / "metrics.parquet").unlink()
    capsys.readouterr()
    assert main([*SMALL, *names, "--output", str(tmp_path)]) == 2
    *_, sweep = capsys.readouterr().err.splitlines()
    assert ("--dataset TEXT_THAT_WAS_NOT_TRAINED_ON" in sweep) == bool(names)


def test_a_comparison_takes_the_place_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*SMALL, "--k=4", "--output", str(tmp_path)]) == 0
    saes = tmp_path / "saes"
    noted, linked = saes / "TopK-4" / "notes.md", saes / "JumpReLU-4"
    noted.touch()
    linked.rename(tmp_path / "kept")
    linked.symlink_to(tmp_path / "kept")
    cfg = HierarchicalTopKSAEConfig(d_in=8, d_sae=9, k_max=2)
    HierarchicalTopKSAE(cfg).save_model(saes / "TopK-3")
    (tmp_path / "figures" / "mine.png").touch()

    def files() -> set[str]:
        found = (f for f in tmp_path.rglob("*") if f.is_file())
        return {str(f.relative_to(tmp_path)) for f in found}

    before = files()
    again = [*SMALL, "--output", str(tmp_path), "--force"]
    assert main([*again, "--d_in=64"]) == 2
    assert files() == before  # which was refused

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_lens_hierarchical.comparison.sweep_store", stop)
    assert main(again) == 130
    after = {path.split("/")[0] for path in files()}
    assert after == {"saes", "figures", "kept"}
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["mine.png"]
    trained = paper_comparison(ours(2), steps=1)
    assert {file.name for file in saes.iterdir()} == {
        *(*trained, "TopK-3", "TopK-4", "JumpReLU-4", "runner_cfg.json")
    }
    assert [file.name for file in noted.parent.iterdir()] == ["notes.md"]
    assert (tmp_path / "kept" / "cfg.json").exists()
    assert (saes / "TopK-3" / "cfg.json").exists()


def test_compare_has_one_option_for_its_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path), "--output_path", str(tmp_path / "new")]

    assert main([*SMALL, *output]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert "--output_path is for train; compare takes --output" in line


def test_compare_says_when_its_text_was_used_up(
    make_config: MakeConfig,
    tmp_path: Path,
    model: HookedSAETransformer,
    text: Dataset,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cfg = make_config(k=2, checkpoint_path=None, training_tokens=6400)

    table = compare(cfg, tmp_path, contexts=4, model=model, text=text.select([0]))

    assert "text was read to its end in training" in caplog.text
    assert table.provenance["training"]["measured_on"] == "text that was trained on"
    assert table.rows[0].tokens > 100


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--contexts=0", "contexts must be from 1"),
        ("--d_in=64", "d_in must be 128, the width of blocks.2.hook_resid_post"),
        ("--hook_name=blocks.9.hook_resid_post", "is no hook of the model"),
    ],
)
def test_bad_comparisons_are_refused_before_training(
    option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--training_tokens=4096", "--d_sae=64", "--k=2"]

    assert main(["compare", *sizes, option, "--output", str(tmp_path / "new")]) == 2

    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_compare_names_its_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--preset", "gemma"]) == 2

    assert "preset must be one of ['bundled', 'gemma-2-2b" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["compare", "--help"])
    out = capsys.readouterr().out
    for option in ("--preset", "--contexts", "--train_batch_size_tokens"):
        assert option in out


def two_saes(
    make_config: MakeConfig, tmp_path: Path, **changes: Any
) -> tuple[LanguageModelSAERunnerConfig, Any]:
    cfg = make_config(**changes)
    configs = {"a": cfg.sae, "b": ours(3, device="cpu")}
    configs["b"].d_in = 128
    return cfg, multi_sae_config(cfg, configs, tmp_path / "saes")


def test_a_checkpoint_takes_the_place_of_one_of_that_name(
    make_config: MakeConfig, tmp_path: Path, model: HookedSAETransformer, text: Dataset
) -> None:
    log = LoggingConfig(log_to_wandb=False, wandb_id="abc")  # which names the folder
    for _ in range(2):
        _, together = two_saes(make_config, tmp_path, logger=log, n_checkpoints=1)
        MultiSAERunner(together, text, model).run()

        (checkpoint,) = Path(together.checkpoint_path).iterdir()
        assert {path.name for path in checkpoint.iterdir() if path.is_dir()} == {*"ab"}


def test_each_saes_losses_reach_wandb(
    make_config: MakeConfig,
    tmp_path: Path,
    model: HookedSAETransformer,
    text: Dataset,
    logged: dict[str, Any],
) -> None:
    log = LoggingConfig(wandb_log_frequency=2, eval_every_n_wandb_logs=100)
    _, together = two_saes(make_config, tmp_path, logger=log)

    MultiSAERunner(together, text, model).run()

    for name in "ab":
        assert 0 < logged[f"{name}/metrics/l0"] <= 8
        assert logged[f"{name}/losses/hierarchical_loss"] > 0
        assert f"{name}/metrics/explained_variance_k1" in logged


def test_what_is_for_one_sae_is_refused(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="compile_sae is for one SAE"):
        two_saes(make_config, tmp_path, compile_sae=True)


def test_saes_side_by_side_are_trained_as_the_one(
    make_config: MakeConfig, tmp_path: Path, model: HookedSAETransformer, text: Dataset
) -> None:
    cfg, together = two_saes(make_config, tmp_path)
    for name in (
        "lr",
        "context_size",
        "training_tokens",
        "train_batch_size_tokens",
        "dead_feature_window",
        "model_name",
        "exclude_special_tokens",
    ):
        assert getattr(together, name) == getattr(cfg, name), name
    assert together.hook_names_per_sae == dict.fromkeys("ab", cfg.hook_name)

    trained = MultiSAERunner(together, text, model).run()
    MultiSAERunner(together, text, model).run()  # again, to the same folders

    x = torch.randn(5, 128)
    for name, k in (("a", 8), ("b", 3)):
        sae = SAE.load_from_disk(tmp_path / "saes" / name)
        assert isinstance(sae, HierarchicalTopKSAE)
        assert sae.k_max == trained[name].cfg.k == k
        assert torch.isfinite(sae(x)).all()
    saes = {entry.name for entry in (tmp_path / "saes").iterdir()}
    assert saes == {"a", "b", "runner_cfg.json"}
    assert json.loads((tmp_path / "saes" / "runner_cfg.json").read_text())["saes"]


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_stopped_run_says_where_its_checkpoint_is(
    prefetch: bool,
    make_config: MakeConfig,
    tmp_path: Path,
    model: HookedSAETransformer,
    text: Dataset,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings: dict[str, Any] = {
        "prefetch_llm_batches": prefetch,
        "context_size": 128,
        "store_batch_size_prompts": 2,
    }
    _, together = two_saes(
        make_config, tmp_path, training_tokens=64_000_000, **settings
    )
    runner = MultiSAERunner(together, text, model)
    steps = itertools.count(1)

    def interrupt(_parameter: torch.Tensor) -> None:
        if next(steps) == 60:
            signal.raise_signal(signal.SIGINT)

    runner.saes["a"].b_dec.register_post_accumulate_grad_hook(interrupt)
    with pytest.raises(TrainingInterrupted, match="resume_from_checkpoint") as stopped:
        runner.run()

    (checkpoint,) = Path(together.checkpoint_path).iterdir()
    assert stopped.value.checkpoint == checkpoint
    assert int(checkpoint.name) == 60 * together.train_batch_size_tokens
    _, resumed = two_saes(
        make_config,
        tmp_path,
        training_tokens=int(checkpoint.name) + 128,
        n_checkpoints=1,
        **settings,
        resume_from_checkpoint=str(checkpoint),
    )
    capsys.readouterr()
    MultiSAERunner(resumed, text, model).run()
    assert (tmp_path / "saes" / "b").is_dir()
    # None for those that came before it.
    assert not Path(resumed.checkpoint_path).exists()
    total = resumed.training_tokens
    assert f"{total}/{total}" in capsys.readouterr().err  # the bar went on, to its end
