"""The embedded default: a SAE on the bundled model, against TopK at fixed k."""

from __future__ import annotations

import io
import time
from pathlib import Path

import torch
from rich.console import Console
from sae_lens import (
    ActivationsStore,
    LoggingConfig,
    TrainingSAEConfig,
)

from sae_lens_hierarchical.data import (
    BUNDLED_HOOK_NAME,
    BUNDLED_MODEL_NAME,
    load_bundled_model,
    load_bundled_text,
)
from sae_lens_hierarchical.eval.folders import sweep_store
from sae_lens_hierarchical.eval.table import MetricsTable, write_table
from sae_lens_hierarchical.figures import draw, overview
from sae_lens_hierarchical.loading import load_saes
from sae_lens_hierarchical.report import html_report, terminal_table
from sae_lens_hierarchical.training import LanguageModelSAERunnerConfig
from sae_lens_hierarchical.training.baselines import plain_topk
from sae_lens_hierarchical.training.bundled import bundled_fields, small_run
from sae_lens_hierarchical.training.multi_sae import MultiSAERunner, multi_sae_config

__all__ = ["quickstart"]

K = 32
FIXED_KS = (2, 8, 32)
KS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
TABLE_KS = (1, 2, 4, 8, 16, 32)
HELD_OUT_CONTEXTS = 32
OURS = "HierarchicalTopK"


def quickstart(
    output: Path = Path("quickstart_output"),
    seed: int = 0,
    training_tokens: int = 600_000,
) -> MetricsTable:
    """Train on the bundled model and write what came of it. Needs no network or GPU.

    Args:
        output: The folder to write: the SAEs, ``metrics.parquet`` (and ``.csv``),
            ``pareto.png`` and ``report.html``.
        seed: Fixes every random choice.
        training_tokens: Tokens that each SAE sees.

    Returns:
        What each SAE does at each k.
    """
    start = time.monotonic()
    console = Console()
    torch.manual_seed(seed)
    model = load_bundled_model()
    console.print(
        f"[bold]{OURS}[/] (K = {K}) and TopK at k = {', '.join(map(str, FIXED_KS))}, "
        f"on the same activations of a small language model"
    )
    settings = bundled_fields(training_tokens) | {
        "k": K,
        "logger": LoggingConfig(log_to_wandb=False),
    }
    cfg = LanguageModelSAERunnerConfig(**settings)
    configs: dict[str, TrainingSAEConfig] = {OURS: cfg.sae}
    configs |= {f"TopK-{k}": plain_topk(cfg.sae, k) for k in FIXED_KS}
    runner_cfg = multi_sae_config(cfg, configs, output / "saes")
    with small_run():
        text = load_bundled_text("train")
        runner = MultiSAERunner(runner_cfg, text, model)
        runner.run()
        saes = load_saes({name: output / "saes" / name for name in configs})
        text = load_bundled_text("held_out")
        table = sweep_store(
            saes,
            ActivationsStore.from_sae(model, saes[OURS], text, streaming=False),
            KS,
            contexts=HELD_OUT_CONTEXTS,
            ce_contexts=HELD_OUT_CONTEXTS,
        )

    output.mkdir(parents=True, exist_ok=True)
    write_table(output / "metrics.parquet", table)
    plot = io.BytesIO()
    draw(overview(table)).savefig(plot, format="png", dpi=150)
    (output / "pareto.png").write_bytes(plot.getvalue())
    sae_path = output / "saes" / OURS
    code = [
        "import sae_lens_hierarchical  # registers the architecture",
        "from sae_lens import SAE",
        "",
        f"sae = SAE.load_from_disk({str(sae_path)!r})",
        "sae.k = 8                     # any k; nothing is trained again",
        "with sae.at_k(2): ...",
    ]
    facts = {
        "Language model": f"{BUNDLED_MODEL_NAME}: 6 layers, 128 dimensions, bundled",
        "Activations": f"{BUNDLED_HOOK_NAME}, special tokens left out",
        "Training": f"{training_tokens:,} tokens, {cfg.sae.d_sae} features, "
        f"batches of {cfg.train_batch_size_tokens}, seed {seed}",
        "Measured on": f"{table.rows[0].tokens:,} tokens of text that "
        "neither the model nor the SAEs had seen",
        "torch": torch.__version__,
    }
    page = html_report("One SAE at every k", table, plot.getvalue(), facts, code)
    (output / "report.html").write_text(page, encoding="utf-8")

    console.print(terminal_table(table, TABLE_KS))
    console.print()
    console.print(f"Took {time.monotonic() - start:.0f} s. Plot: {output}/pareto.png")
    console.print(f"Report: {output}/report.html")
    console.print(f"The SAE: {sae_path}")
    console.print("Next, on a GPU, the paper's own run:")
    console.print(
        "  sae-lens-hierarchical train --preset gemma-2-2b-layer-12", highlight=False
    )
    return table
