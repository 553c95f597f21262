"""Plots of what SAEs do at each k."""

from __future__ import annotations

import itertools

from matplotlib.figure import Figure

from sae_lens_hierarchical.eval.table import MetricsTable

__all__ = ["plot_curves"]

_PANELS = {
    "explained_variance": "explained variance",
    "ce_loss_score": "CE loss recovered",
    "dead_features": "dead features",
}
_OURS = "#1f4e9c"
_OTHERS = ("#d9822b", "#3a9a6b", "#9a5fb8", "#8a8a8a")


def plot_curves(table: MetricsTable) -> Figure:
    """Plot explained variance, CE loss recovered and dead features against k.

    A SAE trained at one k has a dot there.
    """
    largest = max(row.k for row in table.rows)
    ticks = [2**n for n in range(largest.bit_length())]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    for axes, (name, label) in zip(
        figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True
    ):
        others = itertools.cycle(_OTHERS)
        for sae in table.saes():
            rows = table.select(sae=sae, activation="topk")
            ours, trained_k = rows[0].ours, rows[0].trained_k
            ks = [row.k for row in rows]
            values = [getattr(row, name) for row in rows]
            color = _OURS if ours else next(others)
            axes.plot(
                ks,
                values,
                color=color,
                linewidth=2.6 if ours else 1.4,
                linestyle="-" if ours else "--",
                label=sae,
                zorder=3 if ours else 2,
            )
            if trained_k in ks and not ours:
                at = ks.index(trained_k)
                axes.plot(ks[at], values[at], "o", color=color, markersize=8, zorder=4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.set_xlabel("k (active features per token)")
        axes.set_title(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if name != "dead_features":
            # A fixed-k SAE read far from its k falls off any scale that shows the rest.
            axes.set_ylim(-0.05, 1.02)
    figure.axes[0].legend(frameon=False, loc="lower right", fontsize=9)
    return figure
