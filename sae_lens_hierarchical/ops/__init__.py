"""The hierarchical loss: tensors in, tensors out. Nothing here knows of SAELens."""

from sae_lens_hierarchical.ops.budgets import loss_budgets, spread_budgets
from sae_lens_hierarchical.ops.loss import (
    BACKENDS,
    Backend,
    check_backend,
    hierarchical_loss,
    hierarchical_loss_with_residual,
)

__all__ = [
    "BACKENDS",
    "Backend",
    "check_backend",
    "hierarchical_loss",
    "hierarchical_loss_with_residual",
    "loss_budgets",
    "spread_budgets",
]
