"""SAEs on the Hugging Face Hub: pushed whole, with a card made from the checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData, hf_hub_url
from huggingface_hub.hf_api import RepoFile
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SPARSITY_FILENAME
from sae_lens.loading.pretrained_sae_loaders import load_safetensors_weights
from safetensors import SafetensorError
from safetensors.torch import save_file

from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable
from sae_lens_hierarchical.figures import draw, overview
from sae_lens_hierarchical.loading import load_sae
from sae_lens_hierarchical.report import COLUMNS, topk_rows
from sae_lens_hierarchical.saes import HierarchicalTopKSAE

__all__ = ["CITATION", "model_card", "push_to_hub"]

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
_OURS = (
    f"One {_METHOD} sparse autoencoder for every sparsity budget: its k largest "
    "features reconstruct well for every k up to K."
)
_EXPORTED = (
    f"Made from one {_METHOD} sparse autoencoder, as `{{architecture}}` SAEs of "
    "SAELens, which need no plugin."
)
_TRAINED_ON = {
    "model_name": "language model",
    "hook_name": "hook",
    "dataset_path": "dataset",
    "context_size": "context size",
    "sae_lens_training_version": "SAELens",
}
_TAGS = ["saelens", "sparse-autoencoder", "hierarchical-topk"]
_CARD, _PLOT = "README.md", "pareto.png"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def push_to_hub(
    sae_or_folder: SAE[Any] | str | Path,
    repo_id: str,
    sae_id: str | None = None,
    *,
    metrics: Sequence[BudgetMetrics] | None = None,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload an SAE in one commit; ``SAE.from_pretrained(repo_id, sae_id)`` loads it.

    Its card goes beside it, and to the top of the repository unless something else's
    card stands there. Until the commit the repository stays as it was, whatever
    happens to the connection.

    Args:
        sae_or_folder: A HierarchicalTopK SAE, the folder of one or of an exported one,
            or a folder that ``export_all`` wrote: its SAEs get the ids
            ``{sae_id}/k_8`` and so on.
        repo_id: ``user/name``; it is created where it does not exist.
        sae_id: The SAE's folder in the repository: plain names between slashes.
            Default: the name of the hook that it was trained on.
        metrics: What ``sweep`` measured; the card shows it as a table and a plot.
        license: The license, as the Hub names it: ``mit``.
        private: Whether a repository that is created is private.
        revision: The branch to commit to; default ``main``, where SAELens looks.
        token: The Hub's access token; default the one of ``hf auth login``.

    Returns:
        The commit's address.

    Raises:
        ValueError: If there is no such SAE or ``sae_id`` is no such path. Nothing is
            asked of the Hub then.
        Exception: What ``huggingface_hub`` raises where it cannot upload.
    """
    with TemporaryDirectory() as temporary:
        staging = Path(temporary)
        sae, names = _stage(sae_or_folder, staging)
        root = sae.cfg.metadata.hook_name if sae_id is None else sae_id
        sae_ids = [_join_id(root, name) for name in names]
        plot = None
        if metrics:
            plot = hf_hub_url(repo_id, f"{root}/{_PLOT}", revision=revision)
            figure = draw(overview(MetricsTable(list(metrics))))
            figure.savefig(staging / _PLOT, dpi=150)
        card = model_card(
            sae, repo_id, sae_ids, metrics=metrics, plot=plot, license=license
        )
        (staging / _CARD).write_text(card, encoding="utf-8")

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        additions = [
            CommitOperationAdd(f"{root}/{file.relative_to(staging).as_posix()}", file)
            for file in sorted(staging.rglob("*"))
            if file.is_file()
        ]
        if _top_card_is_ours(api, repo_id, f"{root}/{_CARD}", revision):
            additions.append(CommitOperationAdd(_CARD, staging / _CARD))
        message = f"Upload {root}"
        return api.create_commit(
            repo_id, additions, commit_message=message, revision=revision
        ).commit_url


def model_card(
    sae: SAE[Any],
    repo_id: str,
    sae_ids: Sequence[str],
    *,
    metrics: Sequence[BudgetMetrics] | None = None,
    plot: str | None = None,
    license: str | None = None,
) -> str:
    """Return the Hub's README of an SAE, made from the SAE itself.

    Args:
        sae: A HierarchicalTopK SAE, or one of those exported from one.
        repo_id: The repository.
        sae_ids: Where the SAE, or each exported one, is in the repository.
        metrics: What ``sweep`` measured, for a table.
        plot: The address of a plot of the same.
        license: The license, as the Hub names it: ``mit``.

    Raises:
        ValueError: If ``sae`` is of another kind.
    """
    ours = isinstance(sae, HierarchicalTopKSAE)
    front = ModelCardData(license=license, library_name="saelens", tags=_TAGS)
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {repo_id.split('/')[-1]}",
        _OURS if ours else _EXPORTED.format(architecture=sae.cfg.architecture()),
        _table([("", ""), *_facts(sae)]),
        "## Load",
        _loading_code(repo_id, sae_ids, plugin=ours),
    ]
    if metrics:
        rows = topk_rows(metrics)
        parts += ["## At each k", _table([row[1:] for row in (COLUMNS, *rows)])]
    if plot is not None:
        parts.append(f"![Metrics against k]({plot})")
    parts += ["## Citation", f"```bibtex\n{CITATION}\n```"]
    return "\n\n".join(parts) + "\n"


