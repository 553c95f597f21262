"""The paper's Listing 1, generalized to any budgets J and weights: the oracle.

It materialises [B, K, d_in]. Every other backend is tested against it.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["hierarchical_loss"]


def hierarchical_loss(
    target: Tensor,
    indices: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    budgets: list[int],
    weights: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, per_budget, x̂_K − x); see ``ops.hierarchical_loss_with_residual``.

    Everything is summed in float32, or in float64 where an argument is float64.
    """
    dtype = torch.promote_types(target.dtype, torch.float32)
    for tensor in (values, W_dec, b_dec):
        dtype = torch.promote_types(dtype, tensor.dtype)
    terms = W_dec[indices].to(dtype) * values.to(dtype).unsqueeze(-1)
    residuals = terms.cumsum(dim=1) + (b_dec.to(dtype) - target.to(dtype)).unsqueeze(1)
    chosen = residuals[:, [budget - 1 for budget in budgets]]
    per_budget = chosen.pow(2).sum(dim=-1).mean(dim=0)
    loss = (per_budget * per_budget.new_tensor(weights)).sum()
    return loss, per_budget, residuals[:, -1]
