"""Draws figures as images, with matplotlib."""

from __future__ import annotations

import math
import textwrap

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Image
from matplotlib.lines import Line2D

from sae_lens_hierarchical.figures.spec import Figure, Panel, Series

__all__ = ["draw"]

_COLUMNS = 3
_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "x": "X",
    "star": "*",
}


# A "$" in an SAE's name is no formula.
@rc_context({"text.parse_math": False})
def draw(figure: Figure) -> Image:
    """Draw a figure as an image: title, panels, one legend for all, and caption."""
    columns = min(len(figure.panels), _COLUMNS)
    rows = math.ceil(len(figure.panels) / columns)
    width = 4.3 * columns + 2.2
    image = Image(figsize=(width, 3.6 * rows + 1.1), layout="constrained")
    image.suptitle(figure.title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    for n, panel in enumerate(figure.panels, start=1):
        _draw_panel(image.add_subplot(rows, columns, n), panel)
    legend = figure.legend()
    image.legend(
        [_line(series) for series in legend.values()],
        list(legend),
        loc="outside right upper",
        ncols=math.ceil(len(legend) / (20 * rows)),
        frameon=False,
        handlelength=3.2,
    )
    caption = textwrap.fill(figure.caption, round(15 * width))
    image.supxlabel(caption, x=0.01, ha="left", fontsize=9, color="#555555")
    return image


def _draw_panel(axes: Axes, panel: Panel) -> None:
    if panel.x_mark is not None:
        x, text = panel.x_mark
        axes.axvline(x, color="#999999", linewidth=1)
        axes.annotate(
            text,
            (x, 0),
            (3, 3),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            fontsize=8,
            color="#666666",
        )
    for series in panel.series:
        axes.add_line(_line(series))
        if series.band:
            low, high = zip(*series.band, strict=True)
            axes.fill_between(
                series.x, low, high, color=series.style.color, alpha=0.25, linewidth=0
            )
    axes.autoscale_view()
    if panel.x_ticks:
        axes.set_xscale("log")
        axes.set_xticks(panel.x_ticks, [f"{tick:g}" for tick in panel.x_ticks])
        axes.minorticks_off()
    if panel.y_ticks:
        axes.set_yscale("log")
        axes.set_yticks(panel.y_ticks, [f"{tick:g}" for tick in panel.y_ticks])
        axes.minorticks_off()
    if panel.y_limits is not None:
        axes.set_ylim(panel.y_limits)
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _line(series: Series) -> Line2D:
    style = series.style
    dash = tuple(length / style.width for length in style.dash)
    return Line2D(
        series.x,
        series.y,
        color=style.color,
        linewidth=style.width,
        linestyle=(0, dash) if dash else "-",
        drawstyle="steps-post" if series.shape == "steps" else "default",
        marker=_MARKERS[style.marker] if series.marked else "",
        markersize=7,
        markevery=list(series.marked),
        label=series.label,
    )
