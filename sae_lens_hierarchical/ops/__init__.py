"""The loss and the top-k: tensors in, tensors out. Nothing here knows of SAELens."""

from sae_lens_hierarchical.ops.auxiliary_loss import auxiliary_loss
from sae_lens_hierarchical.ops.budgets import (
    loss_budgets,
    octave_budgets,
    spread_budgets,
)
from sae_lens_hierarchical.ops.encode_topk import encode_topk
from sae_lens_hierarchical.ops.loss import (
    BACKENDS,
    Backend,
    check_backend,
    hierarchical_loss,
    hierarchical_loss_with_residual,
)
from sae_lens_hierarchical.ops.topk import stable_topk

__all__ = [
    "BACKENDS",
    "Backend",
    "auxiliary_loss",
    "check_backend",
    "encode_topk",
    "hierarchical_loss",
    "hierarchical_loss_with_residual",
    "loss_budgets",
    "octave_budgets",
    "spread_budgets",
    "stable_topk",
]
