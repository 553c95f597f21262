"""Train the bundled tokenizer and language model and write the package data.

Run it as ``python scripts/bundled_model/train.py``; see the README beside it.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bigram import bigram_loss
from corpus import collect, split_held_out, take_chars
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

DATA = Path(__file__).parents[2] / "sae_lens_hierarchical" / "data"
SEPARATOR = "\f"
BOS = "<|endoftext|>"
SEED = 0
VOCAB_SIZE = 4096
HELD_OUT_FRACTION = 0.025
BUNDLED_FRACTION = 0.24
CONFIG: dict[str, Any] = {
    "n_layers": 6,
    "d_model": 128,
    "n_heads": 4,
    "d_head": 32,
    "d_mlp": 512,
    "n_ctx": 128,
    "d_vocab": VOCAB_SIZE,
    "act_fn": "gelu",
    "normalization_type": "LN",
}


@dataclass(frozen=True)
class TrainingOptions:
    """Everything that sizes the training run."""

    steps: int = 4_500
    batch_size: int = 32
    peak_lr: float = 3e-3
    warmup_steps: int = 200
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    evaluate_every: int = 300
    threads: int = 2


def main() -> None:
    """Collect text, train the tokenizer and the model, write the data folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cache", type=Path, default=Path("bundled_model_cache"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--steps", type=int, default=TrainingOptions.steps)
    args = parser.parse_args()
    options = TrainingOptions(steps=args.steps)
    torch.set_num_threads(options.threads)

    train, held_out, bundled = split_corpus(args.cache)
    (args.data / "text").mkdir(parents=True, exist_ok=True)
    write_text(args.data / "text" / "train.txt.xz", bundled)
    write_text(args.data / "text" / "held_out.txt.xz", held_out)
    tokenizer = train_tokenizer(train)
    tokenizer.save_pretrained(args.data / "tokenizer")

    train_tokens = token_stream(tokenizer, train)
    held_out_contexts = contexts(token_stream(tokenizer, held_out))
    facts: dict[str, Any] = {
        "language_model_train_tokens": len(train_tokens),
        "bundled_train_tokens": len(token_stream(tokenizer, bundled)),
        "held_out_tokens": held_out_contexts.numel(),
        "bigram_held_out_loss": bigram_loss(
            contexts(train_tokens), held_out_contexts, VOCAB_SIZE
        ),
    }
    print(facts, flush=True)
    train_model(train_tokens, held_out_contexts, options, args.data, facts)


def split_corpus(cache: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the train and held-out documents and the bundled part of the former."""
    train: list[str] = []
    held_out: list[str] = []
    bundled: list[str] = []
    for documents in collect(cache, SEED).values():
        source_train, source_held_out = split_held_out(documents, HELD_OUT_FRACTION)
        chars = sum(map(len, source_train))
        train += source_train
        held_out += source_held_out
        bundled += take_chars(source_train, round(chars * BUNDLED_FRACTION))
    rng = random.Random(SEED)
    for part in (train, held_out, bundled):
        rng.shuffle(part)
    return train, held_out, bundled


def write_text(path: Path, documents: list[str]) -> None:
    """Write documents separated by form feeds, compressed with xz."""
    raw = SEPARATOR.join(documents).encode("utf-8")
    path.write_bytes(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer whose BOS is also EOS and padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=BOS,
        # Documents are longer than a context; no warning is wanted for that.
        model_max_length=1_000_000_000,
        clean_up_tokenization_spaces=False,
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> Tensor:
    """Tokenize documents into one stream, each document preceded by BOS."""
    encoded = tokenizer(documents, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return torch.tensor([token for ids in encoded for token in (bos, *ids)])


def contexts(stream: Tensor) -> Tensor:
    """Cut a stream into consecutive contexts, each begun with BOS.

    BOS is the stream's first token. This is how SAELens's activation store packs text.
    """
    length = CONFIG["n_ctx"] - 1
    rows = stream[: len(stream) // length * length].view(-1, length)
    return torch.cat([stream[:1].expand(len(rows), 1), rows], dim=1)


def sample_batch(stream: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return contexts that start at random places of the stream."""
    length = CONFIG["n_ctx"] - 1
    starts = torch.randint(len(stream) - length, (size, 1), generator=generator)
    rows = stream[starts + torch.arange(length)]
    return torch.cat([stream[:1].expand(size, 1), rows], dim=1)


def next_token_loss(model: HookedTransformer, batch: Tensor) -> Tensor:
    """Return the mean next-token loss in nats."""
    logits = model(batch)[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: HookedTransformer, held_out: Tensor) -> float:
    """Return the mean loss over all held-out contexts."""
    losses = [next_token_loss(model, part) * len(part) for part in held_out.split(32)]
    return torch.stack(losses).sum().item() / len(held_out)


def learning_rate(step: int, options: TrainingOptions) -> float:
    """Return the rate of linear warm-up followed by cosine decay to zero."""
    if step < options.warmup_steps:
        return options.peak_lr * (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / (options.steps - options.warmup_steps)
    return options.peak_lr * 0.5 * (1 + math.cos(math.pi * done))


def build_optimizer(
    model: HookedTransformer, options: TrainingOptions
) -> torch.optim.AdamW:
    """Return AdamW that decays weight matrices but no biases or norms."""
    parameters = list(model.named_parameters())
    decayed = [p for name, p in parameters if ".W_" in name and "embed" not in name]
    decayed_ids = {id(p) for p in decayed}
    rest = [p for _, p in parameters if id(p) not in decayed_ids]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def train_model(
    stream: Tensor,
    held_out: Tensor,
    options: TrainingOptions,
    data: Path,
    facts: dict[str, Any],
) -> None:
    """Train the model, writing it whenever the held-out loss has improved."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = HookedTransformer(HookedTransformerConfig.from_dict(CONFIG))
    optimizer = build_optimizer(model, options)
    best = math.inf
    start = time.monotonic()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        batch = sample_batch(stream, options.batch_size, generator)
        # bfloat16 matrix products are half again as fast on recent CPUs.
        with torch.autocast("cpu", torch.bfloat16):
            loss = next_token_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % options.evaluate_every == 0 or step + 1 == options.steps:
            held_out_loss = evaluate(model, held_out)
            tokens = (step + 1) * batch.numel()
            seconds = time.monotonic() - start
            print(
                f"step {step + 1} train {loss.item():.3f} held-out "
                f"{held_out_loss:.3f} {tokens / seconds:.0f} tokens/s",
                flush=True,
            )
            if held_out_loss < best:
                best = held_out_loss
                write_model(data, model, held_out, {**facts, "steps": step + 1})


def write_model(
    data: Path, model: HookedTransformer, held_out: Tensor, facts: dict[str, Any]
) -> None:
    """Write float16 weights, and the loss that exactly those weights have."""
    weights = {name: p.detach().half() for name, p in model.named_parameters()}
    save_file(weights, data / "model.safetensors")
    (data / "model.safetensors").chmod(0o644)  # safetensors writes it as 0600
    rounded = HookedTransformer(HookedTransformerConfig.from_dict(CONFIG))
    rounded.load_state_dict(
        {name: value.float() for name, value in weights.items()}, strict=False
    )
    facts = {"held_out_loss": evaluate(rounded, held_out), **facts}
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    text = json.dumps({"config": CONFIG, **facts}, indent=2)
    (data / "model_config.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
