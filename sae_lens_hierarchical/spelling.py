"""Suggestions for names that were spelled wrong, or are called otherwise elsewhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]

# What people type by habit, and what of ours it may mean: the first that there is.
_BY_HABIT = {
    "arch": ("architecture",),
    "batch_size": ("train_batch_size_tokens",),
    "context_length": ("context_size", "contexts"),
    "ctx_len": ("context_size", "contexts"),
    "cuda": ("device",),
    "data": ("dataset", "dataset_path"),
    "dataset": ("dataset_path",),
    "dataset_name": ("dataset", "dataset_path"),
    "dict_size": ("d_sae",),
    "expansion_factor": ("d_sae",),
    "gpu": ("device",),
    "hook": ("hook_name",),
    "hook_point": ("hook_name",),
    "layer": ("hook_name",),
    "learning_rate": ("lr",),
    "max_length": ("context_size",),
    "max_tokens": ("training_tokens",),
    "model": ("model_name",),
    "model_name": ("model",),
    "n_features": ("d_sae",),
    "n_tokens": ("training_tokens",),
    "num_tokens": ("training_tokens",),
    "out": ("output", "output_path"),
    "out_dir": ("output", "output_path"),
    "output_dir": ("output", "output_path"),
    "overwrite": ("force",),
    "sae_type": ("architecture",),
    "save_dir": ("output_path", "output"),
    "save_path": ("output_path", "output"),
    "seq_len": ("context_size",),
    "tokens": ("training_tokens", "contexts"),
    "top_k": ("k",),
    "topk": ("k",),
    "total_tokens": ("training_tokens",),
    "use_wandb": ("logger", "log_to_wandb"),
    "wandb_name": ("run_name",),
    "warmup_steps": ("lr_warm_up_steps",),
    "width": ("d_sae",),
}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the known ones like it.

    Names may be options, with two dashes in front; then the known ones are, too.
    """
    known = list(known)
    plain = name.removeprefix("--")
    dashes = name.removesuffix(plain)
    habit = _BY_HABIT.get(plain.lower().replace("-", "_"), ())
    close = [dashes + meant for meant in habit if dashes + meant in known][:1]
    close = close or difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""
