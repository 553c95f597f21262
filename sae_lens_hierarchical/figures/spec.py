"""Describes what a figure shows, as data for any renderer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Figure", "Panel", "Series", "Style"]


@dataclass(frozen=True)
class Style:
    """How a line looks; its dash and marker tell it from others without color too.

    Attributes:
        color: ``#rrggbb``.
        width: In pixels.
        dash: The lengths of strokes and gaps in pixels; none is a solid line.
        marker: A name of plotly's.
    """

    color: str
    width: float
    dash: tuple[int, ...]
    marker: str


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line through points.

    Attributes:
        label: Its name in the legend; series of one label are shown and hidden at once.
        x: Where the points are.
        y: As many values; a NaN leaves a gap.
        style: How it looks.
        marked: The indices of the points that get a marker.
        names: What each point is, where that is not ``label``.
        shape: ``steps`` keep each point's value up to the next point.
        band: The lowest and the highest value at each point, shaded; none is no band.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    style: Style
    marked: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    shape: Literal["straight", "steps"] = "straight"
    band: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes.

    Attributes:
        x_label: What x is.
        y_label: What y is.
        series: What is drawn, the last on top.
        title: What is above it.
        x_ticks: The ticks of a logarithmic axis; none is a linear one.
        y_ticks: The same of y.
        y_limits: What of y is shown; default all.
        x_mark: Where a vertical line is, and what is written beside it.
    """

    x_label: str
    y_label: str
    series: tuple[Series, ...]
    title: str = ""
    x_ticks: tuple[float, ...] = ()
    y_ticks: tuple[float, ...] = ()
    y_limits: tuple[float, float] | None = None
    x_mark: tuple[float, str] | None = None


@dataclass(frozen=True)
class Figure:
    """Panels side by side.

    Attributes:
        key: The name of its file, without a suffix.
        title: What is above it.
        caption: What one must know to read it.
        panels: At least one.
    """

    key: str
    title: str
    caption: str
    panels: tuple[Panel, ...]

    def legend(self) -> dict[str, Series]:
        """Return the legend: a series of each label, with a marker where one has it."""
        legend: dict[str, Series] = {}
        for panel in self.panels:
            for series in panel.series:
                if series.marked or series.label not in legend:
                    legend[series.label] = series
        return legend
