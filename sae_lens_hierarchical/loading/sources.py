"""Where SAEs lie: in folders, on the Hugging Face Hub, in the releases of SAELens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATION_WHITENING_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
)
from sae_lens.loading.pretrained_saes_directory import (
    get_pretrained_saes_directory,
    get_releases_for_repo_id,
    get_repo_id_and_folder_name,
)

from sae_lens_hierarchical.spelling import did_you_mean

__all__ = ["SAESource", "find_sae", "find_saes"]

_FORMS = (
    "an SAE is a folder; user/repo or user/repo:folder on the Hugging Face Hub; or "
    "release:sae_id of SAELens"
)
_REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_LISTED = 10


@dataclass(frozen=True)
class SAESource:
    """Where an SAE was found.

    Attributes:
        id: The folder's path, ``user/repo:folder`` or ``release:sae_id``.
        place: The folder on this machine with its files, or a release and an id in it,
            which SAELens loads.
        repo_id: The repository on the Hub that they are from; None of a folder.
        commit: The commit of it; None where it is not known beforehand.
    """

    id: str
    place: Path | tuple[str, str]
    repo_id: str | None = None
    commit: str | None = None

    @property
    def name(self) -> str:
        """What to call the SAE: its folder's name, or its id."""
        return Path(self.id).resolve().name if self.repo_id is None else self.id

    def provenance(self) -> dict[str, str]:
        """Return where it lies, and which commit it is of as far as that is known."""
        if self.repo_id is None:
            return {"path": str(Path(self.id).resolve())}
        found = {"id": self.id, "repo_id": self.repo_id}
        revision = self.commit or _cached_commit(self.repo_id)
        return found if revision is None else found | {"revision": revision}


def find_saes(sources: Sequence[str | Path]) -> dict[str, SAESource]:
    """Find SAEs that are to be compared, by name; those of the Hub are downloaded.

    Args:
        sources: As ``find_sae`` takes them; with ``NAME=`` in front a string says what
            to call the SAE. Others are called by their folders' names, or by paths
            where names clash, and by their ids.

    Raises:
        ValueError: If one is not found, or several have one name.
    """
    named = [_split_name(source) for source in sources]
    found = [find_sae(source) for _, source in named]
    names = [name or one.name for (name, _), one in zip(named, found, strict=True)]
    if len({*names}) < len(names):
        names = [name or one.id for (name, _), one in zip(named, found, strict=True)]
    if len({*names}) < len(names):
        raise ValueError(
            "SAEs need different names, which NAME= in front of one gives, got "
            f"{', '.join(names)}"
        )
    return dict(zip(names, found, strict=True))


def find_sae(source: str | Path) -> SAESource:
    """Find an SAE; one on the Hub is downloaded, as the data that it is.

    Args:
        source: A folder; or, as a string, ``user/repo`` or ``user/repo:folder`` on the
            Hub, or ``release:sae_id``, of a release that SAELens knows. A folder that
            exists is taken before anything else of that spelling. A repository's
            folder may be left out if it has one SAE.

    Raises:
        ValueError: If there is no such SAE, or the repository has several, naming them.
    """
    if not isinstance(source, str) or (source and Path(source).exists()):
        folder = Path(source)
        if not (folder / SAE_CFG_FILENAME).exists():
            raise ValueError(_no_sae(folder))
        return SAESource(str(folder), folder)
    where, colon, inside = source.partition(":")
    if _REPO_ID.fullmatch(where):
        return _on_hub(source, where, inside.strip("/"))
    if colon and "/" not in where:
        return _in_release(source, where, inside)
    raise ValueError(f"{_no_sae(Path(source))}; {_FORMS}" if source else _FORMS)


def _split_name(source: str | Path) -> tuple[str | None, str | Path]:
    if not isinstance(source, str) or Path(source).exists():
        return None, source
    name, equals, rest = source.partition("=")
    # A path may have an equals sign, too: runs/lr=0.001.
    return (name, rest) if equals and re.fullmatch(r"[^/:]+", name) else (None, source)


