"""Tests of pushing to the Hub and loading back, with the real client of the Hub."""

from __future__ import annotations

import hashlib
import json
import re
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import RevisionNotFoundError
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from safetensors.torch import save_file
from torch import Tensor

from sae_lens_hierarchical import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)
from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable
from sae_lens_hierarchical.export import export_all
from sae_lens_hierarchical.hub import CITATION, model_card, push_to_hub
from tests.helpers import make_metrics
from tests.hub_server import HubServer

REPO, D_IN, D_SAE, K_MAX = "user/repo", 12, 40, 8


def rows(
    architecture: str = "hierarchical_topk", **changes: Any
) -> list[BudgetMetrics]:
    """Return rows of an SAE of these sizes."""
    settings: dict[str, Any] = {
        "architecture": architecture,
        "trained_k": K_MAX,
        "frequency": np.zeros(D_SAE, dtype=np.float32),
        "excluded_tokens": 24,
    } | changes
    return [make_metrics(k, explained_variance=0.1 * k, **settings) for k in (1, 4, 8)]


PROVENANCE = {"dataset": "some/text", "context_size": 128}
METRICS = MetricsTable(rows(), PROVENANCE)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the Hub's client try again at once."""
    monkeypatch.setattr("time.sleep", lambda _: None)


def make_sae(seed: int = 0, **options: Any) -> HierarchicalTopKSAE:
    torch.manual_seed(seed)
    cfg = HierarchicalTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k_max=K_MAX, **options)
    sae = HierarchicalTopKSAE(cfg)
    metadata = sae.cfg.metadata
    metadata.model_name, metadata.hook_name = "some-model", "blocks.2.hook_resid_post"
    return sae


def activations() -> Tensor:
    return torch.randn(20, D_IN, generator=torch.Generator().manual_seed(1))


