"""Tests of the command sweep with SAEs that lie elsewhere, and of a target."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    HookedSAETransformer,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata

from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.data import BUNDLED_HOOK_NAME, BUNDLED_MODEL_NAME
from sae_lens_hierarchical.eval.table import read_table
from tests.helpers import make_crude_sae
from tests.hub_server import HubServer

METADATA = SAEMetadata(
    model_name=BUNDLED_MODEL_NAME,
    hook_name=BUNDLED_HOOK_NAME,
    context_size=32,
    prepend_bos=True,
)


def test_saes_of_the_hub_and_names(
    hub: HubServer,
    model: HookedSAETransformer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_crude_sae(model).save_model(hub.repo("user/repo") / "layer")
    topk = TopKSAE(TopKSAEConfig(d_in=128, d_sae=64, k=4, metadata=METADATA))
    topk.save_model(tmp_path / "topk")
    saes = ["user/repo:layer", f"the TopK SAE={tmp_path / 'topk'}"]
    output = tmp_path / "sweep"
    options = ["--k=1,4,8", "--contexts=4", "--ce-contexts=0", f"--output={output}"]

    assert main(["sweep", *saes, *options, "--target-ev", "0.05"]) == 0

    table = read_table(output / "metrics.parquet")
    assert table.saes() == ["user/repo:layer", "the TopK SAE"]
    origins: dict[str, Any] = table.provenance["checkpoints"]
    assert origins["user/repo:layer"].pop("sha256")
    assert origins["user/repo:layer"] == {
        "id": "user/repo:layer",
        "repo_id": "user/repo",
        "revision": f"{0:040x}",
    }
    assert origins["the TopK SAE"]["path"] == str(tmp_path / "topk")
    out = capsys.readouterr().out
    _, _, said = out.partition("Smallest k with an explained variance of 0.05:\n")
    ours, other, after = said.splitlines()
    assert ours.startswith("  user/repo:layer: ")
    assert other.startswith("  the TopK SAE: none up to k = 8 (95 % interval: above")
    command = after.removeprefix("Next: sae-lens-hierarchical ").split()
    assert command[-1] == "user_repo_layer_at_8"
    command[-1] = str(tmp_path / "exported")
    assert main(command) == 0
    assert (tmp_path / "exported" / "cfg.json").is_file()


@pytest.mark.parametrize(("ks", "expected"), [("1,4,16,32", 4), ("16,32", 8)])
def test_the_export_that_comes_next_is_one_that_was_trained_for(
    ks: str,
    expected: int,
    model: HookedSAETransformer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_crude_sae(model).save_model(tmp_path / "sae")
    options = [f"--k={ks}", "--contexts=2", "--ce-contexts=0"]

    assert (
        main(["sweep", str(tmp_path / "sae"), *options, f"--output={tmp_path / 's'}"])
        == 0
    )

    *_, following = capsys.readouterr().out.splitlines()
    assert f" --k {expected} --output sae_at_{expected}" in following


def test_a_jumprelu_sae_is_shown_with_its_own_thresholds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    cfg = JumpReLUSAEConfig(d_in=128, d_sae=64, metadata=METADATA)
    sae = JumpReLUSAE(cfg)
    sae.threshold.data.uniform_(0.1, 1)
    sae.save_model(tmp_path / "sae")
    output = tmp_path / "sweep"
    options = ["--k=1", "--contexts=4", "--ce-contexts=0", f"--output={output}"]

    assert main(["sweep", f"jump={tmp_path / 'sae'}", *options]) == 0

    table = read_table(output / "metrics.parquet")
    (own,) = table.select(activation="own")
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert [
        *("jump", "own", f"{own.l0:.1f}", f"{own.explained_variance:.3f}"),
        *(f"{own.fvu:.3f}", "-", str(own.dead_features)),
    ] in cells


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_an_output_that_cannot_be_written_ends_it_first(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    # There is no SAE, either, which would be found out later.
    assert main(["sweep", "/no", "--k=1", f"--output={tmp_path / output}"]) == 2

    assert "--output must be a folder that can be written" in capsys.readouterr().err


def test_a_sweep_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    output = tmp_path / "new" / "below"

    assert main(["sweep", "/no", "--k=1", f"--output={output}"]) == 2

    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("target", ["1", "0", "x", "nan"])
def test_a_target_is_a_fraction(
    target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["sweep", "sae", "--k=1", "--target-ev", target])
    assert "must be a number above 0 and below 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["sweep", "--k=1,4", "--ce-contexts=0"], ["features", "--top=2"]]
)
def test_an_evaluation_says_nothing_false(
    command: list[str],
    model: HookedSAETransformer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sae, output = tmp_path / "sae", f"--output={tmp_path / 'output'}"
    make_crude_sae(model).save_model(sae)

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert main([*command, str(sae), "--contexts=2", output]) == 0

    said = [*caplog.messages, *(str(w.message) for w in shown), capsys.readouterr().err]
    for false in ("fewer samples", "not tokenized"):
        assert false not in "\n".join(said)
