"""Runs the model on the texts once for all SAEs, and encodes them once for all k."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_hierarchical.ops import stable_topk

__all__ = ["Encodings", "encode", "record_activations"]


class Encodings(NamedTuple):
    """The active features of all texts, as four columns: one row for each activation.

    Attributes:
        tokens: Which token of the texts, int32.
        features: Which feature, int32.
        ranks: How many larger ones the token has, int32; 0 for an SAE without k.
        values: The activation, bfloat16, as SAEBench keeps them.
        d_sae: The number of features.
        shape: Of the texts, (contexts, context).
        n_tokens: How many of their tokens count: all but BOS, EOS and padding.
    """

    tokens: Tensor
    features: Tensor
    ranks: Tensor
    values: Tensor
    d_sae: int
    shape: tuple[int, int]
    n_tokens: int

    def at_k(self, k: int | None) -> Encodings:
        """Return the encodings at a k that is smaller, or those of an SAE without k."""
        if k is None:
            return self
        kept = self.ranks < k
        tokens, features, ranks, values = (column[kept] for column in self[:4])
        return self._replace(
            tokens=tokens, features=features, ranks=ranks, values=values
        )

    def frequency(self) -> Tensor:
        """Return on what share of the tokens each feature is active, [d_sae]."""
        counts = torch.bincount(self.features, minlength=self.d_sae)
        return counts.float() / self.n_tokens

    def of_features(self, features: Collection[int]) -> Tensor:
        """Return features' activations, [contexts, context, features], bfloat16."""
        column = torch.full((self.d_sae,), -1)
        column[torch.tensor(list(features), dtype=torch.long)] = torch.arange(
            len(features)
        )
        columns = column[self.features]
        chosen = columns >= 0
        acts = self.values.new_zeros(self.shape[0] * self.shape[1], len(features))
        acts[self.tokens[chosen].long(), columns[chosen]] = self.values[chosen]
        return acts.view(*self.shape, len(features))


def record_activations(
    model: Any,
    texts: Tensor,
    hook_names: Collection[str],
    batch_size: int,
    folder: Path,
) -> dict[str, Tensor]:
    """Run the model on texts and keep its activations in files, not in memory.

    Args:
        model: The language model.
        texts: Tokens, [contexts, context], where the model takes them.
        hook_names: The activations to keep.
        batch_size: Contexts in one forward pass.
        folder: Where the files go; whoever made it removes it.

    Returns:
        The activations, [contexts, context, ...], by hook, mapped from the files.
    """
    stops = [extract_stop_at_layer_from_tlens_hook_name(name) for name in hook_names]
    known = [stop for stop in stops if stop is not None]
    stop = max(known) if len(known) == len(stops) else None
    recorded: dict[str, Tensor] = {}
    starts = range(0, len(texts), batch_size)
    for start in tqdm(starts, desc="Running the model on the texts", leave=False):
        with torch.no_grad():
            _, cache = model.run_with_cache(
                texts[start : start + batch_size],
                names_filter=list(hook_names),
                stop_at_layer=stop,
            )
        for n, name in enumerate(hook_names):
            x = cache[name]
            if name not in recorded:
                shape = len(texts), *x.shape[1:]
                recorded[name] = torch.from_file(
                    str(folder / f"activations_{n}"),
                    shared=True,
                    size=int(torch.Size(shape).numel()),
                    dtype=x.dtype,
                ).view(shape)
            recorded[name][start : start + len(x)] = x.cpu()
    return recorded


def encode(
    sae: Any, k: int | None, activations: Tensor, counted: Tensor, batch_size: int
) -> Encodings:
    """Encode activations, for every k up to that of the SAE.

    Args:
        sae: Any SAE; one with a k has the largest.
        k: The SAE's k; None for an SAE without k.
        activations: The model's, [contexts, context, ...].
        counted: Which tokens count, [contexts, context], bool.
        batch_size: Contexts to encode at once.
    """
    columns: list[tuple[Tensor, ...]] = []
    context = counted.shape[1]
    for start in tqdm(range(0, len(counted), batch_size), desc="Encoding", leave=False):
        x = activations[start : start + batch_size].to(sae.device)
        with torch.no_grad():
            acts = sae.encode(x).flatten(0, 1)
        acts = acts * counted[start : start + len(x)].flatten().to(acts.device)[:, None]
        if k is None:
            tokens, features = acts.nonzero(as_tuple=True)
            values, ranks = acts[tokens, features], torch.zeros_like(tokens)
        else:
            largest, indices = stable_topk(acts, k)
            tokens, ranks = (largest > 0).nonzero(as_tuple=True)
            values, features = largest[tokens, ranks], indices[tokens, ranks]
        numbers = tokens + start * context, features, ranks
        columns.append(
            (*(part.int().cpu() for part in numbers), values.bfloat16().cpu())
        )
    tokens, features, ranks, values = map(torch.cat, zip(*columns, strict=True))
    shape, n_tokens = (len(counted), context), int(counted.sum())
    return Encodings(tokens, features, ranks, values, sae.cfg.d_sae, shape, n_tokens)
