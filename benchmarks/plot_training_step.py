"""Plot ``results/training_step_cpu.csv``: milliseconds and MiB of each step.

    python benchmarks/plot_training_step.py [CSV] [--output PNG]

writes ``docs/training_step.png``, or another file.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results" / "training_step_cpu.csv"
PICTURE = Path(__file__).parents[1] / "docs" / "training_step.png"
COLORS = {"False": "#1546a0", "True": "#d55e00"}
LABELS = {"False": "no latent dead", "True": "a quarter of the latents dead"}
UNITS = {"ms": "ms a step", "peak_mib": "MiB at the step's peak"}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("csv", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--output", type=Path, default=PICTURE, metavar="PNG")
    options = parser.parse_args()
    with options.csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    plot(rows).savefig(options.output, dpi=130)


def plot(rows: list[dict[str, str]]) -> Figure:
    """Plot a row of panels for each size: times, and memory beside them."""
    sizes = list(dict.fromkeys(_size(row) for row in rows))
    steps = list(dict.fromkeys(row["step"] for row in rows))
    steps.sort(key=lambda step: -max(float(r["ms"]) for r in rows if r["step"] == step))
    figure = Figure(figsize=(11, 0.6 + 2.6 * len(sizes)), layout="constrained")
    panels = figure.subplots(len(sizes), len(UNITS), squeeze=False, sharey=True)
    height = 0.8 / len(LABELS)
    for panel_row, size in zip(panels, sizes, strict=True):
        for axes, (column, unit) in zip(panel_row, UNITS.items(), strict=True):
            for n, (dead, label) in enumerate(LABELS.items()):
                chosen = [
                    r for r in rows if (_size(r), r["dead_latents"]) == (size, dead)
                ]
                bars = axes.barh(
                    [steps.index(row["step"]) + n * height for row in chosen],
                    [float(row[column]) for row in chosen],
                    height,
                    label=label,
                    color=COLORS[dead],
                )
                axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=2)
            axes.set_yticks([n + height / 2 for n in range(len(steps))], steps)
            axes.set_title(f"{size}: {unit}", fontsize=10)
            axes.margins(x=0.1)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].invert_yaxis()
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    first = rows[0]
    threads = f"{first['threads']} thread" + "s" * (first["threads"] != "1")
    figure.suptitle(
        f"{first['hardware']}, {threads}, torch {first['torch']}, {first['dtype']}",
        fontsize=11,
    )
    return figure


def _size(row: dict[str, str]) -> str:
    return ", ".join(
        f"{name} {int(row[name]):,}" for name in ("d_in", "d_sae", "K", "B")
    )


if __name__ == "__main__":
    main()
