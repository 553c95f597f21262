"""``sae-lens-hierarchical quickstart``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sae_lens_hierarchical.cli.arguments import Subparsers

__all__ = ["add_parser", "run"]


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    command = commands.add_parser(
        "quickstart",
        help="train and compare on the bundled model: no network, GPU or account",
    )
    command.add_argument(
        "--output", type=Path, default=Path("quickstart_output"), metavar="FOLDER"
    )
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=run)


def run(options: argparse.Namespace, _rest: list[str]) -> int:
    """Run the command."""
    from sae_lens_hierarchical.quickstart import quickstart

    quickstart(options.output, options.seed)
    return 0
