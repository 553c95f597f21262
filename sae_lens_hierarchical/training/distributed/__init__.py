"""One SAE over several processes, equal to one process on the same batches."""

from sae_lens_hierarchical.training.distributed.mesh import Mesh
from sae_lens_hierarchical.training.distributed.processes import (
    PeerFailedError,
    all_or_none,
    join_processes,
)
from sae_lens_hierarchical.training.distributed.runner import (
    DistributedSAETrainingRunner,
)
from sae_lens_hierarchical.training.distributed.sharded_sae import ShardedTrainingSAE
from sae_lens_hierarchical.training.distributed.step import ShardedSAETrainer

__all__ = [
    "DistributedSAETrainingRunner",
    "Mesh",
    "PeerFailedError",
    "ShardedSAETrainer",
    "ShardedTrainingSAE",
    "all_or_none",
    "join_processes",
]