def _no_sae(folder: Path) -> str:
    """Return the error message for a folder without an SAE: it names those close by."""
    near = folder if folder.is_dir() else folder.parent
    cfgs = [c for n in range(4) for c in near.glob("[!.]*/" * n + SAE_CFG_FILENAME)]
    found = sorted(str(cfg.parent) for cfg in cfgs)
    message = f"there is no SAE in {folder}"
    if not folder.exists():
        message += ", which does not exist"
    return f"{message}; SAEs in {near}: {_list(found)}" if found else message


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _on_hub(source: str, repo_id: str, inside: str) -> SAESource:
    if ".." in PurePosixPath(inside).parts:
        raise ValueError(f"{source}: a repository's folder cannot have '..' in it")
    try:
        try:
            cfg = _download(repo_id, _join(inside, SAE_CFG_FILENAME))
        except LocalEntryNotFoundError:  # the Hub does not answer
            raise
        except EntryNotFoundError:
            inside = _only_sae(source, repo_id, inside)
            cfg = _download(repo_id, _join(inside, SAE_CFG_FILENAME))
        folder = cfg.parent
        # .../snapshots/COMMIT/folder/cfg.json
        commit = cfg.parents[len(PurePosixPath(inside).parts)].name
        _download(repo_id, _join(inside, SAE_WEIGHTS_FILENAME), commit)
        for name in (ACTIVATION_SCALER_CFG_FILENAME, ACTIVATION_WHITENING_FILENAME):
            with suppress(EntryNotFoundError):  # where it is needed, loading says so
                _download(repo_id, _join(inside, name), commit)
    except ValueError:
        raise
    # The Hub's client raises errors of its own and of two libraries for the network.
    except Exception as error:
        raise ValueError(
            f"{_no_sae(Path(source))}; nor can one be had from the Hub: "
            f"{' '.join(str(error).split())}; {_FORMS}"
        ) from error
    found = f"{repo_id}:{inside}" if inside else repo_id
    return SAESource(found, folder, repo_id, commit)


def _download(repo_id: str, filename: str, commit: str | None = None) -> Path:
    return Path(hf_hub_download(repo_id, filename, revision=commit))


def _join(folder: str, name: str) -> str:
    return str(PurePosixPath(folder, name))


def _only_sae(source: str, repo_id: str, inside: str) -> str:
    """Return the one folder of a repository that has an SAE."""
    files = {PurePosixPath(file) for file in HfApi().list_repo_files(repo_id)}
    saes = sorted(
        str(file.parent)
        for file in files
        if file.name == SAE_CFG_FILENAME
        and file.with_name(SAE_WEIGHTS_FILENAME) in files
    )
    if len(saes) == 1 and not inside:
        return saes[0]
    has = _list([f"{repo_id}:{sae}" for sae in saes]) or "none that SAELens saved"
    if releases := get_releases_for_repo_id(repo_id):
        has += f"; SAELens has some of it as {_list([f'{r}:sae_id' for r in releases])}"
    what = "in that folder" if inside else "at its top"
    raise ValueError(f"{source}: the Hub's repository has no SAE {what}; SAEs: {has}")


def _in_release(source: str, release: str, sae_id: str) -> SAESource:
    releases = get_pretrained_saes_directory()
    if release not in releases:
        raise ValueError(
            f"{_no_sae(Path(source))}; nor does SAELens know a release "
            f"{release!r}{did_you_mean(release, releases)}; {_FORMS}"
        )
    sae_ids = releases[release].saes_map
    if sae_id not in sae_ids:
        hint = did_you_mean(sae_id, sae_ids) or f": it has {_list([*sae_ids])}"
        raise ValueError(f"SAELens's release {release} has no SAE {sae_id!r}{hint}")
    repo_id, _ = get_repo_id_and_folder_name(release, sae_id)
    return SAESource(source, (release, sae_id), repo_id)


def _cached_commit(repo_id: str) -> str | None:
    """Return the commit of a repository's main branch that was downloaded last."""
    cache = Path(constants.HF_HUB_CACHE)
    folder = cache / repo_folder_name(repo_id=repo_id, repo_type="model")
    try:
        return (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
