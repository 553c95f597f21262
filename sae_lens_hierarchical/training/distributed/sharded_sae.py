"""One SAE in training over W processes, equal to the same SAE on one.

Each process holds the encoder of its own features and its own columns of the decoder;
the gradients of weights stay where they are. ``collectives`` says what travels.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor, nn
from typing_extensions import Self, override

from sae_lens_hierarchical.ops.encode_topk import encode_topk_with_sample
from sae_lens_hierarchical.saes import (
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)
from sae_lens_hierarchical.saes.base import HierarchicalBase, has_hooks
from sae_lens_hierarchical.saes.thresholds import TRACKED_TOKENS, move_thresholds
from sae_lens_hierarchical.saes.unit_norm import keep_unit_norm_decoder
from sae_lens_hierarchical.training.distributed.collectives import (
    add_up_parts,
    all_reduce,
    broadcast,
    gather,
    global_topk,
    row_norms,
    sum_in_order,
)
from sae_lens_hierarchical.training.distributed.dead_latents import (
    auxiliary_loss_of_columns,
)
from sae_lens_hierarchical.training.distributed.mesh import Mesh
from sae_lens_hierarchical.training.distributed.parts import own_slices, own_weights

__all__ = ["ShardedTrainingSAE"]

# So many entries of a decoder are whole on a process at once.
_WHOLE_ENTRIES = 1 << 24


class ShardedTrainingSAE(HierarchicalTopKTrainingSAE):
    """This process's part of a HierarchicalTopK SAE that several train together.

    It does nothing but train: ``training_forward_pass`` takes the batch of all
    processes, the same on each. All methods but those of single tensors are to be
    called by all processes, in the same order. ``cfg`` is that of the whole SAE.

    Attributes:
        mesh: The processes.
        W_enc: Of the own features, [d_in, features].
        b_enc: Likewise, [features].
        W_dec: The own columns, [d_sae, columns].
        b_dec: Likewise, [columns].
        thresholds: Whole, [K], and the same on all processes.
    """

    def __init__(self, cfg: HierarchicalTopKTrainingSAEConfig, mesh: Mesh) -> None:
        """Initialize the weights as one process does on a CPU, from process 0's state.

        Args:
            cfg: Of the whole SAE, the same on all processes; its device becomes the
                mesh's.
            mesh: The processes.

        Raises:
            ValueError: If there are more processes than features or columns.
        """
        cfg.device = str(mesh.device)
        self.mesh = mesh
        self.features = mesh.features(cfg.d_sae)
        self.columns = mesh.columns(cfg.d_in)
        self.slices = own_slices(self.features, self.columns)
        super().__init__(cfg)

    @classmethod
    def from_whole(cls, sae: HierarchicalTopKTrainingSAE, mesh: Mesh) -> Self:
        """Return this process's part of a whole SAE, which stays as it is."""
        sharded = cls(deepcopy(sae.cfg), mesh)
        sharded.load_whole_state_dict(sae.state_dict())
        return sharded

    @torch.no_grad()
    def load_whole_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Take this process's parts of a whole SAE's tensors."""
        for name, own in self.slices.items():
            self.get_parameter(name).copy_(state_dict[name][own])
        self.thresholds.copy_(state_dict["thresholds"])

    @torch.no_grad()
    def whole_state_dict(self) -> dict[str, Tensor]:
        """Return the whole SAE's tensors, on every process; each has to hold them."""
        features, columns = self._sizes()
        return {
            "b_dec": gather(self.mesh, self.b_dec, columns),
            "W_dec": gather(self.mesh, self.W_dec, columns, dim=1),
            "W_enc": gather(self.mesh, self.W_enc.T, features).T,
            "b_enc": gather(self.mesh, self.b_enc, features),
            "thresholds": self.thresholds.clone(),
        }

    def whole_on_first(self) -> HierarchicalTopKTrainingSAE | None:
        """Return the whole SAE on process 0, and None on all others.

        For a moment each process holds all weights.
        """
        state_dict = self.whole_state_dict()
        if self.mesh.rank:
            return None
        gpus = [] if self.device.type == "cpu" else [self.device]
        with torch.random.fork_rng(gpus):  # training goes on with the same numbers
            whole = HierarchicalTopKTrainingSAE(deepcopy(self.cfg))
        whole.load_state_dict(state_dict)
        return whole

    @override
    def load_weights_from_checkpoint(self, checkpoint_path: Path | str) -> None:
        state_dict = own_weights(Path(checkpoint_path), self.slices)
        self.process_state_dict_for_loading(state_dict)
        self.load_state_dict(state_dict)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        # Rows are not of norm 1 in the own columns alone.
        HierarchicalBase.process_state_dict_for_loading(self, state_dict)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Run one step's forward pass.

        Args:
            step_input: ``sae_in`` is the batch of all processes, [..., d_in], finite
                and the same on each; ``dead_neuron_mask`` is that of all features.

        Returns:
            As on one process, but ``sae_in`` and ``sae_out`` are the own columns,
            [..., columns]. Losses and metrics are whole, and what backward gives is the
            whole loss's gradient for the own weights.

        Raises:
            ValueError: If ``sae_in`` holds NaN or infinity, or a hook would have to see
                what no process has whole.
        """
        for name in ("hook_sae_acts_pre", "hook_sae_recons"):
            if has_hooks(getattr(self, name)):
                raise ValueError(
                    f"{name} must have no hooks while an SAE trains over several "
                    "processes: none of them has the whole of what it would see"
                )
        return super().training_forward_pass(step_input)

    @override
    def _encoder_b_dec(self) -> Tensor | None:
        if not self.cfg.apply_b_dec_to_input:
            return None
        return gather(self.mesh, self.b_dec, self._sizes()[1])

    @override
    def _row_norms(self) -> Tensor:
        return row_norms(self.mesh, self.W_dec)

    @override
    def _decoder_columns(self, x: Tensor) -> Tensor:
        return x[..., _slice(self.columns)].contiguous()

    @override
    def _over_columns(
        self, loss: Tensor, auxiliary: Tensor, per_budget: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = torch.cat([loss[None], auxiliary[None], per_budget])
        whole = add_up_parts(self.mesh, parts)
        return whole[0], whole[1], whole[2:].detach()

    @property
    @override
    def _auxiliary_loss(self) -> Callable[..., Tensor]:
        return partial(auxiliary_loss_of_columns, self.mesh, d_sae=self.cfg.d_sae)

    @override
    def _encode_topk(
        self, x: Tensor, b_dec: Tensor | None, scale: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The sample is of the own features.
        k, (features, _) = self.cfg.k, self._sizes()
        values, own, first = encode_topk_with_sample(
            x,
            self.W_enc,
            self.b_enc,
            b_dec,
            min(k, len(self.features)),
            TRACKED_TOKENS,
            None if scale is None else scale[_slice(self.features)],
        )
        widths = [min(k, size) for size in features]
        indices = own + self.features.start
        return *global_topk(self.mesh, values, indices, widths, k), first

    @override
    @torch.no_grad()
    def _track_thresholds(self, hidden_pre: Tensor) -> None:
        tokens, (features, _) = len(hidden_pre), self._sizes()
        wanted = self.cfg.k * tokens
        sizes = [min(wanted, tokens * size) for size in features]
        own = hidden_pre.flatten().topk(sizes[self.mesh.rank]).values
        largest = gather(self.mesh, own, sizes).topk(wanted).values
        move_thresholds(self.thresholds, largest, tokens)

    @override
    def _keep_unit_norm(self) -> None:
        if self.cfg.unit_norm_decoder:
            mesh = self.mesh
            keep_unit_norm_decoder(self, lambda sums: all_reduce(mesh, sums))

    @override
    def _has_own_b_dec(self) -> Tensor:
        return sum_in_order(self.mesh, super()._has_own_b_dec().float()) > 0

    @override
    @torch.no_grad()
    def initialize_weights(self) -> None:
        cfg, device, dtype = self.cfg, self.device, self.dtype
        n, columns = len(self.features), len(self.columns)
        # By feature, as in the whole SAE.
        W_enc = torch.empty(n, cfg.d_in, dtype=dtype, device=device)
        W_dec = torch.empty(cfg.d_sae, columns, dtype=dtype, device=device)
        generator = torch.Generator()
        state = torch.get_rng_state()
        generator.set_state(broadcast(self.mesh, state.to(device)).cpu())
        # All draw all numbers, in the order of one process, and keep what is theirs.
        block = max(1, _WHOLE_ENTRIES // cfg.d_in)
        for start in range(0, cfg.d_sae, block):
            rows = torch.empty(min(block, cfg.d_sae - start), cfg.d_in, dtype=dtype)
            nn.init.kaiming_uniform_(rows, generator=generator)
            if cfg.decoder_init_norm is not None:
                rows /= rows.norm(dim=-1, keepdim=True)
                rows *= cfg.decoder_init_norm
            W_dec[start : start + len(rows)] = self._decoder_columns(rows)
            own = range(
                max(start, self.features.start),
                min(start + len(rows), self.features.stop),
            )
            if own:
                into = slice(own.start - self.features.start, None)
                W_enc[into][: len(own)] = rows[own.start - start : own.stop - start]
        # In SAELens's order, by which an optimizer's state knows them.
        self.b_dec = nn.Parameter(torch.zeros(columns, dtype=dtype, device=device))
        self.W_dec = nn.Parameter(W_dec)
        self.W_enc = nn.Parameter(W_enc.T)
        self.b_enc = nn.Parameter(torch.zeros(n, dtype=dtype, device=device))

    @override
    @torch.no_grad()
    def get_W_dec_norm(self) -> Tensor:
        """Return the whole decoder's row norms, [d_sae], as SAELens has them."""
        return self._row_norms().clamp(min=1e-8)

    @override
    @torch.no_grad()
    def fold_and_get_W_dec_norm(self) -> Tensor:
        norms = self.get_W_dec_norm()
        own = norms[_slice(self.features)]
        self.W_dec.div_(norms[:, None])
        self.W_enc.mul_(own)
        self.b_enc.mul_(own)
        return norms

    @override
    @torch.no_grad()
    def fold_activation_whitening(
        self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor
    ) -> None:
        if self.cfg.rescale_acts_by_decoder_norm:  # as in SAELens's TopK
            self.fold_W_dec_norm()
            self.cfg.rescale_acts_by_decoder_norm = False
        dtype = torch.promote_types(self.W_enc.dtype, whitening_matrix.dtype)
        mean, into, back = (
            tensor.to(self.device, dtype)
            for tensor in (mean, whitening_matrix, unwhitening_matrix)
        )
        self.W_enc.copy_(into @ self.W_enc.to(dtype))
        if not self.cfg.apply_b_dec_to_input:
            self.b_enc.sub_(mean @ self.W_enc.to(dtype))
        # Every new column is made of all old ones.
        own, (_, columns) = _slice(self.columns), self._sizes()
        for rows in self.W_dec.split(max(1, _WHOLE_ENTRIES // self.cfg.d_in)):
            whole = gather(self.mesh, rows, columns, dim=1)
            rows.copy_(whole.to(dtype) @ back[:, own])
        b_dec = gather(self.mesh, self.b_dec, columns)
        self.b_dec.copy_(b_dec.to(dtype) @ back[:, own] + mean[own])
        self.cfg.normalize_activations = "none"

    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raise a RuntimeError: no process has the whole SAE."""
        raise RuntimeError(_ONLY_TRAINS)

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Raise a RuntimeError: no process has the whole SAE."""
        raise RuntimeError(_ONLY_TRAINS)

    def _sizes(self) -> tuple[list[int], list[int]]:
        """Return each process's numbers of features and of columns."""
        return self.mesh.sizes(self.cfg.d_sae), self.mesh.sizes(self.cfg.d_in)


def _slice(part: range) -> slice:
    return slice(part.start, part.stop)


_ONLY_TRAINS = (
    "an SAE over several processes only trains: load the whole one, of its "
    "whole_state_dict, to encode and decode"
)
