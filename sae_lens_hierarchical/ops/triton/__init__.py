"""The loss in Triton. An ImportError means that Triton is missing or too old."""

import re

import triton

__all__: list[str] = []

# The oldest version whose compiler takes the kernels.
_OLDEST = (3, 4)

if tuple(map(int, re.findall(r"\d+", triton.__version__)[:2])) < _OLDEST:
    raise ImportError(
        f"triton {triton.__version__} is older than {'.'.join(map(str, _OLDEST))}"
    )
