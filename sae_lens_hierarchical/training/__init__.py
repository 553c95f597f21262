"""Training in SAELens: configs, presets, and a runner that survives being killed."""

from sae_lens_hierarchical.training.config import LanguageModelSAERunnerConfig
from sae_lens_hierarchical.training.presets import PRESETS, preset
from sae_lens_hierarchical.training.runner import LanguageModelSAETrainingRunner
from sae_lens_hierarchical.training.trainer import (
    TrainingDivergedError,
    TrainingInterrupted,
)

__all__ = [
    "PRESETS",
    "LanguageModelSAERunnerConfig",
    "LanguageModelSAETrainingRunner",
    "TrainingDivergedError",
    "TrainingInterrupted",
    "preset",
]