def _facts(sae: SAE[Any]) -> list[tuple[str, str]]:
    """Return names and values of what the SAE was trained on, and of its sizes.

    Raises:
        ValueError: If it is neither a HierarchicalTopK SAE nor exported from one.
    """
    cfg = sae.cfg
    if isinstance(sae, HierarchicalTopKSAE):
        k_max = sae.k_max
    elif cfg.metadata.exported_from is not None:
        k_max = cfg.metadata.exported_from.get("k_max")
    else:
        raise ValueError(
            "only a HierarchicalTopKSAE and what was exported from one can be pushed, "
            f"got a {type(sae).__name__}"
        )
    facts = {label: cfg.metadata[name] for name, label in _TRAINED_ON.items()} | {
        "K": k_max,
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "dtype": cfg.dtype,
        "normalization": cfg.normalize_activations,
    }
    return [(label, f"`{fact}`") for label, fact in facts.items() if fact is not None]


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its head."""
    # A line break or a bar would end the cell.
    cells = [[" ".join(c.split()).replace("|", "\\|") for c in row] for row in rows]
    head, *body = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def _loading_code(repo_id: str, sae_ids: Sequence[str], *, plugin: bool) -> str:
    lines = ["from sae_lens import SAE", ""]
    lines += [f'sae = SAE.from_pretrained("{repo_id}", "{i}")' for i in sae_ids]
    if plugin:
        lines.insert(0, "import sae_lens_hierarchical  # registers the architecture")
        lines.append("sae.k = 8  # or any other")
    return "\n".join(["```python", *lines, "```"])


def _stage(
    sae_or_folder: SAE[Any] | str | Path, staging: Path
) -> tuple[SAE[Any], list[str]]:
    """Write the SAEs to push into ``staging``, each after it has been loaded.

    So nothing else that lies in a folder is pushed, and nothing that does not load.

    Returns:
        One of the SAEs, and each one's sub-folder of ``staging``, "" for itself.

    Raises:
        ValueError: If there is no SAE, or if one card does not fit all.
    """
    if isinstance(sae_or_folder, SAE):
        sae_or_folder.save_model(staging)
        return sae_or_folder, [""]
    folder = Path(sae_or_folder)
    names = [""]
    if not (folder / SAE_CFG_FILENAME).is_file():
        # A name with a dot in front is what a killed export left.
        names = [cfg.parent.name for cfg in folder.glob(f"[!.]*/{SAE_CFG_FILENAME}")]
        names.sort(key=lambda name: (len(name), name))  # k_8 before k_16
    first = None
    for name in names:
        sae = load_sae(folder / name)
        if first is None:
            first = sae
        if type(sae) is not type(first) or _facts(sae) != _facts(first):
            raise ValueError(
                f"the SAEs in {folder} would share one card, but {names[0]} and {name} "
                "differ in more than k: push them one by one"
            )
        sae.save_model(staging / name)
        _stage_sparsity(folder / name, staging / name)
    if first is None:
        first = load_sae(folder)  # which says that there is none, and where some are
    return first, names


def _stage_sparsity(folder: Path, staging: Path) -> None:
    """Write an SAE's sparsity into ``staging``, read: a link may lead anywhere."""
    if (folder / SPARSITY_FILENAME).is_file():
        try:
            tensors = load_safetensors_weights(folder / SPARSITY_FILENAME)
        except SafetensorError as error:
            raise ValueError(
                f"{folder / SPARSITY_FILENAME} is no whole safetensors file: {error}"
            ) from None
        save_file(tensors, staging / SPARSITY_FILENAME)


def _join_id(root: str | None, name: str) -> str:
    """Return the id of an SAE in the sub-folder ``name`` of ``root``.

    Raises:
        ValueError: If it is not made of plain names between slashes.
    """
    parts = [] if root is None else [*root.split("/"), *filter(None, [name])]
    if not parts or not all(map(_PLAIN_NAME.fullmatch, parts)):
        raise ValueError(
            "sae_id must be a relative path of plain names (letters, digits and _.-, "
            f"no dot in front), got {root!r}{f' with {name!r} in it' if name else ''}"
        )
    return str(PurePosixPath(*parts))


def _top_card_is_ours(
    api: HfApi, repo_id: str, card: str, revision: str | None
) -> bool:
    """Tell whether the repository's README is absent or a copy of ``card``."""
    found = api.get_paths_info(repo_id, [_CARD, card], revision=revision)
    blobs = {file.path: file.blob_id for file in found if isinstance(file, RepoFile)}
    return _CARD not in blobs or blobs[_CARD] == blobs.get(card)
