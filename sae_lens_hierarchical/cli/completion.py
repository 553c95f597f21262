"""``sae-lens-hierarchical --print-completion SHELL``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from typing_extensions import override

from sae_lens_hierarchical.cli.arguments import Subparsers
from sae_lens_hierarchical.cli.training_help import add_saelens_options

__all__ = ["add_print_completion"]

_SHELLS = ("bash", "zsh", "tcsh")


def add_print_completion(parser: argparse.ArgumentParser, commands: Subparsers) -> None:
    """Add ``--print-completion`` to the parser that has ``commands``."""
    parser.add_argument(
        "--print-completion",
        choices=_SHELLS,
        action=_PrintCompletion,
        const=commands.choices,
        help="print what makes the shell complete commands and options with Tab, and "
        "exit; needs the extra [completion]",
    )


class _PrintCompletion(argparse.Action):
    @override
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        try:
            shtab: Any = import_module("shtab")
        except ImportError:
            parser.error("--print-completion needs shtab: pip install shtab")
        for name in ("train", "compare"):
            add_saelens_options(self.const[name])
        print(shtab.complete(parser, shell=values))
        parser.exit()
