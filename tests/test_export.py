"""Tests of exported checkpoints: what a SAELens without this package makes of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, TopKSAE
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lens_hierarchical import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from sae_lens_hierarchical.export import export, export_all
from sae_lens_hierarchical.saes.checks import Activation

D_IN, D_SAE, K_MAX = 12, 40, 8
MODES = (
    "none",
    "expected_average_only_in",
    "constant_norm_rescale",
    "layer_norm",
    "covariance_whitening",
)


def make_sae(**options: Any) -> HierarchicalTopKSAE:
    torch.manual_seed(0)
    cfg = HierarchicalTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k_max=K_MAX, **options)
    sae = HierarchicalTopKSAE(cfg)
    sae.cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    sae.cfg.metadata.model_name = "some-model"
    with torch.no_grad():
        for parameter in (sae.b_enc, sae.b_dec):
            parameter.normal_(std=0.3)
        sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
        sae.thresholds.copy_(2 / torch.arange(1, K_MAX + 1))
    return sae


def activations(*shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def expected_at(
    sae: HierarchicalTopKSAE, x: Tensor, k: int, architecture: Activation
) -> tuple[Tensor, Tensor]:
    """Return the features and the output that the export at k must give."""
    sae.activation = architecture
    with sae.at_k(k):
        acts = sae.encode(x)
        output = sae.decode(acts)
    assert 0 < (acts != 0).double().mean() < 0.9
    sae.activation = "topk"
    return acts, output


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_equals_ours_at_k(
    mode: str, rescale: bool, architecture: Activation, tmp_path: Path
) -> None:
    sae = make_sae(normalize_activations=mode, rescale_acts_by_decoder_norm=rescale)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    x = activations(50, D_IN)

    for k in (1, 3, K_MAX, *([K_MAX + 2] if architecture == "topk" else [])):
        plain = SAE.load_from_disk(export(sae, tmp_path / "plain", k, architecture))

        assert isinstance(plain, TopKSAE if architecture == "topk" else JumpReLUSAE)
        acts, output = expected_at(sae, x, k, architecture)
        torch.testing.assert_close(plain.encode(x), acts)
        torch.testing.assert_close(plain(x), output)

    assert (sae.k, sae.cfg.device) == (K_MAX, "cpu")
    for name, tensor in sae.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_reshapes_attention_heads(architecture: Activation, tmp_path: Path) -> None:
    sae = make_sae(reshape_activations="hook_z", apply_b_dec_to_input=False)
    x = activations(5, 3, D_IN // 3)

    plain = SAE.load_from_disk(export(sae, tmp_path / "plain", 3, architecture))

    torch.testing.assert_close(plain(x), expected_at(sae, x, 3, architecture)[1])


def test_saelens_needs_no_plugin(tmp_path: Path) -> None:
    sae = make_sae(rescale_acts_by_decoder_norm=True)
    x = activations(20, D_IN)
    export_all(sae, tmp_path / "topk", [2, 8])
    export_all(sae, tmp_path / "jumprelu", [2, 8], "jumprelu")
    save_file({"x": x}, tmp_path / "input.safetensors")
    script = (
        "import sys\n"
        "from sae_lens import SAE\n"
        "from safetensors.torch import load_file, save_file\n"
        "x = load_file('input.safetensors')['x']\n"
        "names = [f'{a}/k_{k}' for a in ('topk', 'jumprelu') for k in (2, 8)]\n"
        "outputs = {name: SAE.load_from_disk(name)(x).detach() for name in names}\n"
        "assert 'sae_lens_hierarchical' not in sys.modules\n"
        "save_file(outputs, 'output.safetensors')\n"
    )

    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)

    outputs = load_file(tmp_path / "output.safetensors")
    for name in ("topk", "jumprelu"):
        for k in (2, 8):
            expected = expected_at(sae, x, k, name)[1]
            torch.testing.assert_close(outputs[f"{name}/k_{k}"], expected)


def test_metadata_is_kept_and_says_where_it_came_from(tmp_path: Path) -> None:
    sae = make_sae(dtype="bfloat16")

    folders = export_all(sae, tmp_path / "plain", [2, 4])

    assert folders == [tmp_path / "plain" / "k_2", tmp_path / "plain" / "k_4"]
    for folder, k in zip(folders, (2, 4), strict=True):
        assert {file.name for file in folder.iterdir()} == {
            "cfg.json",
            "sae_weights.safetensors",
        }
        cfg = json.loads((folder / "cfg.json").read_text())
        assert (cfg["architecture"], cfg["k"]) == ("topk", k)
        assert (cfg["dtype"], cfg["device"]) == ("bfloat16", "cpu")
        assert cfg["metadata"]["model_name"] == "some-model"
        origin = {"architecture": "hierarchical_topk", "k": k, "k_max": K_MAX}
        assert cfg["metadata"]["exported_from"] == origin
    assert "exported_from" not in sae.cfg.metadata


@pytest.mark.parametrize(
    ("k", "architecture", "message"),
    [
        (0, "topk", f"k must be an integer from 1 to d_sae={D_SAE}, got 0"),
        (D_SAE + 1, "topk", f"k must be .* got {D_SAE + 1}"),
        (True, "topk", "k must be .* got True"),
        (3, "standard", r"architecture must be one of \['topk', 'jumprelu'\]"),
        (3, "jumprelu", "no thresholds .*calibrate_thresholds"),
        (K_MAX + 1, "jumprelu", f"thresholds for k from 1 to k_max={K_MAX}, got 9"),
    ],
)
def test_bad_requests_are_named_and_write_nothing(
    k: int,
    architecture: Any,
    message: str,
    tmp_path: Path,
) -> None:
    sae = make_sae()
    sae.thresholds[2] = torch.nan

    with pytest.raises(ValueError, match=message):
        export(sae, tmp_path / "plain", k, architecture)
    with pytest.raises(ValueError, match=message):
        export_all(sae, tmp_path / "plain", [2, k], architecture)

    assert list(tmp_path.iterdir()) == []


def test_no_k_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one k"):
        export_all(make_sae(), tmp_path / "plain", [])


def test_a_failed_export_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = make_sae()
    x = activations(9, D_IN)
    folder = export(sae, tmp_path / "plain", 2)

    def full_disk(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("sae_lens.saes.sae.save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        export(sae, folder, 4)

    expected = expected_at(sae, x, 2, "topk")[1]
    torch.testing.assert_close(SAE.load_from_disk(folder)(x), expected)
    assert list(tmp_path.iterdir()) == [folder]
