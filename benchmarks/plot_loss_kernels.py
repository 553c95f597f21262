"""Plot ``results/loss_kernels.csv``: milliseconds and GiB of each implementation.

    python benchmarks/plot_loss_kernels.py [CSV]

writes a PNG beside the CSV.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results" / "loss_kernels.csv"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("csv", type=Path, nargs="?", default=RESULTS)
    path = parser.parse_args().csv
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    plot(rows).savefig(path.with_suffix(".png"), dpi=150)


def plot(rows: list[dict[str, str]]) -> Figure:
    """Plot a column of bars for each dtype, a bar for each implementation and K.

    Only the largest batch is shown, and features that are all as likely.
    """
    rows = [row for row in rows if row["frequencies"] == "uniform"]
    batch = max(rows, key=lambda row: int(row["B"]))["B"]
    rows = [row for row in rows if row["B"] == batch]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    names = list(dict.fromkeys(row["row"] for row in rows))
    ks = list(dict.fromkeys(row["K"] for row in rows))
    figure = Figure(figsize=(13, 1 + 0.9 * len(names)), layout="constrained")
    panels = figure.subplots(len(dtypes), 2, squeeze=False, sharey=True)
    height = 0.8 / len(ks)
    for panel_row, dtype in zip(panels, dtypes, strict=True):
        for axes, (column, label) in zip(
            panel_row, (("ms", "ms a step"), ("peak_gib", "peak GiB")), strict=True
        ):
            for n, k in enumerate(ks):
                chosen = [r for r in rows if (r["dtype"], r["K"]) == (dtype, k)]
                places = [names.index(row["row"]) + n * height for row in chosen]
                widths = [float(row[column]) for row in chosen]
                bars = axes.barh(places, widths, height, label=f"K = {k}")
                axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
            middles = [n + 0.4 - height / 2 for n in range(len(names))]
            axes.set_yticks(middles, names, fontsize=8)
            axes.set_title(f"{dtype}, B = {batch}: {label}", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].invert_yaxis()
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(ks))
    figure.suptitle(f"{rows[0]['gpu']}, torch {rows[0]['torch']}", fontsize=11)
    return figure


if __name__ == "__main__":
    main()
