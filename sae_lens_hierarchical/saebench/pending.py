"""SAEBench's results that are still to be made: which they are, and writing them."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from sae_lens import SAE, TopKSAE, TrainingSAE
from tqdm.auto import tqdm

from sae_lens_hierarchical.ops.budgets import check_ks
from sae_lens_hierarchical.saebench.extra import general_utils, sae_bench_utils
from sae_lens_hierarchical.saebench.inputs import NOTE, sae_sha256, what_differs
from sae_lens_hierarchical.saes import HierarchicalTopKSAE

__all__ = [
    "PendingResult",
    "each_with_its_sae",
    "pending_results",
    "prepared_sae",
    "set_k",
]

_WITHOUT_K = "custom_sae"  # SAEBench's id of an SAE that was given as an object


@dataclass(frozen=True)
class PendingResult:
    """A result that is to be made: one eval of one SAE at one k.

    Attributes:
        name: The SAE's name, SAEBench's "release".
        k: The number of features; None for an SAE without k.
        path: The result's file.
        note: The checksums of what it is made from, which its file will hold.
    """

    name: str
    k: int | None
    path: Path
    note: dict[str, str]

    def __str__(self) -> str:
        return self.name if self.k is None else f"{self.name} at k = {self.k}"

    @property
    def sae_id(self) -> str:
        """Which k it is, as SAEBench's files say it."""
        return _sae_id(self.k)

    @contextmanager
    def atomic_file(self, **note: str) -> Generator[Path]:
        """Give a file to write, which becomes ``path`` if the block succeeds.

        Args:
            note: Checksums that were not known before.
        """
        # Not a name in which SAEBench sees a result.
        partial = self.path.with_suffix(".partial")
        try:
            yield partial
            content = json.loads(partial.read_text(encoding="utf-8"))
            content[NOTE] = self.note | note
            partial.write_text(json.dumps(content, indent=2), encoding="utf-8")
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)

    def write(
        self,
        output_class: Any,
        config: Any,
        metrics: Any,
        *,
        sae_cfg: dict[str, Any],
        details: list[Any],
        unstructured: Any,
        **note: str,
    ) -> None:
        """Write the result as SAEBench does.

        Args:
            output_class: SAEBench's class of this eval's results.
            config: The eval's settings.
            metrics: The eval's metrics.
            sae_cfg: The SAE's configuration at this k.
            details: A result for each dataset, if the eval has several.
            unstructured: What else the eval found, as JSON.
            note: Checksums that were not known before.
        """
        output = output_class(
            eval_config=config,
            eval_id=sae_bench_utils.get_eval_uuid(),
            datetime_epoch_millis=time.time_ns() // 1_000_000,
            eval_result_metrics=metrics,
            eval_result_details=details,
            eval_result_unstructured=unstructured,
            sae_bench_commit_hash=version("sae-bench"),
            sae_lens_id=self.sae_id,
            sae_lens_release_id=self.name,
            sae_lens_version=version("sae-lens"),
            sae_cfg_dict=sae_cfg,
        )
        with self.atomic_file(**note) as partial:
            output.to_json_file(str(partial))


def pending_results(
    folder: Path,
    saes: Mapping[str, SAE[Any]],
    ks: Sequence[int],
    config: Any,
    note: Mapping[str, str],
    *,
    force: bool,
) -> list[PendingResult]:
    """Return the results that a folder lacks, SAE by SAE.

    A line says of each result that is there why it is taken as done, or made again: it
    is one of other weights, data or settings.

    Args:
        folder: The results of one eval.
        saes: SAEs by name.
        ks: Numbers of features.
        config: SAEBench's config of the eval.
        note: The checksums of what results are made from besides the SAE.
        force: Whether to make results again that are there.

    Raises:
        ValueError: If ``ks`` does not fit an SAE, one is a training SAE, or the results
            of two would have one name.
    """
    for name, sae in saes.items():
        check_ks("ks", ks, sae.cfg.d_sae)
        if isinstance(sae, TrainingSAE):
            raise ValueError(f"{name} is a training SAE: save it and load it")
    results = []
    for name, sae in saes.items():
        of_sae = {"SAE": sae_sha256(sae), **note}
        for k in ks if isinstance(sae, TopKSAE) else [None]:
            file = general_utils.get_results_filepath(str(folder), name, _sae_id(k))
            results.append(PendingResult(name, k, Path(file), of_sae))
    names = {result.path: result.name for result in results}
    if clash := sorted({r.name for r in results if names[r.path] != r.name}):
        raise ValueError(
            f"the results of {', '.join(clash)} would have the file names of another "
            "SAE's: SAEBench writes / as _"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return [result for result in results if _is_to_be_made(result, config, force)]


def each_with_its_sae(
    results: Sequence[PendingResult], saes: Mapping[str, SAE[Any]], device: str
) -> Iterator[tuple[PendingResult, Any]]:
    """Yield each result with a copy of its SAE, which is at its k until the next one.

    One copy at a time is on the device.

    Args:
        results: Those of an SAE stand together.
        saes: SAEs by name, which stay as they are.
        device: Where to put the copies.
    """
    for name, of_sae in groupby(results, key=attrgetter("name")):
        with prepared_sae(name, saes, device) as sae:
            for result in of_sae:
                set_k(sae, result.k)
                yield result, sae


@contextmanager
def prepared_sae(
    name: str, saes: Mapping[str, SAE[Any]], device: str
) -> Generator[Any]:
    """Give a copy of an SAE as SAEBench wants it, whose weights go after the block."""
    # SAEBench writes into the SAE's metadata.
    sae = copy.deepcopy(saes[name]).to(device)
    if isinstance(sae, HierarchicalTopKSAE):
        # All evals are of the k largest features, also where it was saved as JumpReLU.
        sae.activation = "topk"
    # It wants decoder rows of norm 1. Where a TopK SAE cannot have them without
    # becoming another one, it warns.
    with suppress(NotImplementedError):
        sae.fold_W_dec_norm()
    general_utils.load_and_format_sae(name, sae, device)
    try:
        yield sae
    finally:
        # Whoever still has the SAE does not keep the device's memory.
        sae.to("meta")


def set_k(sae: Any, k: int | None) -> None:
    """Let a TopK SAE be of another k; None leaves it as it is."""
    if k is None:
        return
    if isinstance(sae, HierarchicalTopKSAE):
        sae.k = k
    else:
        sae.cfg.k = k
        sae.activation_fn = sae.get_activation_fn()


def _sae_id(k: int | None) -> str:
    return _WITHOUT_K if k is None else f"k_{k}"


def _is_to_be_made(result: PendingResult, config: Any, force: bool) -> bool:
    if not result.path.exists():
        return True
    if force:
        tqdm.write(f"{result.path} is there and is made again, as it is asked for")
        return True
    if differences := what_differs(result.path, result.note, config):
        tqdm.write(
            f"{result.path} is there and is made again: {'; '.join(differences)}"
        )
        return True
    tqdm.write(
        f"{result.path} is there already, of the same SAE, data and settings: "
        "taken as done"
    )
    return False
