"""Draws figures as images, with matplotlib."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Image
from matplotlib.lines import Line2D

from sae_lens_hierarchical.figures.spec import Figure, Panel, Series

__all__ = ["draw"]

# Narrow, so that a page or a phone shrinks the text as little as can be; in inches.
_WIDTH = 7.0
_COLUMNS = 2
_PANEL_HEIGHT = 2.9
_LINE_HEIGHT = 0.2
_LETTER_WIDTH = 0.075
_HANDLE_WIDTH = 0.7

_TITLE: dict[str, Any] = {"size": 13, "weight": "bold"}
_CAPTION_LETTERS = 105
_Y_LABEL_LETTERS = 30
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
    """Draw a figure as an image: title, one legend for all, panels, and caption."""
    columns = min(len(figure.panels), _COLUMNS)
    rows = math.ceil(len(figure.panels) / columns)
    legend = figure.legend()
    widest = _HANDLE_WIDTH + _LETTER_WIDTH * max(map(len, legend), default=0)
    beside = len(figure.panels) < rows * columns
    beside &= widest < _WIDTH / _COLUMNS and _LINE_HEIGHT * len(legend) < _PANEL_HEIGHT
    in_a_line = 1 if beside else max(1, min(len(legend), int(_WIDTH / widest)))
    caption = textwrap.wrap(figure.caption, _CAPTION_LETTERS)
    above = 2 if beside else 2 + math.ceil(len(legend) / in_a_line)
    below = _LINE_HEIGHT * (len(caption) + 1)
    height = _LINE_HEIGHT * above + _PANEL_HEIGHT * rows + below
    image = Image(figsize=(_WIDTH, height), layout="constrained")
    for n, panel in enumerate(figure.panels, start=1):
        _draw_panel(image.add_subplot(rows, columns, n), panel)
    place: dict[str, Any] = {"loc": "outside upper left"}
    if beside:  # in the place that the last row of panels leaves empty
        top = (below + _PANEL_HEIGHT) / height
        place = {"loc": "upper left", "bbox_to_anchor": (0.55, top)}
        image.suptitle(figure.title, x=0.01, ha="left", **_TITLE)
    else:  # as the legend's title: the image's own would lie on the legend
        place |= {"title": figure.title, "title_fontproperties": _TITLE}
    image.legend(
        [_line(series) for series in legend.values()],
        list(legend),
        alignment="left",
        ncols=in_a_line,
        frameon=False,
        handlelength=3.2,
        **place,
    )
    image.supxlabel("\n".join(caption), x=0.01, ha="left", fontsize=9, color="#555555")
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
    axes.set_ylabel(textwrap.fill(panel.y_label, _Y_LABEL_LETTERS))
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
