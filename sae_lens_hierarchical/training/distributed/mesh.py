"""Who holds what: one SAE's features and columns, split over processes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from typing_extensions import Self

__all__ = ["Mesh"]


@dataclass(frozen=True)
class Mesh:
    """The processes that train one SAE together, as one of them sees it.

    Attributes:
        group: The processes; NCCL's for tensors on GPUs, gloo's for those on a CPU.
        rank: This process's number in the group, from 0.
        size: How many processes there are.
        device: Where this process's tensors are.
        bytes_sent: By collective, how many bytes this process has sent, as the usual
            ring sends them: (size − 1) times its part to gather, 2 · (size − 1) / size
            times the tensor to sum. Set it to zero with ``clear()``.
    """

    group: dist.ProcessGroup
    rank: int
    size: int
    device: torch.device
    bytes_sent: Counter[str] = field(default_factory=Counter, compare=False)

    @classmethod
    def of(
        cls, device: torch.device | str, group: dist.ProcessGroup | None = None
    ) -> Self:
        """Return the mesh of a group's processes; without a group, of all processes.

        Raises:
            ValueError: If torch.distributed is not initialised.
        """
        if not dist.is_initialized():
            raise ValueError(
                "a mesh needs torch.distributed: call init_process_group first, or "
                "start the processes with torchrun"
            )
        group = dist.group.WORLD if group is None else group
        assert group is not None  # noqa: S101 - there is one once initialised
        return cls(
            group,
            dist.get_rank(group),
            dist.get_world_size(group),
            torch.device(device),
        )

    def features(self, d_sae: int) -> range:
        """Return this process's features, whose encoder it holds."""
        return self._own("d_sae", d_sae)

    def columns(self, d_in: int) -> range:
        """Return this process's columns of the decoder."""
        return self._own("d_in", d_in)

    def sizes(self, n: int) -> list[int]:
        """Return every process's number of ``n`` things: the first ones have one more.

        Those of a process follow on those of the process before it.
        """
        each, more = divmod(n, self.size)
        return [each + (rank < more) for rank in range(self.size)]

    def _own(self, name: str, n: int) -> range:
        if n < self.size:
            raise ValueError(
                f"{name} must be at least the number of processes, so that each has a "
                f"part, got {name}={n} on {self.size} processes"
            )
        sizes = self.sizes(n)
        start = sum(sizes[: self.rank])
        return range(start, start + sizes[self.rank])
