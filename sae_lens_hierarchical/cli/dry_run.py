"""``sae-lens-hierarchical train --dry-run``."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens_hierarchical.training import LanguageModelSAETrainingRunner

__all__ = ["dry_run"]

_GATED = "it is gated: ask for access on its page on the Hub, then `hf auth login`"


def dry_run(
    cfg: Any,
    checks: Mapping[str, Callable[[], object]],
    make_runner: Callable[[], LanguageModelSAETrainingRunner],
) -> int:
    """Print what a run would take and whether it could start; train nothing.

    Args:
        cfg: The run's config.
        checks: By what they check; each raises where it fails.
        make_runner: Loads the model and the dataset, and checks that they fit.

    Returns:
        0, or 1 if a check failed.
    """
    from sae_lens_hierarchical.training.config_file import changed_fields, to_yaml
    from sae_lens_hierarchical.training.dry_run import (
        measure_speed,
        model_sizes,
        sizes,
    )

    print("The fields that differ from the defaults:\n")
    print("  " + to_yaml(changed_fields(cfg)).strip().replace("\n", "\n  "))
    run = sizes(cfg)
    made: list[LanguageModelSAETrainingRunner] = []
    checks = {
        **checks,
        "free disk": lambda: _check_disk(cfg, run.disk),
        "model, dataset, hook and d_in": lambda: made.append(make_runner()),
    }
    failures = {what: _failure(check) for what, check in checks.items()}
    table = {
        "parameters of the SAE": f"{run.parameters:,}",
        "its weights": _bytes(run.weights),
        "gradients": _bytes(run.weights),
        "Adam's state": _bytes(2 * run.weights),
        "activations buffer": f"{_bytes(run.buffer)}, twice that while it is mixed",
    }
    if made:
        model = model_sizes(made[0])
        table |= {
            "the model's weights": _bytes(model.weights),
            "its logits": f"{_bytes(model.logits)}, for SAELens's evaluations",
        }
    table |= {
        "a checkpoint on disk": _bytes(run.checkpoint),
        "all that is written": f"up to {_bytes(run.disk)}",
        "free disk": ", ".join(f"{_bytes(f)} for {p}" for p, f in _free(cfg).items()),
        "steps": f"{run.steps:,} of {cfg.train_batch_size_tokens:,} tokens",
    }
    if made:
        speed = measure_speed(made[0])
        seconds = math.ceil(cfg.training_tokens / speed.together)
        table |= {
            "speed": f"{speed.together:,.0f} tokens/s over ten steps (model "
            f"{speed.model:,.0f}, SAE {speed.sae:,.0f})",
            "time": f"{timedelta(seconds=seconds)} for {cfg.training_tokens:,} tokens",
        }
    print()
    for name, value in table.items():
        print(f"{name:<24}{value}")
    print()
    for what, failure in failures.items():
        print(f"{'FAILED' if failure else 'ok':<8}{what}{failure}")
    return int(any(failures.values()))


def _failure(check: Callable[[], object]) -> str:
    """Return what a check says against the run; nothing if it says nothing."""
    try:
        check()
    except (ValueError, TypeError, OSError, ImportError) as error:
        text = str(error)
        return f": {_GATED}: {text}" if "gated" in text.lower() else f": {text}"
    return ""


def _free(cfg: Any) -> dict[str, int]:
    """Return the free bytes where the run writes, by the field."""
    free: dict[str, int] = {}
    for field in ("output_path", "checkpoint_path"):
        if (path := getattr(cfg, field)) is not None:
            folder = Path(path).absolute()
            there = next(p for p in (folder, *folder.parents) if p.exists())
            free[field] = shutil.disk_usage(there).free
    return free


def _check_disk(cfg: Any, needed: int) -> None:
    for field, free in _free(cfg).items():
        if free < needed:
            raise ValueError(
                f"the run may write {_bytes(needed)}, and {field} has {_bytes(free)}"
            )


def _bytes(n: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}"
        n /= 1024
    return f"{n:,.1f} GiB"
