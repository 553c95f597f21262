"""``LanguageModelSAERunnerConfig(architecture="hierarchical_topk", ...)``."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import sae_lens
from sae_lens import LoggingConfig, TopKTrainingSAEConfig, TrainingSAEConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

from sae_lens_hierarchical.defaults import MATMUL_PRECISION
from sae_lens_hierarchical.ops.norms import check_max_norm_ratio
from sae_lens_hierarchical.saes import HierarchicalTopKTrainingSAEConfig
from sae_lens_hierarchical.spelling import did_you_mean
from sae_lens_hierarchical.training.metrics_log import check_log_to
from sae_lens_hierarchical.training.precision import (
    MatmulPrecision,
    check_matmul_precision,
)

__all__ = [
    "RUN_FIELDS",
    "LanguageModelSAERunnerConfig",
    "check_new_run",
    "check_trainable",
    "flat_field_names",
    "without_additions",
]

RUN_FIELDS = {"matmul_precision", "max_norm_ratio", "log_to"}  # not SAELens's


@dataclass(init=False)
class LanguageModelSAERunnerConfig(sae_lens.LanguageModelSAERunnerConfig[Any]):
    """SAELens's runner config, whose SAE can also be given by its architecture's name.

    These two are equal:

        LanguageModelSAERunnerConfig(
            architecture="hierarchical_topk", d_in=2304, d_sae=65536, k=128, lr=8e-4
        )
        LanguageModelSAERunnerConfig(
            sae=HierarchicalTopKTrainingSAEConfig(d_in=2304, d_sae=65536, k=128),
            lr=8e-4,
        )

    Args:
        architecture: A training architecture of SAELens's registry. Its config's fields
            are then taken from ``settings``; ``device`` and ``dtype``, which the SAE's
            config and the runner's share, go to both.
        sae: The SAE's config itself, instead of ``architecture``.
        matmul_precision: Of float32 matrix products while the run lasts, as
            ``torch.set_float32_matmul_precision`` takes it: ``"highest"``, ``"high"``
            (TF32 on GPUs that have it) or ``"medium"`` (bfloat16).
        max_norm_ratio: Train on no token whose activations have a norm above this many
            times the median norm of the first 16,384 tokens; None for all tokens.
        log_to: Where metrics go beside W&B, in ``output_path``: ``"csv"`` is
            ``training_metrics.csv`` and ``"tensorboard"`` the folder ``tensorboard``.
        settings: Fields of SAELens's ``LanguageModelSAERunnerConfig`` and, with
            ``architecture``, of the SAE's config.

    Raises:
        ValueError: If ``architecture`` is unknown, a value does not fit, or not exactly
            one of ``architecture`` and ``sae`` is given.
        TypeError: If a field is unknown or missing, naming it.
    """

    matmul_precision: MatmulPrecision = MATMUL_PRECISION
    max_norm_ratio: float | None = None
    log_to: Sequence[str] = ()

    def __init__(
        self,
        sae: TrainingSAEConfig | None = None,
        *,
        architecture: str | None = None,
        matmul_precision: MatmulPrecision = matmul_precision,
        max_norm_ratio: float | None = max_norm_ratio,
        log_to: Sequence[str] = log_to,
        **settings: Any,
    ) -> None:
        check_matmul_precision(matmul_precision)
        self.matmul_precision = matmul_precision
        if max_norm_ratio is not None:
            max_norm_ratio = check_max_norm_ratio(max_norm_ratio)
        self.max_norm_ratio = max_norm_ratio
        self.log_to = check_log_to(log_to)
        if (sae is None) == (architecture is None):
            raise ValueError("give either architecture or sae, and not both")
        config_class = None if architecture is None else _config_class(architecture)
        runner_names = _init_names(sae_lens.LanguageModelSAERunnerConfig)
        sae_names = set() if config_class is None else _init_names(config_class)
        known = runner_names | sae_names | RUN_FIELDS
        for name in settings:
            if name not in known:
                raise TypeError(f"unknown field {name!r}{did_you_mean(name, known)}")
        if config_class is not None:
            of_sae = {n: v for n, v in settings.items() if n in sae_names}
            missing = [n for n in ("d_in", "d_sae") if n not in of_sae]
            if missing:
                raise TypeError(f"{architecture} needs the fields {missing}")
            sae = config_class(**of_sae)
        of_runner = {n: v for n, v in settings.items() if n in runner_names}
        batch = of_runner.get("train_batch_size_tokens", self.train_batch_size_tokens)
        if batch < 1:  # SAELens divides by it
            raise ValueError(f"train_batch_size_tokens must be at least 1, got {batch}")
        super().__init__(sae=sae, **of_runner)
        if self.training_tokens < batch:
            raise ValueError(
                f"training_tokens must be at least train_batch_size_tokens={batch}, "
                f"which is one step, got {self.training_tokens}"
            )


def flat_field_names(architecture: str) -> set[str]:
    """Return the names of the fields of a run, of its SAE and of its logger.

    Raises:
        ValueError: If the architecture is unknown.
    """
    runner, sae = sae_lens.LanguageModelSAERunnerConfig, _config_class(architecture)
    names = _init_names(runner) | _init_names(sae) | _init_names(LoggingConfig)
    return (names | RUN_FIELDS) - {"logger", "metadata"}


def without_additions(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's config without the id and the name that SAELens adds to it.

    Args:
        cfg: As the config's ``to_dict`` gives it.

    Returns:
        The same, but with the ``checkpoint_path`` that was asked for, and with None for
        the logger's ``run_name`` where SAELens made it up.
    """
    given, log = dict(cfg), dict(cfg.get("logger") or {})
    if (path := cfg.get("checkpoint_path")) is not None:
        last = Path(path).name
        # One that was set later has no id.
        if last == log.get("wandb_id") or re.fullmatch("[0-9a-f]{8}", last):
            given["checkpoint_path"] = str(Path(path).parent)
    if "run_name" in log and log["run_name"] == _made_up_name(cfg):
        log["run_name"] = None
    return given | {"logger": log}


