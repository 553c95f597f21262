"""Tests of the fast step: SAELens's, but for rounding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sae_lens import (
    SAETrainer,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sae_lens_hierarchical.training.step import FastSAETrainer
from tests.helpers import D_IN, D_SAE, make_trainer, make_training_sae


def batch(seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(17, D_IN, generator=generator) + 1).to(dtype)


def fast(sae: TrainingSAE[Any], **options: Any) -> FastSAETrainer:
    plain = make_trainer(sae, **options)
    return FastSAETrainer(cfg=plain.cfg, sae=sae, data_provider=iter(()))


def run(trainer: SAETrainer[Any, Any], steps: range) -> None:
    for n in steps:
        trainer.step(batch(n, trainer.sae.dtype))
        trainer.n_training_steps += 1


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-7), ("float32", 8e-6)])
def test_thirty_steps_are_those_of_saelens(
    normalize: str, unit_norm: bool, sparse: bool, dtype: str, tolerance: float
) -> None:
    options: dict[str, Any] = {
        "normalize_activations": normalize,
        "unit_norm_decoder": unit_norm,
        "use_sparse_activations": sparse,
        "dtype": dtype,
    }
    sae = make_training_sae(**options)
    twin = copy.deepcopy(sae)
    theirs, ours = make_trainer(sae), fast(twin)

    run(theirs, range(30))
    run(ours, range(30))

    assert theirs.dead_neurons.any()  # so that their loss took part
    for name, parameter in sae.named_parameters():
        difference = (twin.get_parameter(name) - parameter).norm()
        assert difference <= tolerance * parameter.norm(), name
    for name in ("act_freq_scores", "n_forward_passes_since_fired", "dead_neurons"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.n_frac_active_samples == theirs.n_frac_active_samples


def test_other_architectures_train_as_before() -> None:
    torch.manual_seed(0)
    cfg = StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, dtype="float64")
    sae = StandardTrainingSAE(cfg)
    twin = copy.deepcopy(sae)
    theirs, ours = make_trainer(sae), fast(twin)

    run(theirs, range(10))
    run(ours, range(10))

    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(twin.get_parameter(name), parameter)
    assert torch.equal(ours.act_freq_scores, theirs.act_freq_scores)


class HostReads(TorchDispatchMode):
    """Counts how often the host asks for a tensor's value."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_dead_latents_are_found_on_the_step_on_which_they_die(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sae = make_training_sae()
    trainer = fast(sae, dead_feature_window=3)
    masks: list[Tensor | None] = []

    def forward(step_input: TrainStepInput) -> TrainStepOutput:
        masks.append(step_input.dead_neuron_mask)
        x, acts = step_input.sae_in, torch.zeros(17, D_SAE)
        # One latent is silent from step 10 to step 20.
        acts[0, 1 if 10 <= step_input.n_training_steps < 20 else 0 :] = 1
        loss = sae.b_dec.square().sum()
        return TrainStepOutput(x, x, acts, acts, loss, {}, {})

    monkeypatch.setattr(sae, "training_forward_pass", forward)
    steps_with_reads = 0
    for n in range(40):
        expected = trainer.dead_neurons
        with HostReads() as reads:
            run(trainer, range(n, n + 1))
        found = torch.zeros_like(expected) if masks[-1] is None else masks[-1]
        assert torch.equal(found, expected)
        assert found.any() == (14 <= n <= 20)
        steps_with_reads += reads.count > 0
    assert 0 < steps_with_reads < 40


def test_optimizer_state_follows_the_parameters_layout(tmp_path: Any) -> None:
    """Fused Adam goes through memory: other strides would be other weights."""
    sae = make_training_sae(unit_norm_decoder=True)
    whole, part = fast(copy.deepcopy(sae)), fast(sae)
    run(whole, range(12))
    run(part, range(6))
    sae.save_model(tmp_path)
    part.save_trainer_state(tmp_path)

    again = make_training_sae(unit_norm_decoder=True)
    resumed = fast(again)
    resumed.load_trainer_state(tmp_path)
    again.load_weights_from_checkpoint(tmp_path)
    for state in resumed.optimizer.state.values():  # as of an older checkpoint
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = state[name].contiguous()
    resumed.prepare_optimizer()
    run(resumed, range(6, 12))

    assert all(group["fused"] for group in resumed.optimizer.param_groups)
    for parameter, state in resumed.optimizer.state.items():
        assert state["exp_avg"].stride() == parameter.stride()
    for name, parameter in whole.sae.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter), name


@pytest.mark.parametrize("largest", [1e-3, 1e3])
def test_gradients_are_clipped_to_norm_1(largest: float) -> None:
    sae = make_training_sae(dtype="float64")
    twin = copy.deepcopy(sae)
    theirs, ours = make_trainer(sae), fast(twin)
    x = largest * batch(0, torch.float64)

    theirs.step(x)
    ours.step(x)

    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(
            twin.get_parameter(name), parameter, rtol=1e-6, atol=1e-9
        )
