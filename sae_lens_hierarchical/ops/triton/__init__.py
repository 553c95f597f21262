"""The loss in Triton, where Triton is installed and new enough."""

import re

__all__ = ["why_unavailable"]

# The oldest version whose compiler takes the kernels.
_OLDEST = (3, 4)


def why_unavailable() -> str | None:
    """Return why ``ops.triton.op`` cannot be imported here, or None if it can."""
    try:
        import triton
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise  # Triton is there, but broken
        return "triton is not installed"
    if tuple(map(int, re.findall(r"\d+", triton.__version__)[:2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        return f"triton {triton.__version__} is older than {oldest}"
    return None
