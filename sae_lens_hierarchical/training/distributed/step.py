"""The training step of an SAE over several processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_lens_hierarchical.training.distributed.collectives import gather, sum_in_order
from sae_lens_hierarchical.training.distributed.sharded_sae import ShardedTrainingSAE
from sae_lens_hierarchical.training.step import FastSAETrainer

__all__ = ["ShardedSAETrainer"]


class ShardedSAETrainer(FastSAETrainer):
    """A ``FastSAETrainer`` of this process's part of an SAE.

    ``step`` takes the batch of all processes, and what it counts is the same on each:
    firings, dead latents, losses. Its config is that of the whole: the batch size, the
    number of samples and the schedules are those of all processes together.
    """

    sae: ShardedTrainingSAE

    @override
    def _gradient_norm(self, gradients: list[Tensor]) -> Tensor:
        # Each weight is on one process, so no square is counted twice; and all have to
        # clip by the very same factor.
        own = super()._gradient_norm(gradients)
        own = own.to(torch.promote_types(own.dtype, torch.float32))  # for the square
        return sum_in_order(self.sae.mesh, own.square()).sqrt()

    @override
    @torch.no_grad()
    def build_train_step_log_dict(
        self, output: TrainStepOutput, n_training_samples: int
    ) -> dict[str, Any]:
        mesh, d_in = self.sae.mesh, self.sae.cfg.d_in
        sae_in, sae_out = (
            gather(mesh, columns, mesh.sizes(d_in), dim=columns.ndim - 1)
            for columns in (output.sae_in, output.sae_out)
        )
        whole = replace(output, sae_in=sae_in, sae_out=sae_out)
        return super().build_train_step_log_dict(whole, n_training_samples)
