"""Names and defaults that several parts share, each written here alone.

This module loads nothing, so that the command line's --help can show them at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = [
    "ARCHITECTURE",
    "BUNDLED",
    "CE_CONTEXTS",
    "COMPARISON_CONTEXTS",
    "DEVICE",
    "EXPORTED_ARCHITECTURE",
    "JUDGED_LATENTS",
    "LOG_TO",
    "MATMUL_PRECISION",
    "MEDIAN_TOKENS",
    "METHOD",
    "METRICS_CSV",
    "N_BATCHES_IN_BUFFER",
    "QUICKSTART_OUTPUT",
    "SAEBENCH_CONTEXTS",
    "SEED",
    "STORE_BATCH_SIZE",
    "SWEEP_CONTEXTS",
    "SWEEP_OUTPUT",
    "TOP_FEATURES",
]

ARCHITECTURE = "hierarchical_topk"  # in SAELens's registry
METHOD = "HierarchicalTopK"  # in tables and figures
BUNDLED = "bundled"  # the preset that needs no network or GPU
DEVICE = "cpu"
MATMUL_PRECISION: Final = "high"
SEED = 0
LOG_TO = ("csv", "tensorboard")  # where a run's metrics may go, beside W&B
METRICS_CSV = "training_metrics.csv"  # in a run's output_path

N_BATCHES_IN_BUFFER = 64  # contexts that training's buffer holds
SWEEP_CONTEXTS = 256
TOP_FEATURES = 50
CE_CONTEXTS = 64
COMPARISON_CONTEXTS = 1024
SAEBENCH_CONTEXTS = 32_000
JUDGED_LATENTS = 1_000
MEDIAN_TOKENS = 2**14  # the first ones, whose median norm max_norm_ratio is of
STORE_BATCH_SIZE = 16  # contexts in one forward pass of the language model
EXPORTED_ARCHITECTURE: Final = "topk"
QUICKSTART_OUTPUT = Path("quickstart_output")
SWEEP_OUTPUT = Path("sweep_output")