def front_matter(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def test_pushed_sae_loads_back_equal(hub: HubServer) -> None:
    sae = make_sae(rescale_acts_by_decoder_norm=True)
    sae.thresholds.copy_(torch.rand(K_MAX))

    address = push_to_hub(sae, REPO, "layer_2/resid", metrics=METRICS, license="mit")

    assert address.startswith(f"{hub.endpoint}/{REPO}/commit/")
    assert hub.commits == 1
    assert set(hub.files(REPO)) == {
        "README.md",
        "layer_2/resid/README.md",
        "layer_2/resid/cfg.json",
        "layer_2/resid/metrics.png",
        "layer_2/resid/sae_weights.safetensors",
    }
    loaded = SAE.from_pretrained(REPO, "layer_2/resid")
    assert isinstance(loaded, HierarchicalTopKSAE)
    assert loaded.cfg.metadata.model_name == "some-model"
    for k in (1, 3, 8):
        with loaded.at_k(k), sae.at_k(k):
            assert torch.equal(loaded(activations()), sae(activations()))
            assert loaded.threshold(k) == sae.threshold(k)


def test_hook_name_is_the_default_id(hub: HubServer, tmp_path: Path) -> None:
    make_sae().save_model(tmp_path / "sae")

    push_to_hub(tmp_path / "sae", REPO)

    assert SAE.from_pretrained(REPO, "blocks.2.hook_resid_post").cfg.d_sae == D_SAE


def test_private_with_a_token(hub: HubServer) -> None:
    push_to_hub(make_sae(), REPO, "layer", private=True, token="hf_mine")

    assert [asked["visibility"] for asked in hub.created] == ["private"]
    assert hub.tokens == {"Bearer hf_mine"}


def test_unknown_branch_is_an_error(hub: HubServer) -> None:
    with pytest.raises(RevisionNotFoundError):
        push_to_hub(make_sae(), REPO, "layer", revision="nowhere")

    assert hub.files(REPO) == {}


def test_exported_folder_is_pushed_as_one(hub: HubServer, tmp_path: Path) -> None:
    sae = make_sae()
    export_all(sae, tmp_path / "plain", [2, 4])
    make_sae(seed=1).save_model(tmp_path / "plain" / ".k_8.partial")  # of a killed run

    push_to_hub(tmp_path / "plain", REPO, "topk")

    assert hub.commits == 1
    folders = {"", "topk", "topk/k_2", "topk/k_4"}
    assert {name.rpartition("/")[0] for name in hub.files(REPO)} == folders
    for k in (2, 4):
        loaded = SAE.from_pretrained(REPO, f"topk/k_{k}")
        assert isinstance(loaded, TopKSAE)
        with sae.at_k(k):
            torch.testing.assert_close(loaded(activations()), sae(activations()))
    card = hub.files(REPO)["README.md"].decode()
    assert 'SAE.from_pretrained("user/repo", "topk/k_2")' in card
    assert 'SAE.from_pretrained("user/repo", "topk/k_4")' in card
    assert "import sae_lens_hierarchical" not in card


def test_nothing_else_in_the_folder_is_pushed(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "sae"
    make_sae().save_model(folder)
    save_file(
        {"sparsity": torch.arange(D_SAE).float()}, folder / "sparsity.safetensors"
    )
    for name in ("trainer_state.pt", "runner_cfg.json", "key.txt"):
        (folder / name).write_text("secret")

    push_to_hub(folder, REPO, "layer")

    assert {name.removeprefix("layer/") for name in hub.files(REPO)} == {
        "README.md",
        "cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    }
    _, _, sparsity = SAE.from_pretrained_with_cfg_and_sparsity(REPO, "layer")
    assert sparsity is not None
    assert torch.equal(sparsity, torch.arange(D_SAE).float())


def test_card_tells_what_the_checkpoint_knows() -> None:
    card = model_card(make_sae(), REPO, ["layer"], metrics=METRICS, license="mit")

    assert front_matter(card) == {
        "library_name": "saelens",
        "license": "mit",
        "tags": ["saelens", "sparse-autoencoder", "hierarchical-topk"],
    }
    assert ModelCard(card).data.to_dict() == front_matter(card)
    assert "- language model: `some-model`\n" in card
    assert "- K: `8`\n" in card
    assert f"- d_sae: `{D_SAE}`\n" in card
    assert "- dataset: `some/text`\n- contexts: `8`\n- context size: `128`\n" in card
    assert "- tokens: `1,000`\n- of these, for CE loss: `500`\n" in card
    assert (
        "| k | L0 | explained variance | FVU | CE loss recovered | dead features |"
        in card
    )
    assert "| 4 | 3.5 | 0.400 | 0.600 | 0.300 | 4 |" in card
    project = Path("pyproject.toml").read_text()
    (address,) = re.findall(r'^Repository = "(.+)"$', project, re.MULTILINE)
    assert f"```sh\npip install git+{address}\n```" in card
    assert "import sae_lens_hierarchical" in card
    assert 'SAE.from_pretrained("user/repo", "layer")' in card
    assert CITATION in card
    assert CITATION in Path("README.md").read_text()


def test_unknown_facts_are_left_out_of_the_card() -> None:
    sae = make_sae()
    sae.cfg.metadata.model_name = None
    old = [replace(row, excluded_tokens=None) for row in METRICS.rows]

    card = model_card(sae, REPO, ["layer"], metrics=MetricsTable(old))

    assert "None" not in card
    for label in ("language model", "dataset", "contexts", "context size"):
        assert f"- {label}:" not in card
    assert card.count("- tokens:") == 1  # of the evaluation


@pytest.mark.parametrize(
    ("model_name", "model_class", "base_model"),
    [
        ("gemma-2-2b", "HookedTransformer", "google/gemma-2-2b"),
        ("gpt2-small", None, "gpt2"),
        ("org/model", "AutoModelForCausalLM", "org/model"),
        ("org/model", "HookedTransformer", None),
        ("/a/folder", "AutoModelForCausalLM", None),
        ("tests", "AutoModelForCausalLM", None),  # a folder here
        ("sae-lens-hierarchical/bundled", "HookedTransformer", None),
    ],
)
def test_card_names_the_base_model_where_the_hub_knows_it(
    model_name: str, model_class: str | None, base_model: str | None
) -> None:
    sae = make_sae()
    sae.cfg.metadata.model_name = model_name
    sae.cfg.metadata.model_class_name = model_class

    assert front_matter(model_card(sae, REPO, ["a"])).get("base_model") == base_model


@pytest.mark.parametrize("plugin", [True, False])
def test_code_on_the_card_runs(plugin: bool, hub: HubServer, tmp_path: Path) -> None:
    export_all(make_sae(), tmp_path / "plain", [2])
    push_to_hub(make_sae() if plugin else tmp_path / "plain", REPO, "layer")
    card = hub.files(REPO)["README.md"].decode()
    _, _, rest = card.partition("```python\n")
    variables: dict[str, Any] = {}

    exec(rest.partition("```")[0], variables)

    assert variables["sae"].cfg.k == (8 if plugin else 2)
    assert ("pip install sae-lens\n" in card) != plugin


def test_both_cards_show_the_plot_that_was_pushed(hub: HubServer) -> None:
    push_to_hub(make_sae(), REPO, "a/layer", metrics=METRICS)

    files = hub.files(REPO)
    for card in ("README.md", "a/layer/README.md"):
        _, _, rest = files[card].decode().partition("![")
        path = rest.partition("](")[2].partition(")")[0]
        image = (hub.repo(REPO) / card).parent / path
        assert image.read_bytes().startswith(b"\x89PNG")


def test_one_k_needs_no_plot(hub: HubServer) -> None:
    push_to_hub(make_sae(), REPO, "layer", metrics=MetricsTable(rows()[:1]))

    assert "layer/metrics.png" not in hub.files(REPO)
    assert b"![" not in hub.files(REPO)["README.md"]


def test_any_sae_is_pushed_with_its_rows_of_a_table(hub: HubServer) -> None:
    cfg = TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4)
    others = rows("topk", sae="TopK-4", trained_k=4, ce_loss_score=0.77)
    table = MetricsTable([*rows(), *others])

    push_to_hub(TopKSAE(cfg), REPO, "topk", metrics=table, metrics_sae="TopK-4")

    card = hub.files(REPO)["README.md"].decode()
    assert "| 4 | 3.5 | 0.400 | 0.600 | 0.770 | 4 |" in card
    assert "0.300" not in card
    assert front_matter(card)["tags"] == ["saelens", "sparse-autoencoder"]
    assert "bibtex" not in card
    assert type(SAE.from_pretrained(REPO, "topk")) is TopKSAE


def test_an_exported_sae_has_the_rows_at_its_k(hub: HubServer, tmp_path: Path) -> None:
    sae = make_sae()
    sae.thresholds.copy_(torch.arange(K_MAX, 0, -1) / 10)
    above = rows(activation="jumprelu", ce_loss_score=0.88)
    table = MetricsTable([*rows(), *above])
    for architecture in ("topk", "jumprelu"):
        export_all(sae, tmp_path / architecture, [4], architecture)
        push_to_hub(tmp_path / architecture, REPO, architecture, metrics=table)

    topk, jumprelu = (
        hub.files(REPO)[f"{name}/README.md"].decode() for name in ("topk", "jumprelu")
    )
    assert "| 4 | 3.5 | 0.400 | 0.600 | 0.300 | 4 |" in topk
    assert "| 4 | 3.5 | 0.400 | 0.600 | 0.880 | 4 |" in jumprelu
    for card in (topk, jumprelu):
        assert "| 8 | 7.5 |" not in card
    export_all(sae, tmp_path / "two", [2])
    with pytest.raises(ValueError, match=r"no rows of 'HierarchicalTopK' .* k = 2"):
        push_to_hub(tmp_path / "two", REPO, "two", metrics=table)


def test_several_saes_need_more_than_one_ones_rows(
    hub: HubServer, tmp_path: Path
) -> None:
    for seed in (0, 1):
        make_sae(seed).save_model(tmp_path / "ours" / f"seed_{seed}")
        cfg = TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4)
        TopKSAE(cfg).save_model(tmp_path / "topk" / f"seed_{seed}")
    of_topk = rows("topk", trained_k=4)

    for folder, table in ((tmp_path / "ours", rows()), (tmp_path / "topk", of_topk)):
        with pytest.raises(ValueError, match="is one SAE, and 2 are pushed: push them"):
            push_to_hub(folder, REPO, "layer", metrics=MetricsTable(table))

    assert hub.requests == []


@pytest.mark.parametrize(
    ("table", "name", "message"),
    [
        (
            [*rows(), *rows(sae="b")],
            None,
            r"holds 2 SAEs: .* of \['Hier.*', 'b'",
        ),
        (rows(), "c", r"must be one of the table's SAEs, \['HierarchicalTopK'\], got"),
        (rows("topk"), None, "is a topk SAE .* is pushed is a hierarchical_topk SAE"),
        (rows(trained_k=9), None, "k 9, and what is pushed is .* and k 8: say with"),
        (rows(frequency=np.zeros(5)), None, "d_sae 5 and k 8, and .* d_sae 40"),
        ([], None, "holds 0 SAEs"),
        (None, "a", "give --metrics too, got 'a'"),
    ],
)
def test_metrics_of_another_sae_are_refused_before_any_request(
    table: list[BudgetMetrics] | None, name: str | None, message: str, hub: HubServer
) -> None:
    metrics = None if table is None else MetricsTable(table)

    with pytest.raises(ValueError, match=message):
        push_to_hub(make_sae(), REPO, "layer", metrics=metrics, metrics_sae=name)

    assert hub.requests == []


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"hooks": ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]},
            r"hook blocks\.0\..* or blocks\.1\..*, and what is pushed has blocks\.2\.",
        ),
        ({"model": "another"}, "has model another, and what is pushed has some-model"),
        (
            {"checkpoints": {"HierarchicalTopK": {"sha256": "0" * 64}}},
            "has weights with sha256 0{64}, and what is pushed has [0-9a-f]{64}:",
        ),
    ],
)
def test_metrics_measured_elsewhere_are_refused_before_any_request(
    facts: dict[str, Any], message: str, hub: HubServer, tmp_path: Path
) -> None:
    make_sae().save_model(tmp_path / "sae")
    table = MetricsTable(rows(), PROVENANCE | facts)

    with pytest.raises(ValueError, match=message):
        push_to_hub(tmp_path / "sae", REPO, "layer", metrics=table)

    assert hub.requests == []


