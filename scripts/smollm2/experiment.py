"""Train one SAE on cached activations and append what it reaches to a CSV.

Run it as ``python scripts/smollm2/experiment.py SAE ACTIVATIONS OUTPUT [options]``,
with the folder of cache_activations.py. SAE is ``ours``, ``topk-K``, ``batchtopk-K``,
``jumprelu-K`` or ``matryoshka-K``. The same batches come in the same order for a seed,
scaled to a mean norm of √d_in, as ``expected_average_only_in`` scales them.
``OUTPUT/results.csv`` gets a row for each k, with all settings; a run that has its rows
there is not repeated.

``topk-K`` is SAELens's TopK to the letter (init norm 1, rescaled by decoder norms) but
for its step: HierarchicalTopK with J = {K} takes the same one several times as fast,
which ``--stock`` checks by training SAELens's own class.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import itertools
import json
import math
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sae_lens
import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    LoggingConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from torch import Tensor

from sae_lens_hierarchical import (
    HierarchicalTopKSAE,
    HierarchicalTopKTrainingSAEConfig,
)
from sae_lens_hierarchical.export import export
from sae_lens_hierarchical.loading import load_sae
from sae_lens_hierarchical.ops import stable_topk
from sae_lens_hierarchical.ops.budgets import resolve_budgets
from sae_lens_hierarchical.training.fine_tuning import sae_from_pretrained
from sae_lens_hierarchical.training.step import FastSAETrainer

D_SAE = 16_384
K = 32
BATCH = 1024
CONTEXT_SIZE = 256
MEAN_TOKENS = 65_536
KS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def budget_weights(name: str, k: int) -> tuple[list[int] | None, list[float] | None]:
    """Return J and its weights by name."""
    budgets = list(range(1, k + 1))
    if name == "uniform":
        return budgets, None
    if "+" in name:  # J_x, and this much of the weight more at K, such as J8+0.4
        base, _, extra = name.partition("+")
        budgets, _ = budget_weights(base, k)
        assert budgets is not None
        weights = [(1 - float(extra)) / len(budgets)] * len(budgets)
        weights[-1] += float(extra)
        return budgets, weights
    if name.startswith("J"):
        return sorted({1, *range(int(name[1:]), k + 1, int(name[1:]))}), None
    if name == "octaves":  # 1, 2, 4, ... K, alike
        octaves = [2**i for i in range(k.bit_length()) if 2**i <= k]
        return octaves, [1 / len(octaves)] * len(octaves)
    if name.startswith("at"):  # these: at1,2,4,8 or, weighted, at1:0.2,8:0.3,32:0.5
        parts = [part.partition(":") for part in name[2:].split(",")]
        shares = [float(share or 1) for _, _, share in parts]
        return [int(j) for j, _, _ in parts], [w / sum(shares) for w in shares]
    if name.startswith("power"):  # w_j in proportion to j^-p
        weights = [j ** -float(name[5:]) for j in budgets]
        return budgets, [w / sum(weights) for w in weights]
    raise ValueError(f"--weights: {name!r}")


def make_config(options: argparse.Namespace, steps: int) -> Any:
    """Return the SAE's config."""
    shared: dict[str, Any] = {"d_in": options.d_in, "d_sae": D_SAE, "device": "cpu"}
    shared["decoder_init_norm"] = options.init_norm
    kind, _, k = options.sae.partition("-")
    if kind == "ours":
        budgets, weights = budget_weights(options.weights, K)
        return HierarchicalTopKTrainingSAEConfig(
            **shared,
            k=K,
            budgets=budgets,
            budget_weights=weights,
            unit_norm_decoder=not options.free_norm,
            aux_loss_coefficient=options.aux,
        )
    if kind == "topk" and not options.stock:
        return HierarchicalTopKTrainingSAEConfig(
            **shared,
            k=int(k),
            budgets=[int(k)],
            unit_norm_decoder=options.unit_norm,
            aux_loss_coefficient=options.aux,
        )
    if kind == "topk":
        return TopKTrainingSAEConfig(
            **shared, k=int(k), aux_loss_coefficient=options.aux
        )
    if kind == "batchtopk":
        return BatchTopKTrainingSAEConfig(
            **shared, k=int(k), aux_loss_coefficient=options.aux
        )
    if kind == "matryoshka":
        widths = [D_SAE // 16, D_SAE // 8, D_SAE // 4, D_SAE // 2, D_SAE]
        return MatryoshkaBatchTopKTrainingSAEConfig(
            **shared,
            k=int(k),
            matryoshka_widths=widths,
            aux_loss_coefficient=options.aux,
        )
    if kind == "jumprelu":
        return JumpReLUTrainingSAEConfig(
            **shared,
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=float(k),
            l0_warm_up_steps=steps // 4,
            jumprelu_bandwidth=2.0,
            jumprelu_init_threshold=1.0,
            jumprelu_ste_to_input=True,
            pre_act_loss_coefficient=3e-6,
        )
    raise ValueError(f"SAE: {options.sae!r}")


def batches(rows: np.ndarray, tokens: int, scale: float, seed: int) -> Iterator[Tensor]:
    """Yield the first ``tokens`` activations in an order that the seed gives."""
    order = np.random.default_rng(seed).permutation(tokens // BATCH)
    for n in order:
        batch = torch.from_numpy(rows[n * BATCH : (n + 1) * BATCH].astype(np.float32))
        yield batch * scale


def train(sae: TrainingSAE[Any], data: Iterator[Tensor], options: Any) -> float:
    """Train an SAE and return how many seconds that took."""
    steps = options.tokens // options.batch
    cfg = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=steps * options.batch,
        device="cpu",
        autocast=False,
        lr=options.lr,
        lr_end=0.0,
        lr_scheduler_name="constant",
        lr_warm_up_steps=steps // 20,
        adam_beta1=0.9,
        adam_beta2=options.beta2,
        lr_decay_steps=round(options.decay * steps),
        n_restart_cycles=1,
        train_batch_size_samples=options.batch,
        dead_feature_window=options.dead_window,
        feature_sampling_window=10**9,
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=1,
    )
    split = (part for batch in data for part in batch.split(options.batch))
    if options.random_budgets:
        split = random_budgets(sae, split, options)
    if options.late_weights is not None:
        split = late_weights(sae, split, options, round((1 - options.late) * steps))
    if options.anneal_from:
        split = annealed_k(sae, split, options.anneal_from, steps // 2)
    trainer = FastSAETrainer(cfg=cfg, sae=sae, data_provider=split)
    start = time.monotonic()
    trainer.fit()
    return time.monotonic() - start


def random_budgets(sae: Any, data: Iterator[Tensor], options: Any) -> Iterator[Tensor]:
    """Before each step take a few of the budgets, one of each stratum, and K."""
    rng = np.random.default_rng(options.seed)
    edges = np.linspace(0, K, options.random_budgets + 1).round().astype(int)
    for batch in data:
        strata = [*itertools.pairwise(edges.tolist())]
        sae._budgets = [int(rng.integers(a, b)) + 1 for a, b in strata]
        sae._budget_weights = [(b - a) / K for a, b in strata]
        yield batch


def late_weights(
    sae: Any, data: Iterator[Tensor], options: Any, first_step: int
) -> Iterator[Tensor]:
    """Change J and its weights before a step."""
    for step, batch in enumerate(data):
        if step == first_step:
            late = resolve_budgets(K, *budget_weights(options.late_weights, K))
            sae._budgets, sae._budget_weights = late
        yield batch


def annealed_k(
    sae: Any, data: Iterator[Tensor], first_k: int, steps: int
) -> Iterator[Tensor]:
    """Let the largest budget fall to K over the first steps, with the weight of K."""
    for step, batch in enumerate(data):
        k = K + round((first_k - K) * max(0.0, 1 - step / steps))
        sae.cfg.k = k
        sae._budgets = [*sae._budgets[:-1], k]
        yield batch


def geometric_median(x: Tensor, iterations: int = 50) -> Tensor:
    """Return the point whose distances to the rows of ``x`` sum to the least."""
    median = x.mean(dim=0)
    for _ in range(iterations):  # Weiszfeld's algorithm
        weights = 1 / (x - median).norm(dim=1).clamp(min=1e-6)
        median = weights @ x / weights.sum()
    return median


@torch.no_grad()
def evaluate(sae: TrainingSAE[Any], rows: np.ndarray, scale: float) -> dict[str, Any]:
    """Return explained variance and its standard error at each k, and more."""
    ks = [*KS]
    x_all = torch.from_numpy(rows.astype(np.float32)) * scale
    mean = x_all.mean(dim=0)
    variance = (x_all - mean).square().sum(dim=1)
    errors = torch.zeros(len(ks) + 1, len(x_all))
    residual = torch.zeros(len(ks), x_all.shape[1])
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    fired_at_8 = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    weights = sae.state_dict()
    W_enc, W_dec, b_dec = (weights[name] for name in ("W_enc", "W_dec", "b_dec"))
    b_in = b_dec if sae.cfg.apply_b_dec_to_input else torch.zeros(1)
    norms = W_dec.norm(dim=1)
    rescales = getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)
    # Those that are trained at one k have an inference mode of their own.
    own = not isinstance(sae.cfg, HierarchicalTopKTrainingSAEConfig)
    l0 = 0.0
    for start in range(0, len(x_all), BATCH):
        x = x_all[start : start + BATCH]
        part = slice(start, start + len(x))
        hidden_pre = (x - b_in) @ W_enc + weights["b_enc"]
        ranked = hidden_pre * norms if rescales else hidden_pre
        values, indices = stable_topk(ranked, ks[-1])
        fired[indices[:, :K]] = True
        fired_at_8[indices[:, :8]] = True
        values = values.relu()
        if rescales:
            values = values / norms[indices]
        out = b_dec.expand_as(x).clone()
        done = 0
        for n, k in enumerate(ks):
            for j in range(done, k):
                out += values[:, j, None] * W_dec[indices[:, j]]
            done = k
            errors[n, part] = (x - out).square().sum(dim=1)
            residual[n] += (x - out).sum(dim=0)
        if own:
            acts = sae.encode(x)
            l0 += float((acts > 0).sum())
            errors[-1, part] = (x - sae.decode(acts)).square().sum(dim=1)
    total = variance.sum()
    ev = 1 - errors.sum(dim=1) / total
    # The delta method's error of a ratio of means over tokens.
    deviations = (
        errors / variance.mean() - (1 - ev)[:, None] * variance / variance.mean()
    )
    se = deviations.std(dim=1) / math.sqrt(len(x_all))
    bias = (residual / len(x_all)).square().sum(dim=1) / variance.mean()
    return {
        "ev": dict(zip(ks, ev.tolist(), strict=False)),
        "se": dict(zip(ks, se.tolist(), strict=False)),
        "bias": dict(zip(ks, bias.tolist(), strict=True)),
        "own_l0": l0 / len(x_all) if own else math.nan,
        "own_ev": float(ev[-1]) if own else math.nan,
        "dead": int((~fired).sum()),
        "dead_at_8": int((~fired_at_8).sum()),
    }


def from_trained(cfg: Any, folder: Path, scale: float) -> TrainingSAE[Any]:
    """Return an SAE that starts with the weights of one that ``save`` wrote."""
    source = load_sae(folder)
    source.fold_activation_norm_scaling_factor(1 / scale)
    with tempfile.TemporaryDirectory() as scaled:
        source.save_model(scaled)
        return sae_from_pretrained(cfg, Path(scaled), "cpu")


def save(sae: TrainingSAE[Any], options: Any, scale: float) -> None:
    """Save an SAE as ``OUTPUT/NAME-seedN``, as a training run would have."""
    sae.fold_activation_norm_scaling_factor(scale)
    limits = json.loads((options.activations / "train.json").read_text())["max_norm"]
    ((hook, max_norm),) = limits.items()
    metadata = sae.cfg.metadata
    metadata.model_name = str(options.save)
    metadata.model_class_name = "AutoModelForCausalLM"
    metadata.hook_name = hook
    metadata.context_size = CONTEXT_SIZE
    metadata.prepend_bos = True
    metadata.max_norm = max_norm
    folder = options.output / f"{options.sae}-seed{options.seed}"
    if not options.sae.startswith("topk") or options.stock:
        sae.save_inference_model(folder)
        return
    with tempfile.TemporaryDirectory() as hierarchical:
        sae.save_inference_model(hierarchical)
        ours = load_sae(hierarchical)
        assert isinstance(ours, HierarchicalTopKSAE)
        export(ours, folder, ours.cfg.k_max)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sae")
    parser.add_argument("activations", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--eval-tokens", type=int, default=16_384)
    parser.add_argument("--tokens", type=int, default=1_572_864)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--beta2", type=float, default=0.999)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--decay", type=float, default=0.2)
    parser.add_argument("--weights", default="uniform")
    parser.add_argument("--late-weights", help="those of the last steps")
    parser.add_argument("--late", type=float, default=0.2, help="their share")
    parser.add_argument("--random-budgets", type=int, default=0)
    parser.add_argument("--anneal-from", type=int, default=0, help="K at first")
    parser.add_argument("--init-norm", type=float, default=1.0)
    parser.add_argument("--free-norm", action="store_true")
    parser.add_argument("--unit-norm", action="store_true")
    parser.add_argument("--b-dec", choices=("zero", "mean", "median"), default="mean")
    parser.add_argument("--aux", type=float, default=1.0)
    parser.add_argument("--dead-window", type=int, default=1000)
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--start", type=Path, help="an SAE to go on with")
    parser.add_argument(
        "--save", type=Path, help="the model's folder: save the SAE too"
    )
    options = parser.parse_args()
    names = sorted(set(vars(options)) - {"activations", "output", "save"})
    settings = {name: getattr(options, name) for name in names}
    settings["start"] = None if options.start is None else options.start.name
    path = options.output / "results.csv"
    options.output.mkdir(parents=True, exist_ok=True)
    key = json.dumps(settings, sort_keys=True)
    if path.exists() and any(
        row["settings"] == key for row in csv.DictReader(path.open())
    ):
        print("done before:", key)
        return
    rows = np.load(options.activations / "train.npy", mmap_mode="r")
    options.d_in = rows.shape[1]
    first = torch.from_numpy(rows[:MEAN_TOKENS].astype(np.float32))
    scale = math.sqrt(options.d_in) / float(first.norm(dim=1).mean())
    torch.manual_seed(options.seed)
    steps = options.tokens // options.batch
    cfg = make_config(options, steps)
    if options.start is not None:
        sae = from_trained(cfg, options.start, scale)
    else:
        sae = TrainingSAE.from_dict(cfg.to_dict())
    if options.b_dec == "mean" and options.start is None:
        sae.b_dec.data = first.mean(dim=0) * scale
    elif options.b_dec == "median" and options.start is None:
        sae.b_dec.data = geometric_median(first) * scale
    seconds = train(sae, batches(rows, options.tokens, scale, options.seed), options)
    found = evaluate(
        sae,
        np.load(options.activations / f"{options.split}.npy")[: options.eval_tokens],
        scale,
    )
    print(key)
    print(" ".join(f"{k}:{v:.3f}" for k, v in found["ev"].items()), end=" ")
    print(f"own {found['own_ev']:.3f} at l0 {found['own_l0']:.1f}", end=" ")
    print(f"dead {found['dead']} {seconds:.0f} s", flush=True)
    facts = {
        "dead": found["dead"],
        "dead_at_8": found["dead_at_8"],
        "own_l0": round(found["own_l0"], 3),
        "own_ev": round(found["own_ev"], 5),
        "seconds": round(seconds),
        "torch": torch.__version__,
        "sae_lens": sae_lens.__version__,
        "threads": torch.get_num_threads(),
        "hardware": platform.processor() or platform.machine(),
        "settings": key,
    }
    lines = [
        {"sae": options.sae, "k": k, "ev": round(found["ev"][k], 5)}
        | {"se": round(found["se"][k], 5), "bias": round(found["bias"][k], 5)}
        | {n: settings[n] for n in ("weights", "lr", "tokens", "seed", "split")}
        | facts
        for k in KS
    ]
    with path.open("a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, fieldnames=lines[0])
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(lines)
    if options.save is not None:
        save(sae, options, scale)


if __name__ == "__main__":
    main()
