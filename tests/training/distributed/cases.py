"""SAEs that one process and several train, and what they are compared by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sae_lens_hierarchical import (
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)
from sae_lens_hierarchical.training.distributed import (
    Mesh,
    ShardedSAETrainer,
    ShardedTrainingSAE,
)
from sae_lens_hierarchical.training.step import FastSAETrainer
from tests.helpers import make_trainer

# Two, three and four divide neither.
D_IN, D_SAE, BATCH = 13, 37, 24


@dataclass(frozen=True)
class Case:
    """A training run.

    Attributes:
        name: What is particular.
        sae: Fields of the SAE's config.
        never: Features that cannot fire at first.
        window: After so many steps in which it did not fire a latent is dead.
        steps: How many.
        scale: What the batches are multiplied by: the gradients are large, so that the
            clip is at work, or small.
        grid: Batches and weights are rounded to multiples of it, the weights after
            every step, so that activations tie.
        dtype: Of the SAE.
        autocast: Whether products are in bfloat16.
        scaling_factor: That of ``expected_average_only_in``.
        own_b_dec: How many of b_dec's entries are not zero at the start.
    """

    name: str
    sae: dict[str, Any] = field(default_factory=dict)
    never: tuple[int, ...] = ()
    window: int = 2
    steps: int = 30
    scale: float = 2.0
    grid: float | None = None
    dtype: str = "float64"
    autocast: bool = False
    scaling_factor: float | None = None
    own_b_dec: int = D_IN

    def __str__(self) -> str:
        return self.name


_UNIT = {"unit_norm_decoder": True}
_NOT_RESCALED = {"rescale_acts_by_decoder_norm": False}
_EXACT = [
    Case("the default budgets", never=(20,)),
    Case("every budget", {"loss_every": 1}, never=(3,)),
    Case("J_3 of unit norm", {"loss_every": 3, **_UNIT}),
    Case("plain TopK, dense", {"budgets": [6], "use_sparse_activations": False}),
    Case(
        "own weights, not rescaled",
        {"budgets": [2, 5], "budget_weights": [0.3, 1.1], **_NOT_RESCALED},
        never=tuple(range(30)),
    ),
    Case(
        "b_dec not in the input, reference backend",
        {"apply_b_dec_to_input": False, "backend": "reference"},
    ),
    # d_in / 2 = 6 dead latents of a token take part. 20 is more than a process has.
    Case("three dead, on one process", {"k": 20}, never=(0, 1, 2), window=5),
    Case("six dead", {"k": 20, **_UNIT}, never=(0, 1, 12, 20, 35, 36), window=5),
    Case("most dead", never=tuple(range(5, 37))),
    Case(
        "seven dead, layer norm",
        {"k": 20, "normalize_activations": "layer_norm"},
        never=(3, 4, 5, 6, 7, 8, 36),
        window=5,
    ),
    Case(
        "constant norm of unit norm",
        {"normalize_activations": "constant_norm_rescale", **_UNIT},
    ),
    Case(
        "expected average, no clip",
        {"normalize_activations": "expected_average_only_in"},
        # Its gradients take more steps to become small.
        steps=50,
        scale=0.02,
        scaling_factor=0.7,
    ),
    Case("b_dec at the mean", own_b_dec=0),
    Case("b_dec of one column", own_b_dec=1),
    # The scales of rescaled activations would undo the ties.
    Case("ties", {"decoder_init_norm": 2.0, **_NOT_RESCALED}, grid=0.25),
    Case(
        "ties among the dead",
        {"budgets": [3, 6], **_UNIT},
        never=tuple(range(20)),
        grid=0.25,
    ),
]
_ROUNDED = [
    Case("float32", steps=5, dtype="float32", never=tuple(range(10))),
    Case("float32 of unit norm", _UNIT, steps=5, dtype="float32"),
    Case("autocast", {"loss_every": 3}, steps=5, dtype="float32", autocast=True),
    # More than d_in / 2 are dead on the first of three processes, none on the next.
    Case(
        "autocast, unevenly dead",
        steps=5,
        dtype="float32",
        autocast=True,
        never=(*range(10), 36),
    ),
    Case("bfloat16", steps=5, dtype="bfloat16", never=tuple(range(10))),
]
CASES = {case.name: case for case in [*_EXACT, *_ROUNDED]}
EXACT = [case.name for case in _EXACT]


@dataclass
class Run:
    """What a run came to.

    Attributes:
        weights: The whole SAE's tensors at the end.
        counts: What the trainer counted, and each step's loss and metrics.
        gradient_norms: Those before the clip.
        n_dead: How many latents were dead at each step.
        bytes_sent: In the last step, by collective.
    """

    weights: dict[str, Tensor]
    counts: dict[str, Tensor]
    gradient_norms: Tensor
    n_dead: list[int]
    bytes_sent: dict[str, int]


def whole_sae(case: Case) -> HierarchicalTopKTrainingSAE:
    """Return a case's SAE, with biases and row norms as training leaves them."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "k": 6,
        "dtype": case.dtype,
        "unit_norm_decoder": False,
        **case.sae,
    }
    sae = HierarchicalTopKTrainingSAE(HierarchicalTopKTrainingSAEConfig(**fields))
    with torch.no_grad():
        sae.b_enc.normal_()
        sae.b_dec[: case.own_b_dec].normal_()
        if not sae.cfg.unit_norm_decoder:
            sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
        sae.b_enc[list(case.never)] = -100
        _round(sae, case)
    return sae


