"""Tests of hooks on compact forms, tokens of zeros, narrowed SAEs and odd fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig, TrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lens_hierarchical import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
    calibrate_thresholds,
)

D_IN, D_SAE, K_MAX = 12, 40, 8
NORMALIZATIONS = ["none", "layer_norm", "constant_norm_rescale"]


def make_sae(**options: Any) -> HierarchicalTopKSAE:
    cfg = HierarchicalTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k_max=K_MAX, **options)
    sae = HierarchicalTopKSAE(cfg)
    sae.b_dec.data.normal_()
    return sae


def make_training_sae(**options: Any) -> HierarchicalTopKTrainingSAE:
    options = {"d_in": D_IN, "d_sae": D_SAE, "k": K_MAX, **options}
    return HierarchicalTopKTrainingSAE(HierarchicalTopKTrainingSAEConfig(**options))


def tokens(n: int = 6, d_in: int = D_IN) -> Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(1)) + 0.5


def step(sae: TrainingSAE[Any], x: Tensor, dead: int = 0) -> TrainStepOutput:
    mask = torch.arange(sae.cfg.d_sae) < dead
    return sae.training_forward_pass(step_input=TrainStepInput(x, {}, mask, 0, False))


def ablate(activations: Tensor, **_: Any) -> Tensor:
    return torch.zeros_like(activations)


def test_compact_forms_are_refused_while_hooks_edit_activations() -> None:
    sae, x = make_sae(), tokens()
    sae.hook_sae_acts_post.add_hook(ablate)  # pyright: ignore[reportArgumentType]

    for use in (
        lambda: sae.encode_ranked(x),
        lambda: sae.reconstruct(x, [1, 8]),
        lambda: sae.encode_adaptive(x, 0.5),
    ):
        with pytest.raises(ValueError, match="hooks on hook_sae_acts_post"):
            use()
    torch.testing.assert_close(sae(x), sae.b_dec.expand_as(x))  # the hook is honoured
    sae.reset_hooks()
    sae.reconstruct(x, [1, 8])


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_hooks_on_the_reconstruction_see_and_change_what_decode_shows_them(
    normalize: str,
) -> None:
    sae, x = make_sae(normalize_activations=normalize), tokens()
    seen: list[Tensor] = []

    def double(activations: Tensor, **_: Any) -> Tensor:
        seen.append(activations)
        return 2 * activations

    sae.hook_sae_recons.add_hook(double)  # pyright: ignore[reportArgumentType]
    expected = sae(x)
    (compact,) = sae.reconstruct(x, [K_MAX])

    torch.testing.assert_close(seen[1], seen[0])
    torch.testing.assert_close(compact, expected)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_hooks_on_the_reconstruction_in_training(normalize: str) -> None:
    sae, x = make_training_sae(normalize_activations=normalize), tokens()
    seen: list[Tensor] = []
    plain = step(sae, x).sae_out
    sae.hook_sae_recons.add_hook(lambda a, **_: seen.append(a))  # pyright: ignore[reportArgumentType]

    hooked = step(sae, x).sae_out
    decoded = sae.decode(sae.encode(x))

    torch.testing.assert_close(hooked, plain)
    torch.testing.assert_close(decoded, plain)
    torch.testing.assert_close(seen[0], seen[1])


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("d_in", [1, D_IN])
def test_tokens_of_zeros_and_of_one_entry_give_finite_results(
    normalize: str, d_in: int
) -> None:
    x = tokens(d_in=d_in)
    x[2] = 0
    sae = make_training_sae(d_in=d_in, normalize_activations=normalize)

    output = step(sae, x, dead=30)

    output.loss.backward()
    assert output.loss.isfinite()
    assert sae.thresholds.isfinite().all()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all(), name
    options: dict[str, Any] = {"normalize_activations": normalize}
    cfg = HierarchicalTopKSAEConfig(d_in=d_in, d_sae=D_SAE, k_max=K_MAX, **options)
    inference = HierarchicalTopKSAE(cfg)
    assert calibrate_thresholds(inference, x).isfinite().all()
    outputs = [inference(x), *inference.reconstruct(x, [1, 8])]
    assert all(one.isfinite().all() for one in outputs)
    if normalize == "constant_norm_rescale":
        assert all((one[2] == 0).all() for one in outputs)


def test_a_token_of_zeros_does_not_change_the_others() -> None:
    sae = make_training_sae(normalize_activations="constant_norm_rescale")
    x = tokens()
    expected = step(sae, x).loss * len(x)

    with_zeros = step(sae, torch.cat([x, torch.zeros(2, D_IN)])).loss * (len(x) + 2)

    torch.testing.assert_close(with_zeros, expected)


def test_an_sae_narrowed_to_some_features_works_as_saelens_topk_does() -> None:
    ours = make_sae(rescale_acts_by_decoder_norm=True)
    plain = TopKSAE(
        TopKSAEConfig(
            d_in=D_IN, d_sae=D_SAE, k=K_MAX, rescale_acts_by_decoder_norm=True
        )
    )
    plain.load_state_dict(ours.state_dict(), strict=False)
    kept = torch.tensor([3, 5, 8, 13, 21])
    for sae in (ours, plain):
        sae.W_enc.data = sae.W_enc.data[:, kept]
        sae.b_enc.data = sae.b_enc.data[kept]
        sae.W_dec.data = sae.W_dec.data[kept]
    ours.k, plain.cfg.k = 3, 3
    plain.activation_fn = plain.get_activation_fn()

    torch.testing.assert_close(ours.encode(tokens()), plain.encode(tokens()))
    torch.testing.assert_close(ours(tokens()), plain(tokens()))
    torch.testing.assert_close(ours.reconstruct(tokens(), [3])[0], plain(tokens()))


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 3)])
def test_sparse_activations_keep_their_shape(shape: tuple[int, ...]) -> None:
    x = tokens().view(*shape, D_IN)
    sae = make_training_sae(use_sparse_activations=True)

    sparse = step(sae, x).feature_acts

    sae.cfg.use_sparse_activations = False
    dense = step(sae, x).feature_acts
    assert sparse.is_sparse
    assert torch.equal(sparse.to_dense(), dense)


def test_integers_of_numpy_and_torch_are_integers(tmp_path: Path) -> None:
    ks: list[Any] = [np.int64(3), np.uint8(3), torch.tensor(3)]
    sae = make_sae()
    for k in ks:
        sae.k = k
        assert type(sae.cfg.k) is int
        with sae.at_k(k):
            assert (sae.encode(tokens()) != 0).sum(-1).max() <= 3
        assert sae.encode_ranked(tokens(), k).values.shape == (6, 3)
    assert sae.reconstruct(tokens(), np.array([1, 4])).shape == (2, 6, D_IN)  # pyright: ignore[reportArgumentType]
    cfg = HierarchicalTopKTrainingSAEConfig(
        d_in=np.int64(12),  # pyright: ignore[reportArgumentType]
        d_sae=np.int32(40),  # pyright: ignore[reportArgumentType]
        k=np.int64(8),  # pyright: ignore[reportArgumentType]
        budgets=list(np.array([1, 8])),
    )
    HierarchicalTopKTrainingSAE(cfg).save_model(tmp_path / "training")
    sae.save_model(tmp_path / "inference")
    assert json.loads((tmp_path / "training" / "cfg.json").read_text())["k"] == 8
    for bad in (np.True_, torch.tensor(True), np.float64(3), torch.tensor(3.0)):
        with pytest.raises(ValueError, match="k must be an integer from 1"):
            sae.k = bad  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("bad", [0, -1, D_SAE + 1, "8"])
def test_a_bad_k_in_the_config_is_refused_when_used(bad: Any) -> None:
    sae = make_sae()
    sae.cfg.k = bad

    for use in (sae.encode, sae.encode_ranked, sae):
        with pytest.raises(ValueError, match="k must be an integer from 1 to d_sae"):
            use(tokens())


def test_jumprelu_chosen_within_at_k_of_a_larger_k_is_refused_when_used() -> None:
    sae = make_sae(k=20)
    calibrate_thresholds(sae, tokens(50))

    with sae.at_k(4):
        sae.activation = "jumprelu"
        sae.encode(tokens())

    with pytest.raises(ValueError, match="for k from 1 to k_max=8, got 20"):
        sae.encode(tokens())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 20, "activation": "jumprelu"}, "k_max=8, got 20"),
        ({"rescale_acts_by_decoder_norm": "yes"}, "must be True or False, got 'yes'"),
        ({"apply_b_dec_to_input": 1}, "apply_b_dec_to_input must be True or False"),
        ({"d_in": 0}, "d_in must be from 1"),
    ],
)
def test_odd_fields_are_named(changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "k_max": K_MAX}
    with pytest.raises(ValueError, match=message):
        HierarchicalTopKSAEConfig(**{**options, **changes})


@pytest.mark.parametrize(
    "name", ["unit_norm_decoder", "use_sparse_activations", "apply_b_dec_to_input"]
)
def test_flags_in_training_are_true_or_false(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be True or False, got 'no'"):
        make_training_sae(**{name: "no"})


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, name: str, bad: float
) -> None:
    make_sae().save_model(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    weights = load_file(path)
    weights[name].view(-1)[3] = bad
    save_file(weights, path)

    with pytest.raises(ValueError, match=f"{name} is not finite"):
        SAE.load_from_disk(tmp_path)


@pytest.mark.parametrize("rescale", [True, False])
def test_unit_norm_rows_are_made_on_loading_with_the_function_kept(
    tmp_path: Path, rescale: bool
) -> None:
    options = {"rescale_acts_by_decoder_norm": rescale, "dtype": "float64"}
    source = make_training_sae(**options)
    source.W_dec.data *= 3 / source.W_dec.data.norm(dim=-1, keepdim=True)
    source.b_enc.data.normal_()
    x = tokens(50).double()
    for _ in range(300):
        step(source, x)
    expected = step(source, x)
    source.save_model(tmp_path)

    sae = make_training_sae(unit_norm_decoder=True, **options)
    sae.load_weights_from_checkpoint(tmp_path)

    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE).double())
    torch.testing.assert_close(
        sae.thresholds, source.thresholds * (1 if rescale else 3)
    )
    actual = step(sae, x)
    torch.testing.assert_close(actual.sae_out, expected.sae_out)
    torch.testing.assert_close(actual.loss, expected.loss)


def test_rows_of_different_norms_keep_the_function_where_they_were_ranked_by_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for rescale in (True, False):
        options = {"rescale_acts_by_decoder_norm": rescale, "dtype": "float64"}
        source = make_training_sae(unit_norm_decoder=False, **options)
        source.W_dec.data *= torch.linspace(0.5, 3, D_SAE)[:, None]
        x = tokens(50).double()
        expected = step(source, x).loss
        source.save_model(tmp_path / str(rescale))

        sae = make_training_sae(unit_norm_decoder=True, **options)
        caplog.clear()
        sae.load_weights_from_checkpoint(tmp_path / str(rescale))

        if rescale:
            torch.testing.assert_close(step(sae, x).loss, expected)
            assert caplog.text == ""
        else:
            assert "the largest features are other ones now" in caplog.text
            assert sae.thresholds.isnan().all()


def test_rows_of_zeros_stay_and_disturb_nothing() -> None:
    sae = make_training_sae(unit_norm_decoder=True)
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.1)
    sae.W_dec.data[3] = 0
    sae.W_enc.data[:, 3] = 0

    step(sae, tokens()).loss.backward()
    optimizer.step()

    assert sae.W_dec.isfinite().all()


def test_rows_of_norm_1_are_loaded_bit_for_bit(tmp_path: Path) -> None:
    source = make_training_sae(unit_norm_decoder=True)
    source.save_model(tmp_path)

    sae = make_training_sae(unit_norm_decoder=True)
    sae.load_weights_from_checkpoint(tmp_path)

    assert torch.equal(sae.W_dec, source.W_dec)
    assert torch.equal(sae.W_enc, source.W_enc)


def test_an_sae_saved_at_another_k_loads_for_training(tmp_path: Path) -> None:
    sae = make_sae()
    calibrate_thresholds(sae, tokens(50))
    sae.k = 3
    sae.save_model(tmp_path)

    trained = TrainingSAE.load_from_disk(tmp_path)

    assert isinstance(trained, HierarchicalTopKTrainingSAE)
    assert trained.cfg.k == K_MAX
    assert torch.equal(trained.thresholds, sae.thresholds)


@pytest.mark.parametrize("normalize", NORMALIZATIONS[1:])
@pytest.mark.parametrize("scale", [3000.0, 1e-4])
def test_float16_normalizes_large_and_small_tokens(
    normalize: str, scale: float
) -> None:
    options: dict[str, Any] = {"normalize_activations": normalize}
    cfg = HierarchicalTopKSAEConfig(d_in=1024, d_sae=64, k_max=8, **options)
    sae = HierarchicalTopKSAE(cfg)
    x = scale * torch.randn(5, 1024)
    expected = sae(x)

    half = sae.half()(x.half())

    assert half.dtype == torch.float16
    assert half.isfinite().all()
    assert (half.float() - expected).norm() < 0.05 * expected.norm()


def test_a_change_of_dtype_says_that_thresholds_are_to_be_set_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sae = make_sae()
    sae.bfloat16().float()
    assert caplog.text == ""  # there are none yet

    calibrate_thresholds(sae, tokens(50))
    sae.to("cpu").to(torch.float32)
    assert caplog.text == ""
    sae.to(torch.bfloat16)
    assert "calibrate_thresholds" in caplog.text


def test_saving_over_another_sae_leaves_nothing_of_it(tmp_path: Path) -> None:
    for name in ("activation_scaler.json", "sparsity.safetensors", "notes.md"):
        (tmp_path / name).write_text("of another SAE")

    make_sae().save_model(tmp_path)

    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"cfg.json", "sae_weights.safetensors", "notes.md"}
