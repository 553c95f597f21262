"""Tests of finding SAEs: in folders, on the Hub and in SAELens's releases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from sae_lens.loading import pretrained_saes_directory
from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_hierarchical import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from sae_lens_hierarchical.loading import find_saes, load_sae
from tests.hub_server import HubServer

RELEASE = "small-saes"


def make_sae(k: int = 4) -> HierarchicalTopKSAE:
    sae = HierarchicalTopKSAE(HierarchicalTopKSAEConfig(d_in=8, d_sae=16, k_max=k))
    with torch.no_grad():
        sae.b_dec.normal_()
    return sae


def same(one: SAE[Any], other: SAE[Any]) -> bool:
    x = torch.randn(5, 8)
    return torch.equal(one(x), other(x))


@pytest.fixture
def add_release(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that adds a release to those that SAELens knows."""
    directory = dict(pretrained_saes_directory.get_pretrained_saes_directory())
    known = lambda: directory  # noqa: E731
    for module in ("pretrained_saes_directory", "pretrained_sae_loaders"):
        monkeypatch.setattr(
            f"sae_lens.loading.{module}.get_pretrained_saes_directory", known
        )
    monkeypatch.setattr("sae_lens.saes.sae.get_pretrained_saes_directory", known)
    monkeypatch.setattr(
        "sae_lens_hierarchical.loading.sources.get_pretrained_saes_directory", known
    )

    def add(**saes: str) -> None:
        directory[RELEASE] = PretrainedSAELookup(
            release=RELEASE,
            repo_id="user/release",
            model="gpt2",
            conversion_func=None,
            saes_map=saes,
            expected_var_explained={},
            expected_l0={},
            neuronpedia_id={},
            norm_scaling_factor={},
            config_overrides=None,
        )

    return add


def test_an_sae_on_the_hub_is_the_one_that_was_pushed(hub: HubServer) -> None:
    ours = make_sae()
    topk = TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=3))
    ours.save_model(hub.repo("user/repo") / "layer_2" / "resid")
    topk.save_model(hub.repo("user/top"))
    hub.commits = 7

    assert same(load_sae("user/repo:layer_2/resid"), ours)
    assert same(load_sae("user/repo"), ours)  # its one SAE
    assert same(load_sae("user/top"), topk)
    found = find_saes(["user/repo", "it=user/top"])

    assert list(found) == ["user/repo:layer_2/resid", "it"]
    assert found["it"].provenance() == {
        "id": "user/top",
        "repo_id": "user/top",
        "revision": f"{7:040x}",
    }


def test_a_scaling_that_is_still_to_be_folded_comes_along(hub: HubServer) -> None:
    sae, folder = make_sae(), hub.repo("user/repo")
    sae.save_model(folder)
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg["normalize_activations"] = "expected_average_only_in"
    (folder / "cfg.json").write_text(json.dumps(cfg))
    ActivationScaler(scaling_factor=7.0).save(str(folder / "activation_scaler.json"))

    loaded = load_sae("user/repo")

    x = torch.randn(5, 8)
    torch.testing.assert_close(loaded(x), sae(7 * x) / 7)


