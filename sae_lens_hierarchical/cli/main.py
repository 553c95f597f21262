"""The parser of all commands, and what their errors look like."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from sae_lens_hierarchical import __version__
from sae_lens_hierarchical.cli import (
    compare,
    export,
    features,
    figures,
    push,
    quickstart,
    saebench,
    sweep,
    train,
)
from sae_lens_hierarchical.cli.completion import add_print_completion
from sae_lens_hierarchical.cli.parser import Parser
from sae_lens_hierarchical.cli.progress import progress_for

__all__ = ["main", "make_parser"]

_COMMANDS = (
    quickstart,
    train,
    sweep,
    features,
    compare,
    figures,
    saebench,
    export,
    push,
)
# These hand the options that they do not know to SAELens's parser.
_WITH_SAELENS_OPTIONS = (train.run, compare.run)


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the command line, and that of each command by its name."""
    parser = Parser(
        prog="sae-lens-hierarchical",
        description="Train one sparse autoencoder and use it at every sparsity budget.",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in _COMMANDS:
        command.add_parser(commands)
    add_print_completion(parser, commands)
    return parser, commands.choices


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line with ``args``, or the process's own; return its status."""
    parser, commands = make_parser()
    options, rest = parser.parse_known_args(args)
    if rest and options.run not in _WITH_SAELENS_OPTIONS:
        commands[options.command].error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        with progress_for(sys.stderr), warnings.catch_warnings():
            # Not so here: each command loads the model as the SAE's metadata say.
            warnings.filterwarnings("ignore", "\nThis SAE has non-empty model_from")
            return options.run(options, rest)
    # OSError: the Hub's refusals too; ImportError: an extra is not installed.
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"sae-lens-hierarchical: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        message = str(interrupt) or "interrupted"
        print(f"sae-lens-hierarchical: {message}", file=sys.stderr)
        return 130
