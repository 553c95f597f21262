"""The embedded default: an SAE on the bundled model, against TopK at fixed k."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from sae_lens import ActivationsStore, TrainingSAEConfig

from sae_lens_hierarchical.data import (
    BUNDLED_HELD_OUT_NAME,
    load_bundled_dataset,
    load_bundled_model,
)
from sae_lens_hierarchical.defaults import BUNDLED, METHOD, QUICKSTART_OUTPUT, SEED
from sae_lens_hierarchical.eval.folders import sweep_store
from sae_lens_hierarchical.eval.table import MetricsTable, write_table
from sae_lens_hierarchical.figures import write_figures
from sae_lens_hierarchical.figures.write import check_figures, remove_results
from sae_lens_hierarchical.loading import load_saes
from sae_lens_hierarchical.report import terminal_tables
from sae_lens_hierarchical.training.baselines import plain_topk
from sae_lens_hierarchical.training.multi_sae import MultiSAERunner, multi_sae_config
from sae_lens_hierarchical.training.presets import preset, small_run

__all__ = ["quickstart"]

FIXED_KS = (2, 8, 16)
KS = (1, 2, 3, 4, 6, 8, 12, 16)
TABLE_KS = (1, 2, 4, 8, 16)
HELD_OUT_CONTEXTS = 32


def quickstart(
    output: Path = QUICKSTART_OUTPUT,
    seed: int = SEED,
    training_tokens: int = 300_000,
) -> MetricsTable:
    """Train on the bundled model and write what came of it. Needs no network or GPU.

    Args:
        output: The folder to write: the SAEs, ``metrics.parquet`` (and ``.csv``)
            and in ``figures`` images and one page of all of them. Those that were
            there go as soon as the training begins.
        seed: Fixes every random choice.
        training_tokens: Tokens that each SAE sees.

    Returns:
        What each SAE does at each k.

    Raises:
        ValueError: If a figure would replace a file that is not of our figures.
    """
    check_figures(output / "figures")
    start = time.monotonic()
    console = Console()
    model = load_bundled_model()
    cfg = preset(BUNDLED, training_tokens=training_tokens, seed=seed)
    fixed = ", ".join(map(str, FIXED_KS))
    console.print(
        f"[bold]{METHOD}[/] (K = {cfg.sae.k}) and TopK at k = {fixed}, on the same "
        "activations of a small language model"
    )
    configs: dict[str, TrainingSAEConfig] = {METHOD: cfg.sae}
    configs |= {f"TopK-{k}": plain_topk(cfg.sae, k) for k in FIXED_KS}
    runner_cfg = multi_sae_config(cfg, configs, output / "saes")
    with small_run():
        text = load_bundled_dataset("train")
        runner = MultiSAERunner(runner_cfg, text, model)
        remove_results(output)  # or, of a run that is stopped, they would seem its own
        runner.run()
        saes = load_saes({name: output / "saes" / name for name in configs})
        text = load_bundled_dataset("held_out")
        table = sweep_store(
            saes,
            ActivationsStore.from_sae(model, saes[METHOD], text, streaming=False),
            KS,
            contexts=HELD_OUT_CONTEXTS,
            ce_contexts=HELD_OUT_CONTEXTS,
        )

    table.provenance["dataset"] = BUNDLED_HELD_OUT_NAME
    write_table(output / "metrics.parquet", table)
    *_, page = write_figures(output / "figures", table)
    for shown in terminal_tables(table, TABLE_KS):
        console.print(shown)
    console.print()
    console.print(f"Took {time.monotonic() - start:.0f} s")
    console.print(f"The figures, on one page: {page}")
    console.print(f"The SAE: {output / 'saes' / METHOD}")
    console.print("What its features are, on a page too:")
    console.print(
        f"  sae-lens-hierarchical features {output / 'saes' / METHOD}", highlight=False
    )
    console.print("Next, on a GPU, with the paper's model and sizes:")
    console.print(
        "  sae-lens-hierarchical train --preset gemma-2-2b-layer-12", highlight=False
    )
    return table