def test_a_folder_wins_over_an_id_of_the_same_spelling(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = make_sae(), make_sae()
    there.save_model(hub.repo("user/repo"))
    monkeypatch.chdir(tmp_path)
    for name in ("user/repo", "name=user/repo", "gpt2-small-res-jb:x"):
        here.save_model(tmp_path / name)

        assert same(load_sae(name), here)
        (source,) = find_saes([name]).values()
        assert source.provenance() == {"path": str(tmp_path / name)}
    assert hub.requests == []


def test_what_is_downloaded_is_data_and_checked_like_a_folder(hub: HubServer) -> None:
    sae, folder = make_sae(), hub.repo("user/repo")
    sae.save_model(folder)
    (folder / "sae_weights.safetensors").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")

    with pytest.raises(ValueError, match=r"user/repo cannot be loaded.*no whole safe"):
        load_sae("user/repo")


def test_several_saes_in_a_repository_are_listed(hub: HubServer) -> None:
    for name in ("a", "b/c"):
        make_sae().save_model(hub.repo("user/repo") / name)
    (hub.repo("user/repo") / "d").mkdir()
    (hub.repo("user/repo") / "d" / "cfg.json").write_text("{}")

    for source in ("user/repo", "user/repo:b"):
        with pytest.raises(ValueError, match=r"SAEs: user/repo:a, user/repo:b/c$"):
            load_sae(source)
    elsewhere = "jbloom/GPT2-Small-SAEs-Reformatted"
    hub.repo(elsewhere)
    with pytest.raises(ValueError, match=r"SAELens has .* as gpt2-small-res-jb:sae_id"):
        load_sae(elsewhere)


def test_a_release_is_loaded_by_saelens(
    hub: HubServer, add_release: Callable[..., None]
) -> None:
    add_release(layer_3="some/folder")
    topk = TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=3, metadata=SAEMetadata(a="b")))
    topk.save_model(hub.repo("user/release") / "some" / "folder")
    hub.commits = 5

    found = find_saes([f"{RELEASE}:layer_3"])[f"{RELEASE}:layer_3"]

    assert same(load_sae(found), topk)
    assert found.provenance() == {
        "id": f"{RELEASE}:layer_3",
        "repo_id": "user/release",
        "revision": f"{5:040x}",
    }


def test_a_release_without_its_scaling_is_refused(
    hub: HubServer, add_release: Callable[..., None]
) -> None:
    add_release(layer_3="some/folder")
    sizes: Any = {"d_in": 8, "d_sae": 16, "k": 3}
    sizes["normalize_activations"] = "expected_average_only_in"
    folder = hub.repo("user/release") / "some" / "folder"
    TopKSAE(TopKSAEConfig(**sizes)).save_model(folder)

    with (
        pytest.warns(UserWarning, match="norm_scaling_factor not found"),
        pytest.raises(ValueError, match="does not say what is to be folded"),
    ):
        load_sae(f"{RELEASE}:layer_3")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "^an SAE is a folder; user/repo or"),
        ("NAME=", "^an SAE is a folder; user/repo or"),
        ("nowhere", "no SAE in nowhere, which does not exist; an SAE is a folder;"),
        ("a/b/c", "no SAE in a/b/c, which does not exist; an SAE is a folder;"),
        ("user/none", "which does not exist; nor can one be had from the Hub: 404.*id"),
        ("user/empty", "no SAE at its top; SAEs: none that SAELens saved"),
        ("user/repo:../x", "cannot have '..' in it"),
        ("gpt2-small-res:x", "did you mean gpt2-small-res-jb or .* is a folder;"),
        ("gpt2-small-res-jb:blocks.0.hook_resid", "mean blocks.0.hook_resid_pre"),
        ("gpt2-small-res-jb:x", "it has blocks.0.hook_resid_pre, .* and 3 more"),
    ],
)
def test_what_is_not_found_is_one_clear_error(
    hub: HubServer,
    source: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # SAEs in the current folder would be named
    hub.repo("user/empty")

    with pytest.raises(ValueError, match=message) as error:
        find_saes([source])

    assert "\n" not in str(error.value)


def test_without_a_network_the_cache_is_enough(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = make_sae()
    sae.save_model(hub.repo("user/repo") / "layer")
    before = find_saes(["user/repo:layer"])
    asked = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    assert find_saes(["user/repo:layer"]) == before
    assert same(load_sae("user/repo:layer"), sae)
    assert len(hub.requests) == asked
    with pytest.raises(ValueError, match="nor can one be had from the Hub"):
        find_saes(["user/other"])


def test_names_tell_saes_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "sae", tmp_path / "lr=1" / "sae"]
    for path in paths:
        make_sae().save_model(path)
    first, second = map(str, paths)

    assert list(find_saes([f"my SAE={first}", second])) == ["my SAE", "sae"]
    assert list(find_saes(paths)) == [first, second]
    assert list(find_saes([f"it={first}", paths[1]])) == ["it", "sae"]
    for same_name in ([f"it={first}", f"it={second}"], [first, first]):
        with pytest.raises(ValueError, match="SAEs need different names, which NAME="):
            find_saes(same_name)
