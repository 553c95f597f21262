"""The look of every architecture and SAE, the same in all figures."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

from sae_lens_hierarchical.defaults import ARCHITECTURE, METHOD
from sae_lens_hierarchical.eval.table import MetricsTable
from sae_lens_hierarchical.figures.select import families, ours
from sae_lens_hierarchical.figures.spec import Style

__all__ = ["BASELINE", "OPTIMAL", "family_name", "family_style", "muted", "sae_styles"]

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

# How much white is mixed into the lightest of a family's colors, and into muted ones.
_LIGHTEST = 0.55
_MUTED = 0.4
# HierarchicalTopK SAEs lie close together, and have all of one K their markers there.
_DASHES = ((8, 3), (3, 2), (10, 3, 2, 3), (10, 3, 2, 3, 2, 3), (14, 3))


def family_name(architecture: str) -> str:
    """Return what people call an architecture."""
    return _FAMILIES.get(architecture, (architecture, _OTHER))[0]


def family_style(architecture: str) -> Style:
    """Return the look of an architecture."""
    return _FAMILIES.get(architecture, (architecture, _OTHER))[1]


def muted(architecture: str) -> Style:
    """Return the look of an architecture's SAEs where they are in the background."""
    style = family_style(architecture)
    dash = style.dash or _DASHES[0]
    return replace(style, color=_lighten(style.color, _MUTED), width=1.2, dash=dash)


def sae_styles(table: MetricsTable) -> dict[str, Style]:
    """Return the look of each SAE: its architecture's, in shades of its color.

    The SAE that stands for its architecture (``compared``) has the color itself. The
    HierarchicalTopK SAEs after the first are dashed.
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
    for sae, dash in zip(ours(table)[1:], cycle(_DASHES), strict=False):
        styles[sae] = replace(styles[sae], dash=dash, width=2)
    return styles


def _lighten(color: str, white: float) -> str:
    parts = (int(color[n : n + 2], 16) for n in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * white):02x}" for part in parts)
