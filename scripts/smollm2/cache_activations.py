"""Cache a layer's activations on the experiment's text, as SAELens's store makes them.

Run it as ``python scripts/smollm2/cache_activations.py MODEL TEXT OUTPUT``, with the
folders of prepare_model.py and prepare_text.py. Tokens of outlying norm are left out,
as ``max_norm_ratio`` leaves them out of a run, and the others are shuffled. Each split
becomes ``NAME.npy``, [tokens, d_in] in float16.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sae_lens import ActivationsStore
from sae_lens.load_model import load_model
from tqdm.auto import tqdm

from sae_lens_hierarchical.training.activations_store import ResumableActivationsStore

HOOK = "model.layers.12"
D_IN = 576
CONTEXT_SIZE = 256
MAX_NORM_RATIO = 3.5
BATCH = 1024
TOKENS = {"test": 49_152, "validation": 49_152, "train": 1_572_864}
# Held-out text is short, and must not be read twice.
CONTEXTS_IN_BUFFER = {"test": 64, "validation": 64, "train": 512}


def make_store(model: Any, text: Path, split: str) -> ResumableActivationsStore:
    """Return the store that a training run on this text would have."""
    store = ActivationsStore(
        model=model,
        dataset=Dataset.from_json(str(text / f"{split}.jsonl")),
        streaming=False,
        hook_name=HOOK,
        hook_head_index=None,
        context_size=CONTEXT_SIZE,
        d_in=D_IN,
        n_batches_in_buffer=CONTEXTS_IN_BUFFER[split],
        total_training_tokens=TOKENS[split],
        store_batch_size_prompts=16,
        train_batch_size_tokens=BATCH,
        prepend_bos=True,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        exclude_special_tokens=None,
    )
    return ResumableActivationsStore.convert(store, MAX_NORM_RATIO)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    model = load_model("AutoModelForCausalLM", str(args.model), "cpu")
    model.requires_grad_(False)
    for split, tokens in TOKENS.items():
        torch.manual_seed(0)
        store = make_store(model, args.text, split)
        rows = np.lib.format.open_memmap(
            args.output / f"{split}.npy", "w+", np.float16, (tokens, D_IN)
        )
        count = 0
        for batch in tqdm(
            itertools.islice(store.buffer, tokens // BATCH), split, tokens // BATCH
        ):
            rows[count : count + len(batch)] = batch.half().numpy()
            count += len(batch)
        rows.flush()
        limit = store.norm_limit
        assert limit is not None
        facts = {
            "tokens": count,
            "looked_at": limit.tokens,
            "left_out": limit.outliers,
            "max_norm": limit.limits(),
        }
        (args.output / f"{split}.json").write_text(json.dumps(facts), encoding="utf-8")
        print(split, limit.summary(), flush=True)


if __name__ == "__main__":
    main()
