"""Tests of --help: it is complete, honest, and loads nothing heavy."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sae_lens_hierarchical import PRESETS
from sae_lens_hierarchical.cli import main, saelens_options
from sae_lens_hierarchical.cli.main import make_parser
from sae_lens_hierarchical.cli.saelens_options import (
    LIST,
    ask_saelens,
)
from sae_lens_hierarchical.cli.saelens_options import (
    saelens_options as known_options,
)
from sae_lens_hierarchical.cli.training_help import add_saelens_options

ROOT = Path(__file__).parents[1]
COMMANDS = list(make_parser()[1])
# Those that take SAELens's options, beside their own.
TRAINING = ("train", "compare")
PACKAGE = "sae_lens_hierarchical.cli"


def help_of(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(args)
    return capsys.readouterr().out


def test_the_help_of_no_command_loads_torch_or_saelens() -> None:
    code = f"""
import sys
from sae_lens_hierarchical.cli import main
for command in {[[], *([name] for name in COMMANDS)]}:
    try:
        main([*command, "--help"])
    except SystemExit as end:
        assert end.code == 0
heavy = dict.fromkeys(["torch", "sae_lens", "transformers", "wandb", "rich"])
assert not heavy.keys() & sys.modules.keys(), heavy.keys() & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def examples_of(command: str) -> list[list[str]]:
    """Return the examples in a command's help, each as the shell splits it."""
    _, parsers = make_parser()
    _, _, after = str(parsers[command].description).partition("\n\nexamples:\n")
    examples, _, _ = after.partition("\n\n")
    lines = examples.replace("\\\n", "").splitlines()
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_says_what_the_command_does_and_has_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = help_of([command, "--help"], capsys)

    usage, examples, _ = shown.partition("\n\nexamples:\n  sae-lens-hierarchical ")
    _, _, what = usage.partition("\n\n")
    assert examples
    assert re.fullmatch(r"[A-Z].{30,}\.", what, flags=re.DOTALL)


@pytest.mark.parametrize(
    "example",
    [*itertools.chain(*(examples_of(name) for name in COMMANDS))],
    ids=" ".join,
)
def test_examples_are_taken(
    example: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, command, *_ = example
    taken: list[list[str]] = []

    def run(_options: argparse.Namespace, rest: list[str]) -> int:
        taken.append(rest)
        return 0

    monkeypatch.setattr(sys.modules[f"{PACKAGE}.{command}"], "run", run)
    monkeypatch.setattr(sys.modules[f"{PACKAGE}.main"], "_WITH_SAELENS_OPTIONS", (run,))

    assert main(example[1:]) == 0

    assert program == "sae-lens-hierarchical"
    options = known_options()
    known = {
        name
        for option in (*options.run, *options.saes["hierarchical_topk"])
        for name in option.names
    }
    (rest,) = taken
    assert command in TRAINING or not rest
    assert {part for part in rest if part.startswith("--")} <= known


@pytest.mark.parametrize(
    ("command", "architecture"),
    [
        *((name, "hierarchical_topk") for name in COMMANDS),
        *(("train", name) for name in sorted(known_options().saes)),
    ],
)
def test_every_option_says_what_it_is(command: str, architecture: str) -> None:
    parser = make_parser()[1][command]
    if command in TRAINING:
        add_saelens_options(parser, architecture)

    silent = [
        action.option_strings or action.dest
        for action in parser._actions
        if not re.sub(r"\(?default:.*", "", action.help or "", flags=re.DOTALL).strip()
    ]
    assert not silent


def test_the_help_of_train_says_what_is_otherwise_in_the_bundled_preset(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = " ".join(help_of(["train", "--help"], capsys).split())

    assert "(default: checkpoints; with --preset bundled None)" in shown
    assert PRESETS["bundled"]["checkpoint_path"] is None
    assert "(default: True; with --preset bundled False)" in shown


def test_the_dataset_of_features_is_that_of_its_one_sae(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = " ".join(help_of(["features", "--help"], capsys).split())

    assert "default: what the SAE was trained on; for the bundled model its" in shown
    assert "first SAE" not in shown


def test_the_list_of_saelens_options_is_that_of_the_installed_version() -> None:
    text = LIST.read_text(encoding="utf-8")

    assert text == ask_saelens().to_json(), "make saelens-options writes it anew"


@pytest.mark.parametrize("args", [["train"], ["train", "--help"], ["compare", "-h"]])
def test_help_has_our_options_and_all_of_saelens(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = help_of(args, capsys)

    known = json.loads(LIST.read_text())
    for option in [*known["run"], *known["saes"]["hierarchical_topk"]]:
        assert f" {option['names'][0]} " in shown
    for option in ("--preset", "--matmul_precision", "--max-norm-ratio"):
        assert f"\n  {option}" in shown
    assert f"SAELens {known['version']}, model and hook:" in shown
    for name in PRESETS:
        assert f"\n  {name} " in shown


def test_help_has_the_options_of_the_architecture_that_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = help_of(["train", "--architecture", "jumprelu", "--help"], capsys)

    assert "--jumprelu_bandwidth" in shown
    assert "--loss_every" not in shown


def test_tab_completes_our_options_and_saelens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "completion"
    script.write_text(help_of(["--print-completion", "bash"], capsys))
    complete = """
        source "$1"; COMP_WORDS=(sae-lens-hierarchical train "$2"); COMP_CWORD=2
        $(complete -p sae-lens-hierarchical | sed 's/.*-F \\(\\S*\\).*/\\1/')
        echo "${COMPREPLY[@]}"
    """
    for typed, expected in (("--hook_na", "--hook_name"), ("--dry", "--dry-run")):
        shown = subprocess.run(
            ["bash", "-c", complete, "-", str(script), typed],
            check=True,
            capture_output=True,
            text=True,
        )
        assert shown.stdout.split() == [expected]


def test_completion_without_its_library_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--print-completion", "bash"])
    assert "pip install shtab" in capsys.readouterr().err


def test_another_saelens_is_asked_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stale = tmp_path / "options.json"
    stale.write_text(json.dumps({"version": "6.0.0", "run": [], "saes": {}}))
    monkeypatch.setattr(saelens_options, "LIST", stale)

    assert " --hook_name str " in help_of(["train", "--help"], capsys)
