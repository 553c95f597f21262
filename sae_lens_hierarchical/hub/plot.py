"""The plot on a model card: how well one SAE does at each k."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable
from sae_lens_hierarchical.figures import draw
from sae_lens_hierarchical.figures.build import (
    curve,
    log2_panel,
    nonempty_figure,
    share_limits,
)
from sae_lens_hierarchical.figures.palette import family_style
from sae_lens_hierarchical.figures.spec import Figure

__all__ = ["write_plot"]

_CE_STYLE = replace(family_style("topk"), width=2)


def write_plot(path: Path, metrics: MetricsTable) -> bool:
    """Write explained variance and CE loss recovered against k, as an image.

    Args:
        path: The file, ``.png``.
        metrics: The rows of one SAE.

    Returns:
        Whether it was written: not of fewer than two k.
    """
    rows = [row for row in metrics.rows if row.activation == "topk"]
    figure = _figure(rows)
    if figure is None or len(rows) < 2:
        return False
    draw(figure).savefig(path, dpi=150)
    return True


def _figure(rows: list[BudgetMetrics]) -> Figure | None:
    # One pair of axes, which can be read on a telephone: both are 1 at best.
    series = [
        curve(rows, "explained_variance", family_style("hierarchical_topk"), "EV"),
        curve(rows, "ce_loss_score", _CE_STYLE, "CE loss recovered"),
    ]
    panel = log2_panel("fraction, 1 at best", series, y_limits=share_limits(series))
    caption = ["EV: explained variance."]
    if any(row.k == row.trained_k for row in rows):
        caption.append("A marker is at the largest k it was trained for.")
    return nonempty_figure(
        "metrics",
        "The k largest features of each token",
        caption,
        [panel],
    )
