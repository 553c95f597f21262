"""``sae-lens-hierarchical export``."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from sae_lens_hierarchical.cli.arguments import Subparsers, add_force, add_ks, add_saes
from sae_lens_hierarchical.cli.outputs import refuse_existing
from sae_lens_hierarchical.cli.parser import described
from sae_lens_hierarchical.cli.results import show_next
from sae_lens_hierarchical.defaults import EXPORTED_ARCHITECTURE

__all__ = ["add_parser", "run"]


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    command = commands.add_parser(
        "export",
        help="write plain SAELens checkpoints, which need no plugin",
        description=described(
            "Write a HierarchicalTopK SAE at one k, or each of several, as a plain "
            "checkpoint of SAELens's, which loads without this package.",
            "export quickstart_output/saes/HierarchicalTopK --k 8 --output exported",
            "export quickstart_output/saes/HierarchicalTopK --k 4,8,16 --output by_k",
            "export quickstart_output/saes/HierarchicalTopK --k 8 \\\n"
            "      --architecture jumprelu --output thresholds",
        ),
    )
    add_saes(command, several=False)
    add_ks(command)
    command.add_argument(
        "--architecture",
        default=EXPORTED_ARCHITECTURE,
        metavar="NAME",
        help="topk, or jumprelu: a threshold, with k active on average (default: "
        "%(default)s)",
    )
    command.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="where it goes; of several k, each gets a sub-folder: k_8, k_32, ...",
    )
    add_force(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace, _rest: list[str]) -> int:
    """Run the command."""
    from sae_lens_hierarchical.export import export, export_all
    from sae_lens_hierarchical.loading import load_sae
    from sae_lens_hierarchical.saes import HierarchicalTopKSAE

    sae = load_sae(options.sae)
    if not isinstance(sae, HierarchicalTopKSAE):
        architecture = sae.cfg.architecture()
        raise ValueError(f"{options.sae} is a {architecture} SAE, no hierarchical_topk")
    if options.output.resolve() == Path(options.sae).resolve():
        raise ValueError("--output would overwrite the checkpoint")
    several = [options.output / f"k_{k}" for k in options.k]
    written = [options.output] if len(options.k) == 1 else several
    refuse_existing(*(to / "cfg.json" for to in written), force=options.force)
    if len(options.k) == 1:
        folders = [export(sae, options.output, options.k[0], options.architecture)]
    else:
        folders = export_all(sae, options.output, options.k, options.architecture)
    for folder in folders:
        print(folder)
    if beyond := [str(k) for k in options.k if k > sae.k_max]:
        print(
            f"sae-lens-hierarchical: warning: the SAE was trained for k up to "
            f"{sae.k_max}, and was exported at {', '.join(beyond)}",
            file=sys.stderr,
        )
    show_next(f"push {shlex.quote(str(options.output))} USER/NAME")
    return 0
