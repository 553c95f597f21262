"""Tests of folders that appear whole, and of those that a run reserves."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sae_lens_hierarchical.files.atomic_directory import atomic_directory
from sae_lens_hierarchical.training.run_folders import reserve_folders


def write(folder: Path, content: str, *names: str) -> None:
    with atomic_directory(folder) as staging:
        for name in names:
            path = staging / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "sae"

    def fail() -> None:
        with atomic_directory(folder) as staging:
            (staging / "cfg.json").write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert list(tmp_path.iterdir()) == []
    write(folder, "first", "cfg.json")
    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert contents(tmp_path) == {"sae/cfg.json": "first"}


def test_a_new_sae_leaves_no_file_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "sae"
    own = (
        "cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
        "activation_scaler.json",
        "activation_whitening.safetensors",
        "runner_cfg.json",
        "trainer_state.pt",
        "manifest.json",
    )
    write(folder, "old", *own)
    (folder / "notes.txt").write_text("mine")
    (folder / "figures").mkdir()
    (folder / "figures" / "cfg.json").write_text("mine")

    write(folder, "new", "cfg.json", "sae_weights.safetensors")

    assert contents(folder) == {
        "cfg.json": "new",
        "sae_weights.safetensors": "new",
        "notes.txt": "mine",
        "figures/cfg.json": "mine",
    }


def test_several_saes_are_replaced_together(tmp_path: Path) -> None:
    write(tmp_path / "saes", "old", "a/cfg.json", "a/sparsity.safetensors")
    (tmp_path / "saes" / "a" / "notes.txt").write_text("mine")

    write(tmp_path / "saes", "new", "a/cfg.json", "b/cfg.json", "runner_cfg.json")

    assert contents(tmp_path / "saes") == {
        "a/cfg.json": "new",
        "a/notes.txt": "mine",
        "b/cfg.json": "new",
        "runner_cfg.json": "new",
    }


def test_what_is_no_sae_replaces_only_its_own_files(tmp_path: Path) -> None:
    write(tmp_path, "old", "manifest.json", "page.html", "sub/cfg.json", "sub/a.json")

    with atomic_directory(tmp_path, own_files={"page.html"}) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "a.json").write_text("new")

    assert contents(tmp_path) == {
        "manifest.json": "old",
        "sub/cfg.json": "old",
        "sub/a.json": "new",
    }


@pytest.mark.parametrize("fails_at", range(6))
def test_a_failure_while_replacing_keeps_both(
    fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sae"
    names = ("cfg.json", "sae_weights.safetensors", "runner_cfg.json")
    write(folder, "old", *names)
    rename: Callable[[Path, Path], Path] = Path.rename
    calls = iter(range(1000))

    def failing(source: Path, target: Path) -> Path:
        if next(calls) == fails_at:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="is as it was; the new files are in") as failed:
        write(folder, "new", *names)

    kept = Path(str(failed.value).split("are in ")[1].split(":")[0])
    assert contents(kept) == dict.fromkeys(names, "new")
    files = {f.name: f.read_text() for f in folder.iterdir() if f.is_file()}
    assert files == dict.fromkeys(names, "old")
    # The next run there does not take it for what a killed one left.
    with reserve_folders(
        SimpleNamespace(output_path=str(folder), checkpoint_path=None)
    ):
        assert contents(kept) == dict.fromkeys(names, "new")


def test_a_link_to_another_file_system(tmp_path: Path, other_disk: Path) -> None:
    link = tmp_path / "output"
    link.symlink_to(other_disk, target_is_directory=True)
    for content in ("first", "second"):
        write(link, content, "cfg.json", "sae_weights.safetensors")
        assert set(contents(other_disk).values()) == {content}
    new = tmp_path / "new"
    new.symlink_to(other_disk / "there", target_is_directory=True)
    write(new, "third", "cfg.json")
    assert contents(other_disk / "there") == {"cfg.json": "third"}
    assert link.is_symlink()
    assert new.is_symlink()


WRITER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from sae_lens_hierarchical.files.atomic_directory import atomic_directory
from sae_lens_hierarchical.training.run_folders import reserve_folders
output = sys.argv[1]
with reserve_folders(SimpleNamespace(output_path=output, checkpoint_path=None)):
    with atomic_directory(Path(output)) as staging:
        (staging / "cfg.json").write_text("half")
        print("writing", flush=True)
        sys.stdin.read()
"""


