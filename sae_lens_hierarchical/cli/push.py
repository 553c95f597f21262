"""``sae-lens-hierarchical push``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sae_lens_hierarchical.cli.arguments import Subparsers

__all__ = ["add_parser", "run"]


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    command = commands.add_parser(
        "push", help="upload an SAE, or a folder of exported ones, to the Hub"
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    command.add_argument("repo_id", metavar="REPO_ID", help="user/name")
    command.add_argument(
        "--sae-id", metavar="ID", help="its folder there; default: its hook's name"
    )
    command.add_argument("--license", metavar="NAME", help="for the card, such as mit")
    command.add_argument(
        "--metrics",
        type=Path,
        metavar="PARQUET",
        help="the quickstart's or a sweep's, for the card",
    )
    command.add_argument("--private", action="store_true", help="if it is a new one")
    command.set_defaults(run=run)


def run(options: argparse.Namespace, _rest: list[str]) -> int:
    """Run the command."""
    from sae_lens_hierarchical.eval.table import read_table
    from sae_lens_hierarchical.hub import push_to_hub

    metrics = None
    if options.metrics is not None:
        metrics = [row for row in read_table(options.metrics).rows if row.ours]
        if len({row.sae for row in metrics}) != 1:
            raise ValueError(f"{options.metrics} must hold one HierarchicalTopK SAE")
    address = push_to_hub(
        options.checkpoint,
        options.repo_id,
        options.sae_id,
        metrics=metrics,
        license=options.license,
        private=options.private,
    )
    print(address)
    print(f"Next: {address.partition('/commit/')[0]} says how to load it")
    return 0
