"""What a model card says of an SAE and of its metrics: only what is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata, TrainingSAE
from transformer_lens.loading_from_pretrained import get_official_model_name

from sae_lens_hierarchical.data import BUNDLED_MODEL_NAME
from sae_lens_hierarchical.eval.table import MetricsTable
from sae_lens_hierarchical.saes import HierarchicalTopKSAE
from sae_lens_hierarchical.saes.kinds import trained_k

__all__ = [
    "Facts",
    "base_model",
    "check_pushable",
    "evaluation_facts",
    "sae_facts",
    "training_facts",
]

Facts = dict[str, str]


def check_pushable(sae: SAE[Any]) -> None:
    """Raise a ValueError if an SAE is still one of training."""
    if isinstance(sae, TrainingSAE):
        raise ValueError(
            "only SAEs that were saved for inference can be pushed, got a "
            f"{type(sae).__name__}"
        )


def base_model(metadata: SAEMetadata) -> str | None:
    """Return the SAE's language model as the Hub calls it; None if that is not known.

    SAELens's metadata have TransformerLens's name of it, or a folder.
    """
    name: Any = metadata.model_name
    model_class: Any = metadata.model_class_name
    if name is None or name == BUNDLED_MODEL_NAME or Path(name).exists():
        return None
    try:
        if model_class != "AutoModelForCausalLM":
            name = get_official_model_name(name)
        validate_repo_id(name)
    except (ValueError, HFValidationError):
        return None
    return name


def sae_facts(sae: SAE[Any]) -> Facts:
    """Return what kind of SAE it is, and its sizes; not the k of an exported one."""
    cfg, metadata = sae.cfg, sae.cfg.metadata
    facts: dict[str, Any] = {"architecture": cfg.architecture()}
    if isinstance(sae, HierarchicalTopKSAE):
        facts["K"] = sae.k_max
    elif metadata.exported_from is not None:
        facts["K of the SAE that it is from"] = metadata.exported_from.get("k_max")
    else:
        if metadata.training_architecture != cfg.architecture():
            facts["trained as"] = metadata.training_architecture
        facts["k"] = trained_k(sae)
    facts |= {
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "dtype": cfg.dtype,
        "normalization": cfg.normalize_activations,
    }
    return _known(facts)


def training_facts(metadata: SAEMetadata) -> Facts:
    """Return what an SAE was trained on."""
    return _known(
        {
            "language model": metadata.model_name,
            "hook": metadata.hook_name,
            "dataset": metadata.dataset_path,
            "tokens": metadata.training_tokens,
            "context size": metadata.context_size,
            "trained with SAELens": metadata.sae_lens_training_version,
        }
    )


def evaluation_facts(metrics: MetricsTable) -> Facts:
    """Return what an SAE was evaluated on, of a table of that SAE alone."""
    row, context_size = metrics.rows[0], metrics.provenance.get("context_size")
    contexts = None
    if context_size and row.excluded_tokens is not None:
        contexts = (row.tokens + row.excluded_tokens) // context_size
    return _known(
        {
            "dataset": metrics.provenance.get("dataset"),
            "contexts": contexts,
            "context size": context_size,
            "tokens": row.tokens,
            "of these, for CE loss": row.ce_tokens,
            "left out, such as special tokens": row.excluded_tokens,
        }
    )


def _known(facts: dict[str, Any]) -> Facts:
    return {
        label: f"{fact:,}" if isinstance(fact, int) else str(fact)
        for label, fact in facts.items()
        if fact is not None
    }
