"""Tests of which warnings of SAELens's a run shows."""

from __future__ import annotations

import warnings

import pytest
from datasets import Dataset
from sae_lens import HookedSAETransformer

from sae_lens_hierarchical import LanguageModelSAETrainingRunner
from sae_lens_hierarchical.training.presets import preset
from tests.helpers import MakeConfig


def said(caplog: pytest.LogCaptureFixture, shown: list[warnings.WarningMessage]) -> str:
    return "\n".join([*caplog.messages, *(str(w.message) for w in shown)])


def test_the_bundled_preset_starts_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        LanguageModelSAETrainingRunner(preset("bundled", output_path=None))

    text = said(caplog, shown)
    for false in ("override", "fewer samples", "not tokenized"):
        assert false not in text


def test_what_is_true_of_a_run_is_said(
    make_config: MakeConfig,
    model: HookedSAETransformer,
    text: Dataset,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        LanguageModelSAETrainingRunner(make_config(), text, model)

    said_of_it = said(caplog, shown)
    assert "You just passed in a dataset" in said_of_it
    assert "You just passed in a model" in said_of_it
    assert "Dataset is not tokenized" in said_of_it
    assert "fewer samples" not in said_of_it
