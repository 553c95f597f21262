"""Tests of the SAE in training, against SAELens's own TopK."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import wandb
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig, TrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor

from sae_lens_hierarchical import (
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)
from tests.helpers import BATCH, D_IN, D_SAE, make_trainer, make_training_sae

NORMALIZATIONS = [
    "none",
    "expected_average_only_in",
    "constant_norm_rescale",
    "layer_norm",
    "covariance_whitening",
]


def topk_twin(sae: HierarchicalTopKTrainingSAE, k: int) -> TopKTrainingSAE:
    """Return SAELens's TopK SAE with the same weights and the given k."""
    names = ("rescale_acts_by_decoder_norm", "normalize_activations", "dtype")
    options = {name: getattr(sae.cfg, name) for name in names}
    cfg = TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=k, **options)
    twin = TopKTrainingSAE(cfg)
    weights = copy.deepcopy(sae.state_dict())
    del weights["thresholds"]
    twin.load_state_dict(weights)
    return twin


def activations(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(BATCH, D_IN, generator=generator) + 1


def step(
    sae: TrainingSAE[Any], sae_in: Tensor, dead: Tensor | None = None
) -> TrainStepOutput:
    sae.zero_grad()
    output = sae.training_forward_pass(
        step_input=TrainStepInput(
            sae_in=sae_in,
            coefficients={},
            dead_neuron_mask=dead,
            n_training_steps=0,
            is_logging_step=False,
        )
    )
    output.loss.backward()
    return output


def gradients(sae: TrainingSAE[Any]) -> dict[str, Tensor]:
    return {n: p.grad for n, p in sae.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("normalize_activations", NORMALIZATIONS)
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("backend", ["reference", "sequential"])
def test_loss_is_the_mean_of_stock_topk_losses(
    normalize_activations: str, rescale: bool, backend: str
) -> None:
    sae = make_training_sae(
        k=6,
        loss_every=1,
        normalize_activations=normalize_activations,
        rescale_acts_by_decoder_norm=rescale,
        backend=backend,
        dtype="float64",
    )
    sae_in = activations().double()

    output = step(sae, sae_in)

    twins = [topk_twin(sae, k) for k in range(1, 7)]
    losses = [step(twin, sae_in).loss for twin in twins]
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())
    for name, gradient in gradients(sae).items():
        expected = torch.stack([gradients(twin)[name] for twin in twins]).mean(dim=0)
        torch.testing.assert_close(gradient, expected, msg=name)


@pytest.mark.parametrize("normalize_activations", NORMALIZATIONS)
@pytest.mark.parametrize("sparse", [True, False])
def test_single_budget_equals_stock_topk(
    normalize_activations: str, sparse: bool
) -> None:
    sae = make_training_sae(
        k=6,
        budgets=[6],
        normalize_activations=normalize_activations,
        use_sparse_activations=sparse,
    )

    output = step(sae, activations())

    twin = topk_twin(sae, 6)
    expected = step(twin, activations())
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.sae_out, expected.sae_out)
    torch.testing.assert_close(output.feature_acts.to_dense(), expected.feature_acts)
    for name, gradient in gradients(sae).items():
        torch.testing.assert_close(gradient, gradients(twin)[name], msg=name)


def test_budgets_and_weights_choose_the_terms() -> None:
    sae = make_training_sae(k=6, budgets=[1, 4], budget_weights=[0.25, 3.0])

    output = step(sae, activations())

    at_1, at_4 = (step(topk_twin(sae, k), activations()).loss for k in (1, 4))
    torch.testing.assert_close(output.loss, 0.25 * at_1 + 3 * at_4)


def test_by_default_most_of_the_weight_is_at_k_and_the_rest_at_octaves_below() -> None:
    sae = make_training_sae(k=6)

    output = step(sae, activations())

    at = {k: step(topk_twin(sae, k), activations()).loss for k in (1, 2, 4, 6)}
    expected = (at[1] + at[2] + at[4]) / 9 + at[6] * 2 / 3
    torch.testing.assert_close(output.loss, expected)


def test_weights_alone_are_those_of_the_default_budgets() -> None:
    weighted = make_training_sae(k=6, budget_weights=[0, 0, 1, 3])
    explicit = make_training_sae(k=6, budgets=[4, 6], budget_weights=[1, 3])

    losses = [step(sae, activations()).loss for sae in (weighted, explicit)]

    torch.testing.assert_close(*losses)


