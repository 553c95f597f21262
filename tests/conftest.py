"""Without a GPU the Triton kernels run in Triton's interpreter."""

import os

import torch

# Read when triton is imported, which importing the package does.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
