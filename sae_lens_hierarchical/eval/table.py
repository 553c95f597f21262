"""The table of metrics: a row for each SAE, inference mode and k."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sae_lens_hierarchical.defaults import ARCHITECTURE

__all__ = ["BudgetMetrics", "MetricsTable", "read_table", "write_table"]


_PROVENANCE = b"sae_lens_hierarchical"


@dataclass(frozen=True, kw_only=True)
class BudgetMetrics:
    """Metrics of one SAE in one inference mode at one k.

    They are over the tokens that it was trained for: all but the special ones and those
    that its metadata exclude. A variance is the total variance, summed over d_in, of
    all these tokens together.

    ``explained_variance`` is the headline; it and ``fvu`` add up to 1. The paper's FVU
    is centered: it leaves out the mean error, whose share is ``bias``, so that
    ``fvu = fvu_centered + bias``. What others call by these names:

    - SAELens's ``explained_variance`` is ours. Its ``explained_variance_legacy`` is the
      mean over tokens of 1 - ‖x - x̂‖² / ‖x - E x‖².
    - The paper's FVU (§3.1) is ``fvu_centered``.
    - dictionary_learning's ``frac_variance_explained`` is 1 - ``fvu_centered``.
    - SAEBench's ``explained_variance`` (0.6) is like ours, but takes for Var(x) not
      E‖x‖² - ‖E x‖² but E‖x‖² - (E‖x‖² / d_in)²: compare it with nothing.

    Attributes:
        sae: The SAE's name.
        architecture: ``hierarchical_topk``, ``topk``, ``jumprelu``, ``gated``,
            ``standard``; ``batchtopk`` for JumpReLU SAEs with one threshold for all
            features, as BatchTopK and Matryoshka SAEs are once trained.
        trained_k: The k that the SAE was trained at: K for HierarchicalTopK. For an SAE
            that has no k, the one in its metadata (SAELens notes it for BatchTopK), or
            else its own L0, rounded.
        activation: The inference mode. ``topk``: the k largest features of each token.
            ``jumprelu``: all features above a threshold that k exceed on average (B.5).
            ``own``: as an SAE without k is by itself, with ``k`` = ``trained_k``.
        k: The number of features.
        tokens: How many tokens it was evaluated on.
        ce_tokens: How many of them the model was run on for the next two metrics; 0
            where it was on none, and those are NaN.
        excluded_tokens: How many more were in the same contexts and left out; None
            in tables of a version that did not count them.
        outlier_tokens: How many of those were left out for their norms alone; likewise.
        max_norm: The norm above which they were; None where there was no limit.
        ce_loss_score: The fraction of the cross-entropy loss that x̂ recovers of what
            zeros in place of the activations cost: 1 is all of it.
        kl_div: KL of the model's next-token distribution with x̂ from that with x, nats.
        l0: L0, the mean number of active features of a token (§3.1).
        explained_variance: 1 - E‖x - x̂‖² / Var(x).
        explained_variance_se: Its standard error over contexts, by the jackknife over
            up to 32 groups of them; None where that is not known.
        fvu_centered: Var(x - x̂) / Var(x), the paper's FVU (§3.1).
        mse: E‖x - x̂‖², summed over d_in.
        cosine_similarity: The mean cosine of x and x̂.
        dead_features: Features that were active on no token.
        almost_dead_features: Features active on fewer than one token in 10⁵ (§3.5).
            Of fewer than 10⁵ tokens these are just the dead ones, and only of some 10⁶
            does a feature's count say which side it is on.
        frequency: The fraction of tokens on which each feature was active, [d_sae],
            float32 (B.4).
        mean_squared_activation: E(l_i ‖e_i‖)² of each feature over the tokens on which
            it was active, [d_sae], float32; NaN for one that never was (B.4).
        cosine_to_next: The mean cosine of the decoder rows e_i and e_i+1 of a token's
            i-th and next largest features, for i = 1 to k - 1, over the tokens where
            both were active, float32; NaN where none was (B.2). Empty unless
            ``activation`` is ``topk``.
    """

    sae: str
    architecture: str
    trained_k: int
    activation: str
    k: int
    tokens: int
    ce_tokens: int
    l0: float
    explained_variance: float
    explained_variance_se: float | None = None
    fvu_centered: float
    mse: float
    cosine_similarity: float
    ce_loss_score: float
    kl_div: float
    dead_features: int
    almost_dead_features: int
    frequency: np.ndarray = field(compare=False, repr=False)
    mean_squared_activation: np.ndarray = field(compare=False, repr=False)
    cosine_to_next: np.ndarray = field(compare=False, repr=False)
    excluded_tokens: int | None = None
    outlier_tokens: int | None = None
    max_norm: float | None = None

    @property
    def fvu(self) -> float:
        """The fraction of variance unexplained: 1 - ``explained_variance``."""
        return 1 - self.explained_variance

    @property
    def bias(self) -> float:
        """‖E(x - x̂)‖² / Var(x), which ``fvu_centered`` does not count."""
        return self.fvu - self.fvu_centered

    @property
    def ours(self) -> bool:
        """Whether the SAE is a HierarchicalTopK one, trained at every k."""
        return self.architecture == ARCHITECTURE


_SERIES = ("frequency", "mean_squared_activation", "cosine_to_next")
_COLUMNS = tuple(f.name for f in fields(BudgetMetrics))
# Files have the properties too, beside what they follow from.
_WRITTEN = list(_COLUMNS)
_WRITTEN.insert(_WRITTEN.index("fvu_centered"), "fvu")
_WRITTEN.insert(_WRITTEN.index("fvu_centered") + 1, "bias")
_REQUIRED = {f.name for f in fields(BudgetMetrics) if f.default is MISSING}


@dataclass(frozen=True)
class MetricsTable:
    """Metrics of SAEs at many k, and where they come from.

    Attributes:
        rows: In the order of SAEs, then activations, then k.
        provenance: What can be written as JSON: versions, model, dataset, checkpoints.
    """

    rows: list[BudgetMetrics]
    provenance: dict[str, Any] = field(default_factory=dict)

    def saes(self) -> list[str]:
        """Return the names of the SAEs, in order."""
        return list(dict.fromkeys(row.sae for row in self.rows))

    def select(self, **wanted: Any) -> list[BudgetMetrics]:
        """Return the rows with these values: ``table.select(sae=..., k=8)``."""
        return [
            row
            for row in self.rows
            if all(getattr(row, name) == value for name, value in wanted.items())
        ]


def write_table(path: Path, table: MetricsTable) -> None:
    """Write a table as parquet, with its provenance, and as CSV.

    The CSV file, of the same name beside it, has all columns but those that hold a
    value for each feature or rank.

    Raises:
        OSError: If one cannot be written; older ones then stay as they were.
    """
    columns = {name: [getattr(row, name) for row in table.rows] for name in _WRITTEN}
    arrow = pa.table(columns).replace_schema_metadata(
        {_PROVENANCE: json.dumps(table.provenance)}
    )
    plain = [name for name in _WRITTEN if name not in _SERIES]
    rows = [[getattr(row, name) for name in plain] for row in table.rows]
    # Beside the final files, so that they can be renamed once both are whole.
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        new = Path(folder, path.name)
        new_csv = new.with_suffix(".csv")
        pq.write_table(arrow, new, compression="zstd")
        with new_csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([plain, *rows])
        new.replace(path)
        new_csv.replace(path.with_suffix(".csv"))


def read_table(path: Path) -> MetricsTable:
    """Read a table that ``write_table`` wrote, from its parquet file.

    Tables of before ``fvu_centered`` had it in the column ``fvu``; they are converted.

    Raises:
        ValueError: If it is no such file, or a column is missing, naming it.
    """
    if not path.is_file():
        raise ValueError(f"there is no table {path}")
    try:
        arrow = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no parquet file: {error}") from error
    if "fvu_centered" not in arrow.column_names:
        names = ["fvu_centered" if n == "fvu" else n for n in arrow.column_names]
        arrow = arrow.rename_columns(names)
    if missing := _REQUIRED - set(arrow.column_names):
        raise ValueError(f"{path} lacks the columns {sorted(missing)}")
    found = [name for name in _COLUMNS if name in arrow.column_names]
    metadata = arrow.schema.metadata or {}
    return MetricsTable(
        list(_rows(arrow.select(found))),
        json.loads(metadata.get(_PROVENANCE, b"{}")),
    )


def _rows(arrow: pa.Table) -> Iterator[BudgetMetrics]:  # pyright: ignore[reportUnknownParameterType]
    series = arrow.select(_SERIES)
    for n, values in enumerate(arrow.drop_columns(_SERIES).to_pylist()):
        lists = {name: series[name][n].values.to_numpy() for name in _SERIES}
        yield BudgetMetrics(**values, **lists)
