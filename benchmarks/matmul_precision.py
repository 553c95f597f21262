"""What do less precise matrix products do to the features chosen and to the curve?

Trains the bundled model's SAE with the encoder's product in float32, in TF32 ("high")
and in bfloat16 ("medium", and autocast), for a few seeds, and writes
``results/matmul_precision.csv``: explained variance on held-out tokens at each k, and
on how many of a token's K features the trained SAE agrees with itself in float32. A CPU
has no TF32: the product's inputs are rounded to it, as a GPU does; sums are float32.

    python benchmarks/matmul_precision.py
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from sae_lens_hierarchical import (
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)
from sae_lens_hierarchical.data import (
    BUNDLED_HOOK_NAME,
    load_bundled_dataset,
    load_bundled_model,
)
from sae_lens_hierarchical.ops import encode_topk, stable_topk

RESULTS = Path(__file__).parent / "results" / "matmul_precision.csv"
KS = (1, 2, 4, 8, 16, 32)
STEPS, BATCH, HELD_OUT = 1000, 512, 16_384
# The bits of a float32 that TF32 and bfloat16 do not have.
DROPPED_BITS = {"highest": 0, "high": 13, "medium": 16}


def main() -> None:
    """Measure, print and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train = _activations("train", STEPS * BATCH)
    held_out = _activations("held_out", HELD_OUT)
    mean = train.mean(dim=0)
    scale = train.shape[1] ** 0.5 / (train - mean).norm(dim=-1).mean()
    train, held_out = (train - mean) * scale, (held_out - mean) * scale
    rows = []
    for seed in range(options.seeds):
        for precision in DROPPED_BITS:
            sae = _train(train, precision, seed)
            row = {"precision": precision, "seed": seed}
            row |= _evaluate(sae, held_out, precision)
            print(row, flush=True)
            rows.append(row | {"tokens": len(train), "torch": torch.__version__})
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _activations(split: Any, tokens: int) -> Tensor:
    model = load_bundled_model()
    found, count = [], 0
    for document in load_bundled_dataset(split)["text"]:
        ids = model.to_tokens(document, truncate=False)[0]
        for context in ids[: len(ids) // 128 * 128].view(-1, 128).split(16):
            _, cache = model.run_with_cache(
                context, names_filter=BUNDLED_HOOK_NAME, stop_at_layer=3
            )
            found.append(cache[BUNDLED_HOOK_NAME][:, 1:].flatten(0, 1))
            count += len(found[-1])
        if count >= tokens:
            break
    return torch.cat(found)[:tokens]


def _train(
    activations: Tensor, precision: str, seed: int
) -> HierarchicalTopKTrainingSAE:
    torch.manual_seed(seed)
    cfg = HierarchicalTopKTrainingSAEConfig(
        d_in=128, d_sae=1024, k=32, loss_every=1, unit_norm_decoder=True
    )
    sae = HierarchicalTopKTrainingSAE(cfg)
    adam = torch.optim.Adam(sae.parameters(), lr=2e-3, fused=True)
    order = torch.randperm(len(activations))
    steps = len(activations) // BATCH
    restore = _round_products(precision)
    for n, part in enumerate(order[: steps * BATCH].split(BATCH)):
        for group in adam.param_groups:
            group["lr"] = 2e-3 * min(1, (n + 1) / 20, 4 * (steps - n) / steps)
        step = TrainStepInput(activations[part], {}, None, n, False)
        sae.training_forward_pass(step_input=step).loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
    restore()
    return sae


def _round_products(precision: str) -> Callable[[], None]:
    """Round what the encoder multiplies; return a function that undoes it."""
    module = sys.modules["sae_lens_hierarchical.ops.encode_topk"]
    plain = torch.addmm

    def rounded(bias: Tensor, x: Tensor, weight: Tensor, **options: Any) -> Tensor:
        return plain(
            bias, _rounded(x, precision), _rounded(weight, precision), **options
        )

    class Torch:
        addmm = staticmethod(rounded)

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    module.torch = Torch()  # pyright: ignore[reportAttributeAccessIssue]

    def restore() -> None:
        module.torch = torch  # pyright: ignore[reportAttributeAccessIssue]

    return restore


def _rounded(x: Tensor, precision: str) -> Tensor:
    dropped = DROPPED_BITS[precision]
    if not dropped:
        return x
    bits = x.contiguous().view(torch.int32)
    half = (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1)  # to the nearest, even
    return ((bits + half) >> dropped << dropped).view(torch.float32)


@torch.no_grad()
def _evaluate(
    sae: HierarchicalTopKTrainingSAE, x: Tensor, precision: str
) -> dict[str, float]:
    values, exact = encode_topk(x, sae.W_enc, sae.b_enc, sae.b_dec, 32)
    variance = (x - x.mean(dim=0)).pow(2).sum(dim=-1).mean()
    result: dict[str, float] = {}
    x_hat, start = sae.b_dec.expand_as(x).clone(), 0
    for k in KS:
        for i in range(start, k):
            x_hat += values[:, i, None].relu() * sae.W_dec[exact[:, i]]
        start = k
        error = (x - x_hat).pow(2).sum(dim=-1).mean()
        result[f"explained_variance_k{k}"] = round(float(1 - error / variance), 5)
    product = _rounded(x - sae.b_dec, precision) @ _rounded(sae.W_enc, precision)
    _, chosen = stable_topk(product + sae.b_enc, 32)
    same = (chosen[:, :, None] == exact[:, None, :]).any(dim=-1)
    return result | {"same_features": round(float(same.float().mean()), 5)}


if __name__ == "__main__":
    main()
