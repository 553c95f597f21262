"""How precise a run's float32 matrix products are."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch

__all__ = [
    "SAELENS_PRECISION",
    "MatmulPrecision",
    "check_matmul_precision",
    "matmul_precision",
]

MatmulPrecision = Literal["highest", "high", "medium"]
# That of a run whose config is SAELens's own, which has no such field.
SAELENS_PRECISION: MatmulPrecision = "highest"


def check_matmul_precision(precision: str) -> None:
    """Raise a ValueError unless torch has such a precision."""
    known = list(get_args(MatmulPrecision))
    if precision not in known:
        raise ValueError(f"matmul_precision must be one of {known}, got {precision!r}")


@contextmanager
def matmul_precision(cfg: Any) -> Generator[None]:
    """Make float32 matrix products as precise as a run's config says, in the block.

    It is torch's one setting for a process, so the language model's products follow.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(
        getattr(cfg, "matmul_precision", SAELENS_PRECISION)
    )
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
