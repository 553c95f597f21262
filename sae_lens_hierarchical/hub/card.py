"""The model card of an SAE, as the Hub shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCardData
from sae_lens import SAE

from sae_lens_hierarchical.eval.table import MetricsTable
from sae_lens_hierarchical.files.short_paths import short_paths
from sae_lens_hierarchical.hub.facts import (
    Facts,
    base_model,
    check_pushable,
    evaluation_facts,
    sae_facts,
    training_facts,
)
from sae_lens_hierarchical.report import (
    BY_RANK,
    BY_THRESHOLD,
    COLUMNS,
    threshold_rows,
    topk_rows,
)
from sae_lens_hierarchical.saes import HierarchicalTopKSAE

__all__ = ["CITATION", "REPOSITORY", "model_card"]

REPOSITORY = "https://github.com/sae-lens-hierarchical/sae-lens-hierarchical"
CITATION = """\
@article{balagansky2025train,
  title   = {Train One Sparse Autoencoder Across Multiple Sparsity Budgets to Preserve
             Interpretability and Accuracy},
  author  = {Balagansky, Nikita and Aksenov, Yaroslav and Laptev, Daniil and
             Kurochkin, Vadim and Gerasimov, Gleb and Koriagin, Nikita and
             Gavrilov, Daniil},
  journal = {arXiv preprint arXiv:2505.24473},
  year    = {2025}
}"""

_METHOD = "[HierarchicalTopK](https://arxiv.org/abs/2505.24473)"
_SAELENS = "[SAELens](https://github.com/decoderesearch/SAELens)"
_OURS = (
    f"One {_METHOD} sparse autoencoder (SAE) for every sparsity budget: its k largest "
    f"features reconstruct well for every k up to K. It is for {_SAELENS} with the "
    f"plugin [sae-lens-hierarchical]({REPOSITORY})."
)
_EXPORTED = (
    f"Made from one {_METHOD} sparse autoencoder (SAE), as `{{architecture}}` SAEs of "
    f"{_SAELENS}, which need no plugin."
)
_OTHER = f"A `{{architecture}}` sparse autoencoder (SAE) of {_SAELENS}."
_TAGS = ["saelens", "sparse-autoencoder"]
_DEFINITIONS = (
    "L0: features active on a token, on average. Explained variance: "
    "1 - E‖x - x̂‖² / Var(x), of the model's activations x and the SAE's output x̂; FVU "
    "is the rest. CE loss recovered: 1 if the language model does as well with x̂ as "
    "with x, 0 if as badly as with zeros. Dead features: active on none of the tokens."
)
_THRESHOLDS = (
    "own: the SAE as it is. A number k: one threshold for all features, k of which are "
    "above it on average."
)


def model_card(
    sae: SAE[Any],
    repo_id: str,
    sae_ids: Sequence[str],
    *,
    metrics: MetricsTable | None = None,
    plot: str | None = None,
    license: str | None = None,
) -> str:
    """Return the Hub's README of an SAE, made from the SAE itself.

    What the SAE does not know is left out.

    Args:
        sae: The SAE, or one of those exported from one.
        repo_id: The repository.
        sae_ids: Where the SAE, or each exported one, is in the repository.
        metrics: The SAE's rows of a table of metrics, and the table's provenance.
        plot: Where a plot of the same is, beside the card.
        license: The license, as the Hub names it: ``mit``.

    Raises:
        ValueError: If ``sae`` is one of training, or ``metrics`` has no rows.
    """
    check_pushable(sae)
    if metrics is not None and not metrics.rows:
        raise ValueError("metrics must have rows of the SAE, got an empty table")
    metadata = sae.cfg.metadata
    ours = isinstance(sae, HierarchicalTopKSAE)
    of_method = ours or metadata.exported_from is not None
    front = ModelCardData(
        base_model=base_model(metadata),
        license=license,
        library_name="saelens",
        tags=[*_TAGS, "hierarchical-topk"] if of_method else _TAGS,
    )
    about = _OURS if ours else _EXPORTED if of_method else _OTHER
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {repo_id.split('/')[-1]}",
        about.replace("{architecture}", sae.cfg.architecture()),
        "## Use",
        _installation(plugin=ours),
        _loading_code(sae, repo_id, sae_ids),
        "## SAE",
        _list(sae_facts(sae)),
        "## Training",
        _list(training_facts(metadata)),
    ]
    if metrics is not None:
        parts += _evaluation(metrics, plot)
    if of_method:
        parts += ["## Citation", f"```bibtex\n{CITATION}\n```"]
    return "\n\n".join(parts) + "\n"


def _installation(*, plugin: bool) -> str:
    package = f"git+{REPOSITORY}" if plugin else "sae-lens"
    return f"```sh\npip install {package}\n```"


def _loading_code(sae: SAE[Any], repo_id: str, sae_ids: Sequence[str]) -> str:
    lines = ["from sae_lens import SAE", ""]
    if isinstance(sae, HierarchicalTopKSAE):
        lines += ["import sae_lens_hierarchical  # registers the architecture", ""]
    lines += [f'sae = SAE.from_pretrained("{repo_id}", "{i}")' for i in sae_ids]
    if isinstance(sae, HierarchicalTopKSAE):
        lines.append(f"sae.k = {min(8, sae.k_max)}  # or any other up to {sae.k_max}")
    return "\n".join(["```python", *lines, "```"])


def _evaluation(metrics: MetricsTable, plot: str | None) -> list[str]:
    parts = ["## Evaluation", _list(evaluation_facts(metrics))]
    if plot is not None:
        parts.append(f"![Explained variance and CE loss recovered against k]({plot})")
    if rows := topk_rows(metrics.rows):
        parts += [f"{BY_RANK}:", _table(rows)]
    if rows := threshold_rows(metrics.rows):
        parts += [f"{BY_THRESHOLD}:", _table(rows), _THRESHOLDS]
    return [*parts, _DEFINITIONS]


def _list(facts: Facts) -> str:
    """Return a Markdown list; a value cannot end its line, nor its code."""
    values = {
        label: " ".join(fact.replace("`", "'").split())
        for label, fact in short_paths(facts).items()
    }
    return "\n".join(f"- {label}: `{value}`" for label, value in values.items())


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table of one SAE, numbers to the right."""
    head, *body = (f"| {' | '.join(row[1:])} |" for row in (COLUMNS, *rows))
    return "\n".join([head, "|" + " ---: |" * len(COLUMNS[1:]), *body])
