"""The bundled model and text, a small run on them, and a Hub stand-in."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
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
    load_bundled_dataset,
    load_bundled_model,
)
from tests.helpers import MakeConfig
from tests.hub_server import HubServer
from tests.stranger import Stranger

# The tests' tensors are small: threads would mostly wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model() -> HookedSAETransformer:
    return load_bundled_model()


@pytest.fixture(scope="session")
def text() -> Dataset:
    return load_bundled_dataset("train").select(range(40))


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


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than ``tmp_path``."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a run tells W&B, the last of each name."""
    told: dict[str, Any] = {}
    for name in ("init", "finish", "log_artifact"):
        monkeypatch.setattr(
            f"wandb.{name}", lambda *_, **__: SimpleNamespace(id="the run")
        )
    monkeypatch.setattr("wandb.log", lambda log, **_: told.update(log))
    return told


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub stand-in on loopback, which huggingface_hub takes for the Hub."""
    server = HubServer(tmp_path / "hub")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # The stand-in has the Hub's older protocol for large files alone.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def stranger(
    tmp_path: Path, model: HookedSAETransformer, monkeypatch: pytest.MonkeyPatch
) -> Stranger:
    def nobody_answers(prompt: str) -> str:
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr("builtins.input", nobody_answers)
    for module in ("dynamic_module_utils", "utils.hub", "utils"):
        monkeypatch.setattr(
            f"transformers.{module}.HF_MODULES_CACHE", str(tmp_path), raising=False
        )
    return Stranger(tmp_path, model.tokenizer)
