"""Uploads SAEs with their model card, in one commit."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - of its HTTP library
)
from huggingface_hub.hf_api import RepoFile
from sae_lens import SAE

from sae_lens_hierarchical.eval.table import MetricsTable
from sae_lens_hierarchical.files.atomic_directory import MANIFEST_FILENAME, SAE_FILES
from sae_lens_hierarchical.hub.card import model_card
from sae_lens_hierarchical.hub.metrics import choose_sae, fitting_rows
from sae_lens_hierarchical.hub.plot import write_plot
from sae_lens_hierarchical.hub.staging import stage

__all__ = ["push_to_hub"]

_CARD, _PLOT = "README.md", "metrics.png"
_SAE_FILES = SAE_FILES - {MANIFEST_FILENAME}  # a name that may be anybody's
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def push_to_hub(
    sae_or_folder: SAE[Any] | str | Path,
    repo_id: str,
    sae_id: str | None = None,
    *,
    metrics: MetricsTable | None = None,
    metrics_sae: str | None = None,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload an SAE in one commit; ``SAE.from_pretrained(repo_id, sae_id)`` loads it.

    Its card goes beside it, and to the top of the repository unless something else's
    card stands there. Files that an SAE there had before go; others stay. Until the
    commit the repository stays as it was, whatever happens to the connection.

    Args:
        sae_or_folder: Any SAE of SAELens or its folder, or a folder that ``export_all``
            wrote: its SAEs get the ids ``{sae_id}/k_8`` and so on.
        repo_id: ``user/name``; it is created where it does not exist.
        sae_id: The SAE's folder in the repository: plain names between slashes.
            Default: the name of the hook that it was trained on.
        metrics: A table of metrics with the SAE in it, or with the HierarchicalTopK SAE
            that it was exported from; the card shows its rows.
        metrics_sae: The SAE's name in the table; default the only one, or else the only
            HierarchicalTopK one.
        license: The license, as the Hub names it: ``mit``.
        private: Whether a repository that is created is private.
        revision: The branch to commit to; default ``main``, where SAELens looks.
        token: The Hub's access token; default the one of ``hf auth login``.

    Returns:
        The commit's address.

    Raises:
        ValueError: If there is no such SAE, ``sae_id`` is no such path, or the table
            has no rows of the SAE. Nothing is asked of the Hub then.
        OSError: If the Hub refuses, or cannot be reached.
    """
    if metrics is not None:
        metrics_sae = choose_sae(metrics, metrics_sae)
    elif metrics_sae is not None:
        raise ValueError(
            "--sae (in Python: metrics_sae) is an SAE's name in a table of metrics: "
            f"give --metrics too, got {metrics_sae!r}"
        )
    with TemporaryDirectory() as temporary:
        staging = Path(temporary)
        staged = stage(sae_or_folder, staging)
        sae = staged.sae
        root = sae.cfg.metadata.hook_name if sae_id is None else sae_id
        sae_ids = [_join_id(root, name) for name in staged.names]
        plot = None
        if metrics is not None and metrics_sae is not None:
            metrics = fitting_rows(metrics, metrics_sae, staged)
            if write_plot(staging / _PLOT, metrics):
                plot = _PLOT
        card = model_card(
            sae, repo_id, sae_ids, metrics=metrics, plot=plot, license=license
        )
        (staging / _CARD).write_text(card, encoding="utf-8")

        api = HfApi(token=token)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(f"{root}/{file.relative_to(staging).as_posix()}", file)
            for file in sorted(staging.rglob("*"))
            if file.is_file()
        ]
        # What an SAE that was there before had must not pass for this one's.
        own = {f"{sae_id}/{name}" for sae_id in sae_ids for name in _SAE_FILES}
        own.add(f"{root}/{_PLOT}")
        stale = own - {operation.path_in_repo for operation in operations}
        with _one_error(api.endpoint):
            api.create_repo(repo_id, private=private, exist_ok=True)
            if _top_card_is_ours(api, repo_id, str(root), revision):
                top = _at_top(card, str(root)).encode()
                operations.append(CommitOperationAdd(_CARD, top))
            there = _there(api, repo_id, sorted(stale), revision)
            operations += map(CommitOperationDelete, sorted(there))
            message = f"Upload {root}"
            return api.create_commit(
                repo_id, operations, commit_message=message, revision=revision
            ).commit_url


@contextmanager
def _one_error(endpoint: str) -> Generator[None]:
    """Make an OSError of what goes wrong with a connection or a file's upload."""
    try:
        yield
    except (HTTPError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):  # a refusal, which says why
            raise cause from None
        if not isinstance(cause, HTTPError):
            raise
        raise ConnectionError(
            f"the Hub ({endpoint}) cannot be reached: {str(cause) or repr(cause)}. Try "
            "again: a push is there as a whole or not at all"
        ) from error


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


def _there(
    api: HfApi, repo_id: str, paths: list[str], revision: str | None
) -> set[str]:
    """Return which of these files are in the repository."""
    found = api.get_paths_info(repo_id, paths, revision=revision)
    return {file.path for file in found if isinstance(file, RepoFile)}


def _at_top(card: str, root: str) -> str:
    """Return the card beside an SAE as it is at the top: the plot is further down."""
    return card.replace(f"]({_PLOT})", f"]({root}/{_PLOT})")


def _top_card_is_ours(
    api: HfApi, repo_id: str, root: str, revision: str | None
) -> bool:
    """Tell whether the repository's README is absent, or the one beside the SAE."""
    paths = [_CARD, f"{root}/{_CARD}"]
    there = _there(api, repo_id, paths, revision)
    if _CARD not in there or len(there) < len(paths):
        return _CARD not in there
    with TemporaryDirectory() as folder:
        top, beside = (
            Path(
                api.hf_hub_download(repo_id, path, revision=revision, local_dir=folder)
            ).read_text(encoding="utf-8")
            for path in paths
        )
    return top == _at_top(beside, root)
