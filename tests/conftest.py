"""The bundled model and text, a small run on them, and a Hub stand-in."""

from __future__ import annotations

import functools
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
from sae_lens import HookedSAETransformer

from sae_lens_hierarchical.data import (
    load_bundled_dataset,
    load_bundled_model,
)
from tests.helpers import MakeConfig, make_run_config
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
    return functools.partial(make_run_config, tmp_path)


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
