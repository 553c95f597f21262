"""Tests of the page and of the command that writes it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import HookedSAETransformer
from safetensors.torch import load_file
from typing_extensions import override

from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.features import (
    FeatureTable,
    collect_features,
    html_page,
    to_json,
    write_features,
)
from tests.helpers import make_crude_sae
from tests.hub_server import HubServer
from tests.stranger import Stranger

EVIL = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>\u2028\x00"


class Parsed(HTMLParser):
    """The tags of a page, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    @override
    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)


@pytest.fixture(scope="module")
def table(model: HookedSAETransformer) -> FeatureTable:
    tokens = model.to_tokens("The river runs to the sea, and the road to the town.")
    return collect_features(make_crude_sae(model), model, [tokens], [3, 1])


def test_text_is_never_markup(table: FeatureTable) -> None:
    feature = table.features[0]
    context = replace(feature.contexts[0], tokens=[EVIL], peak=0, active=[])
    evil = replace(
        table,
        sae=EVIL,
        features=[replace(feature, promoted=[(EVIL, 1.0)], contexts=[context])],
        provenance={EVIL: EVIL},
    )

    page = Parsed(html_page(to_json(evil)))

    assert [tag for tag, _ in page.tags].count("script") == 2
    assert "img" not in dict(page.tags)
    data, script = page.scripts
    shown = json.loads(data)
    assert shown["sae"] == EVIL
    assert shown["features"][0]["contexts"][0]["tokens"] == [EVIL]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write", script)


def test_the_page_asks_for_nothing_from_elsewhere(table: FeatureTable) -> None:
    page = Parsed(html_page(to_json(table)))

    (policy,) = (
        attrs["content"]
        for tag, attrs in page.tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert not any({"src", "href"} & attrs.keys() for _, attrs in page.tags)


def save_sae(folder: Path, model: HookedSAETransformer) -> None:
    make_crude_sae(model).save_model(folder)


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "features.json").read_text(encoding="utf-8"))


def test_the_command_writes_a_page_and_its_numbers(
    tmp_path: Path, model: HookedSAETransformer, capsys: pytest.CaptureFixture[str]
) -> None:
    save_sae(tmp_path / "ours", model)
    output = tmp_path / "features"
    options = ["--contexts", "3", "--output", str(output)]
    command = ["features", str(tmp_path / "ours"), *options]

    assert main([*command, "--features", "12,40"]) == 0

    data = read(output)
    page = Parsed((output / "features.html").read_text(encoding="utf-8"))
    assert json.loads(page.scripts[0]) == data
    assert [one["feature"] for one in data["features"]] == [12, 40]
    assert (data["sae"], data["d_sae"], data["ks"]) == ("ours", 96, [1, 2, 4, 8])
    assert data["provenance"]["dataset"] == "bundled, held out"
    assert data["provenance"]["checkpoint"] == {"path": "…/ours"}
    assert 80 < data["tokens"] <= 3 * 31
    out = capsys.readouterr().out
    assert str(output / "features.html") in out
    assert f"Next: sae-lens-hierarchical export {tmp_path / 'ours'} --k 4" in out

    assert main([*command, "--features", "12"]) == 2
    assert "features.html is there already" in capsys.readouterr().err
    command.append("--force")
    assert main([*command, "--random", "5", "--seed", "1"]) == 0
    chosen = [one["feature"] for one in read(output)["features"]]
    assert read(output)["chosen"] == "5 of all at random, seed 1"
    assert main([*command, "--random", "5", "--seed", "1"]) == 0
    assert [one["feature"] for one in read(output)["features"]] == chosen
    assert main([*command, "--top", "2"]) == 0
    assert len(read(output)["features"]) == 2


def test_other_files_in_the_folder_stay(tmp_path: Path, table: FeatureTable) -> None:
    others = ("manifest.json", "runner_cfg.json", "sparsity.safetensors")
    for name in others:
        (tmp_path / name).write_text("mine")

    for _ in range(2):
        write_features(tmp_path, table)

    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        *others,
        "features.html",
        "features.json",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--features", "96"], "features must be integers from 0 to d_sae - 1 = 95"),
        (["--top", "0"], "top must be an integer from 1 to 96, got 0"),
        (["--random", "97"], "random must be an integer from 1 to 96, got 97"),
        (["--contexts", "0"], "contexts must be from 1"),
        (["--output", "ours"], "ours holds an SAE: name another folder"),
    ],
)
def test_bad_options_are_one_clear_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    model: HookedSAETransformer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_sae(tmp_path / "ours", model)

    assert main(["features", "ours", *options]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_an_output_that_cannot_be_written_ends_it_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()

    # There is no SAE, either, which would be found out later.
    assert main(["features", "/no", f"--output={tmp_path / 'file'}"]) == 2

    assert "--output must be a folder that can be written" in capsys.readouterr().err


def test_figures_in_the_output_folder_are_no_matter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "figure_2.png").touch()

    # It goes on to the next error.
    assert main(["features", "/no", f"--output={tmp_path}"]) == 2

    assert "no SAE in /no" in capsys.readouterr().err


@pytest.mark.parametrize("on_hub", [True, False])
def test_the_export_that_comes_next_runs(
    on_hub: bool,
    hub: HubServer,
    tmp_path: Path,
    model: HookedSAETransformer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_sae(hub.repo("user/repo") / "layer" if on_hub else tmp_path / "ours", model)
    source = "user/repo:layer" if on_hub else f"my SAE={tmp_path / 'ours'}"
    options = ["--features=12", "--contexts=2", f"--output={tmp_path / 'page'}"]
    assert main(["features", source, *options]) == 0
    *_, following = capsys.readouterr().out.splitlines()
    command = shlex.split(following.removeprefix("Next: sae-lens-hierarchical "))
    assert command[-1] == ("user_repo_layer_at_4" if on_hub else "my SAE_at_4")
    command[-1] = str(tmp_path / "exported")

    assert main(command) == 0

    assert (tmp_path / "exported" / "cfg.json").is_file()


def test_features_are_chosen_in_one_way(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["features", "ours", "--top", "3", "--random", "3"])
    assert "not allowed with argument --top" in capsys.readouterr().err


def test_models_from_a_folder_are_shown_too(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model_class, has_logits in (
        ("HookedTransformer", True),
        ("AutoModelForCausalLM", False),
    ):
        stranger.save_sae(model_class_name=model_class)
        output = tmp_path / model_class
        options = ["--features", "7", "--contexts", "4", "--output", str(output)]

        assert main(["features", str(stranger.sae), *options]) == 0, (
            capsys.readouterr().err
        )

        (one,) = read(output)["features"]
        assert one["firings"] > 0
        assert (one["promoted"] is not None) == has_logits
        if has_logits:
            sae = load_file(stranger.sae / "sae_weights.safetensors")
            model = load_file(stranger.model / "model.safetensors")
            names = {name.removeprefix("transformer."): x for name, x in model.items()}
            row = sae["W_dec"][7] * names["ln_f.weight"]
            effects = torch.mv(names["wte.weight"], row)
            largest = float(effects.max() - effects.mean())
            assert one["promoted"][0][1] == pytest.approx(largest, rel=1e-3)
