"""SAELens's warnings that are not true of what this package does."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from sae_lens import logger

__all__ = ["without_false_warnings"]

# It compares documents with tokens.
_OF_NO_RUN = ("The training dataset contains fewer samples",)
# The config's name of it is enough: the runner finds it again by that.
_OF_A_NAMED_MODEL = (
    "You just passed in a model which will override",
    "override_model overrides cfg.model_name",
)
_OF_A_NAMED_DATASET = (
    "You just passed in a dataset which will override",
    "override_dataset overrides cfg.dataset_path",
    "Dataset is not tokenized",  # the bundled one cannot be; others are read once
)


@contextmanager
def without_false_warnings(*, model: bool, dataset: bool) -> Generator[None]:
    """Hold back what SAELens would say while a store is set up, and is not so.

    Args:
        model: Whether the model is one that a run loaded by its name.
        dataset: Whether the dataset is a run's bundled one, by its name, or is only
            evaluated on: it is read once, and tokenizing it first would save nothing.
    """
    false = _OF_NO_RUN
    false += _OF_A_NAMED_MODEL if model else ()
    false += _OF_A_NAMED_DATASET if dataset else ()

    def is_true(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(false)

    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        for beginning in false:
            warnings.filterwarnings("ignore", message=beginning)
        logger.addFilter(is_true)
        stack.callback(logger.removeFilter, is_true)
        yield
