"""Runs of a language model in which a SAE's output takes the place of activations."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sae_lens import SAE
from sae_lens.load_model import HookedProxyLM
from sae_lens.training.activations_store import _get_input_token_device
from sae_lens.util import (
    extract_stop_at_layer_from_tlens_hook_name,
    get_special_token_ids,
)
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from sae_lens_hierarchical.eval.statistics import as_double

__all__ = ["ModelRun", "Site", "contexts_at_once"]


class Site(NamedTuple):
    """Where a SAE reads activations.

    Attributes:
        hook_name: The hook.
        head: The head, where it reads only one.
        positions: Which positions of a context, as SAELens's ``seqpos_slice``.
        excluded: Tokens that it was not trained on, besides the special ones.
    """

    hook_name: str
    head: int | None
    positions: tuple[int | None, ...]
    excluded: tuple[int, ...]

    @classmethod
    def of(cls, sae: SAE[Any]) -> Site:
        """Return where a SAE was trained, by its metadata."""
        metadata = sae.cfg.metadata
        excluded = metadata.exclude_special_tokens
        return cls(
            str(metadata.hook_name),
            metadata.hook_head_index,
            tuple(metadata.seqpos_slice or (None,)),
            tuple(excluded) if isinstance(excluded, list | tuple) else (),
        )


class ModelRun:
    """One batch's run through the model, up to the last site or to the logits.

    Special tokens (BOS and the like) and what a site's SAEs were never trained on keep
    their own activations and do not count.

    Attributes:
        keep: Which tokens count, by site, [n, context], bool.
        x: The model's own activations of the tokens that count, by site,
            [tokens, d_in].
        clean: Its logits, [n, context, vocab]; None where it stopped at the last site.
    """

    def __init__(
        self,
        model: HookedTransformer,
        batch: Tensor,
        sites: Collection[Site],
        *,
        to_logits: bool,
    ) -> None:
        batch = batch.to(_get_input_token_device(model))
        self.model, self.batch = model, batch
        special = get_special_token_ids(model.tokenizer)  # type: ignore[arg-type]
        self.keep = {site: _kept(batch, site, special) for site in sites}
        hook_names = sorted({site.hook_name for site in sites})
        stops = [extract_stop_at_layer_from_tlens_hook_name(h) for h in hook_names]
        unknown = to_logits or None in stops
        stop = None if unknown else max(s for s in stops if s is not None)
        logits, cache = model.run_with_cache(
            batch, names_filter=hook_names, stop_at_layer=stop
        )
        self.clean: Any = logits if to_logits else None
        self.x = {site: self._select(cache[site.hook_name], site) for site in sites}

    def _select(self, activations: Tensor, site: Site) -> Tensor:
        if site.head is not None:
            activations = activations[:, :, site.head]
        return activations[self.keep[site].to(activations.device)].flatten(1)

    def logits(self, site: Site, replacement: Tensor) -> Any:
        """Run with other activations, [tokens, d_in]; return [n, context, vocab]."""

        def replace(activations: Tensor, hook: HookPoint) -> Tensor:
            here = activations if site.head is None else activations[:, :, site.head]
            keep = self.keep[site]
            mask = keep.view(*keep.shape, *[1] * (here.ndim - 2))
            replaced = here.masked_scatter(mask.to(here.device), replacement.to(here))
            if site.head is None:
                return replaced
            activations = activations.clone()
            activations[:, :, site.head] = replaced
            return activations

        hooks: Any = [(site.hook_name, replace)]
        return self.model.run_with_hooks(self.batch, fwd_hooks=hooks)

    def loss_and_kl_div(self, site: Site, logits: Tensor) -> tuple[float, float]:
        """Return next-token loss and KL(clean, other), of a site's tokens that count.

        Both are sums, in nats.
        """
        loss = kl_div = 0.0
        # A context at a time: of a large vocabulary, all in float32 would not fit.
        batch, keeps = (one.to(logits.device) for one in (self.batch, self.keep[site]))
        for tokens, keep, clean, other in zip(
            batch, keeps, self.clean, logits, strict=True
        ):
            clean_log_probs, log_probs = (
                one[keep].float().log_softmax(dim=-1) for one in (clean, other)
            )
            following = tokens[1:][keep[:-1]]
            of_next = log_probs[: len(following)].gather(-1, following[:, None])
            loss -= float(as_double(of_next).sum())
            of_tokens = F.kl_div(
                log_probs, clean_log_probs, reduction="none", log_target=True
            ).sum(dim=-1)
            kl_div += float(as_double(of_tokens).sum())
        return loss, kl_div


def _kept(batch: Tensor, site: Site, special: list[int]) -> Tensor:
    left_out = torch.tensor([*special, *site.excluded], device=batch.device)
    keep = torch.zeros_like(batch, dtype=torch.bool)
    keep[:, slice(*site.positions)] = True
    return keep & ~torch.isin(batch, left_out)


def contexts_at_once(model: Any, context_size: int) -> int:
    """Return how many contexts to run: 16, or as many as have 2 GiB of float32 logits.

    A run holds a few times as much.
    """
    if isinstance(model, HookedProxyLM):
        config: Any = model.model.config
        d_vocab = config.get_text_config().vocab_size
    else:
        d_vocab = model.cfg.d_vocab
    return max(1, min(16, 2**29 // (context_size * d_vocab)))