def test_metrics_of_the_same_weights_are_taken(hub: HubServer, tmp_path: Path) -> None:
    sae = make_sae()
    sae.save_model(tmp_path / "sae")
    weights = (tmp_path / "sae" / "sae_weights.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    facts: dict[str, Any] = {
        "hooks": ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"],
        "model": "/a/copy",  # as sweep --model named it
        "checkpoints": {"HierarchicalTopK": {"sha256": digest}},
    }
    export_all(sae, tmp_path / "plain", [4])
    table = MetricsTable(rows(), PROVENANCE | facts)
    push_to_hub(tmp_path / "sae", REPO, "layer", metrics=table)
    # The weights in the table are of what these were exported from.
    table = MetricsTable(rows(), PROVENANCE | facts | {"model": "some-model"})
    push_to_hub(tmp_path / "plain", REPO, "plain", metrics=table)

    for name in ("layer", "plain"):
        assert b"## Evaluation" in hub.files(REPO)[f"{name}/README.md"]


def test_folders_of_the_one_who_pushes_are_not_shown() -> None:
    sae = make_sae()
    sae.cfg.metadata.model_name = "/home/me/gpt2"
    sae.cfg.metadata.dataset_path = "/home/me/text"
    local = MetricsTable(METRICS.rows, PROVENANCE | {"dataset": "/home/me/held_out"})

    card = model_card(sae, REPO, ["layer"], metrics=local)

    assert "- language model: `…/gpt2`\n" in card
    assert "- dataset: `…/text`\n" in card
    assert "- dataset: `…/held_out`\n" in card
    assert "/home" not in card


