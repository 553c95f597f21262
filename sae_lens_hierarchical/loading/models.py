"""Language models and texts that SAEs' metadata name: loaded, but never run.

An SAE's metadata are its author's text. A model or a text that they name, on the Hub or
on disk, is data: its weights and files are read. Python that lies with a model runs
only if the user says so, and Python that lies with a text never.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset
from sae_lens import SAE, ActivationsStore
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from sae_lens.constants import DTYPE_MAP
from sae_lens.load_model import HookedProxyLM, load_model
from sae_lens.saes.sae import SAEMetadata
from transformer_lens.loading_from_pretrained import (
    NEED_REMOTE_CODE_MODELS,
    get_official_model_name,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    dynamic_module_utils,
)

from sae_lens_hierarchical.data import (
    BUNDLED_DATASET_NAME,
    BUNDLED_HELD_OUT_NAME,
    BUNDLED_MODEL_NAME,
    load_bundled_dataset,
    load_bundled_model,
)
from sae_lens_hierarchical.loading.false_warnings import without_false_warnings

__all__ = [
    "allowed_model_kwargs",
    "bundled_if_named",
    "load_model_and_dataset",
    "load_store",
    "load_untrusted_model",
    "no_remote_code_prompt",
]

MODEL_CLASSES = ("HookedTransformer", "HookedMamba", "AutoModelForCausalLM")
TRUST = "--trust-remote-code (in Python: trust_remote_code=True)"


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _one_of(*allowed: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and value in allowed


def _revision(value: object) -> bool:
    # No slash: refs/pr/1 is what anybody proposed to the model's repository.
    return isinstance(value, str) and bool(re.fullmatch(r"\w[\w.-]*", value))


# What may come from metadata, and which values.
_ALLOWED: dict[str, Callable[[object], bool]] = {
    "attn_implementation": _one_of("eager", "sdpa", "flash_attention_2"),
    "center_unembed": _flag,
    "center_writing_weights": _flag,
    "checkpoint_index": _number,
    "checkpoint_value": _number,
    "default_padding_side": _one_of("left", "right"),
    "default_prepend_bos": _flag,
    "device_map": _one_of("auto", "balanced", "balanced_low_0", "sequential"),
    "dtype": _one_of("auto", *DTYPE_MAP),
    "first_n_layers": _number,
    "fold_ln": _flag,
    "fold_value_biases": _flag,
    "low_cpu_mem_usage": _flag,
    "n_ctx": _number,
    "n_devices": _number,
    "refactor_factored_attn_matrices": _flag,
    "revision": _revision,
    "torch_dtype": _one_of("auto", *DTYPE_MAP),
    "trust_remote_code": lambda value: value is False,
}


def allowed_model_kwargs(kwargs: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a file's keyword arguments for a model into allowed and refused ones.

    Args:
        kwargs: ``model_from_pretrained_kwargs`` of an SAE's metadata or a run's config.
    """
    kwargs = kwargs or {}
    if not isinstance(kwargs, Mapping):
        raise ValueError(
            f"model_from_pretrained_kwargs must be an object, got {kwargs!r}"
        )
    refused = {
        name: value
        for name, value in kwargs.items()
        if value is not None and not (name in _ALLOWED and _ALLOWED[name](value))
    }
    allowed = {
        name: value
        for name, value in kwargs.items()
        if name in _ALLOWED and name not in refused and name != "trust_remote_code"
    }
    return allowed, refused


def load_model_and_dataset(
    saes: Mapping[str, SAE[Any]],
    dataset: str | None,
    device: str,
    *,
    trust_remote_code: bool = False,
) -> tuple[Any, str | Dataset, str]:
    """Load the model and the dataset to evaluate SAEs of one model on.

    Args:
        saes: The SAEs; their model may be a folder.
        dataset: A dataset on the Hub or on disk, as SAELens takes it; default what the
            first SAE was trained on, or for the bundled model its held-out dataset.
        device: Where to put the model.
        trust_remote_code: Whether Python that lies with the model may run.

    Returns:
        The model, the dataset, and the dataset's name.

    Raises:
        ValueError: If the first SAE's metadata ask for more than an SAE may, naming the
            arguments, or if the model needs Python of its own and may not run it.
    """
    name, metadata = next((name, sae.cfg.metadata) for name, sae in saes.items())
    if metadata.model_name == BUNDLED_MODEL_NAME:
        model = load_bundled_model(device)
        if dataset is None:
            return model, load_bundled_dataset("held_out"), BUNDLED_HELD_OUT_NAME
    else:
        model = _load_model(name, metadata, device, trust_remote_code)
    dataset = dataset or metadata.dataset_path
    if not dataset:
        raise ValueError(f"{name}'s metadata name no dataset: name one with --dataset")
    return model, dataset, dataset


