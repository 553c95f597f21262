"""Draw the experiment's results on the test split and print them as a table.

Run it as ``python scripts/smollm2/plot.py RESULTS.csv IMAGE.png``, with the file that
experiment.py wrote. Lines are means over seeds, bands from the lowest to the highest.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from sae_lens_hierarchical.figures import draw
from sae_lens_hierarchical.figures.build import log2_panel, make_figure
from sae_lens_hierarchical.figures.palette import family_style, muted
from sae_lens_hierarchical.figures.spec import Series

TOKENS = 786_432
DEFAULT = "at1:1,2:1,4:1,8:1,16:1,32:10"
NAMES = {DEFAULT: "HierarchicalTopK", "J8": "with J_8, equal weights"}


class Curve(NamedTuple):
    """The explained variance of one SAE's seeds at each k."""

    trained_k: int
    seeds: dict[int, list[float]]

    def mean(self, k: int) -> float:
        """Return the mean over seeds."""
        return sum(self.seeds[k]) / len(self.seeds[k])


def read(path: Path) -> dict[str, Curve]:
    """Return the curves of the SAEs on the test split, by name."""
    curves: dict[str, Curve] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            ours = row["sae"] == "ours"
            name = NAMES.get(row["weights"]) if ours else row["sae"]
            settings = json.loads(row["settings"])
            plain = settings["start"] is None and not settings.get("late_weights")
            whole = plain and settings["tokens"] == TOKENS
            if name is None or row["split"] != "test" or not whole:
                continue
            trained_k = 32 if ours else int(row["sae"].split("-")[1])
            curve = curves.setdefault(name, Curve(trained_k, defaultdict(list)))
            curve.seeds[int(row["k"])].append(float(row["ev"]))
    return curves


def series(name: str, curve: Curve) -> Series:
    """Return a line, with a marker at the k that the SAE was trained for."""
    ks = sorted(k for k in curve.seeds if k <= 32)
    topk = name.startswith("topk")
    style = muted("topk") if topk else family_style("hierarchical_topk")
    several = max(len(values) for values in curve.seeds.values()) > 1
    return Series(
        label="TopK, each trained at the k of its marker" if topk else name,
        names=(name.replace("topk", "TopK"),) * len(ks),
        x=tuple(ks),
        y=tuple(map(curve.mean, ks)),
        style=style,
        marked=(ks.index(curve.trained_k),),
        band=tuple((min(curve.seeds[k]), max(curve.seeds[k])) for k in ks)
        if several
        else (),
    )


def against_topk(ours: Curve, curves: dict[str, Curve]) -> Series:
    """Return how far ours is above TopK at the k that each was trained for."""
    ks = sorted(c.trained_k for name, c in curves.items() if name.startswith("topk"))
    bands = [(ours.seeds[k], curves[f"topk-{k}"].seeds[k]) for k in ks]
    return Series(
        label="HierarchicalTopK",
        x=tuple(ks),
        y=tuple(ours.mean(k) - curves[f"topk-{k}"].mean(k) for k in ks),
        style=family_style("hierarchical_topk"),
        marked=tuple(range(len(ks))),
        band=tuple((min(a) - max(b), max(a) - min(b)) for a, b in bands),
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("image", type=Path)
    args = parser.parse_args()
    curves = read(args.results)
    ks = (1, 2, 4, 8, 16, 32)
    for name, curve in curves.items():
        cells = " | ".join(f"{curve.mean(k):.3f}" for k in ks)
        seeds = len(curve.seeds[1])
        spread = max(max(curve.seeds[k]) - min(curve.seeds[k]) for k in ks)
        print(f"| {name} | {cells} | {seeds} | {spread:.4f} |")
    ours = curves["HierarchicalTopK"]
    shown = [
        series(name, curve) for name, curve in curves.items() if name.startswith("topk")
    ]
    shown.append(series("HierarchicalTopK", ours))
    against = against_topk(ours, curves)
    figure = make_figure(
        "smollm2",
        "One SAE and six, on SmolLM2-135M",
        ["Markers are at the k that an SAE was trained for."],
        [
            log2_panel("explained variance", shown, y_limits=(0.15, 0.88)),
            log2_panel("minus TopK trained at k", [against]),
        ],
    )
    draw(figure).savefig(args.image, dpi=150)


if __name__ == "__main__":
    main()
