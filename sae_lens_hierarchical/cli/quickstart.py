"""``sae-lens-hierarchical quickstart``."""

from __future__ import annotations

import argparse

from sae_lens_hierarchical.cli.arguments import Subparsers, add_force, add_output
from sae_lens_hierarchical.cli.outputs import refuse_existing
from sae_lens_hierarchical.cli.parser import described
from sae_lens_hierarchical.defaults import QUICKSTART_OUTPUT, SEED

__all__ = ["add_parser", "run"]


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    command = commands.add_parser(
        "quickstart",
        help="train and compare on the bundled model: no network, GPU or account",
        description=described(
            "Train one HierarchicalTopK SAE, and TopK SAEs beside it, on the bundled "
            "model, and evaluate all of them at every k. It takes minutes on a CPU, "
            "with no network, GPU or account.",
            "quickstart",
            "quickstart --output second_try --seed 1",
            "quickstart --force",
        ),
    )
    add_output(command, QUICKSTART_OUTPUT)
    add_force(command)
    command.add_argument(
        "--seed",
        type=int,
        default=SEED,
        metavar="N",
        help="of all random choices (default: %(default)s)",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace, _rest: list[str]) -> int:
    """Run the command."""
    from sae_lens_hierarchical.quickstart import quickstart

    metrics = options.output / "metrics.parquet"
    refuse_existing(metrics, options.output / "saes", force=options.force)
    quickstart(options.output, options.seed)
    return 0
