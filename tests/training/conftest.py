"""What the training runs of these tests are given."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from sae_lens import HookedSAETransformer


@pytest.fixture
def data(model: HookedSAETransformer, text: Dataset) -> dict[str, Any]:
    return {"override_dataset": text, "override_model": model}
