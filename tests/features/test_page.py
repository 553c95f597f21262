"""Tests of the page and of the command that writes it."""

from __future__ import annotations

import json
import re
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
)
from tests.helpers import make_crude_sae
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
