"""What the commands that evaluate SAEs write and show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_lens_hierarchical.eval.table import MetricsTable

__all__ = ["show_export", "show_next", "write_and_show"]


def show_next(command: str) -> None:
    """End a command with the one that comes next, given without its program."""
    print(f"Next: sae-lens-hierarchical {command}")


def show_export(origin: Mapping[str, str], name: str, k: int) -> None:
    """End a command with the export of an SAE at ``k``.

    Args:
        origin: Where the SAE is from, as a table's provenance has it.
        name: Its name in the table.
        k: The number of active features.
    """
    sae = shlex.quote(origin.get("path") or origin["id"])
    output = shlex.quote(f"{re.sub('[/:]', '_', name)}_at_{k}")
    show_next(f"export {sae} --k {k} --output {output}")


def write_and_show(table: MetricsTable, ks: Collection[int], output: Path) -> None:
    """Write a table and its figures to ``output``, and show its rows at ``ks``."""
    from rich.console import Console

    from sae_lens_hierarchical.eval.table import write_table
    from sae_lens_hierarchical.figures import write_figures
    from sae_lens_hierarchical.report import terminal_tables

    output.mkdir(parents=True, exist_ok=True)
    write_table(output / "metrics.parquet", table)
    *_, page = write_figures(output / "figures", table)
    console = Console()
    for shown in terminal_tables(table, ks):
        console.print(shown)
    print(f"{output}/metrics.parquet (and .csv)")
    print(f"{page}, and its figures as images beside it")
