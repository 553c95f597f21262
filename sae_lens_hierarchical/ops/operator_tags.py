"""What ``torch.compile`` is told of our operators."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["NO_CUDA_GRAPH"]

# For operators whose host waits for the device, or that keep tensors from step to step:
# neither can be recorded in a CUDA graph. Older torch does not know the tag.
NO_CUDA_GRAPH: dict[str, Any] = (
    {"tags": (torch.Tag.cudagraph_unsafe,)}
    if hasattr(torch.Tag, "cudagraph_unsafe")
    else {}
)
