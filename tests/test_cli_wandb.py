"""Tests of the commands that log to Weights & Biases, where nobody is logged in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.cli.wandb_login import check_wandb_login

TRAIN = ["train", "--model_name", "nobody/nothing", "--d_in", "8", "--d_sae", "512"]


@pytest.fixture(autouse=True)
def stranger_to_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Nobody is logged in; return where wandb looks for a password."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.test")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # it read the environment once
    yield tmp_path / "netrc"
    wandb.teardown()


@pytest.mark.parametrize(
    "args", [TRAIN, ["compare", "--preset", "qwen-2.5-7b-layer-14"]]
)
def test_a_missing_login_is_one_clear_line_before_anything_is_loaded(
    args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*args, "--device", "cpu"]) == 2

    error = capsys.readouterr().err.splitlines()[-1]
    assert "`wandb login`" in error
    assert "--logger csv, or none" in error
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_API_KEY", 40 * "a"),
        ("WANDB_MODE", "offline"),
        ("WANDB_MODE", "disabled"),
    ],
)
def test_a_key_or_a_mode_that_sends_nothing_will_do(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    check_wandb_login()


def test_a_login_of_wandbs_own_will_do(stranger_to_wandb: Path) -> None:
    stranger_to_wandb.write_text("machine wandb.test login user password secret\n")

    check_wandb_login()
