"""A stranger's folder: an SAE, and a model whose Python leaves a file behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import GPT2Config, GPT2LMHeadModel

from sae_lens_hierarchical import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from sae_lens_hierarchical.data import load_bundled_dataset

HOOKS = {
    "AutoModelForCausalLM": "transformer.h.0",
    "HookedTransformer": "blocks.0.hook_resid_post",
}


class Stranger:
    """A folder with an SAE, a model whose code leaves a file behind, and a text."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.model, self.text = folder / "model", folder / "text"
        self.sae, self.ran = folder / "sae", folder / "ran"
        sizes: dict[str, Any] = {
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 128,
        }
        config = GPT2Config(vocab_size=len(tokenizer), **sizes)
        GPT2LMHeadModel(config).save_pretrained(self.model)
        tokenizer.save_pretrained(self.model)
        self.text.mkdir()
        text = load_bundled_dataset("held_out").select(range(4))
        text.to_json(self.text / "train.jsonl")
        self.save_sae()

    def save_sae(self, **changes: Any) -> None:
        """Save the SAE, with other metadata."""
        metadata: dict[str, Any] = {
            "model_name": str(self.model),
            "model_class_name": "AutoModelForCausalLM",
            "dataset_path": str(self.text),
            "context_size": 32,
            "prepend_bos": True,
        } | changes
        metadata["hook_name"] = HOOKS.get(metadata["model_class_name"], "embed")
        cfg = HierarchicalTopKSAEConfig(d_in=16, d_sae=32, k_max=8)
        for name, value in metadata.items():
            cfg.metadata[name] = value
        HierarchicalTopKSAE(cfg).save_model(self.sae)

    def change(self, name: str, **changes: Any) -> None:
        """Change one of the model's JSON files."""
        path = self.model / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def add_model_code(self) -> None:
        self._write_code(
            "from transformers import GPT2Config, GPT2LMHeadModel\n"
            "class OwnConfig(GPT2Config):\n"
            "    model_type = 'own'\n"
            "class Own(GPT2LMHeadModel):\n"
            "    config_class = OwnConfig\n"
        )
        classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
        self.change("config.json", model_type="own", auto_map=classes)

    def add_tokenizer_code(self) -> None:
        self._write_code(
            "from transformers import PreTrainedTokenizerFast\n"
            "class Own(PreTrainedTokenizerFast):\n"
            "    pass\n"
        )
        classes = {"AutoTokenizer": [None, "own.Own"]}
        self.change("tokenizer_config.json", tokenizer_class="Own", auto_map=classes)

    def _write_code(self, code: str) -> None:
        leave = f"open({str(self.ran)!r}, 'w').close()\n"
        (self.model / "own.py").write_text(leave + code)
