"""What SAEBench asks of a language model, of TransformerLens's and Hugging Face's."""

from __future__ import annotations

from typing import Any, NamedTuple

from sae_lens.load_model import HookedProxyLM
from torch import Tensor

from sae_lens_hierarchical.saebench.extra import general_utils

__all__ = ["ModelFacts", "str_tokens"]


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
