"""Tests of what processes tell each other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lens_hierarchical.ops import stable_topk
from sae_lens_hierarchical.training.distributed import Mesh, ShardedSAETrainer
from sae_lens_hierarchical.training.distributed.collectives import global_topk
from sae_lens_hierarchical.training.distributed.processes import PeerFailedError
from sae_lens_hierarchical.training.distributed.sharded_sae import ShardedTrainingSAE
from sae_lens_hierarchical.training.distributed.trainer import DistributedSAETrainer
from sae_lens_hierarchical.training.trainer import TrainingDivergedError
from tests.helpers import make_trainer
from tests.training.distributed.cases import CASES, whole_sae
from tests.training.distributed.processes import run_on_processes

TOKENS, PROCESSES = 64, 4


def activations(n: int, grid: float | None, nan: bool) -> Tensor:
    """Return activations of n features on every process, [TOKENS, n]."""
    x = torch.randn(TOKENS, n, generator=torch.Generator().manual_seed(0))
    x = x if grid is None else (x / grid).round() * grid
    if nan:
        x[3, 7] = torch.nan
    return x


def own_topk(
    mesh: Mesh, sizes: list[int], k: int, grid: float | None, nan: bool
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return the global top-k, the own activations' gradients and the bytes sent."""
    whole = activations(sum(sizes), grid, nan)
    own = whole.split(sizes, dim=1)[mesh.rank].clone().requires_grad_()
    widths = [min(k, size) for size in sizes]
    values, indices = stable_topk(own, widths[mesh.rank]) if own.numel() else (own, own)
    first = sum(sizes[: mesh.rank])
    largest, features = global_topk(mesh, values, indices.long() + first, widths, k)
    # Each process differentiates its part of the loss.
    ((mesh.rank + 1) * largest * largest.detach()).sum().backward()
    assert own.grad is not None
    return largest.detach(), features, own.grad, sum(mesh.bytes_sent.values())


@pytest.mark.parametrize(
    ("sizes", "k", "grid", "nan"),
    [
        ([100, 100, 100, 100], 32, None, False),
        ([100, 100, 100, 100], 32, 0.5, False),
        ([100, 100, 100, 100], 32, None, True),
        ([200, 40, 20, 3], 32, 0.1, False),
        ([200, 40, 20, 0], 32, None, False),
        ([10, 8, 9, 10], 32, None, False),
        ([10, 8, 9, 10], 37, None, False),
    ],
)
def test_the_global_topk_is_that_of_one_process(
    sizes: list[int], k: int, grid: float | None, nan: bool
) -> None:
    whole = activations(sum(sizes), grid, nan).requires_grad_()
    largest, features = stable_topk(whole, k)
    weight = PROCESSES * (PROCESSES + 1) // 2
    (weight * largest * largest.detach()).sum().backward()
    assert whole.grad is not None

    runs = run_on_processes(PROCESSES, own_topk, sizes, k, grid, nan)

    for got, at, _, _ in runs:
        assert torch.equal(at, features)
        torch.testing.assert_close(got, largest.detach(), equal_nan=True)
    gradient = torch.cat([run[2] for run in runs], dim=1)
    torch.testing.assert_close(gradient, whole.grad, equal_nan=True)


def test_candidates_that_cannot_be_among_the_largest_stay_where_they_are() -> None:
    k = 64
    (*_, sent), *_ = run_on_processes(PROCESSES, own_topk, [500] * 4, k, None, False)

    gradients = 2 * (PROCESSES - 1) / PROCESSES * TOKENS * k * 4
    all_candidates = (PROCESSES - 1) * TOKENS * k * 8
    assert sent - gradients < 0.8 * all_candidates


def large_gradients(mesh: Mesh) -> Any:
    case = CASES["float32"]
    sae = ShardedTrainingSAE.from_whole(whole_sae(case), mesh)
    cfg = make_trainer(sae).cfg
    trainer: Any = ShardedSAETrainer(cfg=cfg, sae=sae, data_provider=iter(()))
    return trainer._gradient_norm([torch.full((100,), 30, dtype=torch.float16)])


def test_a_gradient_norm_whose_square_is_beyond_float16() -> None:
    for norm in run_on_processes(2, large_gradients):
        torch.testing.assert_close(float(norm), 300 * 2**0.5)


def error_of_a_late_check(mesh: Mesh) -> str:
    """Return how a process ends that finds, steps later, that the loss was NaN."""
    sae = ShardedTrainingSAE.from_whole(whole_sae(CASES["every budget"]), mesh)
    plain = make_trainer(sae)
    trainer = DistributedSAETrainer(cfg=plain.cfg, sae=sae, data_provider=iter(()))
    trainer.prepare(None)
    # On a CPU each is looked at at once, on a GPU every 16 steps.
    loss = SimpleNamespace(sae="", step=3, samples=72, value=torch.tensor(torch.nan))
    trainer._unchecked_losses = [loss]  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    try:
        trainer.check_finite()
    except (TrainingDivergedError, PeerFailedError) as error:
        return type(error).__name__
    return "none"


def test_divergence_that_is_seen_late_ends_all_processes() -> None:
    ends = run_on_processes(3, error_of_a_late_check, seconds=60)

    assert ends == ["TrainingDivergedError", "PeerFailedError", "PeerFailedError"]
