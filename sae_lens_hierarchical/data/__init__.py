"""The small language model, tokenizer and text that the package ships.

They let the quickstart, the examples and the tests run with no network. The model is
tiny (6 layers, 128 dimensions), yet trained: see ``model_config.json`` for its measured
loss and ``LICENSES.md`` for where the text comes from.
"""

from __future__ import annotations

import json
import lzma
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

from datasets import Dataset
from sae_lens import HookedSAETransformer
from safetensors.torch import load_file
from transformer_lens import HookedTransformerConfig
from transformers import AutoTokenizer

from sae_lens_hierarchical.defaults import DEVICE

__all__ = [
    "BUNDLED_DATASET_NAME",
    "BUNDLED_HELD_OUT_NAME",
    "BUNDLED_HOOK_NAME",
    "BUNDLED_MODEL_NAME",
    "load_bundled_dataset",
    "load_bundled_model",
]

BUNDLED_MODEL_NAME = "sae-lens-hierarchical/bundled"
BUNDLED_DATASET_NAME = "bundled text"
BUNDLED_HELD_OUT_NAME = "bundled, held out"
BUNDLED_HOOK_NAME = "blocks.2.hook_resid_post"
"""The residual stream half-way through the bundled model's six blocks."""

Split = Literal["train", "held_out"]

_FOLDER = Path(__file__).parent
_DOCUMENT_SEPARATOR = "\f"


def load_bundled_model(device: str = DEVICE) -> HookedSAETransformer:
    """Load the bundled language model, frozen, in float32 and evaluation mode.

    Args:
        device: Where to put the model, such as ``"cpu"`` or ``"cuda"``.

    Returns:
        The model with its tokenizer attached. ``to_tokens`` prepends one BOS token,
        which in training also separated the documents.
    """
    cfg = HookedTransformerConfig.from_dict(
        {
            **_model_config()["config"],
            "model_name": BUNDLED_MODEL_NAME,
            "device": device,
            # The weights are loaded below; initializing would use the global RNG.
            "init_weights": False,
        }
    )
    tokenizer = AutoTokenizer.from_pretrained(
        str(_FOLDER / "tokenizer"), add_bos_token=True, local_files_only=True
    )
    with warnings.catch_warnings():
        # TransformerLens announces HookedTransformer's end in its version 4.
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedSAETransformer(cfg, tokenizer=tokenizer)
    _load_weights(model)
    return model.eval().requires_grad_(False)


def load_bundled_dataset(split: Split) -> Dataset:
    """Load the bundled English text.

    Args:
        split: ``"train"``, which the bundled model was trained on too, or
            ``"held_out"``, which neither the model nor its tokenizer has seen.

    Returns:
        A dataset with the one column ``"text"``, one row a document.

    Raises:
        ValueError: If ``split`` is no such split.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {get_args(Split)}, got {split!r}")
    raw = lzma.decompress((_FOLDER / "text" / f"{split}.txt.xz").read_bytes())
    return Dataset.from_dict({"text": raw.decode("utf-8").split(_DOCUMENT_SEPARATOR)})


def _model_config() -> dict[str, Any]:
    text = (_FOLDER / "model_config.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


def _load_weights(model: HookedSAETransformer) -> None:
    """Copy the float16 weights of the file into the model's float32 parameters."""
    weights = load_file(_FOLDER / "model.safetensors")
    names = {name for name, _ in model.named_parameters()}
    if names != weights.keys():
        raise RuntimeError(
            "model.safetensors does not fit model_config.json; parameters that only "
            f"one of them has: {sorted(names ^ weights.keys())}"
        )
    # Not strict: the model's buffers (attention masks) are not stored.
    model.load_state_dict(weights, strict=False)
