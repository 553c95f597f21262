"""The data of several processes: each has a part of the dataset and of each batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from sae_lens import ActivationsStore
from torch import Tensor
from typing_extensions import override

from sae_lens_hierarchical.training.activations_store import ResumableActivationsStore
from sae_lens_hierarchical.training.distributed.collectives import gather
from sae_lens_hierarchical.training.distributed.mesh import Mesh

__all__ = ["GatheredBatches", "shard_store"]


class GatheredBatches(Iterator[Tensor]):
    """The batches of all processes, each put together from what each has.

    Args:
        source: Yields this process's part, [n, d_in], with the same n on each.
        mesh: The processes.
    """

    def __init__(self, source: Iterator[Tensor], mesh: Mesh) -> None:
        self.source = source
        self.mesh = mesh

    @override
    @torch.no_grad()
    def __next__(self) -> Tensor:
        own = next(self.source).to(self.mesh.device)
        return gather(self.mesh, own, [len(own)] * self.mesh.size)


def shard_store(store: ActivationsStore, mesh: Mesh) -> ResumableActivationsStore:
    """Turn a store that has served nothing yet into one of this process's part.

    It reads every W-th document, from number ``mesh.rank`` on, and its batches are a
    W-th of the whole.

    Raises:
        ValueError: If this part of the dataset has not one full context.
    """
    dataset = store.dataset
    # Taking turns, other numbers of processes find about the same place in it.
    store.dataset = (
        dataset.shard(mesh.size, mesh.rank, contiguous=False)
        if isinstance(dataset, Dataset)
        else split_dataset_by_node(
            cast("IterableDataset", dataset), mesh.rank, mesh.size
        )
    )
    store.train_batch_size_tokens //= mesh.size
    sharded = ResumableActivationsStore.convert(store)
    sharded.n_processes, sharded.rank = mesh.size, mesh.rank
    return sharded