def test_a_card_of_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="metrics must have rows"):
        model_card(make_sae(), REPO, ["layer"], metrics=MetricsTable([]))


def test_metadata_cannot_break_out_of_the_card() -> None:
    sae = make_sae()
    sae.cfg.metadata.model_name = "a`|\n---\nlicense: evil\n# Title"

    card = model_card(sae, REPO, ["layer"])

    assert front_matter(card).get("license") is None
    assert "\n# Title" not in card
    assert "- language model: `a'| --- license: evil # Title`\n" in card


def test_top_card_is_replaced_only_where_it_is_this_saes(hub: HubServer) -> None:
    push_to_hub(make_sae(), REPO, "first")
    push_to_hub(make_sae(), REPO, "second")
    push_to_hub(make_sae(), REPO, "first", metrics=METRICS)
    files = hub.files(REPO)
    assert b"](first/metrics.png)" in files["README.md"]
    push_to_hub(make_sae(), REPO, "second", metrics=METRICS)
    assert hub.files(REPO)["README.md"] == files["README.md"]
    push_to_hub(make_sae(), REPO, "first")
    files = hub.files(REPO)
    assert files["README.md"] == files["first/README.md"]
    assert b"dead features" not in files["README.md"]

    (hub.repo(REPO) / "README.md").write_text("my own words")
    push_to_hub(make_sae(), REPO, "first")

    assert hub.files(REPO)["README.md"] == b"my own words"


