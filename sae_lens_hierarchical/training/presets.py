"""The paper's recipes (Table 1; §3.1 for Gemma-2 2B, B.1 for Qwen-2.5-7B)."""

from __future__ import annotations

from typing import Any

from sae_lens_hierarchical.training.config import LanguageModelSAERunnerConfig

__all__ = ["PRESETS", "preset", "preset_fields"]

# Of the paper: the SAE, the optimiser's rate, the data and the batch.
_PAPER: dict[str, Any] = {
    "architecture": "hierarchical_topk",
    "d_sae": 65_536,
    "k": 128,
    "unit_norm_decoder": True,
    "lr": 8e-4,
    "dataset_path": "HuggingFaceFW/fineweb",
    "training_tokens": 1_000_000_000,
    "train_batch_size_tokens": 8096,
}
# Where the paper is silent: ours.
_OURS: dict[str, Any] = {
    "is_dataset_tokenized": False,
    "streaming": True,
    "context_size": 1024,
    "exclude_special_tokens": True,
    "store_batch_size_prompts": 16,
    "n_batches_in_buffer": 64,
    "device": "cuda",
    "n_checkpoints": 10,
}

PRESETS: dict[str, dict[str, Any]] = {
    "gemma-2-2b-layer-12": {
        **_PAPER,
        **_OURS,
        "model_name": "gemma-2-2b",
        "hook_name": "blocks.12.hook_resid_post",
        "d_in": 2304,
    },
    "qwen-2.5-7b-layer-14": {
        **_PAPER,
        **_OURS,
        "model_name": "Qwen/Qwen2.5-7B",
        "hook_name": "blocks.14.hook_resid_post",
        "d_in": 3584,
    },
}


def preset(name: str, **changes: Any) -> LanguageModelSAERunnerConfig:
    """Return the config of one of the paper's runs.

    Args:
        name: One of ``PRESETS``.
        changes: Fields to set otherwise, as in ``LanguageModelSAERunnerConfig``.

    Raises:
        ValueError: If there is no such preset, or a value does not fit.
        TypeError: If a field is unknown.
    """
    return LanguageModelSAERunnerConfig(**{**preset_fields(name), **changes})


def preset_fields(name: str) -> dict[str, Any]:
    """Return the fields of a preset.

    Raises:
        ValueError: If there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    return dict(PRESETS[name])
