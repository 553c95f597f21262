"""Writes all figures of a table as files, and removes them."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from sae_lens_hierarchical.eval.table import MetricsTable
from sae_lens_hierarchical.figures.matplotlib import draw
from sae_lens_hierarchical.figures.page import html_page
from sae_lens_hierarchical.figures.paper import Scores, all_figures

__all__ = ["check_figures", "remove_results", "write_figures"]

_PAGE, _TITLE = "figures.html", "One SAE at every k"
_IMAGES = ("overview.png", *(f"figure_{n}.png" for n in (2, 3, 4, 5, 6, 8, 9, 10)))


def check_figures(folder: Path) -> None:
    """Raise a ValueError if figures would replace a file that is not of our figures.

    Ours are with a page of ours.
    """
    if not _has_our_page(folder):
        for name in (_PAGE, *_IMAGES):
            if (folder / name).exists():
                raise ValueError(
                    f"{folder / name} is there already, and is not of our figures "
                    f"(they have their {_PAGE} beside them): move it, or name another "
                    "folder"
                )


def remove_results(folder: Path) -> None:
    """Remove a folder's table of metrics and the figures of it, and nothing else."""
    metrics = folder / "metrics.parquet"
    if metrics.exists():
        metrics.with_suffix(".csv").unlink(missing_ok=True)
        metrics.unlink()
    _remove_figures(folder / "figures")


def write_figures(
    folder: Path, table: MetricsTable, autointerp: Scores | None = None
) -> list[Path]:
    """Write each figure that a table has the rows for as an image, and a page of all.

    The figures that another table left there go; other files stay.

    Args:
        folder: Where ``overview.png``, ``figure_2.png``, ..., ``figures.html`` go.
        table: The metrics.
        autointerp: AutoInterp scores for figure 6, by an SAE's name and k.

    Returns:
        The files, the page last.

    Raises:
        ValueError: If one would replace a file that is not of our figures.
    """
    check_figures(folder)
    figures = all_figures(table, autointerp)
    source = html_page(_TITLE, figures, table)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_figures(folder)  # of another table
    # Before the images, which are told by it to be ours.
    page = folder / _PAGE
    page.write_text(source, encoding="utf-8")
    paths = []
    for figure in tqdm(figures, desc="Drawing", leave=False):
        paths.append(folder / f"{figure.key}.png")
        draw(figure).savefig(paths[-1], dpi=150)
    return [*paths, page]


def _has_our_page(folder: Path) -> bool:
    page = folder / _PAGE
    if not page.is_file():
        return False
    with page.open(encoding="utf-8", errors="replace") as file:
        return f"<title>{_TITLE}</title>" in file.read(1000)


def _remove_figures(folder: Path) -> None:
    if _has_our_page(folder):
        for name in (*_IMAGES, _PAGE):  # an image without the page would not be ours
            (folder / name).unlink(missing_ok=True)
