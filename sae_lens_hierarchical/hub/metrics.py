"""Which rows of a table of metrics are of the SAE that is pushed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.constants import SAE_WEIGHTS_FILENAME

from sae_lens_hierarchical.defaults import ARCHITECTURE
from sae_lens_hierarchical.eval.table import MetricsTable
from sae_lens_hierarchical.files.checksum import file_sha256
from sae_lens_hierarchical.hub.staging import Staged
from sae_lens_hierarchical.saes.kinds import is_batchtopk, trained_k

__all__ = ["choose_sae", "fitting_rows"]

_OPTION = "--sae (in Python: metrics_sae)"


def choose_sae(table: MetricsTable, name: str | None) -> str:
    """Return which of a table's SAEs is meant.

    Args:
        table: A table of ``sweep``, the quickstart or ``compare``.
        name: The SAE's name there; None for the only one, or else the only
            HierarchicalTopK one.

    Raises:
        ValueError: If there is no such SAE, or several, naming those in the table.
    """
    saes = table.saes()
    if name is not None:
        if name not in saes:
            raise ValueError(
                f"{_OPTION} must be one of the table's SAEs, {saes}, got {name!r}"
            )
        return name
    ours = list(dict.fromkeys(row.sae for row in table.rows if row.ours))
    found = saes if len(saes) == 1 else ours
    if len(found) != 1:
        raise ValueError(
            f"the table of metrics holds {len(saes)} SAEs: say with {_OPTION} which "
            f"one is pushed, of {saes}"
        )
    return found[0]


def fitting_rows(table: MetricsTable, name: str, staged: Staged) -> MetricsTable:
    """Return the rows of an SAE that is pushed, with the table's provenance.

    Of an exported SAE they may be the HierarchicalTopK SAE's that it was made from, at
    the k that were exported and as the exported architecture runs.

    Args:
        table: The table.
        name: The SAE's name there.
        staged: What is pushed.

    Raises:
        ValueError: If the rows are of an SAE of another kind or size, of another hook,
            model or weights as far as the table notes them, or of one of several, or
            there are none at the exported k.
    """
    rows = table.select(sae=name)
    sae, ks = staged.sae, staged.ks
    row, architecture, k = rows[0], sae.cfg.architecture(), trained_k(sae)
    origin = sae.cfg.metadata.exported_from if row.ours else None
    if origin is not None:
        expected = (ARCHITECTURE, sae.cfg.d_sae, origin.get("k_max"))
        rows = table.select(sae=name, activation=architecture)
        rows = [row for row in rows if row.k in ks]
    else:
        family = "batchtopk" if is_batchtopk(sae) else architecture
        # An SAE without a k has its L0 in the table.
        expected = (family, sae.cfg.d_sae, row.trained_k if k is None else k)
    found = (row.architecture, len(row.frequency), row.trained_k)
    if found != expected:
        raise ValueError(
            f"the table's {name!r} is {_described(*found)}, and what is pushed is "
            f"{_described(*expected)}: say with {_OPTION} which one it is, of "
            f"{table.saes()}"
        )
    weights = staged.folder if origin is None else None
    for fact, noted, own in _differing(table.provenance, name, sae, weights):
        raise ValueError(
            f"the table's {name!r} has {fact} {noted}, and what is pushed has {own}: "
            f"say with {_OPTION} which one it is, of {table.saes()}"
        )
    if len(staged.names) > 1 and origin is None:
        raise ValueError(
            f"the table's {name!r} is one SAE, and {len(staged.names)} are pushed: "
            f"push them one by one, or say with {_OPTION} which HierarchicalTopK SAE "
            "they were exported from"
        )
    if not rows:
        raise ValueError(
            f"the table has no rows of {name!r} with activation {architecture!r} at "
            f"k = {', '.join(map(str, ks))}, which are pushed"
        )
    return replace(table, rows=rows)


def _differing(
    provenance: dict[str, Any], name: str, sae: SAE[Any], folder: Path | None
) -> Iterator[tuple[str, str, str]]:
    """Yield where the SAE is not the one in the table: what, there and of the SAE.

    Args:
        provenance: The table's; what it does not have is not compared.
        name: The SAE's name in the table.
        sae: The SAE; likewise.
        folder: Where the weights lie that the table is of; None if that is not known.
    """
    hook, model = sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name
    hooks = provenance.get("hooks")
    if hooks is not None and hook is not None and hook not in hooks:
        yield "hook", " or ".join(hooks), hook
    noted = provenance.get("checkpoints", {}).get(name, {}).get("sha256")
    if noted is not None and folder is not None:
        own = file_sha256(folder / SAE_WEIGHTS_FILENAME)
        if noted != own:
            yield "weights with sha256", noted, own
        return  # sweep --model may have named another copy of the model
    noted = provenance.get("model")
    if noted is not None and model is not None and noted != model:
        yield "model", noted, model


def _described(architecture: str, d_sae: int, k: int | None) -> str:
    return f"a {architecture} SAE with d_sae {d_sae} and k {k}"
