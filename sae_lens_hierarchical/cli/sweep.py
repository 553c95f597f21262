"""``sae-lens-hierarchical sweep``."""

from __future__ import annotations

import argparse

from sae_lens_hierarchical.cli.arguments import (
    Subparsers,
    add_dataset,
    add_device,
    add_force,
    add_ks,
    add_model,
    add_output,
    add_saes,
    fraction,
)
from sae_lens_hierarchical.cli.outputs import check_writable, refuse_existing
from sae_lens_hierarchical.cli.parser import described
from sae_lens_hierarchical.cli.results import show_export, write_and_show
from sae_lens_hierarchical.defaults import (
    CE_CONTEXTS,
    STORE_BATCH_SIZE,
    SWEEP_CONTEXTS,
    SWEEP_OUTPUT,
)

__all__ = ["add_parser", "run"]


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    command = commands.add_parser(
        "sweep",
        help="evaluate any SAEs of SAELens at many k",
        description=described(
            "Evaluate SAEs at many k: explained variance, CE loss recovered, dead "
            "features and more. It writes a table, and figures of it.",
            "sweep quickstart_output/saes/HierarchicalTopK --k 1,2,4,8,16",
            "sweep ours=quickstart_output/saes/HierarchicalTopK \\\n"
            "      topk=quickstart_output/saes/TopK-16 --k 4,16 --output both",
            "sweep quickstart_output/saes/HierarchicalTopK --k 1,2,4,8,16 \\\n"
            "      --target-ev 0.6 --output target",
        ),
    )
    add_saes(command, several=True)
    add_ks(command)
    add_model(command)
    add_dataset(command, SWEEP_CONTEXTS, several=True)
    command.add_argument(
        "--ce-contexts",
        type=int,
        default=CE_CONTEXTS,
        metavar="N",
        help="contexts to run the model on with the SAEs' outputs (default: "
        "%(default)s)",
    )
    command.add_argument(
        "--jumprelu",
        action="store_true",
        help="evaluate SAEs by a threshold as well",
    )
    command.add_argument(
        "--target-ev",
        type=fraction,
        metavar="X",
        help="say at which k each SAE first explains this fraction of the variance",
    )
    command.add_argument(
        "--max-norm-ratio",
        type=float,
        metavar="X",
        help="leave out tokens whose norm is above X times the median; inf leaves none "
        "out (default: as each SAE was trained)",
    )
    command.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="contexts in one run of the model (default: "
        f"{STORE_BATCH_SIZE}, or as many as have logits of 2 GiB)",
    )
    add_device(command)
    add_output(command, SWEEP_OUTPUT)
    add_force(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace, _rest: list[str]) -> int:
    """Run the command."""
    from sae_lens_hierarchical.eval.folders import sweep_checkpoints
    from sae_lens_hierarchical.eval.target import smallest_ks
    from sae_lens_hierarchical.figures.write import check_figures

    refuse_existing(options.output / "metrics.parquet", force=options.force)
    check_writable(options.output)
    check_figures(options.output / "figures")
    table = sweep_checkpoints(
        options.sae,
        options.k,
        model_name=options.model,
        dataset=options.dataset,
        contexts=options.contexts,
        ce_contexts=options.ce_contexts,
        batch_size=options.batch_size,
        jumprelu=options.jumprelu,
        max_norm_ratio=options.max_norm_ratio,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    write_and_show(table, options.k, options.output)
    if options.target_ev is not None:
        print(f"Smallest k with an explained variance of {options.target_ev}:")
        for found in smallest_ks(table, options.target_ev):
            print(f"  {found.sae}: {found}")
    ours = next((row for row in table.rows if row.ours), None)
    if ours is not None:
        largest = ours.trained_k
        k = max((k for k in options.k if k <= largest), default=largest)
        show_export(table.provenance["checkpoints"][ours.sae], ours.sae, k)
    return 0