def test_configs_of_before_say_what_they_said() -> None:
    """``loss_every`` was 1 by default, and was saved beside other budgets."""
    saved = make_training_sae(k=6, budgets=[1, 4]).cfg.to_dict()
    papers = make_training_sae(k=6).cfg.to_dict()
    config = HierarchicalTopKTrainingSAEConfig

    assert config.from_dict({**saved, "loss_every": 1}).resolve_budgets()[0] == [1, 4]
    budgets, weights = config.from_dict({**papers, "loss_every": 1}).resolve_budgets()
    assert (budgets, weights) == ([1, 2, 3, 4, 5, 6], [1 / 6] * 6)


def test_loss_every_gives_the_papers_j_x() -> None:
    sparse_terms = make_training_sae(k=6, loss_every=2)
    explicit = make_training_sae(k=6, budgets=[1, 2, 4, 6])

    losses = [step(sae, activations()).loss for sae in (sparse_terms, explicit)]

    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)


@pytest.mark.parametrize("n_dead", [3, 30])
@pytest.mark.parametrize("rescale", [True, False])
def test_dead_latent_loss_is_saelens(n_dead: int, rescale: bool) -> None:
    sae = make_training_sae(budgets=[6], rescale_acts_by_decoder_norm=rescale)
    dead = torch.arange(D_SAE) < n_dead

    output = step(sae, activations(), dead)

    twin = topk_twin(sae, 6)
    expected = step(twin, activations(), dead)
    name = "auxiliary_reconstruction_loss"
    assert expected.losses[name] > 0
    torch.testing.assert_close(output.losses[name], expected.losses[name])
    torch.testing.assert_close(output.loss, expected.loss)
    for parameter, gradient in gradients(sae).items():
        torch.testing.assert_close(gradient, gradients(twin)[parameter])


def test_dead_latent_loss_works_on_normalized_activations() -> None:
    """SAELens's raises here. Inputs that the norm leaves alone give the same loss."""
    sae = make_training_sae(normalize_activations="constant_norm_rescale")
    plain = make_training_sae()
    sae_in = D_IN**0.5 * torch.nn.functional.normalize(activations())
    dead = torch.arange(D_SAE) < 5

    output, expected = (step(s, sae_in, dead) for s in (sae, plain))
    doubled = step(sae, 2 * sae_in, dead)

    name = "auxiliary_reconstruction_loss"
    torch.testing.assert_close(output.losses[name], expected.losses[name])
    torch.testing.assert_close(doubled.losses[name], 4 * expected.losses[name])


