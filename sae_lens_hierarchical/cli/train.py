"""``sae-lens-hierarchical train``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sae_lens_hierarchical.cli.arguments import (
    RUN_OPTIONS,
    Subparsers,
    add_run_options,
    saelens_config,
)
from sae_lens_hierarchical.defaults import ARCHITECTURE, BUNDLED

__all__ = ["add_parser", "run"]


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    command = commands.add_parser(
        "train",
        help="train on any model with SAELens's options",
        usage="sae-lens-hierarchical train [--preset NAME] [SAELENS_OPTION ...]\n"
        "       sae-lens-hierarchical train --resume FOLDER [--output FOLDER] "
        "[--trust-remote-code]",
        # --help is SAELens's, which has all the options.
        add_help=False,
    )
    source = command.add_mutually_exclusive_group()
    source.add_argument(
        "--preset",
        metavar="NAME",
        help="start from one of the paper's recipes, or bundled",
    )
    source.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="go on with a run that was killed"
    )
    command.add_argument(
        "--training_tokens", type=int, metavar="N", help="tokens that the SAE sees"
    )
    command.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="with --resume: where the SAE goes, if not where the run says; needed for "
        "a checkpoint that was moved or is from elsewhere",
    )
    command.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="with --resume: let the model's and the dataset's own code run, if the "
        "run's config says so",
    )
    add_run_options(command)
    command.set_defaults(run=run, print_usage=command.print_help)


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the command."""
    from sae_lens_hierarchical.training import LanguageModelSAETrainingRunner
    from sae_lens_hierarchical.training.presets import preset_fields

    if options.resume is not None:
        given = {"--training_tokens": options.training_tokens}
        given |= {f"--{name}": getattr(options, name) for name in RUN_OPTIONS}
        rest = [*(name for name, value in given.items() if value is not None), *rest]
        if rest:
            raise ValueError(f"--resume takes all options from the run, got {rest}")
        LanguageModelSAETrainingRunner.from_checkpoint(
            options.resume,
            output=options.output,
            trust_remote_code=options.trust_remote_code,
        ).run()
        return 0
    if options.output is not None or options.trust_remote_code:
        raise ValueError(
            "--output and --trust-remote-code are for --resume; a new run takes "
            "SAELens's --output_path and --model_from_pretrained_kwargs"
        )
    fields = {"architecture": ARCHITECTURE}
    if options.preset is not None:
        fields = preset_fields(options.preset, options.training_tokens)
        if options.preset == BUNDLED:
            fields["log_to_wandb"] = False
    elif options.training_tokens is not None:
        fields["training_tokens"] = options.training_tokens
    elif not rest:
        rest = ["--help"]
    LanguageModelSAETrainingRunner(saelens_config(options, fields, rest)).run()
    return 0
