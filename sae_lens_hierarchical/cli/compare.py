"""``sae-lens-hierarchical compare``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sae_lens_hierarchical.cli.arguments import (
    Subparsers,
    add_force,
    add_output,
    add_run_options,
    given_in,
    is_one_of_several,
    saelens_config,
)
from sae_lens_hierarchical.cli.outputs import refuse_existing
from sae_lens_hierarchical.cli.results import show_next, write_and_show
from sae_lens_hierarchical.cli.training_help import (
    add_help,
    described_with_presets,
    show_help,
)
from sae_lens_hierarchical.cli.wandb_login import check_wandb_login
from sae_lens_hierarchical.defaults import BUNDLED, COMPARISON_CONTEXTS

__all__ = ["add_parser", "run"]


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    command = commands.add_parser(
        "compare",
        help="train the paper's SAEs on the same activations; evaluate each at many k",
        usage="sae-lens-hierarchical compare [--preset NAME] [--contexts N] "
        "[--output FOLDER]\n       [--force] [SAELENS_OPTION ...]",
        description=described_with_presets(
            "Train the paper's SAEs on the same activations (HierarchicalTopK with "
            "several\nlosses, TopK, BatchTopK, JumpReLU), and evaluate each at many k.",
            "compare",
            "compare --training_tokens 500000 --k 16 --output FOLDER",
            "compare --preset gemma-2-2b-layer-12",
        ),
        add_help=False,
    )
    add_help(command)
    command.add_argument(
        "--preset",
        default=BUNDLED,
        metavar="NAME",
        help="one of the recipes above (default: %(default)s)",
    )
    command.add_argument(
        "--training_tokens", type=int, metavar="N", help="tokens that each SAE sees"
    )
    command.add_argument(
        "--contexts",
        type=int,
        default=COMPARISON_CONTEXTS,
        metavar="N",
        help="contexts to evaluate on (default: %(default)s)",
    )
    add_output(command, Path("comparison"))
    add_force(command)
    add_run_options(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the command."""
    if options.help:
        show_help(options.parser, rest)
    if is_one_of_several():
        raise ValueError(
            "compare trains its SAEs on one process: start it without torchrun"
        )
    from sae_lens_hierarchical.comparison import compare
    from sae_lens_hierarchical.data import (
        BUNDLED_DATASET_NAME,
        BUNDLED_HELD_OUT_NAME,
        load_bundled_dataset,
    )
    from sae_lens_hierarchical.figures.write import check_figures
    from sae_lens_hierarchical.training.presets import (
        preset_fields,
        set_lr_schedule,
        small_run,
    )

    if "output_path" in given_in(rest):
        raise ValueError("--output_path is for train; compare takes --output")
    fields = preset_fields(options.preset)
    if options.training_tokens is not None:
        fields["training_tokens"] = options.training_tokens
    with ExitStack() as stack:
        data: dict[str, Any] = {}
        if options.preset == BUNDLED:
            fields |= {"log_to_wandb": False}
        else:
            # SAELens keeps them all, and one has every SAE with its optimizer's state.
            fields["n_checkpoints"] = 1
        cfg = saelens_config(options, fields, rest)
        set_lr_schedule(cfg, options.preset, given_in(rest))
        # The preset's text may have been replaced.
        if cfg.dataset_path == BUNDLED_DATASET_NAME:
            data = {
                "held_out": load_bundled_dataset("held_out"),
                "held_out_name": BUNDLED_HELD_OUT_NAME,
            }
        if _is_bundled(cfg):
            stack.enter_context(small_run())
        if cfg.logger.log_to_wandb:
            check_wandb_login()
        metrics, saes = options.output / "metrics.parquet", options.output / "saes"
        trained = sorted(saes.glob("*/cfg.json"))
        if trained and not (metrics.exists() or options.force):
            command = _sweep_command(options, cfg, [file.parent for file in trained])
            raise ValueError(
                f"{saes} is there already, but no {metrics.name} beside it: the SAEs "
                "of a comparison that was stopped after training. Start anew with "
                f"--force, or evaluate them:\n  {command}"
            )
        refuse_existing(metrics, saes, force=options.force)
        check_figures(options.output / "figures")
        table = compare(
            cfg,
            options.output,
            contexts=options.contexts,
            replace=options.force,
            **data,
        )
    ours = {row.trained_k for row in table.rows if row.ours}
    write_and_show(table, {1, 2} | ours, options.output)
    first = next(row.sae for row in table.rows if row.ours)
    folder = options.output / "saes" / first
    ks = ",".join(map(str, sorted({1, 2} | ours)))
    show_next(f"saebench {shlex.quote(str(folder))} --k {ks}")
    return 0


def _is_bundled(cfg: Any) -> bool:
    """Tell whether a run is on the bundled model and its text."""
    from sae_lens_hierarchical.data import BUNDLED_DATASET_NAME, BUNDLED_MODEL_NAME

    names = (cfg.model_name, cfg.dataset_path)
    return names == (BUNDLED_MODEL_NAME, BUNDLED_DATASET_NAME)


def _sweep_command(
    options: argparse.Namespace, cfg: Any, folders: Sequence[Path]
) -> str:
    """Return the command that evaluates the SAEs as compare would."""
    from sae_lens_hierarchical.comparison import comparison_ks

    ks = ",".join(map(str, comparison_ks(cfg.sae)))
    command = ["sweep", *map(str, folders), "--k", ks, "--jumprelu"]
    command += ["--contexts", str(options.contexts), "--device", str(cfg.device)]
    if not _is_bundled(cfg):  # sweep begins where training began
        command += ["--dataset", "TEXT_THAT_WAS_NOT_TRAINED_ON"]
    return shlex.join(
        ["sae-lens-hierarchical", *command, "--output", str(options.output)]
    )
