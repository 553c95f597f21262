"""The embedded default: a SAE on the bundled model, against TopK at fixed k."""

from __future__ import annotations

import functools
import io
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from sae_lens import (
    SAE,
    HookedSAETransformer,
    LoggingConfig,
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from typing_extensions import override

from sae_lens_hierarchical.data import (
    BUNDLED_HOOK_NAME,
    BUNDLED_MODEL_NAME,
    load_bundled_model,
    load_bundled_text,
)
from sae_lens_hierarchical.eval.checkpoints import sweep_text
from sae_lens_hierarchical.eval.plots import plot_curves
from sae_lens_hierarchical.eval.table import MetricsTable, write_table
from sae_lens_hierarchical.report import html_report, terminal_table
from sae_lens_hierarchical.saes import HierarchicalTopKTrainingSAEConfig

__all__ = ["quickstart"]

K = 32
FIXED_KS = (2, 8, 32)
KS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
TABLE_KS = (1, 2, 4, 8, 16, 32)
D_SAE = 1024
BATCH_SIZE = 512
CONTEXT_SIZE = 128
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
    with _quiet(), _one_thread_an_operation():
        saes = _train(model, output / "saes", training_tokens)
        table = sweep_text(
            saes,
            model,
            load_bundled_text("held_out"),
            KS,
            contexts=HELD_OUT_CONTEXTS,
            ce_contexts=HELD_OUT_CONTEXTS,
        )

    output.mkdir(parents=True, exist_ok=True)
    write_table(output / "metrics.parquet", table)
    plot = io.BytesIO()
    plot_curves(table).savefig(plot, format="png", dpi=150)
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
        "Training": f"{training_tokens:,} tokens, batches of {BATCH_SIZE}, "
        f"{D_SAE} features, seed {seed}",
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


class _Runner(MultiSAETrainingRunner):
    """SAELens's runner, whose bar moves with every step."""

    @override
    def _run_with_interruption_handling(
        self, trainer: MultiSAETrainer
    ) -> dict[str, TrainingSAE[Any]]:
        every_step = functools.partial(trainer._update_pbar, update_interval=1)
        trainer._update_pbar = every_step  # type: ignore[method-assign]
        return super()._run_with_interruption_handling(trainer)


def _train(
    model: HookedSAETransformer, folder: Path, training_tokens: int
) -> dict[str, SAE[Any]]:
    """Train all SAEs, write them for inference, and load them from there."""
    sizes: dict[str, Any] = {"d_in": model.cfg.d_model, "d_sae": D_SAE}
    configs: dict[str, TrainingSAEConfig] = {
        OURS: HierarchicalTopKTrainingSAEConfig(**sizes, k=K, unit_norm_decoder=True)
    }
    for k in FIXED_KS:
        # SAELens's own TopK, started with rows of norm 1 like ours: it fares better.
        configs[f"TopK-{k}"] = TopKTrainingSAEConfig(**sizes, k=k, decoder_init_norm=1)
    steps = training_tokens // BATCH_SIZE
    cfg = MultiSAETrainingRunnerConfig(
        saes=configs,
        hook_names=BUNDLED_HOOK_NAME,
        model_name=BUNDLED_MODEL_NAME,
        dataset_path="bundled text",
        streaming=False,
        context_size=CONTEXT_SIZE,
        training_tokens=training_tokens,
        train_batch_size_tokens=BATCH_SIZE,
        n_batches_in_buffer=64,
        exclude_special_tokens=True,
        prefetch_llm_batches=True,
        lr=2e-3,
        lr_warm_up_steps=min(20, steps // 5),
        lr_decay_steps=steps // 4,
        dead_feature_window=400,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=str(folder),
    )
    text = load_bundled_text("train")
    _Runner(cfg, override_dataset=text, override_model=model).run()
    return {name: SAE.load_from_disk(folder / name) for name in configs}


@contextmanager
def _one_thread_an_operation() -> Iterator[None]:
    """Let the language model and the SAEs have a core each, in place of half of both.

    Operations this small would spend most of a second thread's time on waiting for it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back SAELens's notes on local models and text, which are meant here."""
    log = logging.getLogger("sae_lens")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
