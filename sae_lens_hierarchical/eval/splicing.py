"""Language models with an SAE's output spliced in for their activations."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sae_lens import SAE
from sae_lens.training.activations_store import _get_input_token_device  # pyright: ignore[reportPrivateUsage]
from sae_lens.util import (
    extract_stop_at_layer_from_tlens_hook_name,
    get_special_token_ids,
)
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from sae_lens_hierarchical.eval.statistics import as_double
from sae_lens_hierarchical.ops.norms import norms

__all__ = ["HookLocation", "SplicedModel"]


class HookLocation(NamedTuple):
    """Which of the model's activations an SAE was trained on.

    Attributes:
        hook_name: The name of the hook.
        head: The attention head, where it was trained on one alone.
        positions: Which positions of a context, as SAELens's ``seqpos_slice``.
        excluded: Token ids that it was not trained on, besides the special ones.
        max_norm: The largest norm of a token that it was trained on; None for any.
    """

    hook_name: str
    head: int | None
    positions: tuple[int | None, ...]
    excluded: tuple[int, ...]
    max_norm: float | None

    @classmethod
    def of(cls, sae: SAE[Any]) -> HookLocation:
        """Return the location that an SAE's metadata name."""
        metadata = sae.cfg.metadata
        excluded = metadata.exclude_special_tokens
        return cls(
            str(metadata.hook_name),
            metadata.hook_head_index,
            tuple(metadata.seqpos_slice or (None,)),
            tuple(excluded) if isinstance(excluded, list | tuple) else (),
            metadata.max_norm,
        )

    def check_is_of(self, model: HookedTransformer, name: str) -> None:
        """Raise a ValueError, which names the SAE, if the model has no such hook."""
        if self.hook_name not in model.hook_dict:
            raise ValueError(
                f"{name}'s hook_name {self.hook_name!r} is no hook of the model"
            )


class SplicedModel:
    """The model on one batch, with or without other activations spliced in.

    Special tokens (BOS and the like) and what a location's SAEs were never trained on
    keep their own activations and are not evaluated.

    Attributes:
        keep: Which tokens are evaluated, by location, [n, context], bool.
        outliers: How many more would be, but for their norms, by location.
        x: The model's own activations of these tokens, by location, [tokens, d_in].
        clean_logits: Its own logits, [n, context, d_vocab]; None where it stopped at
            the last location.
    """

    def __init__(
        self,
        model: HookedTransformer,
        batch: Tensor,
        locations: Collection[HookLocation],
        *,
        to_logits: bool,
    ) -> None:
        batch = batch.to(_get_input_token_device(model))
        self.model, self.batch = model, batch
        special = get_special_token_ids(model.tokenizer)  # pyright: ignore[reportArgumentType]
        self.keep = {at: _kept(batch, at, special) for at in locations}
        hook_names = sorted({at.hook_name for at in locations})
        stops = [extract_stop_at_layer_from_tlens_hook_name(h) for h in hook_names]
        unknown = to_logits or None in stops
        stop = None if unknown else max(s for s in stops if s is not None)
        logits, cache = model.run_with_cache(
            batch, names_filter=hook_names, stop_at_layer=stop
        )
        self.clean_logits: Any = logits if to_logits else None
        self.outliers: dict[HookLocation, int] = {}
        self.x = {at: self._select(cache[at.hook_name], at) for at in locations}

    def _select(self, activations: Tensor, location: HookLocation) -> Tensor:
        if location.head is not None:
            activations = activations[:, :, location.head]
        keep = self.keep[location]
        if location.max_norm is not None:
            large = norms(activations.flatten(2)) > location.max_norm
            self.keep[location] = keep & ~large.to(keep.device)
        kept = self.keep[location]
        self.outliers[location] = int(keep.sum()) - int(kept.sum())
        return activations[kept.to(activations.device)].flatten(1)

    def logits(self, location: HookLocation, replacement: Tensor) -> Any:
        """Run the model with other activations spliced in at a location.

        Args:
            location: Where.
            replacement: What takes the place of ``x[location]``, [tokens, d_in].

        Returns:
            The logits, [n, context, d_vocab].
        """

        def replace(activations: Tensor, hook: HookPoint) -> Tensor:
            head, keep = location.head, self.keep[location]
            here = activations if head is None else activations[:, :, head]
            mask = keep.view(*keep.shape, *[1] * (here.ndim - 2))
            replaced = here.masked_scatter(mask.to(here.device), replacement.to(here))
            if head is None:
                return replaced
            activations = activations.clone()
            activations[:, :, head] = replaced
            return activations

        hooks: Any = [(location.hook_name, replace)]
        return self.model.run_with_hooks(self.batch, fwd_hooks=hooks)

    def loss_and_kl_div(
        self, location: HookLocation, logits: Tensor
    ) -> tuple[float, float]:
        """Return the next-token loss and KL(clean ‖ spliced), summed over tokens.

        Args:
            location: The location whose evaluated tokens are summed over.
            logits: The spliced model's logits, [n, context, d_vocab].

        Returns:
            Both sums, in nats.
        """
        loss = kl_div = 0.0
        # A context at a time: of a large vocabulary, all in float32 would not fit.
        batch, keeps = (
            one.to(logits.device) for one in (self.batch, self.keep[location])
        )
        for tokens, keep, clean, spliced in zip(
            batch, keeps, self.clean_logits, logits, strict=True
        ):
            clean_log_probs, log_probs = (
                one[keep].float().log_softmax(dim=-1) for one in (clean, spliced)
            )
            following = tokens[1:][keep[:-1]]
            of_next = log_probs[: len(following)].gather(-1, following[:, None])
            loss -= float(as_double(of_next).sum())
            of_tokens = F.kl_div(
                log_probs, clean_log_probs, reduction="none", log_target=True
            ).sum(dim=-1)
            kl_div += float(as_double(of_tokens).sum())
        return loss, kl_div


def _kept(batch: Tensor, location: HookLocation, special: list[int]) -> Tensor:
    left_out = torch.tensor([*special, *location.excluded], device=batch.device)
    keep = torch.zeros_like(batch, dtype=torch.bool)
    keep[:, slice(*location.positions)] = True
    return keep & ~torch.isin(batch, left_out)
