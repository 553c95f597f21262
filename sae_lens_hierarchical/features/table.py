"""What the page and the JSON hold, as plain data."""

from __future__ import annotations

import json
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from sae_lens_hierarchical.features.companions import Companion
from sae_lens_hierarchical.files.short_paths import short_paths

__all__ = ["Context", "FeatureStatistics", "FeatureTable", "to_json"]


@dataclass(frozen=True)
class Context:
    """A piece of text around the token on which a feature is most active.

    Attributes:
        context: Which context of the stream, from 0.
        position: Where that token, the peak, stands in its context, from 0.
        rank: The feature's rank on the peak, from 1: k at which it shows.
        activation: The feature's activation on the peak.
        peak: Where the peak stands in ``tokens``.
        tokens: The text of each token.
        active: The tokens on which the feature is active: where in ``tokens``,
            activation and rank.
    """

    context: int
    position: int
    rank: int
    activation: float
    peak: int
    tokens: list[str]
    active: list[tuple[int, float, int]]


@dataclass(frozen=True)
class FeatureStatistics:
    """What one feature does, at every k.

    Attributes:
        feature: Its index.
        firings: On how many tokens it is active, at K.
        frequency: On what share of the tokens, at each k of ``FeatureTable.ks``.
        ranks: On how many tokens it has each rank, 1 to K.
        mean_rank: Over the tokens on which it is active; None where there are none.
        mean_activation: Likewise.
        max_activation: 0 where there are none.
        bin_width: That of ``activations``, whose first bin begins at 0.
        activations: Histograms of its activations, one for each k: where its rank is
            above the k before and at most this one.
        promoted: Tokens whose logits its decoder row raises most, and by how much for
            an activation of 1; None where the SAE has no direct effect on logits.
        suppressed: Those that it lowers most; likewise.
        before: Features with larger activations on the same tokens.
        after: Those with smaller ones, which join it at a larger k.
        contexts: The 10 with its largest activations at each k, and 3 for each range of
            ranks at least; the largest activation first.
    """

    feature: int
    firings: int
    frequency: list[float]
    ranks: list[int]
    mean_rank: float | None
    mean_activation: float | None
    max_activation: float
    bin_width: float
    activations: list[list[int]]
    promoted: list[tuple[str, float]] | None
    suppressed: list[tuple[str, float]] | None
    before: list[Companion]
    after: list[Companion]
    contexts: list[Context]


@dataclass(frozen=True)
class FeatureTable:
    """Features of one SAE at every k.

    Attributes:
        sae: The SAE's name.
        architecture: Its architecture.
        d_sae: How many features it has.
        ks: Powers of two up to K, and K.
        tokens: On how many tokens the features were measured.
        chosen: How the features were chosen, in words.
        no_logits: Why there are no logit effects; None where there are.
        features: The features, in the order they were asked for.
        provenance: Versions, model and dataset.
    """

    sae: str
    architecture: str
    d_sae: int
    ks: list[int]
    tokens: int
    chosen: str
    no_logits: str | None
    features: list[FeatureStatistics]
    provenance: dict[str, Any]


def to_json(table: FeatureTable) -> str:
    """Return a table as JSON, to pass on.

    Numbers have 4 significant digits, and of the provenance's absolute paths only the
    last part is left.
    """
    table = replace(table, provenance=short_paths(table.provenance))
    return json.dumps(
        _plain(table), separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if is_dataclass(value):
        return {name: _plain(one) for name, one in vars(value).items()}
    return value
