"""What the commands that evaluate SAEs write and show."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_lens_hierarchical.eval.table import MetricsTable

__all__ = ["show_next", "write_and_show"]


def show_next(command: str) -> None:
    """End a command with the one that comes next, given without its program."""
    print(f"Next: sae-lens-hierarchical {command}")


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
