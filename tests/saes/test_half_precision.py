"""Tests of thresholds and ties in half precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, TopKSAE
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lens_hierarchical import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    calibrate_thresholds,
)
from sae_lens_hierarchical.export import export

D_IN, D_SAE, K_MAX = 32, 128, 32
HALF = [torch.bfloat16, torch.float16]


def make_sae(**options: Any) -> HierarchicalTopKSAE:
    options = {"rescale_acts_by_decoder_norm": False, **options}
    cfg = HierarchicalTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k_max=K_MAX, **options)
    return HierarchicalTopKSAE(cfg)


def tokens(n: int = 512, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, D_IN, generator=generator).to(dtype)


def l0(sae: SAE[Any], x: Tensor) -> float:
    return (sae.encode(x) > 0).double().sum(-1).mean().item()


CASTS: dict[str, Callable[[HierarchicalTopKSAE], object]] = {
    "to": lambda sae: sae.to(torch.bfloat16),
    "keyword": lambda sae: sae.to(dtype=torch.float16),
    "tensor": lambda sae: sae.to(torch.zeros(1, dtype=torch.bfloat16)),
    "half": lambda sae: sae.half(),
    "bfloat16": lambda sae: sae.bfloat16(),
    "there and back": lambda sae: sae.bfloat16().double().float(),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_no_cast_rounds_the_thresholds(
    cast: Callable[[HierarchicalTopKSAE], object],
) -> None:
    sae = make_sae()
    exact = calibrate_thresholds(sae, tokens()).clone()

    cast(sae)

    assert sae.thresholds.dtype == torch.float32
    assert torch.equal(sae.thresholds, exact)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("alike", [True, False])
def test_l0_is_never_below_k_on_the_calibration_data(
    dtype: torch.dtype, rescale: bool, alike: bool
) -> None:
    sae = make_sae(rescale_acts_by_decoder_norm=rescale).to(dtype)
    x = tokens(1, dtype).expand(64, -1) if alike else tokens(dtype=dtype)

    calibrate_thresholds(sae, x)

    sae.activation = "jumprelu"
    for k in (1, 2, 8, 31, 32):
        sae.k = k
        assert k <= l0(sae, x) <= 1.3 * k + 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_thresholds_survive_saving_and_loading_in_any_dtype(
    tmp_path: Path, dtype: str
) -> None:
    sae = make_sae()
    exact = calibrate_thresholds(sae, tokens()).clone()
    exact[-1] = sae.thresholds[-1] = torch.nan
    sae.save_model(tmp_path / "float32")
    sae.to(torch.bfloat16).save_model(tmp_path / "bfloat16")

    for saved in ("float32", "bfloat16"):
        loaded = SAE.load_from_disk(tmp_path / saved, dtype=dtype)
        torch.testing.assert_close(
            loaded.thresholds, exact, rtol=0, atol=0, equal_nan=True
        )


def test_tables_of_older_checkpoints_load(tmp_path: Path) -> None:
    sae = make_sae()
    exact = calibrate_thresholds(sae, tokens()).clone()
    sae.save_model(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    save_file({**load_file(path), "thresholds": exact}, path)

    assert torch.equal(SAE.load_from_disk(tmp_path).thresholds, exact)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_jumprelu_export_lets_through_what_the_sae_does(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    sae = make_sae().to(dtype)
    x = tokens(dtype=dtype)
    calibrate_thresholds(sae, x)
    # A threshold between two numbers of the dtype, nearer to the upper one.
    upper = sae.encode(x).max()
    sae.thresholds[0] = torch.nextafter(upper.float(), torch.tensor(0.0))
    sae.activation = "jumprelu"

    for k in (1, 8, 32):
        sae.k = k
        export(sae, tmp_path / str(k), k, "jumprelu")
        plain = SAE.load_from_disk(tmp_path / str(k))
        assert isinstance(plain, JumpReLUSAE)
        assert torch.equal(plain.encode(x), sae.encode(x))
        assert l0(plain, x) > 0


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_one_order_of_features_for_every_k(dtype: torch.dtype) -> None:
    sae = make_sae().to(dtype)
    x = (tokens(dtype=torch.float32) * 2).round().to(dtype)
    ks = [1, 4, 8, 16, 32, 33, 64, 128]

    outputs = sae.reconstruct(x, ks)

    every = sae.encode_ranked(x, D_SAE)
    hidden_pre = sae.hidden_pre(x)
    expected = hidden_pre.sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(every.indices, expected)
    for k, output in zip(ks, outputs, strict=True):
        with sae.at_k(k):
            acts, ranked = sae.encode(x), sae.encode_ranked(x)
            dense = sae(x)
        assert torch.equal(ranked.indices, expected[:, :k])
        assert torch.equal(acts, ranked.to_dense(D_SAE))
        tolerance = {torch.float32: 1e-5}.get(dtype, 2**-7)
        largest = float(dense.detach().abs().max())
        torch.testing.assert_close(
            output, dense, rtol=tolerance, atol=tolerance * largest
        )


def test_the_plain_export_differs_in_ties_alone(tmp_path: Path) -> None:
    sae = make_sae().to(torch.bfloat16)
    x = tokens(dtype=torch.bfloat16)
    export(sae, tmp_path, 8)
    plain = SAE.load_from_disk(tmp_path)
    assert isinstance(plain, TopKSAE)

    with sae.at_k(8):
        ours, theirs = sae.encode(x), plain.encode(x)

    # Of tokens whose 8th and 9th features do not tie, the features are the same.
    ninth = sae.encode_ranked(x, 9).values
    untied = ninth[:, 7] != ninth[:, 8]
    assert 0 < untied.sum() < len(x)
    assert torch.equal(ours[untied], theirs[untied])
    assert torch.equal(ours.sort().values, theirs.sort().values)
