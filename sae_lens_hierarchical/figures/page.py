"""Writes figures and numbers as one interactive HTML page."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from plotly.offline import get_plotlyjs

from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable
from sae_lens_hierarchical.figures.captions import (
    CENTERED_FVU_DEFINITION,
    EV_DEFINITION,
)
from sae_lens_hierarchical.figures.paper import table_2
from sae_lens_hierarchical.figures.plotly import plot_json
from sae_lens_hierarchical.figures.seeds import merge_seeds
from sae_lens_hierarchical.figures.spec import Figure, Series
from sae_lens_hierarchical.files.short_paths import short_paths

__all__ = ["html_page"]

_COLUMNS = {
    "SAE": "sae",
    "architecture": "architecture",
    "trained k": "trained_k",
    "inference mode": "activation",
    "k": "k",
    "L0": "l0",
    "explained variance": "explained_variance",
    "FVU": "fvu",
    "centered FVU": "fvu_centered",
    "bias": "bias",
    "cosine": "cosine_similarity",
    "CE loss recovered": "ce_loss_score",
    "KL": "kl_div",
    "dead": "dead_features",
    "almost dead": "almost_dead_features",
    "tokens": "tokens",
}
_TABLE_2_COLUMNS = ("SAE", "trained k", "k", "explained variance", "centered FVU")

_MARKERS = {
    "circle": "●",
    "square": "■",
    "diamond": "◆",
    "triangle-up": "▲",
    "x": "✖",
    "star": "★",
}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto;
       max-width: 76rem; padding: 0 1rem; }
h1 { line-height: 1.2; }
h2 { margin: 2.5rem 0 0; font-size: 1.25rem; }
nav a { display: inline-block; margin-right: 1rem; }
figure { margin: 0; }
figcaption { color: #555; max-width: 50rem; }
.panels { display: grid; gap: 1rem;
          grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.plot { height: 24rem; max-width: 44rem; min-width: 0; }
.legend { margin: .5rem 0; }
.legend button { font: inherit; font-size: .9rem; border: 0; background: none;
                 padding: .1rem .5rem .1rem 0; cursor: pointer; }
.legend button[aria-pressed=false] { opacity: .35; }
.legend svg { vertical-align: middle; margin-right: .3rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem;
        font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #e3e3e3; }
th:first-child, td:first-child { text-align: left; }
.scroll tr.ours td { background: #eef3fb; }
.scroll { overflow: auto; max-height: min(40rem, 80vh); }
.scroll th { position: sticky; top: 0; background: #fff; z-index: 1; }
.scroll td:first-child { position: sticky; left: 0; background: #fff;
                         max-width: 12rem; overflow-wrap: break-word; }
.scroll th:first-child { left: 0; z-index: 2; }
summary { cursor: pointer; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1.5rem; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
"""

# Plots are drawn once all are on the page: their widths depend on each other. A finger
# on one scrolls the page; plotly would zoom. An entry of a legend shows or hides the
# lines of its name in all panels of the figure.
_SCRIPT = """
for (const plot of document.querySelectorAll(".plot")) {
  const { data, layout } = JSON.parse(plot.dataset.plot);
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;
  Plotly.newPlot(plot, data, layout, { displayModeBar: false, responsive: true });
}
for (const button of document.querySelectorAll(".legend button")) {
  button.onclick = () => {
    const visible = button.ariaPressed === "false";
    button.ariaPressed = visible;
    for (const plot of button.closest("figure").querySelectorAll(".plot")) {
      const lines = [...plot.data.keys()].filter(
        (n) => plot.data[n].name === button.dataset.label);
      if (lines.length) Plotly.restyle(plot, { visible }, lines);
    }
  };
}
"""


def html_page(title: str, figures: Sequence[Figure], table: MetricsTable) -> str:
    """Return an HTML page of figures, table 2, all metrics and where they come from.

    It holds all that it needs, plotly.js too (5 MB), and so works without a network.
    """
    links = "".join(
        f'<a href="#{figure.key}">{html.escape(figure.title)}</a> '
        for figure in figures
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
<script>{get_plotlyjs()}</script>
<h1>{html.escape(title)}</h1>
<p>A click on a name in a legend hides or shows its lines. With a mouse, dragging
zooms in and a double click zooms out.</p>
<nav>{links}</nav>
{"".join(map(_figure, figures))}
{_table_2(table)}
<h2>All metrics</h2>
<p>{EV_DEFINITION} FVU: 1 - EV. {CENTERED_FVU_DEFINITION}</p>
<details><summary>{len(table.rows):,} rows</summary>
{_table("All metrics", table.rows, _COLUMNS)}</details>
{_provenance(table.provenance)}
<script>{_SCRIPT}</script>
</html>
"""


def _figure(figure: Figure) -> str:
    legend = "".join(map(_legend_entry, figure.legend().values()))
    panels = "".join(
        f'<div class="plot" data-plot="{html.escape(plot_json(panel))}"></div>'
        for panel in figure.panels
    )
    return f"""<figure id="{figure.key}">
<h2>{html.escape(figure.title)}</h2>
<div class="legend">{legend}</div>
<div class="panels">{panels}</div>
<figcaption>{html.escape(figure.caption)}</figcaption>
</figure>
"""


def _legend_entry(series: Series) -> str:
    label, style = html.escape(series.label), series.style
    dash = " ".join(map(str, style.dash))
    marker = ""
    if series.marked:
        marker = (
            f'<text x="20" y="12" text-anchor="middle" font-size="13" '
            f'fill="{style.color}">{_MARKERS[style.marker]}</text>'
        )
    return (
        f'<button aria-pressed="true" data-label="{label}"><svg width="40" height="16">'
        f'<line x2="40" y1="8" y2="8" stroke="{style.color}" '
        f'stroke-width="{style.width}" stroke-dasharray="{dash}"/>{marker}</svg>'
        f"{label}</button>"
    )


def _table_2(table: MetricsTable) -> str:
    rows = table_2(merge_seeds(table))
    if not rows:
        return ""
    columns = {name: _COLUMNS[name] for name in _TABLE_2_COLUMNS}
    return f"""<h2>Table 2. The largest one and two features</h2>
<p>{EV_DEFINITION} {CENTERED_FVU_DEFINITION}</p>
{_table("Table 2", rows, columns)}"""


def _table(name: str, rows: Iterable[BudgetMetrics], columns: dict[str, str]) -> str:
    """Return a table in a part of the page that scrolls by itself, with keys too."""
    head = "".join(f"<th>{name}</th>" for name in columns)
    body = "\n".join(
        f"<tr{' class=ours' if row.ours else ''}>"
        + "".join(
            f"<td>{_cell(getattr(row, column))}</td>" for column in columns.values()
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(value: str | float) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return html.escape(value) if isinstance(value, str) else f"{value:,}"


def _provenance(facts: dict[str, Any]) -> str:
    if not facts:
        return ""
    definitions = "\n".join(
        f"<dt>{html.escape(name)}</dt><dd><pre>{html.escape(_text(value))}</pre></dd>"
        for name, value in short_paths(facts).items()
    )
    # Closed, as all settings of a comparison's SAEs are there.
    return f"""<h2>Where they come from</h2>
<details><summary>{html.escape(", ".join(facts))}</summary>
<dl>
{definitions}
</dl></details>"""


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, indent=2, ensure_ascii=False)