def test_losses_add_up_and_metrics_are_the_batchs_pareto_curve() -> None:
    sae = make_training_sae(loss_every=1)
    sae_in = activations()

    output = step(sae, sae_in, torch.arange(D_SAE) < 5)

    assert set(output.losses) == {"hierarchical_loss", "auxiliary_reconstruction_loss"}
    torch.testing.assert_close(output.loss, sum(output.losses.values()))
    variance = (sae_in - sae_in.mean(0)).pow(2).sum(-1).mean()
    for k in range(1, 7):
        mse = step(topk_twin(sae, k), sae_in).losses["mse_loss"]
        torch.testing.assert_close(output.metrics[f"mse_k{k}"], mse)
        explained = output.metrics[f"explained_variance_k{k}"]
        torch.testing.assert_close(explained, 1 - mse / variance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_saelens_trainer_lowers_the_loss(
    dtype: str, autocast: bool, sparse: bool
) -> None:
    sae = make_training_sae(dtype=dtype, use_sparse_activations=sparse)
    trainer = make_trainer(sae, autocast=autocast)
    sae_in = activations().to(sae.dtype)

    outputs = [trainer.step(sae_in) for _ in range(20)]

    first, last = outputs[0].losses, outputs[-1].losses
    assert last["hierarchical_loss"] < 0.8 * first["hierarchical_loss"]
    assert trainer.act_freq_scores.sum() > 0
    log = trainer.build_train_step_log_dict(outputs[-1], 0)
    assert log["metrics/l0"] <= 6
    assert "metrics/explained_variance_k4" in log


def test_unit_norm_decoder_holds_at_the_start_and_after_every_step() -> None:
    sae = make_training_sae(unit_norm_decoder=True)
    other = make_training_sae(unit_norm_decoder=False)
    norms = other.W_dec.detach().norm(dim=-1)
    trainer = make_trainer(sae)
    torch.testing.assert_close(sae.W_enc, sae.W_dec.T)

    for _ in range(3):
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
        before = sae.W_dec.detach().clone()
        trainer.step(activations())
        assert not torch.equal(before, sae.W_dec)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    torch.testing.assert_close(other.W_dec.norm(dim=-1), norms)


def test_unit_norm_decoder_steps_along_the_gradient_without_its_parallel_part() -> None:
    sae = make_training_sae(unit_norm_decoder=True)
    optimizer = torch.optim.SGD(sae.parameters(), lr=0.1)
    step(sae, activations())
    before = sae.W_dec.detach().clone()
    assert sae.W_dec.grad is not None
    gradient = sae.W_dec.grad.clone()

    optimizer.step()

    parallel = (gradient * before).sum(-1, keepdim=True) * before
    expected = before - 0.1 * (gradient - parallel)
    expected /= expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(sae.W_dec.detach(), expected)


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in"])
def test_b_dec_starts_at_the_mean_of_the_first_batch(normalize: str) -> None:
    batches = [activations(seed) for seed in range(9)]

    def trained(**options: Any) -> HierarchicalTopKTrainingSAE:
        options |= {"own_b_dec": False, "normalize_activations": normalize}
        sae = make_training_sae(**options)
        trainer = make_trainer(sae, lr=0.0, lr_end=0.0)
        trainer.activation_scaler.scaling_factor = None if normalize == "none" else 0.5
        for batch in batches:
            trainer.step(batch)
            trainer.n_training_steps += 1
        return sae

    scale = 1 if normalize == "none" else 0.5
    torch.testing.assert_close(trained().b_dec, scale * batches[0].mean(dim=0))
    assert not trained(b_dec_init="zeros").b_dec.any()


def test_a_b_dec_of_the_users_own_stays() -> None:
    sae = make_training_sae()
    before = sae.b_dec.detach().clone()

    step(sae, activations())

    assert torch.equal(sae.b_dec, before)


def test_compiled_training_step_has_no_graph_break() -> None:
    sae = make_training_sae()
    expected = step(sae, activations())
    sae.training_forward_pass = torch.compile(
        sae.training_forward_pass, fullgraph=True, backend="aot_eager"
    )

    output = step(sae, activations())

    torch.testing.assert_close(output.loss, expected.loss)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_not_finite_are_refused(bad: float) -> None:
    sae_in = activations()
    sae_in[3, 2] = bad

    with pytest.raises(ValueError, match="sae_in must be finite"):
        step(make_training_sae(), sae_in)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be an integer from 1 to d_sae=40, got 0"),
        ({"k": 41}, "k must be an integer from 1 to d_sae=40, got 41"),
        ({"k": 2.5}, "k must be an integer"),
        ({"loss_every": 0}, "loss_every must be an integer of at least 1"),
        ({"budgets": [1, 9]}, r"budgets must .* from 1 to 6, got \[1, 9\]"),
        ({"budgets": []}, "budgets must be a non-empty"),
        ({"budgets": [1], "loss_every": 1}, "budgets and loss_every"),
        ({"budgets": [1], "budget_weights": [1, 2]}, "budget_weights must have one"),
        ({"budget_weights": [-1] * 4}, "budget_weights must be finite"),
        ({"backend": "cuda"}, "backend must be one of"),
        ({"normalize_activations": "l2"}, "normalize_activations must be"),
        ({"b_dec_init": "median"}, "b_dec_init must be 'mean' or 'zeros'"),
    ],
)
def test_bad_fields_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_training_sae(**options)


def test_wandb_can_draw_the_norms_of_unit_rows() -> None:
    sae = make_training_sae(unit_norm_decoder=True, dtype="float32")
    with torch.no_grad():
        sae.W_dec.mul_(1 + 1e-7 * torch.arange(len(sae.W_dec))[:, None].fmod(3))

    norms: Any
    (norms,) = sae.log_histograms().values()

    assert sum(wandb.Histogram(norms).histogram) == len(sae.W_dec)
