"""Train one sparse autoencoder and use it at every sparsity budget, in SAELens.

Importing this package registers the architecture ``hierarchical_topk`` with SAELens.
"""

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