def test_a_push_leaves_no_file_of_the_sae_before(
    hub: HubServer, tmp_path: Path
) -> None:
    export_all(make_sae(), tmp_path / "plain", [2])
    for folder in (tmp_path / "plain" / "k_2", tmp_path / "sae"):
        make_sae().save_model(folder)
        save_file({"sparsity": torch.ones(D_SAE)}, folder / "sparsity.safetensors")
    push_to_hub(tmp_path / "plain", REPO, "all")
    push_to_hub(tmp_path / "sae", REPO, "layer", metrics=METRICS)
    others = [
        "layer/manifest.json",
        "layer/notes.txt",
        "layer/k_2/sparsity.safetensors",
        "runner_cfg.json",
    ]
    for name in others:
        (hub.repo(REPO) / name).parent.mkdir(exist_ok=True)
        (hub.repo(REPO) / name).write_text("mine")
    (hub.repo(REPO) / "layer" / "runner_cfg.json").write_text("{}")
    before = hub.files(REPO)

    export_all(make_sae(1), tmp_path / "plain_1", [2])
    push_to_hub(tmp_path / "plain_1", REPO, "all")
    push_to_hub(make_sae(1), REPO, "layer")

    assert before.keys() - hub.files(REPO).keys() == {
        "all/k_2/sparsity.safetensors",
        "layer/metrics.png",
        "layer/runner_cfg.json",
        "layer/sparsity.safetensors",
    }
    assert hub.commits == 4
    _, _, sparsity = SAE.from_pretrained_with_cfg_and_sparsity(REPO, "layer")
    assert sparsity is None


@pytest.mark.parametrize(
    "request_line",
    ["create", "preupload", "objects/batch", "PUT /uploads", "/commit/main"],
)
@pytest.mark.parametrize("pushed_before", [True, False])
def test_dropped_connection_leaves_the_repository_as_it_was(
    request_line: str, pushed_before: bool, hub: HubServer
) -> None:
    if pushed_before:
        push_to_hub(make_sae(), REPO, "layer")
    before = hub.files(REPO)
    hub.cut_off = request_line

    with pytest.raises(ConnectionError, match=r"disconnected.* Try again"):
        push_to_hub(make_sae(seed=1), REPO, "layer")

    assert any(request_line in line for line in hub.requests)
    assert hub.files(REPO) == before
    hub.cuts = 0
    push_to_hub(make_sae(seed=1), REPO, "layer")
    loaded = SAE.from_pretrained(REPO, "layer")
    torch.testing.assert_close(loaded(activations()), make_sae(seed=1)(activations()))


def test_upload_goes_on_after_a_connection_that_drops_once(hub: HubServer) -> None:
    hub.cut_off, hub.cuts = "PUT /uploads", 1

    push_to_hub(make_sae(), REPO, "layer")

    assert hub.commits == 1
    loaded = SAE.from_pretrained(REPO, "layer")
    assert torch.equal(loaded(activations()), make_sae()(activations()))


def test_broken_download_is_an_error_and_is_taken_up_later(hub: HubServer) -> None:
    push_to_hub(make_sae(), REPO, "layer")
    hub.longest_download = 1000

    with pytest.raises(Exception, match="without sending complete message body"):
        SAE.from_pretrained(REPO, "layer")

    hub.longest_download = None
    loaded = SAE.from_pretrained(REPO, "layer")
    assert torch.equal(loaded(activations()), make_sae()(activations()))


def test_truncated_file_is_an_error(hub: HubServer) -> None:
    push_to_hub(make_sae(), REPO, "layer")
    weights = hub.repo(REPO) / "layer" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(Exception, match=r"incomplete|InvalidHeader|not fully covered"):
        SAE.from_pretrained(REPO, "layer")


