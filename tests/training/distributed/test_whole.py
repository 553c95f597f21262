"""Tests that a sharded SAE starts and is folded as a whole one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lens_hierarchical import (
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)
from sae_lens_hierarchical.training.distributed import Mesh, ShardedTrainingSAE
from tests.training.distributed.cases import D_IN, D_SAE, Case, whole_sae
from tests.training.distributed.processes import run_on_processes


def config(**fields: Any) -> HierarchicalTopKTrainingSAEConfig:
    return HierarchicalTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=6, **fields)


def initial(mesh: Mesh, fields: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    weights = []
    for own in fields:
        torch.manual_seed(5 + mesh.rank)
        weights.append(ShardedTrainingSAE(config(**own), mesh).whole_state_dict())
    return weights


def test_weights_start_as_on_one_process() -> None:
    fields: list[dict[str, Any]] = [
        {"dtype": "float32"},
        {"dtype": "bfloat16", "decoder_init_norm": None},
        {"dtype": "float32", "unit_norm_decoder": True},
    ]
    for weights in run_on_processes(3, initial, fields):
        for own, got in zip(fields, weights, strict=True):
            torch.manual_seed(5)
            whole = HierarchicalTopKTrainingSAE(config(**own)).state_dict()
            assert got.keys() == whole.keys()
            for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
                assert torch.equal(got[name], whole[name]), (own, name)


def fold(sae: HierarchicalTopKTrainingSAE) -> None:
    """Do what training does at its end for each normalization, one after another."""
    sae.fold_activation_norm_scaling_factor(0.3)
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(D_IN, generator=generator, dtype=torch.float64)
    into = torch.randn(D_IN, D_IN, generator=generator, dtype=torch.float64)
    sae.fold_activation_whitening(mean, into, torch.linalg.inv(into))


def folded(mesh: Mesh, cases: list[Case]) -> list[dict[str, Tensor]]:
    saes = [ShardedTrainingSAE.from_whole(whole_sae(case), mesh) for case in cases]
    for sae in saes:
        fold(sae)
    return [deepcopy(sae.whole_state_dict()) for sae in saes]


@pytest.mark.parametrize("processes", [2, 3])
def test_normalization_is_folded_as_on_one_process(processes: int) -> None:
    cases = [
        Case("rescaled"),
        Case("b_dec not in the input", {"apply_b_dec_to_input": False}),
        Case("not rescaled", {"rescale_acts_by_decoder_norm": False}),
    ]
    for weights in run_on_processes(processes, folded, cases):
        for case, got in zip(cases, weights, strict=True):
            whole = whole_sae(case)
            fold(whole)
            for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
                torch.testing.assert_close(
                    got[name], whole.get_parameter(name).data, rtol=1e-12, atol=1e-12
                )
