"""What several of the tests make or share."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens import (
    HookedSAETransformer,
    LoggingConfig,
    SAETrainer,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig

from sae_lens_hierarchical import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
)
from sae_lens_hierarchical.data import (
    BUNDLED_HOOK_NAME,
    BUNDLED_MODEL_NAME,
    load_bundled_dataset,
)
from sae_lens_hierarchical.eval.table import BudgetMetrics

# The type of the fixture ``make_config``.
MakeConfig = Callable[..., LanguageModelSAERunnerConfig]

# Of the SAEs and trainers that are made here to train.
D_IN, D_SAE, BATCH = 12, 40, 17


def make_metrics(k: int, explained_variance: float, **changes: Any) -> BudgetMetrics:
    """Return a row of a table of metrics, with ``changes``."""
    settings: dict[str, Any] = {
        "sae": "HierarchicalTopK",
        "architecture": "hierarchical_topk",
        "trained_k": 32,
        "activation": "topk",
        "k": k,
        "tokens": 1000,
        "ce_tokens": 500,
        "l0": k - 0.5,
        "explained_variance": explained_variance,
        "fvu_centered": 0.8 * (1 - explained_variance),
        "mse": 1.5,
        "cosine_similarity": 0.9,
        "ce_loss_score": 0.3,
        "kl_div": 0.1,
        "dead_features": k,
        "almost_dead_features": k + 1,
        "frequency": np.linspace(0, 1, 5, dtype=np.float32),
        "mean_squared_activation": np.arange(5, dtype=np.float32),
        "cosine_to_next": np.linspace(1, 0.5, k - 1, dtype=np.float32),
    }
    return BudgetMetrics(**settings | changes)


def make_crude_sae(
    model: HookedSAETransformer,
    *,
    decoder_norm: float = 1,
    encoder_scale: float = 0.6,
    **changes: Any,
) -> HierarchicalTopKSAE:
    """Return an SAE, K = 8, whose 96 features are the model's activations of tokens."""
    sae = HierarchicalTopKSAE(
        HierarchicalTopKSAEConfig(d_in=128, d_sae=96, k_max=8, **changes)
    )
    metadata = sae.cfg.metadata
    metadata.model_name, metadata.hook_name = BUNDLED_MODEL_NAME, BUNDLED_HOOK_NAME
    metadata.context_size, metadata.prepend_bos = 32, True
    tokens = model.to_tokens(load_bundled_dataset("train")[0]["text"])[:, :100]
    _, cache = model.run_with_cache(tokens, names_filter=BUNDLED_HOOK_NAME)
    x = cache[BUNDLED_HOOK_NAME][0, 1:97]
    with torch.no_grad():
        sae.b_dec[:] = x.mean(0)
        directions = torch.nn.functional.normalize(x - x.mean(0))
        sae.W_dec[:] = decoder_norm * directions
        sae.W_enc[:] = encoder_scale * directions.T
    return sae


def make_training_sae(
    k: int = 6, seed: int = 0, *, own_b_dec: bool = True, **options: Any
) -> HierarchicalTopKTrainingSAE:
    """Return an SAE to train, with biases and row norms as training leaves them.

    Without ``own_b_dec`` its b_dec is zero.
    """
    torch.manual_seed(seed)
    options = {"unit_norm_decoder": False, **options}
    cfg = HierarchicalTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=k, **options)
    sae = HierarchicalTopKTrainingSAE(cfg)
    with torch.no_grad():
        sae.b_enc.normal_()
        if own_b_dec:
            sae.b_dec.normal_()
        if not cfg.unit_norm_decoder:
            sae.W_dec.mul_(torch.rand(D_SAE, 1) + 0.5)
    return sae


def make_trainer(sae: TrainingSAE[Any], **options: Any) -> SAETrainer[Any, Any]:
    """Return SAELens's trainer of ``sae``, whose batches the test gives to ``step``."""
    defaults: dict[str, Any] = {
        "n_checkpoints": 0,
        "checkpoint_path": None,
        "save_final_checkpoint": False,
        "total_training_samples": 10**6,
        "device": "cpu",
        "autocast": False,
        "lr": 0.01,
        "lr_end": 0.001,
        "lr_scheduler_name": "constant",
        "lr_warm_up_steps": 0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "lr_decay_steps": 0,
        "n_restart_cycles": 1,
        "train_batch_size_samples": BATCH,
        "dead_feature_window": 2,
        "feature_sampling_window": 1000,
        "logger": LoggingConfig(log_to_wandb=False),
        "n_batches_for_norm_estimate": 1,
    }
    cfg = SAETrainerConfig(**{**defaults, **options})
    return SAETrainer(cfg=cfg, sae=sae, data_provider=iter(()))


def make_massive(model: HookedSAETransformer, token: int) -> HookedSAETransformer:
    """Return a copy of a model in which one token has activations of enormous norm."""
    massive = deepcopy(model)
    massive.W_E.data[token] *= 1e4
    return massive


def make_run_config(folder: Path, **changes: Any) -> LanguageModelSAERunnerConfig:
    """Return the config of a run of ten steps, which writes to ``folder``."""
    settings: dict[str, Any] = {
        "architecture": "hierarchical_topk",
        "d_in": 128,
        "d_sae": 64,
        "k": 8,
        "model_name": BUNDLED_MODEL_NAME,
        "hook_name": BUNDLED_HOOK_NAME,
        "dataset_path": "bundled",
        "is_dataset_tokenized": False,
        "streaming": False,
        "context_size": 32,
        "store_batch_size_prompts": 8,
        "n_batches_in_buffer": 12,
        "train_batch_size_tokens": 64,
        "training_tokens": 640,
        "n_batches_for_norm_estimate": 3,
        "lr": 1e-3,
        "dead_feature_window": 3,
        "feature_sampling_window": 4,
        "logger": LoggingConfig(log_to_wandb=False),
        "checkpoint_path": str(folder / "checkpoints"),
        "output_path": str(folder / "output"),
        "verbose": False,
    }
    settings |= changes
    if "sae" in changes:
        for name in ("architecture", "d_in", "d_sae", "k"):
            del settings[name]
    return LanguageModelSAERunnerConfig(**settings)
