"""``sae-lens-hierarchical figures``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from sae_lens_hierarchical.cli.arguments import Subparsers, add_force, add_output
from sae_lens_hierarchical.cli.outputs import refuse_existing
from sae_lens_hierarchical.cli.parser import described
from sae_lens_hierarchical.cli.results import show_next

__all__ = ["add_parser", "run"]


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    command = commands.add_parser(
        "figures",
        help="draw the paper's figures from a sweep's table",
        description=described(
            "Draw the paper's figures from a table of metrics, as images and on one "
            "interactive page; those that the table has no rows for are left out.",
            "figures quickstart_output/metrics.parquet",
            "figures sweep_output/metrics.parquet --output drawn --force",
            "figures sweep_output/metrics.parquet --autointerp eval_results",
        ),
    )
    command.add_argument(
        "table",
        type=Path,
        metavar="TABLE.parquet",
        help="metrics.parquet of sweep, quickstart or compare",
    )
    add_output(command, Path("figures"))
    add_force(command)
    command.add_argument(
        "--autointerp",
        type=Path,
        metavar="FOLDER",
        help="results of saebench, for figure 6: of SAEs with the same names",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace, _rest: list[str]) -> int:
    """Run the command."""
    from sae_lens_hierarchical.eval.table import read_table
    from sae_lens_hierarchical.figures import write_figures
    from sae_lens_hierarchical.saebench.results import autointerp_scores

    table, scores = read_table(options.table), None
    if options.autointerp is not None:
        results = autointerp_scores(options.autointerp)
        scores = {(sae, k): score for sae, k, score in results}
        known = table.saes()
        if not {sae for sae, _ in scores} & set(known):
            raise ValueError(
                f"{options.autointerp} has no AutoInterp scores of {', '.join(known)}"
            )
    refuse_existing(options.output / "figures.html", force=options.force)
    for path in write_figures(options.output, table, scores):
        print(path)
    ours = {row.sae for row in table.rows if row.ours}
    following = "push CHECKPOINT USER/NAME"
    if len(ours) == 1:  # a card shows the metrics of one
        checkpoint = table.provenance.get("checkpoints", {}).get(ours.pop(), {})
        path = shlex.quote(checkpoint.get("path", "CHECKPOINT"))
        metrics = shlex.quote(str(options.table))
        following = f"push {path} USER/NAME --metrics {metrics}"
    show_next(following)
    return 0
