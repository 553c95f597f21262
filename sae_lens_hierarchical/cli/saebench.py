"""``sae-lens-hierarchical saebench``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from sae_lens_hierarchical.cli.arguments import (
    Subparsers,
    add_dataset,
    add_device,
    add_ks,
    add_model,
    add_output,
    add_saes,
    names,
    prices,
)
from sae_lens_hierarchical.cli.parser import described
from sae_lens_hierarchical.cli.results import show_next
from sae_lens_hierarchical.defaults import (
    JUDGED_LATENTS,
    SAEBENCH_CONTEXTS,
    STORE_BATCH_SIZE,
    SWEEP_OUTPUT,
)

__all__ = ["add_parser", "run"]


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    command = commands.add_parser(
        "saebench",
        help="run SAEBench on any SAEs at many k",
        description=described(
            "Run evals of SAEBench on SAEs at many k, and show the results; those that "
            "are there already are kept. It needs the extra [saebench].",
            "saebench quickstart_output/saes/HierarchicalTopK --k 1,4,16",
            "saebench quickstart_output/saes/HierarchicalTopK --k 4,16 --contexts 500",
            "saebench quickstart_output/saes/HierarchicalTopK --k 4,16 \\\n"
            "      --evals autointerp --judge-model gpt-4o-mini --latents 50",
        ),
    )
    add_saes(command, several=True)
    add_ks(command)
    command.add_argument(
        "--evals",
        type=names,
        default=["core"],
        metavar="NAME,...",
        help="core (default), autointerp, sparse_probing, absorption and scr_and_tpp",
    )
    add_model(command)
    add_dataset(command, SAEBENCH_CONTEXTS, several=True)
    command.add_argument(
        "--latents",
        type=int,
        default=JUDGED_LATENTS,
        metavar="N",
        help="features that AutoInterp explains for each SAE and k (default: "
        "%(default)s)",
    )
    command.add_argument(
        "--judge-model", metavar="NAME", help="AutoInterp's judge: any chat model"
    )
    command.add_argument(
        "--judge-url",
        metavar="URL",
        help="an API like OpenAI's (default: OpenAI or $OPENAI_BASE_URL); the key is "
        "$OPENAI_API_KEY",
    )
    command.add_argument(
        "--max-calls", type=int, metavar="N", help="stop before the judge is asked more"
    )
    command.add_argument(
        "--price",
        type=prices,
        metavar="IN,OUT",
        help="dollars for a million tokens of prompts and answers, for the estimate",
    )
    command.add_argument(
        "--probing-datasets",
        type=names,
        default=[],
        metavar="NAME,...",
        help="for sparse_probing (default: all that SAEBench has)",
    )
    command.add_argument(
        "--scr-datasets",
        type=names,
        default=[],
        metavar="NAME,...",
        help="for scr_and_tpp (default: both that SAEBench has)",
    )
    command.add_argument(
        "--batch-size",
        type=int,
        default=STORE_BATCH_SIZE,
        metavar="N",
        help="contexts in one run of the model (default: %(default)s)",
    )
    add_device(command)
    command.add_argument(
        "--force", action="store_true", help="make results again that are there"
    )
    add_output(command, Path("eval_results"))
    command.set_defaults(run=run)


def run(options: argparse.Namespace, _rest: list[str]) -> int:
    """Run the command."""
    from rich.console import Console

    from sae_lens_hierarchical.saebench.checkpoints import saebench_checkpoints
    from sae_lens_hierarchical.saebench.results import (
        RESULT_FOLDERS,
        read_results,
        results_table,
    )

    judge = None
    if options.judge_model is not None:
        from sae_lens_hierarchical.saebench.judge import Judge

        judge = Judge(
            options.judge_model,
            options.output / "judge_answers.sqlite",
            url=options.judge_url,
            max_calls=options.max_calls,
            price=options.price,
        )
    saebench_checkpoints(
        options.sae,
        options.k,
        options.evals,
        options.output,
        judge,
        model_name=options.model,
        dataset=options.dataset,
        contexts=options.contexts,
        latents=options.latents,
        probing_datasets=options.probing_datasets,
        scr_datasets=options.scr_datasets,
        batch_size=options.batch_size,
        device=options.device,
        force=options.force,
        trust_remote_code=options.trust_remote_code,
    )
    results = read_results(options.output)
    Console().print(results_table(results))
    folders = [folder for name in options.evals for folder in RESULT_FOLDERS[name]]
    written = ", ".join(f"{options.output / folder}" for folder in folders)
    print(f"{written}: a JSON file of SAEBench's for each SAE and k")
    table = SWEEP_OUTPUT / "metrics.parquet"
    if "autointerp" in options.evals and table.exists():
        folder = shlex.quote(str(options.output))
        show_next(f"figures {table} --autointerp {folder}")
    else:
        saes = shlex.join(options.sae)
        show_next(f"sweep {saes} --k {','.join(map(str, options.k))}")
    return 0
