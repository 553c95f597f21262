"""``sae-lens-hierarchical features``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sae_lens_hierarchical.cli.arguments import (
    Subparsers,
    add_dataset,
    add_device,
    add_force,
    add_model,
    add_output,
    add_saes,
    integers,
)
from sae_lens_hierarchical.cli.outputs import check_writable, refuse_existing
from sae_lens_hierarchical.cli.parser import described
from sae_lens_hierarchical.cli.results import show_export
from sae_lens_hierarchical.defaults import (
    ARCHITECTURE,
    SEED,
    SWEEP_CONTEXTS,
    TOP_FEATURES,
)

__all__ = ["add_parser", "run"]


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    command = commands.add_parser(
        "features",
        help="show what single features do at every k, on an offline page",
        description=described(
            "Show single features of one SAE at every k: where they are active, which "
            "words they promote, and from which k on. It writes an offline page.",
            "features quickstart_output/saes/HierarchicalTopK",
            "features quickstart_output/saes/HierarchicalTopK --features 12,40",
            "features quickstart_output/saes/HierarchicalTopK --random 20 \\\n"
            "      --neuronpedia --output random_features",
        ),
    )
    add_saes(command, several=False)
    which = command.add_mutually_exclusive_group()
    which.add_argument(
        "--features", type=integers, metavar="12,40,...", help="these features"
    )
    which.add_argument(
        "--top",
        type=int,
        default=TOP_FEATURES,
        metavar="N",
        help="those with the largest summed activation (default: %(default)s)",
    )
    which.add_argument(
        "--random", type=int, metavar="N", help="any N, each as likely as another"
    )
    command.add_argument(
        "--seed", type=int, default=SEED, help="of --random (default: %(default)s)"
    )
    add_model(command)
    add_dataset(command, SWEEP_CONTEXTS, several=False)
    add_device(command)
    command.add_argument(
        "--neuronpedia",
        action="store_true",
        help="write them as SAEDashboard does for Neuronpedia too, once for each k",
    )
    add_output(command, Path("features_output"))
    add_force(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace, _rest: list[str]) -> int:
    """Run the command."""
    from sae_lens_hierarchical.features import (
        features_of_checkpoint,
        refuse_sae_folder,
        write_features,
    )

    refuse_sae_folder(options.output)
    refuse_existing(
        options.output / "features.html",
        options.output / "features.json",
        force=options.force,
    )
    check_writable(options.output)
    table = features_of_checkpoint(
        options.sae,
        options.features,
        top=options.top,
        random=options.random,
        seed=options.seed,
        model_name=options.model,
        dataset=options.dataset,
        contexts=options.contexts,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    for path in write_features(options.output, table, neuronpedia=options.neuronpedia):
        print(path)
    if table.architecture == ARCHITECTURE:
        k = table.ks[len(table.ks) // 2]
        show_export(table.provenance["checkpoint"], table.sae, k)
    return 0
