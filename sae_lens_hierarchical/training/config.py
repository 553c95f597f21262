"""``LanguageModelSAERunnerConfig(architecture="hierarchical_topk", ...)``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import sae_lens
from sae_lens import TrainingSAEConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

__all__ = ["LanguageModelSAERunnerConfig"]


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
        settings: Fields of SAELens's ``LanguageModelSAERunnerConfig`` and, with
            ``architecture``, of the SAE's config.

    Raises:
        ValueError: If ``architecture`` is unknown, a value does not fit, or not exactly
            one of ``architecture`` and ``sae`` is given.
        TypeError: If a field is unknown or missing, naming it.
    """

    def __init__(
        self,
        sae: TrainingSAEConfig | None = None,
        *,
        architecture: str | None = None,
        **settings: Any,
    ) -> None:
        if (sae is None) == (architecture is None):
            raise ValueError("give either architecture or sae, and not both")
        runner_names = _init_names(sae_lens.LanguageModelSAERunnerConfig)
        sae_names: set[str] = set()
        if architecture is not None:
            config_class = _config_class(architecture)
            sae_names = _init_names(config_class)
            _refuse_unknown(settings, runner_names | sae_names)
            of_sae = {n: v for n, v in settings.items() if n in sae_names}
            missing = [n for n in ("d_in", "d_sae") if n not in of_sae]
            if missing:
                raise TypeError(f"{architecture} needs the fields {missing}")
            sae = config_class(**of_sae)
        _refuse_unknown(settings, runner_names | sae_names)
        of_runner = {n: v for n, v in settings.items() if n in runner_names}
        super().__init__(sae=sae, **of_runner)


def _config_class(architecture: str) -> type[TrainingSAEConfig]:
    if architecture not in SAE_TRAINING_CLASS_REGISTRY:
        known = sorted(SAE_TRAINING_CLASS_REGISTRY)
        raise ValueError(f"architecture must be one of {known}, got {architecture!r}")
    return SAE_TRAINING_CLASS_REGISTRY[architecture][1]


def _init_names(config_class: type) -> set[str]:
    return {field.name for field in fields(config_class) if field.init} - {"sae"}


def _refuse_unknown(settings: Iterable[str], known: set[str]) -> None:
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise TypeError(f"unknown field {name!r}{hint}")
