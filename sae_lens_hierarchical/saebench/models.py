"""What SAEBench asks of a language model, of TransformerLens's and Hugging Face's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from sae_lens.load_model import HookedProxyLM
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor

from sae_lens_hierarchical.saebench.extra import general_utils

__all__ = ["ModelFacts", "activations_at_hook", "str_tokens", "to_tokens"]


class ModelFacts(NamedTuple):
    """What results say of a language model.

    Attributes:
        name: Its name on the Hub, or its folder.
        dtype: As SAEBench writes it, such as ``float32``.
        device: Where it takes tokens.
    """

    name: str
    dtype: str
    device: str

    @classmethod
    def of(cls, model: Any) -> ModelFacts:
        """Return what results say of a model."""
        if not isinstance(model, HookedProxyLM):
            dtype = general_utils.dtype_to_str(model.cfg.dtype)
            return cls(model.cfg.model_name, dtype, str(model.cfg.device))
        weight = next(model.parameters())
        config: Any = model.model.config
        dtype = general_utils.dtype_to_str(weight.dtype)
        return cls(config.name_or_path, dtype, str(weight.device))


def str_tokens(model: Any, tokens: Tensor) -> list[str]:
    """Return the text of each token, [n]."""
    if isinstance(model, HookedProxyLM):
        return model.tokenizer.batch_decode(
            tokens[:, None], clean_up_tokenization_spaces=False
        )
    return model.to_str_tokens(tokens)


def to_tokens(model: Any, texts: list[str]) -> Tensor:
    """Return texts' tokens, [n, longest], with BOS where the tokenizer has one."""
    if not isinstance(model, HookedProxyLM):
        return model.to_tokens(texts)
    tokenizer: Any = model.tokenizer
    ids: list[list[int]] = tokenizer(texts)["input_ids"]
    bos: int | None = tokenizer.bos_token_id
    if bos is not None:
        ids = [row if row[:1] == [bos] else [bos, *row] for row in ids]
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in ids], True, tokenizer.pad_token_id or 0
    )
    return padded.to(ModelFacts.of(model).device)


def activations_at_hook(model: Any, tokens: Tensor, hook_name: str) -> Tensor:
    """Return the model's activations at a hook, [n, context, ...]."""
    with torch.no_grad():
        _, cache = model.run_with_cache(
            tokens,
            names_filter=[hook_name],
            stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(hook_name),
        )
    return cache[hook_name]
