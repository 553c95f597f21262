"""What a run would take: memory, disk and time, with a few steps of it measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from sae_lens import TrainingSAE
from sae_lens.constants import DTYPE_MAP

from sae_lens_hierarchical.training.activations_store import ResumableActivationsStore
from sae_lens_hierarchical.training.precision import (
    matmul_precision,
)
from sae_lens_hierarchical.training.runner import LanguageModelSAETrainingRunner

__all__ = ["ModelSizes", "Sizes", "Speed", "measure_speed", "model_sizes", "sizes"]

_STEPS = 10
_UNTIMED_STEPS = 2  # torch.compile compiles in both


@dataclass(frozen=True)
class Sizes:
    """How large a run is, in bytes but for the counts.

    Attributes:
        parameters: Of the SAE, a count.
        weights: The SAE's; its gradients are as large, and Adam's state twice so.
        buffer: Activations that wait to be trained on.
        checkpoint: A checkpoint on disk.
        disk: All that the run writes: its checkpoints and the trained SAE.
        steps: How many steps the run has, a count.
    """

    parameters: int
    weights: int
    buffer: int
    checkpoint: int
    disk: int
    steps: int


@dataclass(frozen=True)
class ModelSizes:
    """How large the language model is, in bytes.

    Attributes:
        weights: Its weights.
        logits: Of the contexts that it runs on at once: SAELens's evaluations alone
            make them, or a model that cannot stop at a layer.
    """

    weights: int
    logits: int


@dataclass(frozen=True)
class Speed:
    """How fast a run is.

    Attributes:
        model: Tokens a second that the language model gives.
        sae: Tokens a second that the SAE is trained on.
        together: Tokens a second of the run: in turn, or at once with prefetching.
    """

    model: float
    sae: float
    together: float


def sizes(cfg: Any) -> Sizes:
    """Return how large the run of a config is, which nothing is loaded for."""
    sae = TrainingSAE.from_dict({**cfg.get_training_sae_cfg_dict(), "device": "meta"})
    parameters = [*sae.parameters()]
    weights = sum(p.numel() * p.element_size() for p in parameters)
    context = len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    tokens = cfg.n_batches_in_buffer * context
    # SAELens copies what the model gives to float32, whatever the run's dtype.
    dtype = DTYPE_MAP[cfg.dtype] if cfg.use_cached_activations else torch.float32
    buffer = tokens * cfg.sae.d_in * dtype.itemsize
    checkpoint = 3 * weights + buffer  # with Adam's state
    # One more where the run is interrupted.
    checkpoints = cfg.n_checkpoints + cfg.save_final_checkpoint + 1
    written = checkpoints * checkpoint if cfg.checkpoint_path is not None else 0
    if cfg.output_path is not None:
        written += weights
    return Sizes(
        parameters=sum(p.numel() for p in parameters),
        weights=weights,
        buffer=buffer,
        checkpoint=checkpoint,
        disk=written,
        steps=cfg.total_training_steps,
    )


def model_sizes(runner: LanguageModelSAETrainingRunner) -> ModelSizes:
    """Return how large a run's language model is."""
    model: Any = runner.model
    held = [*chain(model.parameters(), model.buffers())]
    vocabulary = getattr(model.cfg, "d_vocab", None) or len(model.tokenizer)
    tokens = runner.cfg.store_batch_size_prompts * runner.cfg.context_size
    size = held[0].element_size() if held else 4
    return ModelSizes(
        weights=sum(tensor.numel() * tensor.element_size() for tensor in held),
        logits=tokens * vocabulary * size,
    )


def measure_speed(runner: LanguageModelSAETrainingRunner) -> Speed:
    """Train for ten steps, and two before that are not timed; nothing is written.

    The mixing buffer, which the first step of a run waits for, is left out: the model
    and the SAE are timed by turns.

    Args:
        runner: Cannot be used to train afterwards.
    """
    cfg, store = runner.cfg, cast("ResumableActivationsStore", runner.activations_store)
    trainer = runner.make_trainer()
    trainer.prepare(None)
    runner._compile_sae_if_needed()  # pyright: ignore[reportPrivateUsage]
    source, batch_size = store.buffer.source, cfg.train_batch_size_tokens
    of_model = of_sae = 0.0
    made = 0
    with matmul_precision(cfg):
        waiting = next(source)
        for step in range(_UNTIMED_STEPS + _STEPS):
            while len(waiting) < batch_size or not made:
                start = _now(cfg)
                activations = next(source)
                of_model += _now(cfg) - start
                made += len(activations)
                waiting = torch.cat([waiting, activations])
            batch, waiting = waiting[:batch_size], waiting[batch_size:]
            start = _now(cfg)
            trainer.step(batch)
            trainer.n_training_steps += 1
            if step >= _UNTIMED_STEPS:
                of_sae += _now(cfg) - start
    model, sae = made / of_model, _STEPS * batch_size / of_sae
    at_once = min(model, sae)
    in_turn = 1 / (1 / model + 1 / sae)
    return Speed(model, sae, at_once if cfg.prefetch_llm_batches else in_turn)


def _now(cfg: Any) -> float:
    """Return the time once all devices have done what they were given."""
    for device in {cfg.device, cfg.llm_device}:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter()