def batch(case: Case, step: int) -> Tensor:
    """Return a batch of all processes, [BATCH, D_IN]."""
    generator = torch.Generator().manual_seed(step)
    x = case.scale * (torch.randn(BATCH, D_IN, generator=generator) + 0.5)
    if case.grid is not None:
        x = (x / case.grid).round() * case.grid
    return x.to(getattr(torch, case.dtype))


def run_on_one_process(case: Case) -> Run:
    """Return what the ordinary trainer comes to."""
    sae = whole_sae(case)
    trainer = _trainer(FastSAETrainer, sae, case)
    return _run(trainer, case)


def run_sharded(mesh: Mesh, names: list[str]) -> dict[str, Run]:
    """Return what the processes of a mesh come to, by case."""
    return {name: _run_sharded(mesh, CASES[name]) for name in names}


def _run_sharded(mesh: Mesh, case: Case) -> Run:
    sae = ShardedTrainingSAE.from_whole(whole_sae(case), mesh)
    return _run(_trainer(ShardedSAETrainer, sae, case), case)


def _trainer(cls: type[FastSAETrainer], sae: Any, case: Case) -> Any:
    plain = make_trainer(
        sae,
        train_batch_size_samples=BATCH,
        autocast=case.autocast,
        lr=0.02,
        dead_feature_window=case.window,
    )
    trainer = cls(cfg=plain.cfg, sae=sae, data_provider=iter(()))
    trainer.activation_scaler.scaling_factor = case.scaling_factor
    return trainer


def _run(trainer: Any, case: Case) -> Run:
    sae = trainer.sae
    sharded = isinstance(sae, ShardedTrainingSAE)
    norms: list[Tensor] = []
    n_dead: list[int] = []
    shown: list[Tensor] = []
    gradient_norm = trainer._gradient_norm

    def watched(gradients: list[Tensor]) -> Tensor:
        norms.append(norm := gradient_norm(gradients))
        return norm

    trainer._gradient_norm = watched
    for step in range(case.steps):
        n_dead.append(int(trainer.dead_neurons.sum()))
        if sharded:
            sae.mesh.bytes_sent.clear()
        output = trainer.step(batch(case, step))
        trainer.n_training_steps += 1
        shown.append(
            torch.stack([*output.losses.values(), *output.metrics.values()]).double()
        )
        _round(sae, case)
    sent = dict(sae.mesh.bytes_sent) if sharded else {}
    weights = sae.whole_state_dict() if sharded else sae.state_dict()
    return Run(
        {name: value.detach().clone() for name, value in weights.items()},
        {
            "shown": torch.stack(shown).detach(),
            "act_freq_scores": trainer.act_freq_scores,
            "since_fired": trainer.n_forward_passes_since_fired,
            "samples": torch.tensor(trainer.n_frac_active_samples),
        },
        torch.stack(norms).detach(),
        n_dead,
        sent,
    )


@torch.no_grad()
def _round(sae: HierarchicalTopKTrainingSAE, case: Case) -> None:
    if case.grid is not None:
        for parameter in sae.parameters():
            parameter.copy_((parameter / case.grid).round() * case.grid)
