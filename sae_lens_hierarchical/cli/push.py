"""``sae-lens-hierarchical push``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sae_lens_hierarchical.cli.arguments import Subparsers
from sae_lens_hierarchical.cli.parser import described

__all__ = ["add_parser", "run"]


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    command = commands.add_parser(
        "push",
        help="upload an SAE, or a folder of exported ones, to the Hub",
        description=described(
            "Upload an SAE, or a folder of exported ones, to the Hugging Face Hub with "
            "a model card. hf auth login comes first.",
            "push quickstart_output/saes/HierarchicalTopK USER/NAME \\\n"
            "      --metrics quickstart_output/metrics.parquet --license mit",
            "push exported USER/NAME --sae-id layer_2 --private",
        ),
    )
    command.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="folder of an SAE, or one that export wrote of several k",
    )
    command.add_argument(
        "repo_id",
        metavar="REPO_ID",
        help="user/name on the Hub; it is created where it does not exist",
    )
    command.add_argument(
        "--sae-id", metavar="ID", help="its folder there (default: its hook's name)"
    )
    command.add_argument("--license", metavar="NAME", help="for the card, such as mit")
    command.add_argument(
        "--metrics",
        type=Path,
        metavar="TABLE",
        help="for the card: metrics.parquet of sweep, quickstart or compare",
    )
    command.add_argument(
        "--sae",
        metavar="NAME",
        help="what the table calls the SAE (default: the only one, or the only "
        "HierarchicalTopK one)",
    )
    command.add_argument(
        "--private",
        action="store_true",
        help="make the repository private, if it is a new one",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace, _rest: list[str]) -> int:
    """Run the command."""
    from sae_lens_hierarchical.eval.table import read_table
    from sae_lens_hierarchical.hub import push_to_hub

    table = None if options.metrics is None else read_table(options.metrics)
    address = push_to_hub(
        options.checkpoint,
        options.repo_id,
        options.sae_id,
        metrics=table,
        metrics_sae=options.sae,
        license=options.license,
        private=options.private,
    )
    print(address)
    print(f"Next: {address.partition('/commit/')[0]} says how to load it")
    return 0
