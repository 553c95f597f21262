"""Tests of the command line and the quickstart, as a newcomer would use them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, HookedSAETransformer, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_hierarchical import (
    PRESETS,
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
)
from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.data import BUNDLED_HOOK_NAME, BUNDLED_MODEL_NAME
from sae_lens_hierarchical.eval.table import MetricsTable, read_table, write_table
from sae_lens_hierarchical.export import export
from sae_lens_hierarchical.figures import write_figures
from sae_lens_hierarchical.quickstart import quickstart
from sae_lens_hierarchical.training.trainer import ResumableSAETrainer
from tests.helpers import MakeConfig, make_metrics
from tests.hub_server import HubServer


@pytest.mark.parametrize(
    "command", [[], ["quickstart"], ["saebench"], ["export"], ["push"]]
)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*command, "--help"])

    assert "sae-lens-hierarchical" in capsys.readouterr().out


def test_compare_is_for_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    assert main(["compare", "--preset", "bundled"]) == 2

    assert "start it without torchrun" in capsys.readouterr().err


def test_training_over_processes_needs_all_that_torchrun_sets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")

    assert main(["train", "--preset", "bundled"]) == 2

    error = capsys.readouterr().err
    assert "needs ['RANK', 'LOCAL_RANK', 'MASTER_PORT'] in the environment" in error


def test_unknown_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["quickstart", "--sede", "1"])
    assert "--sede 1; did you mean --seed?" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["swep"])
    error, hint = capsys.readouterr().err.splitlines()
    assert error.endswith("did you mean sweep?")
    assert hint == "sae-lens-hierarchical --help lists what there is"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "--preset", "gemma"], "preset must be one of"),
        (["train", "--resume", "/nowhere"], "there is no checkpoint in /nowhere"),
        (["train", "--k", "4096"], "k must be an integer from 1 to d_sae=1024"),
        (["train", "--resume", "/nowhere", "--k", "4"], "--resume takes all options"),
        (
            ["train", "--logger", "csv", "--log_to_wandb=true"],
            "give either --logger or",
        ),
        (["train", "--k", "abc"], "--k: invalid int value: 'abc'"),
        (["train", "--budgets", "[1,4]"], "have spaces between them, such as 1 4"),
        (["train", "--loss_evry", "8"], "did you mean --loss_every"),
        (["train", "--archtecture", "topk"], "did you mean --architecture?"),
        (["train", "--architecture", "hierachical"], "invalid choice: 'hierachical'"),
        (["train", "--loss_every", "129"], "loss_every must be at most k=128, got 129"),
        (
            ["train", "--preset", "bundled", "--training_tokens=-5"],
            "training_tokens must be at least train_batch_size_tokens=512",
        ),
        (
            ["train", "--preset", "bundled", "--training_tokens=511", "--dry-run"],
            "which is one step, got 511",
        ),
        (["train", "--train_batch_size_tokens=0"], "sampling_window must be at least"),
        (["train", "--train_batch_size_tokens=-1"], "tokens must be at least 1, got"),
        (
            ["train", "--preset", "bundled", "--lr_decay_steps=3907"],
            "lr_warm_up_steps=0 and lr_decay_steps=3907 must be",
        ),
    ],
)
def test_bad_values_are_one_clear_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--k=1,two", "--k: must be whole numbers with commas between them, got '1,tw"),
        ("--price=1", "--price: must be two numbers with a comma between them, got"),
        ("--device=gpu", "--device: torch has no device 'gpu' here"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(
    option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["saebench", "checkpoint", "--k=1", option])
    assert message in capsys.readouterr().err


def test_sweep_measures_any_saes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = SAEMetadata(
        model_name=BUNDLED_MODEL_NAME,
        hook_name=BUNDLED_HOOK_NAME,
        context_size=32,
        prepend_bos=True,
    )
    sizes: dict[str, Any] = {"d_in": 128, "d_sae": 64, "metadata": metadata}
    ours = HierarchicalTopKSAE(HierarchicalTopKSAEConfig(**sizes, k_max=8))
    ours.save_model(tmp_path / "ours")
    TopKSAE(TopKSAEConfig(**sizes, k=4)).save_model(tmp_path / "topk")
    folders = [str(tmp_path / name) for name in ("ours", "topk")]
    output = tmp_path / "sweep"
    options = ["--k", "1,4,16", "--contexts", "2", "--output", str(output)]

    assert main(["sweep", *folders, *options]) == 0

    table = read_table(output / "metrics.parquet")
    assert {row.sae: row.trained_k for row in table.rows} == {"ours": 8, "topk": 4}
    assert [row.k for row in table.select(sae="topk")] == [1, 4, 16]
    assert 50 < table.rows[0].tokens <= 2 * 31
    weights = (tmp_path / "ours" / "sae_weights.safetensors").read_bytes()
    assert table.provenance["checkpoints"]["ours"] == {
        "path": str(tmp_path / "ours"),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    assert table.provenance["dataset"] == "bundled, held out"
    assert (output / "figures" / "figure_3.png").read_bytes().startswith(b"\x89PNG")
    assert "figures/figures.html" in capsys.readouterr().out.replace("\n", "")
    assert main(["sweep", *folders, *options]) == 2
    assert "metrics.parquet is there already" in capsys.readouterr().err
    options.append("--force")
    for bad, message in {
        "--k=4,1": "ks must be",
        "--contexts=0": "contexts must be from 1",
        "--ce-contexts=-1": "ce_contexts must be at least 0",
        "--batch-size=0": "batch_size must be from 1",
        "--max-norm-ratio=1": "max_norm_ratio must be a finite number above 1",
    }.items():
        assert main(["sweep", *folders, *options, bad]) == 2
        assert message in capsys.readouterr().err
    TopKSAE(TopKSAEConfig(d_in=8, d_sae=9, k=4)).save_model(tmp_path / "nameless")
    assert main(["sweep", str(tmp_path / "nameless"), "--k", "1"]) == 2
    assert "must name one model" in capsys.readouterr().err


PACKAGE = "sae_lens_hierarchical"


@pytest.fixture
def local(
    monkeypatch: pytest.MonkeyPatch, model: HookedSAETransformer, text: Dataset
) -> None:
    """Let SAELens's loaders of models and data sets find the bundled ones."""
    for module in ("sae_lens.llm_sae_training_runner", f"{PACKAGE}.loading.models"):
        monkeypatch.setattr(f"{module}.load_model", lambda *_, **__: model)
    monkeypatch.setattr(
        "sae_lens.training.activations_store.load_dataset", lambda *_, **__: text
    )


