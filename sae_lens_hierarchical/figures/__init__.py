"""The paper's figures, from a table of metrics alone.

``paper`` says what each one shows, as data; ``matplotlib`` draws that as an image, and
``plotly`` for one interactive HTML page of all.
"""

from sae_lens_hierarchical.figures.matplotlib import draw
from sae_lens_hierarchical.figures.page import html_page
from sae_lens_hierarchical.figures.paper import all_figures, overview, table_2
from sae_lens_hierarchical.figures.write import write_figures

__all__ = [
    "all_figures",
    "draw",
    "html_page",
    "overview",
    "table_2",
    "write_figures",
]
