"""One training step: what SAELens's does, without its passes over [batch, d_sae]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sae_lens import SAETrainer
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from typing_extensions import override

__all__ = ["FastSAETrainer"]

_MAX_GRAD_NORM = 1.0  # SAELens's
_FUSED_DEVICES = ("cpu", "cuda", "mps")


class FastSAETrainer(SAETrainer[TrainingSAE[Any], Any]):
    """An ``SAETrainer`` whose step is faster and the same but for rounding.

    Firings are counted from the active features alone, dead latents are looked for only
    when there can be any, and Adam is torch's fused one, which clips gradients too.
    """

    # Before this step no latent can be dead.
    _none_dead_before = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prepare_optimizer()

    @override
    def _train_step(self, sae: TrainingSAE[Any], sae_in: Tensor) -> TrainStepOutput:
        sae.train()
        with self.autocast_if_enabled:
            output = sae.training_forward_pass(
                step_input=TrainStepInput(
                    sae_in=sae_in,
                    dead_neuron_mask=self._dead_neuron_mask(),
                    coefficients=self.get_coefficients(),
                    n_training_steps=self.n_training_steps,
                    is_logging_step=self._is_logging_step(),
                )
            )
        self._count_firings(output.feature_acts)
        output.loss.backward()
        self._step_optimizer()
        self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()
        return output

    def prepare_optimizer(self) -> None:
        """Make Adam the fused one, also when its state comes from a checkpoint."""
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        fused = all(
            p.device.type in _FUSED_DEVICES and p.is_floating_point()
            for p in parameters
        )
        for group in self.optimizer.param_groups:
            group["fused"], group["foreach"] = fused, False if fused else None
        for parameter in parameters:
            state = self.optimizer.state.get(parameter, {})
            for name, value in state.items():
                if name == "step":
                    state[name] = value.float().to(parameter.device if fused else "cpu")
                else:
                    state[name] = _laid_out_like(parameter, value)

    @override
    def load_trainer_state(self, checkpoint_path: Path | str) -> None:
        super().load_trainer_state(checkpoint_path)
        self.prepare_optimizer()

    @override
    def set_final_sae_metadata(self) -> None:
        super().set_final_sae_metadata()
        self.sae.cfg.metadata.training_tokens = self.n_training_samples

    def _dead_neuron_mask(self) -> Tensor | None:
        """Return which latents are dead; None where none is.

        A latent is dead that was active in none of the last ``dead_feature_window``
        steps: as long as none can be, the host does not ask the device.
        """
        if self.n_training_steps < self._none_dead_before:
            return None
        since_fired: Tensor = self.n_forward_passes_since_fired
        longest = int(since_fired.max())
        window = self.cfg.dead_feature_window
        if longest > window:
            return self.dead_neurons
        self._none_dead_before = self.n_training_steps + window - longest + 1
        return None

    @torch.no_grad()
    def _count_firings(self, feature_acts: Tensor) -> None:
        if feature_acts.is_sparse:
            active = feature_acts._values() != 0
            counts = torch.zeros_like(self.act_freq_scores)
            counts.index_add_(0, feature_acts._indices()[-1], active.to(counts.dtype))
        else:
            counts = (feature_acts != 0).flatten(0, -2).sum(dim=0).float()
        self.n_forward_passes_since_fired += 1
        self.n_forward_passes_since_fired[counts > 0] = 0
        self.act_freq_scores += counts
        self.n_frac_active_samples += self.cfg.train_batch_size_samples

    def _step_optimizer(self) -> None:
        parameters = [p for p in self.sae.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = self._gradient_norm(gradients)
        if not self.optimizer.param_groups[0]["fused"]:
            clip_grads_with_norm_(parameters, _MAX_GRAD_NORM, norm)
        else:
            # The fused kernel goes through memory, whatever the strides.
            for parameter in parameters:
                parameter.grad = _laid_out_like(parameter, parameter.grad)
            # It divides by this, as clip_grad_norm_ would.
            scale = ((norm + 1e-6) / _MAX_GRAD_NORM).clamp(min=1.0).float()
            self.optimizer.grad_scale = scale  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _gradient_norm(self, gradients: list[Tensor]) -> Tensor:
        """Return the norm of all parameters' gradients together, for the clip."""
        return get_total_norm(map(_in_memory_order, gradients))


def _in_memory_order(gradient: Tensor) -> Tensor:
    """Return a matrix that is stored by columns as its transpose, which is by rows.

    Torch would copy it to take its norm.
    """
    return gradient if gradient.is_contiguous() or gradient.ndim != 2 else gradient.T


def _laid_out_like(parameter: Tensor, value: Any) -> Tensor:
    if value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
