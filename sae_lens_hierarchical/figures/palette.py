"""The look of every architecture and SAE, the same in all figures."""

from __future__ import annotations

from dataclasses import replace

from sae_lens_hierarchical.defaults import ARCHITECTURE, METHOD
from sae_lens_hierarchical.eval.table import MetricsTable
from sae_lens_hierarchical.figures.select import families, ours
from sae_lens_hierarchical.figures.spec import Style

__all__ = ["BASELINE", "OPTIMAL", "family_name", "family_style", "sae_styles"]

# Okabe and Ito's hues, which color-blind people can tell apart, darkened for lines.
_FAMILIES = {
    ARCHITECTURE: (METHOD, Style("#1546a0", 3, (), "circle")),
    "topk": ("TopK", Style("#d55e00", 1.6, (7, 3), "circle")),
    "batchtopk": ("BatchTopK", Style("#00805c", 1.6, (9, 3, 2, 3), "square")),
    "jumprelu": ("JumpReLU", Style("#b0508f", 1.6, (2, 2), "diamond")),
    "gated": ("Gated", Style("#96700a", 1.6, (4, 2), "triangle-up")),
    "standard": ("Standard", Style("#444444", 1.6, (3, 2, 1, 2), "x")),
}
_OTHER = Style("#888888", 1.6, (1, 2), "star")
BASELINE = Style("#888888", 1, (), "circle")
OPTIMAL = Style("#222222", 1.6, (1, 2), "square")

# How much white is mixed into the lightest of a family's colors.
_LIGHTEST = 0.55


def family_name(architecture: str) -> str:
    """Return what people call an architecture."""
    return _FAMILIES.get(architecture, (architecture, _OTHER))[0]


def family_style(architecture: str) -> Style:
    """Return the look of an architecture."""
    return _FAMILIES.get(architecture, (architecture, _OTHER))[1]


def sae_styles(table: MetricsTable) -> dict[str, Style]:
    """Return the look of each SAE: its architecture's, in shades of its color.

    The SAE that stands for its architecture (``compared``) has the color itself.
    """
    groups = {ARCHITECTURE: ours(table)}
    for architecture, saes in families(table).items():
        groups[architecture] = saes[::-1]
    styles = {}
    for architecture, saes in groups.items():
        style = family_style(architecture)
        for n, sae in enumerate(saes):
            white = _LIGHTEST * n / max(len(saes) - 1, 1)
            styles[sae] = replace(style, color=_lighten(style.color, white))
    return styles


def _lighten(color: str, white: float) -> str:
    parts = (int(color[n : n + 2], 16) for n in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * white):02x}" for part in parts)
