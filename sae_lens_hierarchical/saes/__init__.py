"""The HierarchicalTopK architecture on SAELens's TopK classes."""

from sae_lens import register_sae_class, register_sae_training_class
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

from sae_lens_hierarchical.saes.calibration import calibrate_thresholds
from sae_lens_hierarchical.saes.ranked import AdaptiveActs, RankedActs
from sae_lens_hierarchical.saes.sae import (
    ARCHITECTURE,
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
)
from sae_lens_hierarchical.saes.training_sae import (
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)

__all__ = [
    "AdaptiveActs",
    "HierarchicalTopKSAE",
    "HierarchicalTopKSAEConfig",
    "HierarchicalTopKTrainingSAE",
    "HierarchicalTopKTrainingSAEConfig",
    "RankedActs",
    "calibrate_thresholds",
]

# SAELens refuses a second registration, which a module reload would be.
if ARCHITECTURE not in SAE_CLASS_REGISTRY:
    register_sae_class(ARCHITECTURE, HierarchicalTopKSAE, HierarchicalTopKSAEConfig)
if ARCHITECTURE not in SAE_TRAINING_CLASS_REGISTRY:
    register_sae_training_class(
        ARCHITECTURE, HierarchicalTopKTrainingSAE, HierarchicalTopKTrainingSAEConfig
    )
