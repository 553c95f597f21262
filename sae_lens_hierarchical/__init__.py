"""Train one sparse autoencoder and use it at every sparsity budget, in SAELens.

Importing this package registers the architecture ``hierarchical_topk`` with SAELens: at
once where SAELens is loaded, and otherwise as soon as it is. Nothing else is imported
until it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sae_lens_hierarchical.registration import register_with_saelens

if TYPE_CHECKING:
    from sae_lens_hierarchical.saes import (
        HierarchicalTopKSAE,
        HierarchicalTopKSAEConfig,
        HierarchicalTopKTrainingSAE,
        HierarchicalTopKTrainingSAEConfig,
        calibrate_thresholds,
    )
    from sae_lens_hierarchical.training import (
        PRESETS,
        LanguageModelSAERunnerConfig,
        LanguageModelSAETrainingRunner,
        TrainingDivergedError,
        TrainingInterrupted,
        preset,
    )

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "HierarchicalTopKSAE",
    "HierarchicalTopKSAEConfig",
    "HierarchicalTopKTrainingSAE",
    "HierarchicalTopKTrainingSAEConfig",
    "LanguageModelSAERunnerConfig",
    "LanguageModelSAETrainingRunner",
    "TrainingDivergedError",
    "TrainingInterrupted",
    "__version__",
    "calibrate_thresholds",
    "preset",
]

_OF_SAES = {
    "HierarchicalTopKSAE",
    "HierarchicalTopKSAEConfig",
    "HierarchicalTopKTrainingSAE",
    "HierarchicalTopKTrainingSAEConfig",
    "calibrate_thresholds",
}

register_with_saelens()


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "saes" if name in _OF_SAES else "training"
        return getattr(import_module(f"{__name__}.{module}"), name)
    if name in ("ops", "saes", "training"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
