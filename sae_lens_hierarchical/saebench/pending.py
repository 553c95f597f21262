"""SAEBench's results that are still to be made: which they are, and writing them."""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_lens import SAE, TopKSAE, TrainingSAE
from tqdm.auto import tqdm

from sae_lens_hierarchical.ops.budgets import check_ks
from sae_lens_hierarchical.saebench.extra import general_utils, sae_bench_utils
from sae_lens_hierarchical.saes import HierarchicalTopKSAE

__all__ = ["PendingResult", "pending_results"]


@dataclass(frozen=True)
class PendingResult:
    """A result that is to be made: one eval of one SAE at one k.

    Attributes:
        name: The SAE's name, SAEBench's "release".
        sae_id: Which k it is: ``k_8``, or ``custom_sae`` for an SAE without k.
        path: The result's file.
        sae: The SAE, at this k until the next pending result is asked for.
        sae_cfg: Its configuration at this k.
    """

    name: str
    sae_id: str
    path: Path
    sae: Any
    sae_cfg: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name} at {self.sae_id}"

    @contextmanager
    def atomic_file(self) -> Generator[Path]:
        """Give a file to write, which becomes ``path`` if the block succeeds."""
        # Not a name in which SAEBench sees a result.
        partial = self.path.with_suffix(".partial")
        try:
            yield partial
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)

    def write(
        self,
        output_class: Any,
        config: Any,
        metrics: Any,
        *,
        details: list[Any],
        unstructured: Any,
    ) -> None:
        """Write the result as SAEBench does.

        Args:
            output_class: SAEBench's class of this eval's results.
            config: The eval's settings.
            metrics: The eval's metrics.
            details: A result for each dataset, if the eval has several.
            unstructured: What else the eval found, as JSON.
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
            sae_cfg_dict=self.sae_cfg,
        )
        with self.atomic_file() as partial:
            output.to_json_file(str(partial))


def pending_results(
    folder: Path,
    saes: Mapping[str, SAE[Any]],
    ks: Sequence[int],
    *,
    device: str,
    force: bool,
) -> Iterator[PendingResult]:
    """Yield the results that a folder lacks, each with its SAE set to its k.

    Args:
        folder: The results of one eval.
        saes: SAEs by name, which stay as they are.
        ks: Numbers of features.
        device: Where to put the SAEs.
        force: Whether to yield results that are there, too.

    Raises:
        ValueError: If ``ks`` does not fit an SAE, or one is a training SAE.
    """
    for name, sae in saes.items():
        check_ks("ks", ks, sae.cfg.d_sae)
        if isinstance(sae, TrainingSAE):
            raise ValueError(f"{name} is a training SAE: save it and load it")
    folder.mkdir(parents=True, exist_ok=True)
    for name, original in saes.items():
        # SAEBench writes into the SAE's metadata.
        sae = copy.deepcopy(original).to(device)
        # It wants decoder rows of norm 1. Where a TopK SAE cannot have them without
        # becoming another one, it warns.
        with suppress(NotImplementedError):
            sae.fold_W_dec_norm()
        custom_id, *_ = general_utils.load_and_format_sae(name, sae, device)
        for k in ks if isinstance(sae, TopKSAE) else [None]:
            sae_id = custom_id if k is None else f"k_{k}"
            path = Path(general_utils.get_results_filepath(str(folder), name, sae_id))
            if path.exists() and not force:
                tqdm.write(f"{path} is there already: not made again")
                continue
            if k is not None:
                _set_k(sae, k)
            yield PendingResult(name, sae_id, path, sae, sae.cfg.to_dict())


def _set_k(sae: Any, k: int) -> None:
    if isinstance(sae, HierarchicalTopKSAE):
        sae.k = k
    else:
        sae.cfg.k = k
        sae.activation_fn = sae.get_activation_fn()
