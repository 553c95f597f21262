"""A parser whose errors are one line, and whose help begins with examples."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterable
from itertools import chain
from typing import Any, NoReturn

from typing_extensions import override

from sae_lens_hierarchical.spelling import did_you_mean

__all__ = ["Parser", "described", "options_in", "with_suggestion"]


class Parser(argparse.ArgumentParser):
    """argparse's, without the usage of many lines before each error.

    Descriptions are shown as they are written.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    @override
    def error(self, message: str) -> NoReturn:
        line = with_suggestion(message, self.long_options())
        self.exit(2, f"{self.prog}: {line}\n{self.prog} --help lists what there is\n")

    def long_options(self) -> set[str]:
        """Return the long options that there are."""
        names = chain(*(action.option_strings for action in self._actions))
        return {name for name in names if name.startswith("--")}


def described(what: str, *examples: str) -> str:
    """Return a description of a command: what it does, and examples.

    Args:
        what: A sentence or two.
        examples: Command lines that work, without the program.
    """
    lines = [f"  sae-lens-hierarchical {example}" for example in examples]
    return "\n".join([textwrap.fill(what, 78), "", "examples:", *lines])


def options_in(text: str) -> set[str]:
    """Return the long options that a usage has."""
    return set(re.findall(r"--\w[\w-]*", text))


def with_suggestion(message: str, options: Iterable[str]) -> str:
    """Return an error of argparse with what was probably meant.

    Args:
        message: As argparse words it.
        options: The long options that there are.
    """
    if unknown := re.search(r"unrecognized arguments: (--[\w-]+)", message):
        return message + did_you_mean(unknown[1], options)
    choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
    if choice:
        return message + did_you_mean(choice[1], re.findall(r"[\w.-]+", choice[2]))
    if re.search(r"invalid \w+ value: '[^']*[\[,]", message):
        return f"{message}; several values have spaces between them, such as 1 4"
    return message
