"""Writes all figures of a table as files."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from sae_lens_hierarchical.eval.table import MetricsTable
from sae_lens_hierarchical.figures.matplotlib import draw
from sae_lens_hierarchical.figures.page import html_page
from sae_lens_hierarchical.figures.paper import Scores, all_figures

__all__ = ["write_figures"]


def write_figures(
    folder: Path, table: MetricsTable, autointerp: Scores | None = None
) -> list[Path]:
    """Write each figure that a table has the rows for as an image, and a page of all.

    The figures that another table left there go.

    Args:
        folder: Where ``overview.png``, ``figure_2.png``, ..., ``figures.html`` go.
        table: The metrics.
        autointerp: AutoInterp scores for figure 6, by an SAE's name and k.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = all_figures(table, autointerp)
    for stale in folder.glob("figure_*.png"):  # of another table
        stale.unlink()
    paths = []
    for figure in tqdm(figures, desc="Drawing", leave=False):
        paths.append(folder / f"{figure.key}.png")
        draw(figure).savefig(paths[-1], dpi=150)
    page = folder / "figures.html"
    page.write_text(html_page("One SAE at every k", figures, table), encoding="utf-8")
    return [*paths, page]
