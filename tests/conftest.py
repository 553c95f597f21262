"""The bundled model and text, and a small run on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# Without a GPU the Triton kernels run in Triton's interpreter. Triton reads this when
# it is imported, which SAELens's imports do.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from datasets import Dataset
from sae_lens import HookedSAETransformer, LoggingConfig

from sae_lens_hierarchical import LanguageModelSAERunnerConfig
from sae_lens_hierarchical.data import (
    BUNDLED_HOOK_NAME,
    BUNDLED_MODEL_NAME,
    load_bundled_model,
    load_bundled_text,
)

# The tests' tensors are small: threads would mostly wait for each other.
torch.set_num_threads(1)

MakeConfig = Callable[..., LanguageModelSAERunnerConfig]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model() -> HookedSAETransformer:
    return load_bundled_model()


@pytest.fixture(scope="session")
def text() -> Dataset:
    return load_bundled_text("train").select(range(40))


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    """Return a function that gives the config of a run of ten steps."""

    def make(**changes: Any) -> LanguageModelSAERunnerConfig:
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
            "checkpoint_path": str(tmp_path / "checkpoints"),
            "output_path": str(tmp_path / "output"),
            "verbose": False,
        }
        settings |= changes
        if "sae" in changes:
            for name in ("architecture", "d_in", "d_sae", "k"):
                del settings[name]
        return LanguageModelSAERunnerConfig(**settings)

    return make
