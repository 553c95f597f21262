"""Draws panels of figures, with plotly."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from sae_lens_hierarchical.figures.spec import Panel, Series

__all__ = ["plot_json"]

_Y_LABEL_LETTERS = 40


def plot_json(panel: Panel) -> str:
    """Draw a panel as JSON for plotly.js, without a legend."""
    plot = go.Figure()
    for series in panel.series:
        if series.band:
            plot.add_trace(_band(series))
        plot.add_trace(_trace(series, panel))
    plot.update_layout(
        title={"text": html.escape(panel.title), "font": {"size": 16}},
        template="plotly_white",
        font={"family": "system-ui, sans-serif"},
        showlegend=False,
        margin={"l": 64, "r": 16, "t": 40 if panel.title else 12, "b": 48},
        xaxis=_axis(panel.x_label, panel.x_ticks),
        yaxis=_axis(panel.y_label, panel.y_ticks),
    )
    if panel.y_limits is not None:
        plot.update_yaxes(range=panel.y_limits)
    if panel.x_mark is not None:
        x, text = panel.x_mark
        plot.add_vline(x, line={"color": "#999999", "width": 1})
        plot.add_annotation(
            text=text,
            x=math.log10(x) if panel.x_ticks else x,
            y=0,
            yref="paper",
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
        )
    return str(plot.to_json())


def _axis(label: str, ticks: Sequence[float]) -> dict[str, Any]:
    # An x label is never as long.
    lines = textwrap.wrap(label, _Y_LABEL_LETTERS)
    axis: dict[str, Any] = {"title": {"text": "<br>".join(map(html.escape, lines))}}
    if ticks:
        texts = [f"{tick:g}" for tick in ticks]
        axis |= {"type": "log", "tickvals": ticks, "ticktext": texts}
    return axis


def _band(series: Series) -> go.Scatter:
    low, high = zip(*series.band, strict=True)
    return go.Scatter(
        name=series.label,
        x=(*series.x, *reversed(series.x)),
        y=(*low, *reversed(high)),
        fill="toself",
        fillcolor=series.style.color,
        opacity=0.25,
        mode="none",
        hoverinfo="skip",
    )


def _trace(series: Series, panel: Panel) -> go.Scatter:
    style = series.style
    names = series.names or [series.label] * len(series.x)
    return go.Scatter(
        name=series.label,
        x=series.x,
        y=series.y,
        mode="lines+markers",
        line={
            "color": style.color,
            "width": style.width,
            "dash": ",".join(f"{length}px" for length in style.dash) or "solid",
            "shape": "hv" if series.shape == "steps" else "linear",
        },
        marker={
            "symbol": style.marker,
            "size": [10 if n in series.marked else 0 for n in range(len(series.x))],
            "opacity": 1,  # bubbles of several sizes are see-through otherwise
        },
        text=[html.escape(name) for name in names],
        hovertemplate=f"<b>%{{text}}</b><br>{html.escape(panel.x_label)}: %{{x:.4~g}}"
        f"<br>{html.escape(panel.y_label)}: %{{y:.5~g}}<extra></extra>",
    )
