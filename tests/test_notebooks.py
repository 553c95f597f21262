"""Every notebook runs from top to bottom."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = [
    path
    for path in sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
    # SAEBench has an environment of its own: make saebench-test.
    if path.stem != "saebench" or find_spec("sae_bench")
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}

    NotebookClient(notebook, timeout=300, resources=resources).execute()

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
