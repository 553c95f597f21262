"""Writes features as a page and as JSON."""

from __future__ import annotations

from pathlib import Path

from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_hierarchical.features.page import html_page
from sae_lens_hierarchical.features.table import FeatureTable, to_json
from sae_lens_hierarchical.files.atomic_directory import atomic_directory

__all__ = ["refuse_sae_folder", "write_features"]


def refuse_sae_folder(folder: Path) -> None:
    """Raise a ValueError if a folder is an SAE's, whose files would go."""
    if (folder / SAE_CFG_FILENAME).exists():
        raise ValueError(f"{folder} holds an SAE: name another folder for its features")


def write_features(folder: Path, table: FeatureTable) -> list[Path]:
    """Write ``features.html``, which needs no network, and ``features.json``.

    Both appear whole or not at all; the JSON holds what the page shows.

    Args:
        folder: Where they go.
        table: The features.

    Returns:
        The files.

    Raises:
        ValueError: As ``refuse_sae_folder`` does.
    """
    refuse_sae_folder(folder)
    with atomic_directory(folder) as staging:
        data = to_json(table)
        (staging / "features.html").write_text(html_page(data), encoding="utf-8")
        (staging / "features.json").write_text(data, encoding="utf-8")
    return [folder / "features.html", folder / "features.json"]