def start_writer(output: Path) -> subprocess.Popen[str]:
    """Start a run in another process, which writes until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(output)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def run_config(output: Path, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"output_path": str(output), "checkpoint_path": None, **more}
    )


def test_two_processes_cannot_write_one_folder(tmp_path: Path) -> None:
    write(tmp_path / "sae", "old", "cfg.json")
    process = start_writer(tmp_path / "sae")
    other_name = tmp_path / "link"
    other_name.symlink_to(tmp_path / "sae")
    for output in (tmp_path / "sae", other_name):
        with (
            pytest.raises(ValueError, match=r"output_path .* by another run"),
            reserve_folders(run_config(output)),
        ):
            pytest.fail("reserved twice")

    process.kill()
    process.communicate()

    # A killed one holds nothing, and what it left is no part of an SAE.
    assert (tmp_path / "sae" / "cfg.json").read_text() == "old"
    with reserve_folders(run_config(tmp_path / "sae")):
        pass
    assert contents(tmp_path / "sae") == {"cfg.json": "old"}


def test_a_run_leaves_alone_what_another_writes_in_a_sub_folder(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = start_writer(runs / "b")
    with reserve_folders(run_config(runs)):
        pass
    assert "half" in contents(runs).values()

    process.kill()
    process.communicate()

    with reserve_folders(run_config(runs)):
        pass
    assert "half" not in contents(runs).values()


def test_a_run_leaves_alone_what_is_exported_below_it(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "runs" / "exported") as staging:
        with reserve_folders(run_config(tmp_path / "runs")):
            pass
        (staging / "cfg.json").write_text("whole")

    assert contents(tmp_path / "runs" / "exported") == {"cfg.json": "whole"}


def test_an_error_is_not_hidden_by_files_that_are_gone(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError) as failed,
        atomic_directory(tmp_path / "sae") as staging,
    ):
        shutil.rmtree(staging.parent)

    assert failed.value.filename == str(staging)


def test_writers_that_reserve_nothing_keep_their_own_files(tmp_path: Path) -> None:
    folder = tmp_path / "sae"
    with atomic_directory(folder) as first:
        (first / "cfg.json").write_text("first")
        write(folder, "second", "cfg.json", "sparsity.safetensors")
        assert contents(folder)["cfg.json"] == "second"
    assert contents(tmp_path) == {"sae/cfg.json": "first"}


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = [tmp_path / "file", tmp_path / "file" / "below"]
    if os.path.isdir("/proc/self"):  # noqa: PTH112
        refused.append(Path("/proc/output"))
    for output in refused:
        for field in ("output_path", "checkpoint_path"):
            cfg = run_config(tmp_path / "other")
            setattr(cfg, field, str(output))
            with (
                pytest.raises(ValueError, match=f"{field} must be a folder that can"),
                reserve_folders(cfg),
            ):
                pytest.fail("reserved")
    assert contents(tmp_path) == {"file": ""}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_was_made_for_a_run_and_left_empty_goes(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    cfg = run_config(tmp_path / "a" / "b", checkpoint_path=str(tmp_path / "there"))
    with reserve_folders(cfg):
        assert (tmp_path / "a" / "b").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with reserve_folders(cfg):
        (tmp_path / "a" / "b" / "cfg.json").write_text("new")
    assert contents(tmp_path) == {"a/b/cfg.json": "new"}
