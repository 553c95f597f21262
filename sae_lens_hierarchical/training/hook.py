"""Checks that a model has the hook that an SAE is to be trained on."""

from __future__ import annotations

from typing import Any

import sae_lens
import torch
from sae_lens import MultiSAETrainingRunnerConfig
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from transformer_lens import HookedRootModule

from sae_lens_hierarchical.spelling import did_you_mean

__all__ = ["check_hook"]


@torch.no_grad()
def check_hook(
    model: HookedRootModule,
    cfg: sae_lens.LanguageModelSAERunnerConfig[Any] | MultiSAETrainingRunnerConfig,
    hook_name: str,
    head: int | None,
    d_in: int,
) -> None:
    """Run one token through the model to see whether its hook has ``d_in`` entries.

    Args:
        model: The language model.
        cfg: How it is run.
        hook_name: The hook.
        head: The one head of it that is read, if so.
        d_in: The SAE's width.

    Raises:
        ValueError: If there is no such hook, or it has another width.
    """
    if hook_name not in model.hook_dict:
        hint = did_you_mean(hook_name, model.hook_dict)
        raise ValueError(f"hook_name {hook_name!r} is no hook of the model{hint}")
    _, cache = model.run_with_cache(
        torch.zeros(1, 1, dtype=torch.long, device=cfg.llm_device),
        names_filter=[hook_name],
        stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(hook_name),
        prepend_bos=False,
        **cfg.model_kwargs,
    )
    activation = cache[hook_name][0, 0]
    if head is not None:
        activation = activation[head]
    if activation.numel() != d_in:
        raise ValueError(
            f"d_in must be {activation.numel()}, the width of {hook_name} "
            f"{list(activation.shape)}, got {d_in}"
        )
