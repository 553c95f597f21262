"""Runs on the bundled model: small operations, on a text that is meant to be small."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sae_lens_hierarchical.data import BUNDLED_HOOK_NAME, BUNDLED_MODEL_NAME

__all__ = ["bundled_fields", "small_run"]


def bundled_fields(training_tokens: int) -> dict[str, Any]:
    """Return the fields of a run on the bundled model, as a preset has them."""
    batch_size = 512
    steps = training_tokens // batch_size
    return {
        "architecture": "hierarchical_topk",
        "d_in": 128,
        "d_sae": 1024,
        "k": 32,
        "unit_norm_decoder": True,
        "model_name": BUNDLED_MODEL_NAME,
        "hook_name": BUNDLED_HOOK_NAME,
        "dataset_path": "bundled text",
        "is_dataset_tokenized": False,
        "streaming": False,
        "context_size": 128,
        "training_tokens": training_tokens,
        "train_batch_size_tokens": batch_size,
        "n_batches_in_buffer": 64,
        "exclude_special_tokens": True,
        "prefetch_llm_batches": True,
        "lr": 2e-3,
        "lr_warm_up_steps": min(20, steps // 5),
        "lr_decay_steps": steps // 4,
        "dead_feature_window": 400,
        "checkpoint_path": None,
    }


@contextmanager
def small_run() -> Iterator[None]:
    """Let the language model and the SAEs have a core each, in place of half of both.

    Operations this small would spend most of a second thread's time on waiting for it.
    SAELens's notes on local models and texts, which are meant here, are held back.
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
