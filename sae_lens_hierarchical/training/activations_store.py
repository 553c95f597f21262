"""SAELens's activation store, able to go on exactly where a checkpoint left it."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from sae_lens import ActivationsStore, logger
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from sae_lens.training.prefetch import PrefetchingIterator
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import Self, override

from sae_lens_hierarchical.training.norm_limit import NormLimit, warn_of_outliers

__all__ = [
    "MixingBuffer",
    "ResumableActivationsStore",
    "TrackedPrefetch",
    "reject_empty_dataset",
    "store_state_file",
]


def store_state_file(rank: int) -> str:
    """Return the file in a checkpoint of the store of process ``rank``."""
    name = Path(ACTIVATIONS_STORE_STATE_FILENAME)
    return f"{name.stem}.{rank}{name.suffix}" if rank else name.name


class MixingBuffer(Iterator[Tensor]):
    """SAELens's ``mixing_buffer``, batch for batch, whose contents can be saved.

    Args:
        buffer_size: Activations held before a part of them is served.
        batch_size: Activations in a batch, at most ``buffer_size``.
        source: Yields activations, [n, d_in].
        mix_fraction: The part of the buffer kept for mixing with what comes next.
    """

    def __init__(
        self,
        buffer_size: int,
        batch_size: int,
        source: Iterator[Tensor],
        mix_fraction: float,
    ) -> None:
        if buffer_size < batch_size:
            raise ValueError(
                "train_batch_size_tokens must be at most n_batches_in_buffer * "
                f"context_size = {buffer_size}, got {batch_size}"
            )
        if not 0 <= mix_fraction <= 1:
            raise ValueError(
                "activations_mixing_fraction must lie between 0 and 1, "
                f"got {mix_fraction}"
            )
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.source = source
        self.mix_fraction = mix_fraction
        self.stored: Tensor | None = None
        self.serving: Tensor | None = None

    @override
    def __next__(self) -> Tensor:
        while self.serving is None or len(self.serving) == 0:
            self.refill()
        batch = self.serving[: self.batch_size]
        self.serving = self.serving[self.batch_size :]
        return batch

    def refill(self) -> None:
        """Take activations from the source, and serve some if there are enough."""
        new = next(self.source)
        stored = new if self.stored is None else torch.cat([self.stored, new])
        if len(stored) >= self.buffer_size:
            if self.mix_fraction > 0:
                stored = stored[torch.randperm(len(stored))]
            surplus = len(stored) - int(self.buffer_size * self.mix_fraction)
            served = max(1, surplus // self.batch_size) * self.batch_size
            self.serving, stored = stored[:served], stored[served:]
        self.stored = stored


class ResumableActivationsStore(ActivationsStore):
    """An ``ActivationsStore`` whose state holds all that the next batches depend on.

    That is the place in the dataset (or in the cached activations), the mixing buffer,
    batches made but not yet consumed, the limit on norms, and torch's CPU random state.
    SAELens's own state holds the number of documents alone. With several hooks the
    buffer holds their activations side by side, as SAELens's does.
    """

    # Batches that a prefetching thread made and training has not consumed.
    prefetched: deque[Tensor]
    n_sequences: int
    # Leaves tokens out, where the run has max_norm_ratio.
    norm_limit: NormLimit | None
    _buffer: MixingBuffer | None
    _last_sequence: Tensor | None = None
    # Of how many processes this is the store of one, and of which.
    n_processes = 1
    rank = 0
    # Whether there were activations to train on since the dataset last began.
    _epoch_had_activations = False
    _epochs_without = 0

    @classmethod
    def convert(
        cls, store: ActivationsStore, max_norm_ratio: float | None = None
    ) -> Self:
        """Turn a store of SAELens that has served nothing yet into a resumable one.

        SAELens's runners name their store's class, and leave no place to change it.

        Args:
            store: SAELens's.
            max_norm_ratio: As in ``LanguageModelSAERunnerConfig``.

        Raises:
            ValueError: If its dataset has not one full context, or ``max_norm_ratio``
                does not fit.
        """
        store.__class__ = cls
        converted = cast("Self", store)
        converted.prefetched = deque()
        converted.n_sequences = 0
        converted._buffer = None
        converted.norm_limit = None
        if max_norm_ratio is not None:
            converted.norm_limit = NormLimit(max_norm_ratio, converted._widths())
        if converted.cached_activation_dataset is None:
            next(converted._iterate_tokenized_sequences())
            converted.n_sequences = converted.n_dataset_processed = 0
            converted._last_sequence = None
            converted.iterable_sequences = converted._iterate_tokenized_sequences()
        return converted

    @override
    def _iterate_tokenized_sequences(self) -> Generator[Tensor, None, None]:
        before = self.n_sequences
        for sequence in super()._iterate_tokenized_sequences():
            self.n_sequences += 1
            self._last_sequence = sequence
            yield sequence
        if self.n_sequences == before:  # and would be again, without end
            raise ValueError(
                "the dataset must have at least one context of context_size="
                f"{self.context_size} tokens, but there is none in its "
                f"{self.n_dataset_processed} documents"
            )
        self._epochs_without += 1
        if self._epoch_had_activations:
            self._epoch_had_activations, self._epochs_without = False, 0
        # As many epochs as a batch of contexts may take to fill, and one more.
        if self._epochs_without > self.store_batch_size_prompts + 1:
            raise ValueError(
                "the dataset must have tokens that exclude_special_tokens and "
                "seqpos_slice leave to train on, but has none"
            )

    @property
    def buffer(self) -> MixingBuffer:
        """The mixing buffer, which serves what ``split_by_hook`` takes apart."""
        if self._buffer is None:
            self._buffer = MixingBuffer(
                buffer_size=self.n_batches_in_buffer * self.training_context_size,
                batch_size=self.train_batch_size_tokens,
                source=self._iterate_kept_activations(),
                mix_fraction=self.activations_mixing_fraction,
            )
        return self._buffer

    def split_by_hook(self, batch: Tensor) -> Any:
        """Return a batch as it is trained on: by hook's name, where there are several.

        Args:
            batch: One of ``buffer``, [n, d_in], with the hooks' activations side by
                side.
        """
        if self._hook_names is None:
            return batch
        widths = self._widths()
        parts = batch.split([*widths.values()], dim=1)
        return dict(zip(widths, parts, strict=True))

    def max_norms(self) -> dict[str, float]:
        """Return the largest norm of a token that is trained on, by hook's name.

        It is estimated now if it is not known yet; empty without ``max_norm_ratio``.
        """
        if self.norm_limit is None:
            return {}
        if self.norm_limit.medians is None:
            self.buffer.refill()
        return self.norm_limit.limits()

    def report_outliers(self) -> None:
        """Log how many tokens ``max_norm_ratio`` left out, where there is one."""
        if self.norm_limit is not None:
            logger.warning(self.norm_limit.summary())

    def _widths(self) -> dict[str, int]:
        if self._hook_names is None or self._hook_d_ins is None:
            return {self.hook_name: self.d_in}
        return {name: self._hook_d_ins[name] for name in self._hook_names}

    def _iterate_kept_activations(self) -> Iterator[Tensor]:
        packed = self._iterate_packed_activations()
        if self.norm_limit is None:
            return warn_of_outliers(packed, self._widths())
        return self.norm_limit.apply(packed)

    def _iterate_packed_activations(self) -> Iterator[Tensor]:
        names = self._hook_names
        for batch in (
            self._iterate_filtered_activations()
            if names is None
            else self._iterate_filtered_multi_hook_activations()
        ):
            packed = (
                batch
                if isinstance(batch, Tensor)
                else torch.cat([batch[n] for n in names or ()], dim=1)
            )
            self._epoch_had_activations |= len(packed) > 0
            yield packed

    @override
    def get_data_loader(self) -> MixingBuffer:
        return self.buffer

    @override
    def get_multi_hook_data_loader(self) -> Iterator[dict[str, Tensor]]:
        return map(self.split_by_hook, self.buffer)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        state = {
            **super().state_dict(),
            "n_sequences": torch.tensor(self.n_sequences),
            "rng_state": torch.get_rng_state(),
            "n_processes": torch.tensor(self.n_processes),
        }
        if self.norm_limit is not None:
            state |= self.norm_limit.state_dict()
        if self._last_sequence is not None:
            state["last_sequence"] = self._last_sequence.contiguous()
        if self.cached_activation_dataset is not None:
            state["current_row_idx"] = torch.tensor(self.current_row_idx)
        if self._buffer is not None:
            if self._buffer.stored is not None:
                state["stored"] = self._buffer.stored.contiguous()
            unserved = [*self.prefetched]
            if self._buffer.serving is not None:
                unserved.append(self._buffer.serving)
            if unserved:
                state["serving"] = torch.cat(unserved)
        return state

    @override
    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        first = Path(checkpoint_path, store_state_file(0))
        with safe_open(first, framework="pt") as state:
            known = "n_processes" in state.keys()  # noqa: SIM118 - it is no dict
            processes = int(state.get_tensor("n_processes")) if known else 1
        # Of another number of processes each takes what process 0 had.
        rank = self.rank if processes == self.n_processes else 0
        self.load(str(first.with_name(store_state_file(rank))))

    @override
    def load(self, file_path: str) -> None:
        state = load_file(file_path)
        if "n_sequences" not in state:
            if self.n_processes > 1:
                raise ValueError(
                    f"{file_path} was written by SAELens's own runner, whose place in "
                    "the dataset several processes cannot find: go on with one process"
                )
            logger.warning(
                "This checkpoint was written by SAELens's own runner: training goes on "
                "near the place it had reached in the text, not exactly there."
            )
            super().load(file_path)
            return
        processes = int(state.get("n_processes", 1))
        if processes != self.n_processes:
            logger.warning(
                f"This checkpoint was written by {processes} processes, and there are "
                f"{self.n_processes} now: weights and optimizer are exactly those, but "
                "training goes on near the place reached in the dataset, not exactly "
                "there, and without the activations that waited in buffers."
            )
            self._skip_sequences(
                int(state["n_sequences"]) * processes // self.n_processes
            )
            return
        self._skip_sequences(int(state["n_sequences"]))
        last = state.get("last_sequence")
        here = self._last_sequence
        if last is not None and here is not None and not torch.equal(last, here.cpu()):
            raise ValueError(
                "the dataset must be the one that the run was trained on, but its "
                f"context number {self.n_sequences} is another one"
            )
        if "current_row_idx" in state:
            self.current_row_idx = int(state["current_row_idx"])
        if self.norm_limit is not None:
            self.norm_limit.load_state_dict(state)
        for name in ("stored", "serving"):
            if name in state:
                setattr(self.buffer, name, state[name].to(self.device))
        torch.set_rng_state(state["rng_state"])

    def _skip_sequences(self, target: int) -> None:
        missing = target - self.n_sequences
        with tqdm(total=missing, desc="Going on in the text", leave=False) as bar:
            while self.n_sequences < target:
                self._epoch_had_activations = True  # when they were trained on
                try:
                    next(self.iterable_sequences)
                except StopIteration:
                    self.iterable_sequences = self._iterate_tokenized_sequences()
                else:
                    bar.update()


class TrackedPrefetch(PrefetchingIterator[Any]):
    """Prefetching that records which batches have not been trained on yet."""

    def __init__(self, store: ResumableActivationsStore, prefetch: int) -> None:
        self._store = store
        # Threads begin with the first GPU, which may be another process's.
        self._gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        super().__init__(self._produce(), prefetch)

    def _produce(self) -> Iterator[Tensor]:
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)
        for batch in self._store.buffer:
            self._store.prefetched.append(batch)
            yield batch

    @override
    def __next__(self) -> Any:
        batch = super().__next__()
        self._store.prefetched.popleft()
        return self._store.split_by_hook(batch)


@contextmanager
def reject_empty_dataset(dataset: object, dataset_path: str) -> Generator[None]:
    """Refuse a dataset without documents, before or while SAELens opens it.

    SAELens would take another one, or end in StopIteration.

    Args:
        dataset: The dataset itself; None if it is read from ``dataset_path``.
        dataset_path: The one that the config names.

    Raises:
        ValueError: If it has none.
    """
    try:
        if isinstance(dataset, Sized) and len(dataset) == 0:
            raise StopIteration
        yield
    except StopIteration:
        which = dataset_path if dataset is None else dataset
        raise ValueError(
            f"the dataset must have at least one document, got none in {which!r}"
        ) from None
