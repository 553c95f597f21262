"""Metrics for people to read: in the terminal, and as one HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Mapping, Sequence

from rich.table import Table

from sae_lens_hierarchical.eval.table import Curve

__all__ = ["COLUMNS", "html_report", "table_rows", "terminal_table"]

COLUMNS = (
    "SAE",
    "k",
    "explained variance",
    "FVU",
    "CE loss recovered",
    "dead features",
)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto;
       max-width: 68rem; padding: 0 1rem; }
img { max-width: 100%; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #e3e3e3; }
th:first-child, td:first-child { text-align: left; }
tr.ours td { background: #eef3fb; }
pre { background: #f6f6f6; padding: .8rem 1rem; overflow-x: auto; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1.5rem; }
"""


def table_rows(curves: Mapping[str, Curve]) -> list[tuple[str, ...]]:
    """Return a row for each SAE and k, grouped by k, in the order of ``COLUMNS``."""
    ks = sorted({m.k for curve in curves.values() for m in curve.metrics})
    return [
        (
            name,
            str(m.k),
            f"{m.explained_variance:.3f}",
            f"{m.fvu:.3f}",
            f"{m.ce_loss_score:.3f}",
            str(m.dead_features),
        )
        for k in ks
        for name, curve in curves.items()
        for m in curve.metrics
        if m.k == k
    ]


def terminal_table(curves: Mapping[str, Curve], ks: Collection[int]) -> Table:
    """Return a table for the terminal with a section for each k of ``ks``.

    SAEs trained at all k stand out, those away from the one k of theirs are dim.
    """
    # Short names: a terminal may have no more than 80 columns.
    columns = ("SAE", "k", "EV", "FVU", "CE recovered", "dead")
    caption = (
        "EV: explained variance. FVU: unexplained variance. CE recovered: of the loss "
        "that zeros in place of the activations cost. dead: features never active."
    )
    table = Table(*columns, caption=caption)
    for column in table.columns[1:]:
        column.justify = "right"
    rows = [row for row in table_rows(curves) if int(row[1]) in ks]
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        trained_k = curves[row[0]].trained_k
        at_home = str(trained_k) == row[1]
        style = "bold" if trained_k is None else None if at_home else "dim"
        ends_k = following is not None and following[1] != row[1]
        table.add_row(*row, style=style, end_section=ends_k)
    return table


def html_report(
    title: str,
    curves: Mapping[str, Curve],
    plot_png: bytes,
    facts: Mapping[str, str],
    code: Sequence[str],
) -> str:
    """Return a page with the plot, the table, what was run, and what to run next.

    Args:
        title: The page's title.
        curves: What the table shows.
        plot_png: The plot, a PNG file's bytes.
        facts: What was run: names and values.
        code: Lines of Python that load the SAE.
    """
    ours = {name for name, curve in curves.items() if curve.trained_k is None}
    head = "".join(f"<th>{column}</th>" for column in COLUMNS)
    body = "\n".join(
        f"<tr{' class=ours' if row[0] in ours else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in table_rows(curves)
    )
    definitions = "\n".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        for name, value in facts.items()
    )
    image = base64.b64encode(plot_png).decode("ascii")
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
<h1>{html.escape(title)}</h1>
<p>One HierarchicalTopK SAE, read at every k, beside TopK SAEs that were each trained at
one k (a dot marks it). All saw the same activations; all are measured on held-out
text.</p>
<img alt="Metrics against k" src="data:image/png;base64,{image}">
<h2>Load it</h2>
<pre>{html.escape(chr(10).join(code))}</pre>
<h2>Numbers</h2>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table>
<h2>What was run</h2>
<dl>
{definitions}
</dl>
</html>
"""
