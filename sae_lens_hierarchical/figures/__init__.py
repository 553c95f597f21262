"""The paper's figures, from a table of metrics alone.

``paper`` says what each one shows, as data; ``static`` draws that with matplotlib and
``interactive`` with plotly, for one HTML page of all.
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