def check_new_run(cfg: sae_lens.LanguageModelSAERunnerConfig[Any]) -> None:
    """Check what a run that is resumed may have: older versions did not look.

    Raises:
        ValueError: If the learning rate's schedule is longer than the run, or
            ``loss_every`` is more than k.
    """
    warm_up, decay = cfg.lr_warm_up_steps, cfg.lr_decay_steps
    steps = cfg.total_training_steps
    # SAELens's other schedulers need a step for themselves.
    longest = steps if cfg.lr_scheduler_name == "constant" else steps - 1
    if min(warm_up, decay) < 0 or warm_up + decay > longest:
        raise ValueError(
            f"lr_warm_up_steps={warm_up} and lr_decay_steps={decay} must be at least 0 "
            f"and together at most {longest}: the run has {steps} steps (training_"
            f"tokens={cfg.training_tokens} by train_batch_size_tokens="
            f"{cfg.train_batch_size_tokens})"
        )
    sae = cfg.sae
    if not isinstance(sae, HierarchicalTopKTrainingSAEConfig):
        return
    if sae.loss_every is not None and sae.loss_every > sae.k:
        raise ValueError(f"loss_every must be at most k={sae.k}, got {sae.loss_every}")
    *_, last = sae.resolve_budgets()[0]
    if last < sae.k:
        warnings.warn(
            f"No loss is taken above {last} active features, but k is {sae.k}: larger "
            f"k than {last} are not trained. Let budgets end with k, or take a "
            "loss_every that divides it",
            stacklevel=2,
        )


def check_trainable(name: str, sae: TrainingSAEConfig) -> None:
    """Raise a ValueError for an SAE whose training would end in an error of torch's.

    Args:
        name: What to call it.
        sae: Its config.
    """
    if (
        isinstance(sae, TopKTrainingSAEConfig)
        and sae.architecture() == "topk"
        and sae.use_sparse_activations
        and sae.rescale_acts_by_decoder_norm
    ):
        raise ValueError(
            f"{name} cannot have use_sparse_activations=True together with "
            "rescale_acts_by_decoder_norm=True: torch cannot differentiate SAELens's "
            "TopK then. Set one of them to False"
        )


def _made_up_name(cfg: Mapping[str, Any]) -> str | None:
    """Return the name that SAELens gives to a run without one."""
    try:
        sae = cfg["sae"]
        return (
            f"{sae['architecture']}-{sae['d_sae']}-LR-{cfg['lr']}-Tokens-"
            f"{cfg['training_tokens']:3.3e}"
        )
    except (KeyError, ValueError):
        return None


def _config_class(architecture: str) -> type[TrainingSAEConfig]:
    if architecture not in SAE_TRAINING_CLASS_REGISTRY:
        known = sorted(SAE_TRAINING_CLASS_REGISTRY)
        raise ValueError(f"architecture must be one of {known}, got {architecture!r}")
    return SAE_TRAINING_CLASS_REGISTRY[architecture][1]


def _init_names(config_class: type) -> set[str]:
    return {field.name for field in fields(config_class) if field.init} - {"sae"}
