"""Whether a run may resume from a checkpoint: what may differ, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lens import logger
from sae_lens.constants import RUNNER_CFG_FILENAME

from sae_lens_hierarchical.loading.files import read_json
from sae_lens_hierarchical.loading.models import allowed_model_kwargs
from sae_lens_hierarchical.saes.training_sae import without_former_loss_every
from sae_lens_hierarchical.training.checkpoint import (
    Checkpoint,
    find_checkpoint,
    open_checkpoint,
    read_runner_cfg,
)
from sae_lens_hierarchical.training.manifest import read_manifest

__all__ = [
    "check_model_kwargs",
    "checkpoint_to_resume",
    "is_where_it_was_written",
    "make_paths_absolute",
    "progress",
    "tokens_of_output",
]

# What makes no other run: devices, where outputs go, how it is logged and computed.
_MAY_DIFFER = {
    "training_tokens",
    "n_checkpoints",
    "save_final_checkpoint",
    "checkpoint_path",
    "output_path",
    "resume_from_checkpoint",
    "from_pretrained_path",  # the checkpoint's weights take the place of its own
    "device",
    "llm_device",
    "act_store_device",
    "prefetch_llm_batches",
    "compile_llm",
    "llm_compilation_mode",
    "compile_sae",
    "sae_compilation_mode",
    "logger",
    "log_to",
    "verbose",
    "n_eval_batches",
    "eval_batch_size_prompts",
    "hook_eval",
    "dataset_trust_remote_code",
    "sae_lens_version",
    "sae_lens_training_version",
}
_MAY_DIFFER_OF_AN_SAE = {"device", "backend"}
_NOT_OF_THE_CONFIG = {"metadata"}  # the run itself fills it in


def checkpoint_to_resume(cfg: Any) -> Checkpoint | None:
    """Find and check the checkpoint that a run is to resume from; None if it is new.

    Args:
        cfg: The run's config, for one SAE or several; its ``resume_from_checkpoint``
            becomes the checkpoint's own folder.

    Raises:
        ValueError: If there is no whole one, or it is of another run.
    """
    if cfg.resume_from_checkpoint is None:
        return None
    checkpoint = open_checkpoint(find_checkpoint(cfg.resume_from_checkpoint))
    _check_same_run(checkpoint, cfg.to_dict())
    cfg.resume_from_checkpoint = str(checkpoint.folder)
    return checkpoint


def make_paths_absolute(cfg: Any) -> None:
    """Write out where a run's folders are, which its checkpoints will be known by."""
    for name in ("checkpoint_path", "output_path"):
        if (path := getattr(cfg, name)) is not None:
            setattr(cfg, name, str(Path(path).absolute()))


def _check_same_run(checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
    """Compare a config with that of the run that wrote a checkpoint.

    Args:
        checkpoint: The checkpoint.
        asked: What the run would go on with, as the config's ``to_dict`` gives it.

    Raises:
        ValueError: If it would be another run, listing every field that differs.
    """
    differing = _differing(checkpoint.runner_cfg, asked)
    refused = [name for name in differing if not _may_differ(name)]
    if refused:
        listed = "\n  ".join(f"{n}: {_arrow(differing[n])}" for n in refused)
        raise ValueError(
            f"{checkpoint.folder} is of a run with another config, and going on from "
            f"it needs the run's own (the run's -> what was asked for):\n  {listed}"
        )
    for name, values in differing.items():
        logger.info(f"Resuming with another {name}: {_arrow(values)}")
    was = checkpoint.runner_cfg
    changing = was.get("lr_decay_steps") or was.get("lr_scheduler_name") != "constant"
    if "training_tokens" in differing and changing:
        logger.warning(
            "The learning rate follows the schedule of the run, which was made for "
            f"training_tokens={was['training_tokens']}: resuming does not stretch it"
        )


def check_model_kwargs(
    source: Path, kwargs: Mapping[str, Any] | None, trust_remote_code: bool
) -> None:
    """Refuse a config that would run code while its language model is loaded.

    Args:
        source: The file, for the error.
        kwargs: Its ``model_from_pretrained_kwargs``.
        trust_remote_code: Whether the user trusts it.

    Raises:
        ValueError: If some may run code or reach beyond the model, naming them.
    """
    _, refused = allowed_model_kwargs(kwargs)
    if trust_remote_code or not refused:
        return
    raise ValueError(
        f"{source} asks to load its language model with {refused}, which may run its "
        "author's code. Pass trust_remote_code=True (--trust-remote-code) if you trust "
        "it"
    )


def tokens_of_output(folder: str | Path, runner_cfg: Mapping[str, Any]) -> int | None:
    """Return on how many tokens a run has trained the SAE in a folder.

    Args:
        folder: Where the run writes its SAE.
        runner_cfg: The run's config.

    Returns:
        The tokens; None if there is no SAE, or one of another run.
    """
    try:
        wrote = read_json(Path(folder) / RUNNER_CFG_FILENAME)
    except (OSError, ValueError):
        return None
    # SAELens gives each run a checkpoint_path of its own. A checkpoint that was moved
    # goes on with one in the output folder, which says nothing of the run.
    path = wrote.get("checkpoint_path")
    if path == str(Path(folder).absolute() / "checkpoints"):
        if any(not _may_differ(name) for name in _differing(runner_cfg, wrote)):
            return None
    elif path != runner_cfg.get("checkpoint_path"):
        return None
    return wrote.get("training_tokens")


def progress(checkpoint: Path) -> str:
    """Return how far a checkpoint's run had come, for people to read."""
    total, manifest = read_runner_cfg(checkpoint).get("training_tokens"), None
    if isinstance(total, int):
        manifest = read_manifest(checkpoint)
    if manifest is None:
        return "whose run does not say how far it had come"
    return f"at {manifest.n_training_samples:,} of {total:,} tokens"


def is_where_it_was_written(folder: Path, runner_cfg: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint is where its run wrote it, not moved or copied."""
    written = runner_cfg.get("checkpoint_path")
    # A relative path could be made to fit wherever the user stands.
    if not isinstance(written, str) or not Path(written).is_absolute():
        return False
    return Path(written).resolve() == folder.resolve().parent


def _differing(
    a: Mapping[str, Any], b: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the two values of each field that two runs' configs have otherwise."""
    was, now = _flat(a), _flat(json.loads(json.dumps(b, default=str)))
    # What only one of them has is of another version of SAELens.
    shared = [name for name in was if name in now]
    return {n: (was[n], now[n]) for n in shared if was[n] != now[n]}


def _arrow(values: tuple[Any, Any]) -> str:
    return " -> ".join(map(repr, values))


def _may_differ(name: str) -> bool:
    if name.startswith(("sae.", "saes.")):
        return name.rpartition(".")[2] in _MAY_DIFFER_OF_AN_SAE
    return name in _MAY_DIFFER


def _flat(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with its SAEs' fields under names like ``saes.a.k``."""
    flat = {name: v for name, v in cfg.items() if name not in ("sae", "saes")}
    several = cfg.get("saes", {})
    flat["saes"] = [*several]
    saes = {f"saes.{name}": sae for name, sae in several.items()}
    if "sae" in cfg:
        saes["sae"] = cfg["sae"]
    for prefix, sae in saes.items():
        kept = {n: v for n, v in sae.items() if n not in _NOT_OF_THE_CONFIG}
        fields = without_former_loss_every(kept)
        flat |= {f"{prefix}.{name}": value for name, value in fields.items()}
    return flat