def options_of(cfg: Any) -> list[str]:
    names = (
        "hook_name dataset_path is_dataset_tokenized streaming context_size "
        "store_batch_size_prompts n_batches_in_buffer train_batch_size_tokens "
        "training_tokens checkpoint_path output_path"
    )
    options = ["--log_to_wandb", "false"]
    for name in names.split():
        options += [f"--{name}", str(getattr(cfg, name))]
    return options


@pytest.mark.usefixtures("local")
def test_train_and_resume(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_of(make_config())
    sizes = "--d_in 128 --d_sae 64 --k 8 --loss_every 4 --n_checkpoints 1"

    assert main(["train", *sizes.split(), *options]) == 0

    out = capsys.readouterr().out
    assert f"The SAE: {tmp_path / 'output'}" in out
    assert re.search(
        r"Explained variance of one more batch: -?\d.\d{3} at k = 1, ", out
    )
    assert main(["train", *sizes.split(), *options]) == 2
    assert "another folder with --output_path, or" in capsys.readouterr().err
    following = re.search(r"Next: sae-lens-hierarchical (sweep .*)", out)
    assert following
    assert (
        main([*following[1].split(), "--contexts=2", f"--output={tmp_path / 's'}"]) == 0
    )
    sae = SAE.load_from_disk(tmp_path / "output")
    assert isinstance(sae, HierarchicalTopKSAE)
    assert sae.k_max == 8
    weights = tmp_path / "output" / "sae_weights.safetensors"
    written = weights.stat().st_mtime_ns
    capsys.readouterr()
    assert main(["train", "--resume", str(tmp_path / "checkpoints")]) == 0
    assert f"nothing to do. The SAE: {tmp_path / 'output'}" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == written
    shutil.rmtree(tmp_path / "output")
    assert main(["train", "--resume", str(tmp_path / "checkpoints")]) == 0
    assert re.search(r"Resuming .*, at \d+ of 640 tokens", capsys.readouterr().out)
    assert weights.is_file()


@pytest.mark.usefixtures("local")
def test_resuming_does_not_replace_another_runs_sae(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "--d_in 128 --d_sae 64 --k 8 --n_checkpoints 1"
    assert main(["train", *sizes.split(), *options_of(make_config())]) == 0
    shutil.rmtree(tmp_path / "output")
    save_sae(tmp_path / "output")
    shutil.copytree(tmp_path / "output", tmp_path / "elsewhere")
    weights = (tmp_path / "output" / "sae_weights.safetensors").read_bytes()
    resume = ["train", "--resume", str(tmp_path / "checkpoints")]

    for options in ([], ["--output", str(tmp_path / "elsewhere")]):
        capsys.readouterr()
        assert main([*resume, *options]) == 2
        assert "another folder with --output, or" in capsys.readouterr().err

    for folder in ("output", "elsewhere"):
        file = tmp_path / folder / "sae_weights.safetensors"
        assert file.read_bytes() == weights
    assert main([*resume, "--force"]) == 0
    assert SAE.load_from_disk(tmp_path / "output").cfg.d_in == 128
    (tmp_path / "checkpoints").rename(tmp_path / "moved")
    moved = ["train", "--resume", str(tmp_path / "moved")]
    logs = tmp_path / "logs" / "training_metrics.csv"
    logs.parent.mkdir()
    logs.write_text("step,a\n9,1.0\n")
    assert main([*moved, "--output", str(logs.parent)]) == 2
    assert "training_metrics.csv is there already" in capsys.readouterr().err
    for said in ("Explained variance of", "has ended: nothing to do"):
        assert main([*moved, "--output", str(tmp_path / "new")]) == 0
        assert said in capsys.readouterr().out


def interrupt_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    step = ResumableSAETrainer.step

    def step_and_stop(self: ResumableSAETrainer, batch: torch.Tensor) -> Any:
        signal.raise_signal(signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(ResumableSAETrainer, "step", step_and_stop)


@pytest.mark.usefixtures("local")
def test_an_interrupt_prints_the_command_that_goes_on(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = "--d_in 128 --d_sae 64 --k 8"
    with monkeypatch.context() as patch:
        interrupt_the_first_step(patch)
        assert main(["train", *sizes.split(), *options_of(make_config())]) == 130

    said = capsys.readouterr().err.splitlines()
    assert said[-2] == "sae-lens-hierarchical: interrupted; to go on:"
    _, *again = said[-1].split()
    assert main(again) == 0
    assert (tmp_path / "output" / "sae_weights.safetensors").is_file()


def test_an_interrupt_without_checkpoints_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    interrupt_the_first_step(monkeypatch)
    command = ["train", "--preset", "bundled", "--training_tokens", "4096"]
    options = ["--d_sae=64", "--k=4", f"--output_path={tmp_path / 'sae'}"]

    assert main([*command, *options]) == 130

    assert "Stopping after this step, without a checkpoint" in caplog.text
    assert "--checkpoint_path FOLDER" in capsys.readouterr().err


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("preset", PRESETS)
def test_preset_with_changes(
    preset: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    options = options_of(make_config())
    changes = "--d_in 128 --d_sae 64 --k 8 --device cpu"

    assert main(["train", "--preset", preset, *changes.split(), *options]) == 0

    runner_cfg = json.loads((tmp_path / "output" / "runner_cfg.json").read_text())
    assert runner_cfg["lr"] == PRESETS[preset]["lr"]
    assert runner_cfg["sae"]["unit_norm_decoder"] is True
    assert runner_cfg["exclude_special_tokens"] is True
    assert runner_cfg["sae"]["k"] == 8


def test_quickstart_writes_what_it_says_and_repeats(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sae_lens_hierarchical.quickstart.HELD_OUT_CONTEXTS", 4)
    first, second = (
        quickstart(tmp_path / name, training_tokens=8_192) for name in ("a", "b")
    )

    assert first.rows == second.rows
    out = capsys.readouterr().out
    figures = tmp_path / "a" / "figures"
    for path in (
        tmp_path / "a" / "metrics.parquet",
        tmp_path / "a" / "metrics.csv",
        figures / "overview.png",
        figures / "figures.html",
    ):
        assert path.stat().st_size > 500
    assert str(figures / "figures.html") in out.replace("\n", "")
    sae = SAE.load_from_disk(tmp_path / "a" / "saes" / "HierarchicalTopK")
    assert isinstance(sae, HierarchicalTopKSAE)
    table = read_table(tmp_path / "a" / "metrics.parquet")
    assert table == first
    assert table.provenance["dataset"] == "bundled, held out"
    assert sae.cfg.metadata.training_tokens == 8_192
    for name in table.saes():
        ks = [row.k for row in table.select(sae=name)]
        assert (ks[0], ks[-1]) == (1, sae.k_max)
    assert all(math.isfinite(row.fvu) for row in table.rows)


def test_the_bundled_preset_trains_with_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = ["train", "--preset", "bundled", "--training_tokens", "4096"]
    options = ["--d_sae=64", "--k=4", f"--output_path={tmp_path / 'sae'}"]
    log = ["--logger", "csv", "--wandb_log_frequency", "4"]

    assert main([*command, *options, "--max-norm-ratio", "1.5", *log]) == 0

    sae = SAE.load_from_disk(tmp_path / "sae")
    assert isinstance(sae, HierarchicalTopKSAE)
    assert (sae.k_max, sae.cfg.d_sae) == (4, 64)
    runner_cfg = json.loads((tmp_path / "sae" / "runner_cfg.json").read_text())
    assert runner_cfg["lr_warm_up_steps"] == 1  # of eight steps
    assert runner_cfg["matmul_precision"] == "high"
    assert runner_cfg["max_norm_ratio"] == 1.5
    assert (runner_cfg["log_to"], runner_cfg["logger"]["log_to_wandb"]) == (
        ["csv"],
        False,
    )
    header, *rows = (tmp_path / "sae" / "training_metrics.csv").read_text().split()
    assert "metrics/explained_variance_k4" in header
    assert len(rows) == 2
    (tmp_path / "sae" / "cfg.json").unlink()
    for again in (log, []):
        assert main([*command, *options, *again]) == 2
        assert "training_metrics.csv is there already" in capsys.readouterr().err
    assert main([*command, *options, "--force"]) == 0
    assert not (tmp_path / "sae" / "training_metrics.csv").exists()


def save_sae(folder: Path) -> HierarchicalTopKSAE:
    sae = HierarchicalTopKSAE(HierarchicalTopKSAEConfig(d_in=12, d_sae=40, k_max=8))
    sae.save_model(folder)
    return sae


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sae = save_sae(tmp_path / "sae")
    x = torch.randn(9, 12)
    command = ["export", str(tmp_path / "sae"), "--output"]

    assert main([*command, str(tmp_path / "one"), "--k", "3"]) == 0
    assert main([*command, str(tmp_path / "all"), "--k", "2,8"]) == 0

    printed = capsys.readouterr().out.splitlines()
    next_ones = [
        f"Next: sae-lens-hierarchical push {tmp_path / name} USER/NAME"
        for name in ("one", "all")
    ]
    assert [line for line in printed if line.startswith("Next")] == next_ones
    printed = [line for line in printed if line not in next_ones]
    folders = [tmp_path / name for name in ("one", "all/k_2", "all/k_8")]
    assert printed == [str(folder) for folder in folders]
    for folder, k in zip(folders, (3, 2, 8), strict=True):
        with sae.at_k(k):
            torch.testing.assert_close(SAE.load_from_disk(folder)(x), sae(x))
    for name, k in (("one", "4"), ("all", "4,8")):
        again = [*command, str(tmp_path / name), "--k", k]
        assert main(again) == 2
        assert "is there already" in capsys.readouterr().err
        assert main([*again, "--force"]) == 0


def test_an_export_beyond_the_trained_k_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_sae(tmp_path / "sae")
    command = ["export", str(tmp_path / "sae"), "--output"]

    assert main([*command, str(tmp_path / "within"), "--k", "8"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*command, str(tmp_path / "beyond"), "--k", "4,9,20"]) == 0

    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("was trained for k up to 8, and was exported at 9, 20")
    assert (tmp_path / "beyond" / "k_20" / "cfg.json").is_file()


@pytest.mark.parametrize(
    "command", [["figures"], ["push", "sae", "user/repo", "--metrics"]]
)
def test_a_table_that_is_not_there_is_one_clear_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "no.csv"

    assert main([*command, str(missing)]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"sae-lens-hierarchical: there is no table {missing}"


def test_figures_leave_no_stale_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "metrics.parquet", tmp_path / "figures"
    write_table(path, MetricsTable([make_metrics(k, 0.125 * k) for k in (1, 4)]))
    command = ["figures", str(path), "--output", str(output)]
    assert main(command) == 0
    kept = {file.name for file in output.iterdir()}
    mine = {"figure_99.png", "figure_x.png", "mine.png"}
    for name in ("figure_6.png", *mine):
        (output / name).write_bytes(b"")

    assert main(command) == 2
    assert "figures.html is there already" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0

    assert {file.name for file in output.iterdir()} == kept | mine


@pytest.mark.parametrize("name", ["figure_2.png", "overview.png", "figures.html"])
@pytest.mark.parametrize(
    "command",
    [
        ["figures", "metrics.parquet", "--output", "figures", "--force"],
        ["sweep", "no_sae", "--k=1", "--output=."],
        ["quickstart", "--output=."],
        ["compare", "--output=."],
    ],
)
def test_an_image_of_another_is_not_replaced(
    command: list[str],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if command[0] == "figures":
        write_table(Path("metrics.parquet"), MetricsTable([make_metrics(4, 0.5)]))
    image = tmp_path / "figures" / name
    image.parent.mkdir()
    image.write_text("of a paper")

    assert main(command) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name} is there already, and is not of our figures" in line
    assert [file.name for file in image.parent.iterdir()] == [name]
    assert image.read_text() == "of a paper"


def test_a_quickstart_that_is_stopped_has_no_older_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, table = tmp_path / "out", MetricsTable([make_metrics(4, 0.5)])
    output.mkdir()
    write_table(output / "metrics.parquet", table)
    write_figures(output / "figures", table)
    (output / "figures" / "mine.png").touch()
    (output / "notes.csv").touch()

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_lens_hierarchical.quickstart.MultiSAERunner.run", stop)
    assert main(["quickstart", "--output", str(output), "--force"]) == 130

    left = {str(f.relative_to(output)) for f in output.rglob("*") if f.is_file()}
    assert left == {"notes.csv", "figures/mine.png"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"CHECKPOINT": "nowhere"},
            "there is no SAE in nowhere, which does not exist; SAEs in .: plain, sae",
        ),
        ({"CHECKPOINT": "plain"}, "is a topk SAE, no hierarchical_topk"),
        ({"--k": "41"}, "k must be an integer from 1 to d_sae=40, got 41"),
        ({"--architecture": "gated"}, "architecture must be one of"),
        ({"--output": "sae"}, "--output would overwrite the checkpoint"),
        ({"--output": "plain/cfg.json"}, "Not a directory"),
    ],
)
def test_bad_exports_are_one_clear_line(
    changes: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    export(save_sae(tmp_path / "sae"), "plain", 4)
    options = {
        "CHECKPOINT": "sae",
        "--k": "3",
        "--architecture": "topk",
        "--output": "new",
    } | changes
    args = [part for pair in options.items() for part in pair if part != "CHECKPOINT"]

    assert main(["export", *args]) == 2

    assert message in capsys.readouterr().err
    assert {folder.name for folder in tmp_path.iterdir()} == {"sae", "plain"}


def test_push(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = save_sae(tmp_path / "sae")
    options = ["--sae-id", "layer_2", "--license", "mit", "--private"]

    assert main(["push", str(tmp_path / "sae"), "user/repo", *options]) == 0

    out = capsys.readouterr().out
    assert f"{hub.endpoint}/user/repo/commit/" in out
    assert f"Next: {hub.endpoint}/user/repo says how to load it" in out
    assert b"license: mit" in hub.files("user/repo")["README.md"]
    x = torch.randn(9, 12)
    assert torch.equal(SAE.from_pretrained("user/repo", "layer_2")(x), sae(x))


def test_push_shows_the_quickstarts_metrics(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae = save_sae(tmp_path / "sae")
    path = tmp_path / "metrics.parquet"
    sizes = {"frequency": np.zeros(sae.cfg.d_sae, dtype=np.float32)}
    ours = [make_metrics(k, 0.125 * k, trained_k=sae.k_max, **sizes) for k in (1, 4)]
    fixed = make_metrics(2, 0.999, sae="TopK-2", architecture="topk", trained_k=2)
    push = ["push", str(tmp_path / "sae"), "user/repo", "--sae-id", "a"]

    write_table(path, MetricsTable([*ours, fixed]))
    assert main([*push, "--metrics", str(path)]) == 0

    files = hub.files("user/repo")
    assert b"| 4 | 3.5 | 0.500 |" in files["a/README.md"]
    assert b"0.999" not in files["a/README.md"]
    assert files["a/metrics.png"].startswith(b"\x89PNG")
    assert main([*push, "--metrics", str(path), "--sae", "TopK-2"]) == 2
    assert "the table's 'TopK-2' is a topk SAE" in capsys.readouterr().err
    assert main([*push, "--metrics", str(path), "--sae", "TopK-3"]) == 2
    assert "['HierarchicalTopK', 'TopK-2'], got 'TopK-3'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "repo_id", "message"),
    [
        ("nowhere", "user/repo", "there is no SAE in"),
        ("half", "user/repo", "sae_weights.safetensors is missing"),
        ("sae", "user/repo", "sae_id must be a relative path of plain names"),
        ("sae", "a/b/c", "Repo id must be"),
    ],
)
def test_bad_pushes_are_one_clear_line(
    folder: str,
    repo_id: str,
    message: str,
    hub: HubServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_sae(tmp_path / "sae")
    save_sae(tmp_path / "half")
    (tmp_path / "half" / "sae_weights.safetensors").unlink()
    sae_id = "layer" if repo_id == "a/b/c" else "../layer"

    assert main(["push", str(tmp_path / folder), repo_id, "--sae-id", sae_id]) == 2

    assert message in capsys.readouterr().err
    assert hub.requests == []


def test_a_hub_that_cannot_be_reached_is_one_clear_line(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_sae(tmp_path / "sae")
    hub.server_close()  # the port refuses connections from now on

    assert main(["push", str(tmp_path / "sae"), "user/repo", "--sae-id", "a"]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be reached" in line
    assert "Try again" in line


def test_what_the_hub_refuses_is_one_clear_line(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_sae(tmp_path / "sae")
    hub.refuses = True

    assert main(["push", str(tmp_path / "sae"), "user/repo", "--sae-id", "a"]) == 2

    assert "403 Forbidden" in capsys.readouterr().err
