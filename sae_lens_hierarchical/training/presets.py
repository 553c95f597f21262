"""Runs of the paper's sizes (Table 1; §3.1 and B.1), and one on the bundled model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import Any

import torch
from sae_lens import LoggingConfig

from sae_lens_hierarchical.data import (
    BUNDLED_DATASET_NAME,
    BUNDLED_HOOK_NAME,
    BUNDLED_MODEL_NAME,
)
from sae_lens_hierarchical.defaults import (
    ARCHITECTURE,
    BUNDLED,
    N_BATCHES_IN_BUFFER,
)
from sae_lens_hierarchical.training.config import LanguageModelSAERunnerConfig

__all__ = ["PRESETS", "preset", "preset_fields", "set_lr_schedule", "small_run"]

# Of the paper: the SAE, the optimizer's rate, the data and the batch. Its loss is
# loss_every=1; the default is the better one where it was measured (docs/recipe.md).
_PAPER: dict[str, Any] = {
    "architecture": ARCHITECTURE,
    "d_sae": 65_536,
    "k": 128,
    "lr": 8e-4,
    "dataset_path": "HuggingFaceFW/fineweb",
    "training_tokens": 1_000_000_000,
    "train_batch_size_tokens": 8096,
}
# Where the paper is silent: ours.
_OURS: dict[str, Any] = {
    "is_dataset_tokenized": False,
    "streaming": True,
    "context_size": 1024,
    "exclude_special_tokens": True,
    "store_batch_size_prompts": 16,
    "n_batches_in_buffer": N_BATCHES_IN_BUFFER,
    "device": "cuda",
    "n_checkpoints": 10,
}

PRESETS: dict[str, dict[str, Any]] = {
    "gemma-2-2b-layer-12": {
        **_PAPER,
        **_OURS,
        "model_name": "gemma-2-2b",
        "hook_name": "blocks.12.hook_resid_post",
        "d_in": 2304,
    },
    "qwen-2.5-7b-layer-14": {
        **_PAPER,
        **_OURS,
        "model_name": "Qwen/Qwen2.5-7B",
        "hook_name": "blocks.14.hook_resid_post",
        "d_in": 3584,
    },
    # Small enough for a CPU, and with no network: the package brings it along. With K
    # nearer to d_in than in the paper, which has 1/18 of it, the budgets compete more.
    BUNDLED: {
        "architecture": ARCHITECTURE,
        "d_in": 128,
        "d_sae": 3072,
        "k": 16,
        "model_name": BUNDLED_MODEL_NAME,
        "hook_name": BUNDLED_HOOK_NAME,
        "dataset_path": BUNDLED_DATASET_NAME,
        "is_dataset_tokenized": False,
        "streaming": False,
        "context_size": 128,
        "training_tokens": 2_000_000,
        "train_batch_size_tokens": 512,
        "n_batches_in_buffer": N_BATCHES_IN_BUFFER,
        "exclude_special_tokens": True,
        "prefetch_llm_batches": True,
        "lr": 4e-3,
        "dead_feature_window": 400,
        "checkpoint_path": None,
    },
}


def preset(name: str, **changes: Any) -> LanguageModelSAERunnerConfig:
    """Return the config of a run of the paper's size, or of one on the bundled model.

    For the paper's models SAE, data and optimizer are the paper's; the warm-up and
    decay of the learning rate are ours. The loss is the default one: the paper's is
    ``loss_every=1``.

    Args:
        name: One of ``PRESETS``.
        changes: Fields to set otherwise, as in ``LanguageModelSAERunnerConfig``.

    Raises:
        ValueError: If there is no such preset, or a value does not fit.
        TypeError: If a field is unknown.
    """
    fields = preset_fields(name)
    if name == BUNDLED:
        fields["logger"] = LoggingConfig(log_to_wandb=False)
    cfg = LanguageModelSAERunnerConfig(**{**fields, **changes})
    set_lr_schedule(cfg, name, given=changes)
    return cfg


def preset_fields(name: str) -> dict[str, Any]:
    """Return a preset's fields; ``set_lr_schedule`` adds the learning rate's schedule.

    Args:
        name: One of ``PRESETS``.

    Raises:
        ValueError: If there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    return dict(PRESETS[name])


def set_lr_schedule(
    cfg: LanguageModelSAERunnerConfig, name: str, given: Collection[str] = ()
) -> None:
    """Fit a preset's warm-up and decay of the learning rate to the steps of a run.

    A scheduler other than SAELens's constant one has its own decay.

    Args:
        cfg: The run's config, with its tokens and its batch.
        name: One of ``PRESETS``.
        given: Fields that were set otherwise, and stay.
    """
    steps = cfg.total_training_steps
    # The paper is silent; docs/recipe.md was measured with a twentieth and a fifth.
    warm_up, decay = steps // 20, steps // 5
    if name == BUNDLED:
        warm_up, decay = min(20, steps // 5), steps // 4
    if "lr_warm_up_steps" not in given:
        taken = cfg.lr_decay_steps if "lr_decay_steps" in given else 0
        cfg.lr_warm_up_steps = max(0, min(warm_up, steps - taken))
    if "lr_decay_steps" not in given and cfg.lr_scheduler_name == "constant":
        cfg.lr_decay_steps = max(0, min(decay, steps - cfg.lr_warm_up_steps))


@contextmanager
def small_run() -> Generator[None]:
    """Set torch up for a small model on a CPU: one thread for it, one for the SAEs.

    Operations this small would spend most of a second thread's time on waiting for it.
    SAELens's notes on local models and datasets, which are meant here, are held back.
    """
    threads = torch.get_num_threads()
    log = logging.getLogger("sae_lens")
    level = log.level
    torch.set_num_threads(1)
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        torch.set_num_threads(threads)
