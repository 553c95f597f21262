"""What every eval of SAEBench here is run with, and which results it still lacks."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor

from sae_lens_hierarchical.defaults import STORE_BATCH_SIZE
from sae_lens_hierarchical.eval.splicing import HookLocation
from sae_lens_hierarchical.saebench.inputs import texts_sha256
from sae_lens_hierarchical.saebench.models import ModelFacts
from sae_lens_hierarchical.saebench.pending import PendingResult, pending_results
from sae_lens_hierarchical.saes.checks import check_size

__all__ = ["SEED", "Bench", "folder_of_hook", "seed"]

SEED = 42  # as in SAEBench's own scripts


def seed() -> None:
    """Fix the random numbers of Python and torch, which SAEBench draws from."""
    random.seed(SEED)
    torch.manual_seed(SEED)


def folder_of_hook(artifacts: str | Path, sae: Any) -> Path:
    """Return a folder in ``artifacts``, which the SAEs of a hook share."""
    # SAEBench unpickles what lies there: no name in an SAE's metadata may lead outside.
    return Path(artifacts) / texts_sha256([str(sae.cfg.metadata.hook_name)])


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One language model and one dataset, and where the results go.

    Attributes:
        model: The language model that the SAEs were trained on: TransformerLens's, or
            SAELens's ``HookedProxyLM`` around one of Hugging Face.
        tokens: The dataset's tokens, [contexts, context], int64.
        dataset_name: The dataset's name in the results.
        output: Where the results go.
        batch_size: Contexts in one forward pass of the model.
        force: Whether to make results again that are there.
    """

    model: Any
    tokens: Tensor
    dataset_name: str
    output: Path
    batch_size: int = STORE_BATCH_SIZE
    force: bool = False

    def __post_init__(self) -> None:
        check_size("batch_size", self.batch_size)

    @property
    def facts(self) -> ModelFacts:
        """What results say of the model."""
        return ModelFacts.of(self.model)

    @property
    def config_fields(self) -> dict[str, Any]:
        """The fields that SAEBench's configs of most evals share."""
        return {
            "model_name": self.facts.name,
            "random_seed": SEED,
            "llm_batch_size": self.batch_size,
            "llm_dtype": self.facts.dtype,
        }

    def pending(
        self,
        eval_type: str,
        saes: Mapping[str, SAE[Any]],
        ks: Sequence[int],
        config: Any,
        note: Mapping[str, str],
    ) -> list[PendingResult]:
        """Return the results that an eval's folder lacks; see ``pending_results``.

        Raises:
            ValueError: As ``pending_results``; or if an SAE's hook is not the model's.
        """
        for name, sae in saes.items():
            HookLocation.of(sae).check_is_of(self.model, name)
            # SAEBench names folders by it.
            if type(layer := sae.cfg.metadata.hook_layer) not in (int, type(None)):
                raise ValueError(f"{name}'s hook_layer must be an integer: {layer!r}")
        folder = self.output / eval_type
        return pending_results(folder, saes, ks, config, note, force=self.force)
