"""Tests of the bundled model, tokenizer and text."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sae_lens import HookedSAETransformer

from sae_lens_hierarchical import data
from sae_lens_hierarchical.data import (
    BUNDLED_HOOK_NAME,
    load_bundled_dataset,
    load_bundled_model,
)

FOLDER = Path(data.__file__).parent
MAX_BYTES = 8_000_000
LOSS_TOLERANCE = 0.15
BIGRAM_MARGIN = 0.5
# A shorter line may well recur in independent documents.
LONG_LINE = 60


@pytest.fixture(scope="module")
def model() -> HookedSAETransformer:
    return load_bundled_model()


@pytest.fixture(scope="module")
def held_out() -> list[str]:
    return list(load_bundled_dataset("held_out")["text"])


@pytest.fixture(scope="module")
def train() -> list[str]:
    return list(load_bundled_dataset("train")["text"])


def bos_token_id(model: HookedSAETransformer) -> int:
    return int(model.to_tokens("")[0, 0])


def packed_contexts(model: HookedSAETransformer, documents: list[str]) -> torch.Tensor:
    """Pack documents as SAELens does: BOS between them and before each context."""
    stream = torch.cat([model.to_tokens(d, truncate=False)[0] for d in documents])
    length = model.cfg.n_ctx - 1
    rows = stream[: len(stream) // length * length].view(-1, length)
    bos = torch.full((len(rows), 1), bos_token_id(model))
    return torch.cat([bos, rows], dim=1)


def test_folder_is_small_enough_to_ship() -> None:
    files = [f for f in FOLDER.rglob("*") if f.is_file() and f.suffix != ".pyc"]

    assert sum(f.stat().st_size for f in files) < MAX_BYTES


def test_model_is_real_and_frozen(model: HookedSAETransformer) -> None:
    parameters = list(model.parameters())

    assert model.cfg.n_layers >= 4
    assert sum(p.numel() for p in parameters) >= 1_000_000
    assert all(p.dtype == torch.float32 for p in parameters)
    assert not any(p.requires_grad for p in parameters)
    assert not model.training
    assert BUNDLED_HOOK_NAME in model.hook_dict


def test_loading_is_silent_and_leaves_the_global_rng_alone() -> None:
    before = torch.random.get_rng_state()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_bundled_model()

    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("text", ["Hello, world!", "  naïve\n\n☃ x = [1, 2]\n"])
def test_tokenizer_round_trips(model: HookedSAETransformer, text: str) -> None:
    tokens = model.to_tokens(text, prepend_bos=False)[0]

    assert model.to_string(tokens) == text


def test_to_tokens_prepends_exactly_one_bos(model: HookedSAETransformer) -> None:
    tokens = model.to_tokens("Some words.")[0]

    assert (tokens == bos_token_id(model)).tolist()[0]
    assert (tokens == bos_token_id(model)).sum() == 1
    assert torch.equal(tokens[1:], model.to_tokens("Some words.", prepend_bos=False)[0])


def test_held_out_loss_is_as_recorded_and_beats_a_bigram(
    model: HookedSAETransformer, held_out: list[str]
) -> None:
    recorded = json.loads((FOLDER / "model_config.json").read_text(encoding="utf-8"))
    batch = packed_contexts(model, held_out)[::2]

    losses = [
        F.cross_entropy(model(part)[:, :-1].flatten(0, 1), part[:, 1:].flatten())
        for part in batch.split(32)[:-1]
    ]
    loss = torch.stack(losses).mean().item()

    assert loss < recorded["bigram_held_out_loss"] - BIGRAM_MARGIN
    assert loss == pytest.approx(recorded["held_out_loss"], abs=LOSS_TOLERANCE)


def test_text_is_plenty_and_cut_into_documents(
    model: HookedSAETransformer, train: list[str], held_out: list[str]
) -> None:
    sample = train[::50]
    tokens = sum(model.to_tokens(d, truncate=False).numel() for d in sample)

    assert load_bundled_dataset("train").column_names == ["text"]
    assert tokens * len(train) / len(sample) > 600_000
    assert len(train) > 500
    assert len(held_out) > 50
    assert all(document.strip() for document in train + held_out)


def test_held_out_text_does_not_overlap_train_text(
    train: list[str], held_out: list[str]
) -> None:
    def long_lines(documents: list[str]) -> set[str]:
        lines = (line.strip() for d in documents for line in d.split("\n"))
        return {line for line in lines if len(line) >= LONG_LINE}

    assert not set(train) & set(held_out)
    assert not long_lines(train) & long_lines(held_out)


def test_unknown_split_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"split.*train.*held_out.*'validation'"):
        load_bundled_dataset("validation")  # pyright: ignore[reportArgumentType]
