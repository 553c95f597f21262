"""Configs of the SAEs that HierarchicalTopK is compared with, SAELens's own."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

from sae_lens import (
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAEConfig,
)
from sae_lens.saes.sae import SAEConfig

from sae_lens_hierarchical.defaults import METHOD
from sae_lens_hierarchical.saes import HierarchicalTopKTrainingSAEConfig

__all__ = ["paper_comparison", "plain_topk"]


def paper_comparison(
    ours: HierarchicalTopKTrainingSAEConfig, steps: int
) -> dict[str, TrainingSAEConfig]:
    """Return ``ours`` and the paper's SAEs (§3.2, §3.4), for its sizes and K, by name.

    For K = 128 the paper's are HierarchicalTopK with the losses J_1, J_8, J_16, J_32,
    J_64, and TopK, BatchTopK and JumpReLU at 32, 64 and 128; for another K the same
    parts of it. A J_x that is the loss of ``ours`` is left out.

    Args:
        ours: One HierarchicalTopK SAE, with any J and weights.
        steps: For how many steps they will be trained.
    """
    K = ours.k
    distances = sorted({1, *(max(1, K // part) for part in (16, 8, 4, 2))})
    ks = sorted({max(1, K // part) for part in (4, 2, 1)})
    losses = {f"{METHOD}-J{x}": _with_loss_every(ours, x) for x in distances}
    own_loss = ours.resolve_budgets()
    return {
        METHOD: ours,
        **{n: cfg for n, cfg in losses.items() if cfg.resolve_budgets() != own_loss},
        **{f"TopK-{k}": plain_topk(ours, k) for k in ks},
        **{f"BatchTopK-{k}": _batchtopk(ours, k) for k in ks},
        **{f"JumpReLU-{k}": _jumprelu(ours, k, steps) for k in ks},
    }


def _with_loss_every(
    ours: HierarchicalTopKTrainingSAEConfig, x: int
) -> HierarchicalTopKTrainingSAEConfig:
    # A copy, since SAELens writes into the metadata of a config.
    return replace(deepcopy(ours), loss_every=x, budgets=None, budget_weights=None)


def plain_topk(
    ours: HierarchicalTopKTrainingSAEConfig, k: int
) -> TopKTrainingSAEConfig:
    """Return SAELens's TopK at k, with the sizes of ``ours``."""
    # Rows that start with norm 1, like ours, serve it better than its default of 0.1.
    return TopKTrainingSAEConfig(**_shared(ours), k=k, decoder_init_norm=1)


def _batchtopk(
    ours: HierarchicalTopKTrainingSAEConfig, k: int
) -> BatchTopKTrainingSAEConfig:
    cfg = BatchTopKTrainingSAEConfig(**_shared(ours), k=k, decoder_init_norm=1)
    # Once trained it is a JumpReLU SAE, whose config says nothing of k.
    cfg.metadata.trained_k = k
    return cfg


def _jumprelu(
    ours: HierarchicalTopKTrainingSAEConfig, k: int, steps: int
) -> JumpReLUTrainingSAEConfig:
    """Return SAELens's JumpReLU, drawn to a mean l0 of k by its quadratic penalty.

    A bandwidth of 2, for activations of norm √d_in, and gradients that pass through
    thresholds to the encoder are Anthropic's choice, which SAELens documents.
    """
    settings = _shared(ours)
    settings["normalize_activations"] = "expected_average_only_in"
    return JumpReLUTrainingSAEConfig(
        **settings,
        decoder_init_norm=1,
        jumprelu_sparsity_loss_mode="quadratic",
        target_l0=k,
        l0_warm_up_steps=steps // 4,
        jumprelu_bandwidth=2.0,
        jumprelu_init_threshold=1.0,
        jumprelu_ste_to_input=True,
        pre_act_loss_coefficient=3e-6,
    )


def _shared(ours: HierarchicalTopKTrainingSAEConfig) -> dict[str, Any]:
    names = {f.name for f in fields(SAEConfig)} - {"metadata"}
    return {name: getattr(ours, name) for name in names}
