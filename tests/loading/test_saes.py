"""Tests of loading SAEs from folders that may hold anything."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from safetensors.torch import load_file, save_file

from sae_lens_hierarchical import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from sae_lens_hierarchical.loading import load_sae, load_saes

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"

Saved = tuple[HierarchicalTopKSAE, Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    sae = HierarchicalTopKSAE(HierarchicalTopKSAEConfig(d_in=8, d_sae=16, k_max=4))
    with torch.no_grad():
        sae.b_dec.normal_()
        sae.b_enc.normal_()
    metadata = sae.cfg.metadata
    metadata.model_name, metadata.hook_name = "gpt2", "blocks.0.hook_resid_post"
    metadata.context_size, metadata.prepend_bos = 32, True
    folder = tmp_path / "sae"
    sae.save_model(folder)
    return sae, folder


def change(folder: Path, **changes: Any) -> None:
    cfg = json.loads((folder / CFG).read_text())
    (folder / CFG).write_text(json.dumps(cfg | changes))


def change_weights(folder: Path, **changes: torch.Tensor) -> None:
    save_file(load_file(folder / WEIGHTS) | changes, folder / WEIGHTS)


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match=folder.name) as error:
        load_sae(folder)
    return str(error.value)


# Normalization.


@pytest.mark.parametrize("normalization", ["none", "layer_norm"])
def test_the_config_says_that_a_scaling_is_folded_already(
    saved: Saved, normalization: str
) -> None:
    sae, folder = saved
    change(folder, normalize_activations=normalization)
    ActivationScaler(scaling_factor=7.0).save(str(folder / SCALER))

    loaded = load_sae(folder)

    torch.testing.assert_close(loaded.W_enc, sae.W_enc)
    torch.testing.assert_close(loaded.W_dec, sae.W_dec)
    assert loaded.cfg.normalize_activations == normalization


def test_an_outstanding_scaling_is_folded(saved: Saved) -> None:
    sae, folder = saved
    change(folder, normalize_activations="expected_average_only_in")
    ActivationScaler(scaling_factor=7.0).save(str(folder / SCALER))

    loaded = load_sae(folder)

    x = torch.randn(5, 8)
    torch.testing.assert_close(loaded(x), sae(7 * x) / 7)
    assert loaded.cfg.normalize_activations == "none"


def whiten(folder: Path, **changes: torch.Tensor) -> ActivationWhitening:
    change(folder, normalize_activations="covariance_whitening")
    matrix = torch.eye(8) + 0.1 * torch.randn(8, 8)
    tensors = {"mean": torch.randn(8), "matrix": matrix}
    tensors["inverse_matrix"] = matrix.inverse()
    whitening = ActivationWhitening(**tensors | changes)
    ActivationScaler(whitening=whitening).save(str(folder / SCALER))
    return whitening


def test_an_outstanding_whitening_is_folded(saved: Saved) -> None:
    sae, folder = saved
    scaler = ActivationScaler(whitening=whiten(folder))

    loaded = load_sae(folder)

    x = torch.randn(5, 8)
    expected = scaler.unscale(sae(scaler.scale(x)))
    torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["expected_average_only_in", "covariance_whitening"])
def test_without_what_is_to_be_folded_nothing_is_loaded(
    saved: Saved, mode: str
) -> None:
    _, folder = saved
    change(folder, normalize_activations=mode)

    assert f"normalize_activations='{mode}', but {SCALER}" in refusal(folder)


@pytest.mark.parametrize(
    "factor", ["0", "-1", "NaN", "Infinity", '"3"', "null", "true"]
)
def test_bad_scalings_are_refused(saved: Saved, factor: str) -> None:
    _, folder = saved
    change(folder, normalize_activations="expected_average_only_in")
    (folder / SCALER).write_text(f'{{"scaling_factor": {factor}}}')

    assert f"{SCALER}: scaling_factor must be above 0 and finite" in refusal(folder)


def test_a_scaling_that_overflows_the_weights_is_refused(saved: Saved) -> None:
    _, folder = saved
    change(folder, normalize_activations="expected_average_only_in")
    (folder / SCALER).write_text('{"scaling_factor": 1e-300}')

    assert "is not finite" in refusal(folder)


def test_bad_whitenings_are_refused(saved: Saved) -> None:
    _, folder = saved
    whiten(folder, mean=torch.full((8,), torch.nan))
    assert f"{WHITENING}: mean must be [8] and finite" in refusal(folder)
    whiten(folder, matrix=torch.eye(7))
    assert f"{WHITENING}: matrix must be [8, 8] and finite" in refusal(folder)
    (folder / WHITENING).write_bytes(b"")
    assert f"{WHITENING} is no whole safetensors file" in refusal(folder)
    (folder / WHITENING).unlink()
    assert f"{WHITENING} is missing" in refusal(folder)
    (folder / SCALER).write_text('{"scaling_factor": null, "has_whitening": false}')
    whiten_file = folder / WHITENING
    save_file({"mean": torch.zeros(8)}, whiten_file)
    assert f"{SCALER} says that there is no whitening" in refusal(folder)


# Folders.


def test_a_wrong_path_names_the_saes_that_are_there(
    saved: Saved, tmp_path: Path
) -> None:
    _, folder = saved
    shutil.copytree(folder, tmp_path / "run" / "final_640")
    shutil.copytree(folder, tmp_path / ".run.partial")
    (tmp_path / "empty").mkdir()

    for wrong in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="there is no SAE in") as error:
            load_sae(wrong)
        found = f"SAEs in {tmp_path}: {tmp_path}/run/final_640, {folder}"
        assert str(error.value).endswith(found)
    with pytest.raises(ValueError, match=r"there is no SAE in .*/empty$"):
        load_sae(tmp_path / "empty")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cfg.json is damaged: it is no JSON"),
        ("{", "cfg.json is damaged: it is no JSON"),
        ("[1]", "cfg.json is damaged: it must hold an object, got list"),
        ('{"a":' * 100_000, "cfg.json is damaged: it is nested too deeply"),
        ("\0", "cfg.json is damaged: it is no JSON"),
    ],
)
def test_what_is_no_config_is_named(saved: Saved, text: str, message: str) -> None:
    _, folder = saved
    (folder / CFG).write_text(text)
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "dense"}, "architecture must be one of ['abstopk', 'gated'"),
        ({"architecture": None}, "architecture must be one of"),
        ({"dtype": "int8"}, "dtype must be one of ['float32',"),
        ({"dtype": ["float32"]}, "dtype must be one of"),
        ({"d_in": "8"}, "d_in must be of type int, got '8'"),
        ({"d_sae": 2**40}, "d_sae must be from 1 to"),
        ({"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input must be of type bool"),
        ({"reshape_activations": "z"}, "reshape_activations must be none or hook_z"),
        ({"normalize_activations": []}, "normalize_activations must be none"),
        ({"k": 17}, "k must be an integer from 1 to d_sae=16, got 17"),
        ({"metadata": []}, "metadata must be of type dict"),
        ({"metadata": {"hook_name": 3}}, "metadata.hook_name must be of type str"),
        ({"metadata": {"seqpos_slice": [1, 2, 0]}}, "metadata.seqpos_slice must be"),
        ({"metadata": {"exclude_special_tokens": "all"}}, "metadata.exclude_special_"),
        ({"metadata": {"max_norm": "9"}}, "metadata.max_norm must be of type float"),
        ({"metadata": {"max_norm": 0}}, "metadata.max_norm must be above 0 and finite"),
        ({"metadata": {"trained_k": 99}}, "metadata.trained_k must be an integer from"),
        ({"metadata": {"to_dict": 1}}, "metadata cannot have a 'to_dict'"),
    ],
)
def test_odd_fields_are_named(
    saved: Saved, changes: dict[str, Any], message: str
) -> None:
    _, folder = saved
    if metadata := changes.get("metadata"):
        changes["metadata"] = metadata | {"sae_lens_version": "6.54.12"}
    change(folder, **changes)
    assert message in refusal(folder)


def test_a_config_without_dtype_means_float32(saved: Saved) -> None:
    sae, folder = saved
    cfg = json.loads((folder / CFG).read_text())
    del cfg["dtype"]
    (folder / CFG).write_text(json.dumps(cfg))

    assert load_sae(folder).dtype == torch.float32
    torch.testing.assert_close(load_sae(folder).W_enc, sae.W_enc)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_real_numbers_are_refused(
    saved: Saved, dtype: torch.dtype
) -> None:
    sae, folder = saved
    change_weights(folder, W_enc=sae.W_enc.detach().to(dtype))
    assert f"{WEIGHTS}: W_enc must hold floating-point numbers" in refusal(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_weights_that_are_not_finite_are_refused(
    saved: Saved, name: str, value: float
) -> None:
    sae, folder = saved
    tensor = sae.state_dict()[name].clone()
    tensor.view(-1)[3] = value
    change_weights(folder, **{name: tensor})
    assert f"{WEIGHTS}: {name} is not finite" in refusal(folder)


def test_weights_too_large_for_the_configs_dtype_are_refused(saved: Saved) -> None:
    _, folder = saved
    change_weights(folder, b_dec=torch.full((8,), 1e6))
    change(folder, dtype="float16")
    assert f"{WEIGHTS}: b_dec is not finite" in refusal(folder)


@pytest.mark.parametrize("name", [CFG, WEIGHTS])
def test_only_regular_files_are_opened(saved: Saved, name: str) -> None:
    _, folder = saved
    shutil.move(folder / name, folder / "there")
    (folder / name).symlink_to(folder / "there")  # as in the Hub's cache
    load_sae(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name} is no regular file" in refusal(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"{name} is no regular file" in refusal(folder)


def test_broken_weights_are_named(saved: Saved) -> None:
    _, folder = saved
    whole = (folder / WEIGHTS).read_bytes()
    for part in (b"", whole[:5], whole[:-1], b"\xff" * 100):
        (folder / WEIGHTS).write_bytes(part)
        assert f"{WEIGHTS} is no whole safetensors file" in refusal(folder)
    (folder / WEIGHTS).unlink()
    assert f"{WEIGHTS} is missing" in refusal(folder)


def test_a_model_that_the_user_names_has_no_revision_of_another(saved: Saved) -> None:
    sae, folder = saved
    kwargs = {"revision": "step3", "fold_ln": False, "cache_dir": "/elsewhere"}
    sae.cfg.metadata.model_from_pretrained_kwargs = kwargs
    sae.save_model(folder)

    with pytest.warns(UserWarning, match="my/model is loaded without .*cache_dir"):
        saes = load_saes({"it": folder}, model_name="my/model")

    metadata = saes["it"].cfg.metadata
    assert metadata.model_name == "my/model"
    assert metadata.model_from_pretrained_kwargs == {"fold_ln": False}


# Any folder at all.

ODD: list[Any] = [
    None,
    True,
    "",
    "text",
    "float16",
    "hook_z",
    -1,
    0,
    1.5,
    3,
    10**30,
    float("nan"),
    float("inf"),
    [],
    [None],
    [1, "a"],
    {},
    {"self": 1},
    {"sae_lens_version": "x"},
]


def make_any_saes() -> list[SAE[Any]]:
    sizes: dict[str, Any] = {"d_in": 8, "d_sae": 16}
    return [
        HierarchicalTopKSAE(HierarchicalTopKSAEConfig(**sizes, k_max=4)),
        TopKSAE(TopKSAEConfig(**sizes, k=4)),
        JumpReLUSAE(JumpReLUSAEConfig(**sizes)),
        StandardSAE(StandardSAEConfig(**sizes)),
    ]


def mutate_config(folder: Path, rng: random.Random) -> None:
    cfg = json.loads((folder / CFG).read_text())
    fields = cfg if rng.random() < 0.6 else cfg["metadata"]
    name = rng.choice([*fields, "k", "seqpos_slice", "scaling_factor", "__class__"])
    if rng.random() < 0.2:
        fields.pop(name, None)
    else:
        fields[name] = rng.choice(ODD)
    text = json.dumps(cfg)
    if rng.random() < 0.15:
        text = text[: rng.randrange(len(text))]
    (folder / CFG).write_text(text)


def mutate_tensors(folder: Path, rng: random.Random) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    with_hole = tensor.clone()
    holes = [torch.nan, torch.inf, -torch.inf] if tensor.is_floating_point() else [255]
    with_hole.view(-1)[0] = rng.choice(holes)
    # (A threshold may be NaN, which means unknown.)
    tensors[name] = rng.choice(
        [
            with_hole,
            tensor.to(rng.choice([torch.int32, torch.bool, torch.complex64])),
            tensor.half(),
            tensor[:0],
            tensor[None],
            torch.cat([tensor, tensor]),
            torch.tensor(1.0),
        ]
    )
    if rng.random() < 0.3:
        del tensors[name]
    if rng.random() < 0.2:
        tensors[rng.choice(["scaling_factor", "extra"])] = torch.ones(3)
    save_file(tensors, folder / WEIGHTS)


def mutate_bytes(folder: Path, rng: random.Random) -> None:
    path = folder / rng.choice([CFG, WEIGHTS, SCALER])
    whole = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        path.write_bytes(whole[: rng.randrange(len(whole))])
        return
    for _ in range(rng.choice([1, 1, 3])):
        # Numbers beyond the header may be any that are finite.
        whole[rng.randrange(min(len(whole), 300))] = rng.randrange(256)
    path.write_bytes(whole)


def mutate_scaler(folder: Path, rng: random.Random) -> None:
    modes = ["expected_average_only_in", "covariance_whitening"]
    change(folder, normalize_activations=rng.choice(modes))
    scaler = {"scaling_factor": rng.choice(ODD), "has_whitening": rng.choice(ODD)}
    (folder / SCALER).write_text(json.dumps(rng.choice([*[scaler] * 40, *ODD])))


MUTATIONS: list[Callable[[Path, random.Random], None]] = [
    mutate_config,
    mutate_tensors,
    mutate_bytes,
    mutate_scaler,
]


@pytest.mark.filterwarnings("ignore:\nThis SAE has non-empty model_from_pretrained")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_any_folder_gives_an_sae_that_works_or_one_clear_error(tmp_path: Path) -> None:
    bases = []
    for n, sae in enumerate(make_any_saes()):
        sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
        sae.cfg.metadata.context_size = 32
        sae.save_model(tmp_path / str(n))
        ActivationScaler(scaling_factor=2.0).save(str(tmp_path / str(n) / SCALER))
        bases.append(tmp_path / str(n))
    loaded, messages = 0, {}
    for seed in range(600):
        rng = random.Random(seed)
        folder = tmp_path / "fuzzed" / str(seed)
        shutil.copytree(rng.choice(bases), folder)
        rng.choice(MUTATIONS)(folder, rng)
        try:
            sae = load_sae(folder)
        except ValueError as error:
            messages[folder] = str(error)
            continue
        shape = (3, 2, 4) if sae.hook_z_reshaping_mode else (3, 8)
        x = torch.randn(shape, dtype=sae.dtype)
        assert sae(x).isfinite().all(), seed
        copy.deepcopy(sae).save_model(folder / "again")
        loaded += 1
    assert loaded > 100
    assert len(messages) > 200
    for folder, message in messages.items():
        assert message.startswith(f"the SAE in {folder} cannot be loaded: "), message