def peak_memory() -> int:
    """Return the most bytes that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_sae": 10**12}, "d_sae must be from 1 to .* got 1000000000000"),
        ({"d_sae": 10**30}, "d_sae must be from 1 to"),
        ({"d_in": 0}, "d_in must be from 1 to .* got 0"),
        ({"d_in": -12}, "d_in must be from 1 to .* got -12"),
        ({"d_in": "12"}, "d_in must be an integer, got '12'"),
        ({"d_sae": 40.0}, "d_sae must be an integer, got 40.0"),
        ({"d_sae": True}, "d_sae must be an integer, got True"),
        ({"d_sae": D_SAE + 1}, r"W_dec is \[40, 12\].* asks for \[41, 12\]"),
        ({"d_sae": 2**29, "k_max": 2**29, "k": 2**29}, r"W_dec is \[40, 12\]"),
        ({"d_in": 2**29, "d_sae": 2**29}, r"b_dec is \[12\]"),
        ({"k_max": 9}, r"thresholds is \[8\].* asks for \[9\]"),
        ({"k_max": D_SAE + 1}, "k_max must be an integer from 1 to d_sae=40, got 41"),
        ({"k": D_SAE + 1}, "k must be an integer from 1 to d_sae=40, got 41"),
        ({"normalize_activations": "../x"}, "normalize_activations must be"),
    ],
)
def test_config_that_lies_is_named_before_memory_is_taken(
    changes: dict[str, Any], message: str, hub: HubServer
) -> None:
    push_to_hub(make_sae(), REPO, "layer")
    edit_config(hub, **changes)
    before = peak_memory()

    with pytest.raises(ValueError, match=message):
        SAE.from_pretrained(REPO, "layer")

    assert peak_memory() - before < 200e6


def test_paths_in_a_config_are_never_followed(hub: HubServer) -> None:
    push_to_hub(make_sae(), REPO, "layer")
    names = ("model_name", "hook_name", "dataset_path", "to_dict", "weights")
    elsewhere = dict.fromkeys(names, "../../elsewhere/file")
    cfg = json.loads((hub.repo(REPO) / "layer" / "cfg.json").read_text())
    metadata = cfg["metadata"] | elsewhere | {"sae_weights_path": "/etc/passwd"}
    edit_config(
        hub,
        metadata=metadata,
        sae_weights="../other.safetensors",
        weights_path="/etc/passwd",
        auto_map={"SAE": "../evil.py"},
        device="/etc/passwd",
    )
    hub.requests.clear()

    loaded = SAE.from_pretrained(REPO, "layer")

    assert torch.equal(loaded(activations()), make_sae()(activations()))
    assert {line.split("/resolve/main/")[-1] for line in hub.requests} == {
        "layer/cfg.json",
        "layer/sae_weights.safetensors",
        "layer/sparsity.safetensors",
    }


def edit_config(hub: HubServer, **changes: Any) -> None:
    path = hub.repo(REPO) / "layer" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "sae_id",
    ["", ".", "..", "../x", "a/../b", "/a", "a//b", "a/", "a\\b", "a b", ".git", "a\n"],
)
def test_bad_ids_are_refused_before_any_request(sae_id: str, hub: HubServer) -> None:
    with pytest.raises(ValueError, match="sae_id must be a relative path of plain"):
        push_to_hub(make_sae(), REPO, sae_id)

    sae = make_sae()
    sae.cfg.metadata.hook_name = sae_id
    with pytest.raises(ValueError, match="sae_id must be a relative path of plain"):
        push_to_hub(sae, REPO)

    assert hub.requests == []


def test_sae_without_a_hook_needs_an_id(hub: HubServer) -> None:
    sae = make_sae()
    sae.cfg.metadata.hook_name = None

    with pytest.raises(ValueError, match=r"sae_id must be .* got None"):
        push_to_hub(sae, REPO)

    assert hub.requests == []


def test_what_cannot_be_pushed_is_refused_before_any_request(
    hub: HubServer, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE}
    training = HierarchicalTopKTrainingSAE(
        HierarchicalTopKTrainingSAEConfig(**sizes, k=K_MAX)
    )
    broken, mixed, k_only = (tmp_path / name for name in ("broken", "mixed", "k_only"))
    make_sae().save_model(broken)
    (broken / "sae_weights.safetensors").write_bytes(b"no tensors")
    make_sae().save_model(mixed / "a")
    make_sae(apply_b_dec_to_input=False, dtype="bfloat16").save_model(mixed / "b")

    for k in (2, 4):
        TopKSAE(TopKSAEConfig(**sizes, k=k)).save_model(k_only / f"k_{k}")

    for sae, message in [
        (training, "got a HierarchicalTopKTrainingSAE"),
        (tmp_path / "nowhere", "there is no SAE in"),
        (mixed, "share one card, but a and b differ in dtype: push"),
        (k_only, "share one card, but k_2 and k_4 differ in k: push"),
    ]:
        with pytest.raises(ValueError, match=message):
            push_to_hub(sae, REPO, "layer")
    with pytest.raises(ValueError, match=r"broken cannot be loaded: .* safetensors"):
        push_to_hub(broken, REPO, "layer")

    assert hub.requests == []


def test_a_link_in_a_folder_does_not_push_another_file(
    hub: HubServer, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a password")
    folder = tmp_path / "sae"
    make_sae().save_model(folder)
    (folder / "sparsity.safetensors").symlink_to(secret)

    with pytest.raises(ValueError, match=r"sae/sparsity\.safetensors is no whole"):
        push_to_hub(folder, REPO, "layer")

    assert hub.requests == []
