"""Writes features as a page and as JSON."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from pathlib import Path

from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_hierarchical.features.neuronpedia import neuronpedia_batch
from sae_lens_hierarchical.features.page import html_page
from sae_lens_hierarchical.features.table import FeatureTable, to_json
from sae_lens_hierarchical.files.atomic_directory import atomic_directory

__all__ = ["refuse_sae_folder", "write_features"]


def refuse_sae_folder(folder: Path) -> None:
    """Raise a ValueError if a folder is an SAE's, whose files would go."""
    if (folder / SAE_CFG_FILENAME).exists():
        raise ValueError(f"{folder} holds an SAE: name another folder for its features")


def write_features(
    folder: Path, table: FeatureTable, *, neuronpedia: bool = False
) -> list[Path]:
    """Write ``features.html``, which needs no network, and ``features.json``.

    All appear whole or not at all; the JSON holds what the page shows. Neuronpedia's
    files of features that were there before go.

    Args:
        folder: Where they go.
        table: The features.
        neuronpedia: Whether to write ``neuronpedia/k_8/batch-0.json`` too, and likewise
            for each other k; see ``neuronpedia_batch``.

    Returns:
        The files.

    Raises:
        ValueError: As ``refuse_sae_folder`` does. Where ``neuronpedia_batch`` would
            raise one, its files alone are left out, with a warning.
    """
    refuse_sae_folder(folder)
    data = to_json(table)
    texts = {"features.html": html_page(data), "features.json": data}
    if neuronpedia:
        try:
            texts |= _neuronpedia_texts(table)
        except ValueError as error:  # the page need not be lost for it
            warnings.warn(f"no files for Neuronpedia: {error}", stacklevel=2)
    # What else is there, such as a web site's manifest.json, is not ours.
    with atomic_directory(folder, own_files=()) as staging:
        for name, text in texts.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    paths = [folder / name for name in texts]
    for stale in set(folder.glob("neuronpedia/k_*/batch-0.json")) - set(paths):
        stale.unlink()
        with suppress(OSError):  # something else is in there
            stale.parent.rmdir()
    return paths


def _neuronpedia_texts(table: FeatureTable) -> dict[str, str]:
    return {
        f"neuronpedia/k_{k}/batch-0.json": json.dumps(
            neuronpedia_batch(table, k), allow_nan=False
        )
        for k in table.ks
    }
