"""Metrics for people to read: in the terminal, and as one HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Iterable, Mapping, Sequence

from rich.table import Table

from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable

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


def table_rows(rows: Iterable[BudgetMetrics]) -> list[tuple[str, ...]]:
    """Return cells for each SAE and k, grouped by k, in the order of ``COLUMNS``.

    Other ways of reading a SAE than by its k largest features are left out.
    """
    by_rank = [row for row in rows if row.activation == "topk"]
    return [
        (
            row.sae,
            str(row.k),
            f"{row.explained_variance:.3f}",
            f"{row.fvu:.3f}",
            f"{row.ce_loss_score:.3f}",
            str(row.dead_features),
        )
        for row in sorted(by_rank, key=lambda row: row.k)
    ]


def terminal_table(table: MetricsTable, ks: Collection[int]) -> Table:
    """Return a table for the terminal with a section for each k of ``ks``.

    SAEs trained at all k stand out, those away from the one k of theirs are dim.
    """
    # Short names: a terminal may have no more than 80 columns.
    counts = [row.tokens for row in table.rows]
    tokens = " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
    columns = ("SAE", "k", "EV", "FVU", "CE recovered", "dead")
    caption = (
        "EV: explained variance. FVU: unexplained variance. CE recovered: of the loss "
        "that zeros in place of the activations cost. dead: features never active, on "
        f"{tokens} tokens."
    )
    shown = Table(*columns, caption=caption)
    for column in shown.columns[1:]:
        column.justify = "right"
    ours = {row.sae for row in table.rows if row.ours}
    trained_k = {row.sae: str(row.trained_k) for row in table.rows}
    cells = [row for row in table_rows(table.rows) if int(row[1]) in ks]
    for row, following in zip(cells, [*cells[1:], None], strict=True):
        name, k, *_ = row
        style = "bold" if name in ours else None if trained_k[name] == k else "dim"
        ends_k = following is not None and following[1] != k
        shown.add_row(*row, style=style, end_section=ends_k)
    return shown


def html_report(
    title: str,
    table: MetricsTable,
    plot_png: bytes,
    facts: Mapping[str, str],
    code: Sequence[str],
) -> str:
    """Return a page with the plot, the table, what was run, and what to run next.

    Args:
        title: The page's title.
        table: What the table shows.
        plot_png: The plot, a PNG file's bytes.
        facts: What was run: names and values.
        code: Lines of Python that load the SAE.
    """
    ours = {row.sae for row in table.rows if row.ours}
    head = "".join(f"<th>{column}</th>" for column in COLUMNS)
    body = "\n".join(
        f"<tr{' class=ours' if row[0] in ours else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in table_rows(table.rows)
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