def bundled_if_named(cfg: Any, model: Any, dataset: Any) -> tuple[Any, Any]:
    """Return a run's language model and dataset: the bundled ones where it names them.

    Args:
        cfg: The run's, for one SAE or several.
        model: The model to take instead; None for none.
        dataset: Likewise.

    Returns:
        Both, each None where it is to be loaded by its name.
    """
    if model is None and cfg.model_name == BUNDLED_MODEL_NAME:
        model = load_bundled_model(cfg.llm_device)
    if dataset is None and cfg.dataset_path == BUNDLED_DATASET_NAME:
        dataset = load_bundled_dataset("train")
    return model, dataset


def load_untrusted_model(cfg: Any) -> Any:
    """Load the language model that a run's config from elsewhere names.

    Args:
        cfg: The run's.

    Raises:
        ValueError: If it may not be loaded as the config asks, or needs Python of its
            own.
    """
    if cfg.model_name == BUNDLED_MODEL_NAME:
        return load_bundled_model(cfg.llm_device)
    metadata = SAEMetadata(
        model_name=cfg.model_name,
        model_class_name=cfg.model_class_name,
        model_from_pretrained_kwargs=cfg.model_from_pretrained_kwargs,
    )
    return _load_model("the run", metadata, cfg.llm_device, trust_remote_code=False)


def load_store(
    model: Any, sae: SAE[Any], text: str | Dataset, **options: Any
) -> ActivationsStore:
    """Return SAELens's store of a text, which runs no Python that lies with the text.

    Contexts are made as the SAE's metadata say that they were in training.

    Args:
        model: The language model, whose tokenizer is used.
        sae: Any SAE of it.
        text: A data set, or its name on the Hub or path.
        options: As ``ActivationsStore.from_sae`` takes them.
    """
    # SAELens's from_sae reads all but these.
    names = ("sequence_separator_token", "disable_concat_sequences")
    metadata = sae.cfg.metadata
    made = {name: metadata[name] for name in names if name in metadata}
    with (
        no_remote_code_prompt(),
        without_false_warnings(model=False, dataset=True),
    ):
        return ActivationsStore.from_sae(
            model,
            sae,
            text,
            dataset_trust_remote_code=False,
            streaming=isinstance(text, str),
            **made,
            **options,
        )


def _load_model(
    name: str, metadata: SAEMetadata, device: str, trust_remote_code: bool
) -> Any:
    model_name: Any = metadata.model_name
    model_class = metadata.model_class_name or "HookedTransformer"
    if model_class not in MODEL_CLASSES:
        raise ValueError(
            f"{name}'s metadata.model_class_name must be one of {MODEL_CLASSES}, "
            f"got {model_class!r}"
        )
    kwargs, refused = allowed_model_kwargs(metadata.model_from_pretrained_kwargs)
    if trust_remote_code:
        refused.pop("trust_remote_code", None)
        if "revision" in kwargs:  # the user trusts the model, not any version of it
            refused["revision"] = kwargs["revision"]
    if refused:
        flag = f"; {TRUST} allows trust_remote_code, if you trust that model's authors"
        raise ValueError(
            f"{name}'s metadata load {model_name!r} with {refused}, which an SAE may "
            f"not ask for{flag if 'trust_remote_code' in refused else ''}. A model "
            "that you name with --model (--model_name of train; in Python: model_name) "
            "is loaded without them"
        )
    try:
        with no_remote_code_prompt():
            return _load(model_class, model_name, kwargs, device, trust_remote_code)
    except ValueError as error:
        if trust_remote_code or "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{model_name} may run Python of its own only with {TRUST}: {error}"
        ) from error


def _load(
    model_class: str,
    model_name: str,
    kwargs: dict[str, Any],
    device: str,
    trust_remote_code: bool,
) -> Any:
    trust: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if model_class == "AutoModelForCausalLM":
        # As SAELens's load_model, which does not tell the tokenizer about trust.
        version = {n: kwargs[n] for n in ("revision",) if n in kwargs}
        config = AutoConfig.from_pretrained(model_name, **version, **trust)
        kernel = config._attn_implementation  # pyright: ignore[reportPrivateUsage]
        if "/" in str(kernel) and not trust_remote_code:
            raise ValueError(f"its kernel {kernel!r} needs trust_remote_code")
        model: Any = AutoModelForCausalLM.from_pretrained(model_name, **kwargs, **trust)
        if kwargs.get("device_map") is None:
            model = model.to(device)
        return HookedProxyLM(model, AutoTokenizer.from_pretrained(model_name, **trust))
    if model_class == "HookedTransformer":
        if Path(model_name).is_dir():
            # HookedTransformer knows models by their names on the Hub alone.
            bridge = SAETransformerBridge.boot_transformers(
                model_name, device=device, **trust
            )
            bridge.enable_compatibility_mode(no_processing=True)
            return bridge
        official_name = get_official_model_name(model_name)
        # For these TransformerLens trusts the Hub by itself.
        if official_name.startswith(NEED_REMOTE_CODE_MODELS) and not trust_remote_code:
            raise ValueError("TransformerLens loads it with trust_remote_code")
    return load_model(
        model_class,
        model_name,
        device=device,
        model_from_pretrained_kwargs=kwargs,
    )


@contextmanager
def no_remote_code_prompt() -> Generator[None]:
    """Refuse code of a model's repository where transformers would ask the user."""
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before
