"""Every notebook runs from top to bottom, and says how long that takes."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from sae_lens import SAE, HookedSAETransformer
from transformers import LlamaConfig, LlamaForCausalLM

from sae_lens_hierarchical import HierarchicalTopKSAE
from sae_lens_hierarchical.data import load_bundled_dataset
from tests.hub_server import HubServer

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
COLAB = next(path for path in NOTEBOOKS if path.stem == "colab")
OFFLINE = [
    path
    for path in NOTEBOOKS
    # SAEBench has an environment of its own: make saebench-test.
    if path != COLAB and (path.stem != "saebench" or find_spec("sae_bench"))
]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DATASET = "datasets/NeelNanda/c4-10k"
# The notebook that trains five SAEs takes most of its minute for that.
SHORTER = {"train_and_sweep": ("training_tokens=100_000", "training_tokens=20_000")}
TINY = "\nLAYER, TRAINING_TOKENS, CONTEXT_SIZE, D_SAE, K = 1, 4096, 32, 64, 8"


def run(notebook: Any, folder: Path) -> None:
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_says_at_its_top_how_long_it_takes(path: Path) -> None:
    top = nbformat.read(path, as_version=4).cells[0].source

    assert re.search(r"\b(seconds|minutes?)\b.* on (one|two)\b", top, re.DOTALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", OFFLINE, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    if path.stem in SHORTER:
        written, shorter = SHORTER[path.stem]
        (cell,) = [cell for cell in notebook.cells if written in cell.source]
        cell.source = cell.source.replace(written, shorter)
    run(notebook, tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_colab_notebook_runs_on_what_the_hub_serves(
    hub: HubServer,
    model: HookedSAETransformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve_tiny_llama(hub.repo(MODEL), model.tokenizer)
    text = load_bundled_dataset("train").select(range(60))
    text.to_parquet(str(hub.repo(DATASET) / "train.parquet"))
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(COLAB, as_version=4)
    (parameters,) = [c for c in notebook.cells if "tags" in c.metadata]
    parameters.source += TINY

    run(notebook, tmp_path)

    downloads = [line for line in hub.requests if line.startswith("GET")]
    for repo in (MODEL, DATASET):
        assert any(f"/{repo}/resolve/" in line for line in downloads)
    sae = SAE.load_from_disk(tmp_path / "sae")
    assert isinstance(sae, HierarchicalTopKSAE)
    assert (sae.k_max, sae.cfg.d_sae, sae.cfg.d_in) == (8, 64, 32)
    assert sae.cfg.metadata.hook_name == "model.layers.1"
    assert (tmp_path / "features" / "features.html").exists()


def serve_tiny_llama(folder: Path, tokenizer: Any) -> None:
    """Write a model of SmolLM2's class, with the bundled model's tokenizer."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
