"""A run's metrics on disk, for those who do without Weights & Biases."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import Self

from sae_lens_hierarchical.defaults import LOG_TO, METRICS_CSV

__all__ = ["MetricsLog", "check_can_log", "check_log_to", "logs_in", "open_metrics_log"]

_TENSORBOARD_FOLDER = "tensorboard"


def check_log_to(log_to: Sequence[str]) -> list[str]:
    """Return where metrics go, each place once.

    Raises:
        ValueError: If one is not in ``LOG_TO``.
    """
    if isinstance(log_to, str) or any(name not in LOG_TO for name in log_to):
        raise ValueError(f"log_to must be a list of some of {LOG_TO}, got {log_to!r}")
    return [*dict.fromkeys(log_to)]


def check_can_log(cfg: Any) -> None:
    """Raise before the run if its metrics could not be written where ``log_to`` says.

    Raises:
        ValueError: If the run has no folder.
        ImportError: If TensorBoard is not installed.
    """
    log_to = getattr(cfg, "log_to", ())
    if log_to and _folder(cfg) is None:
        raise ValueError("log_to needs output_path, for the folder of the metrics")
    if "tensorboard" in log_to and importlib.util.find_spec("tensorboard") is None:
        raise ImportError(
            "log_to has tensorboard, which is not installed: pip install tensorboard"
        )


class MetricsLog:
    """Where a run's metrics go, as scalars by name.

    Args:
        writers: None where another process writes.
    """

    def __init__(self, writers: Sequence[_Writer] = ()) -> None:
        self._writers = writers

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step, which are on disk when this returns."""
        for writer in self._writers:
            writer.write(step, metrics)


@contextmanager
def open_metrics_log(cfg: Any, step: int) -> Generator[MetricsLog | None]:
    """Yield the log that a run's config asks for; None if it asks for none.

    Args:
        cfg: The run's, for one SAE or several.
        step: The one that comes next. What a log holds from there on is of a run that
            was killed, and is replaced; what is before it stays if this is not 0.
    """
    folder, log_to = _folder(cfg), getattr(cfg, "log_to", ())
    if not log_to or folder is None:
        yield None
        return
    with ExitStack() as stack:
        opened = [stack.enter_context(_WRITERS[name](folder, step)) for name in log_to]
        yield MetricsLog(opened)


def logs_in(folder: str | Path | None) -> list[Path]:
    """Return the files of metrics that runs have written to an ``output_path``."""
    if folder is None:
        return []
    table = Path(folder) / METRICS_CSV
    return [*([table] if table.is_file() else []), *_event_files(Path(folder))]


def _event_files(folder: Path) -> list[Path]:
    return sorted((folder / _TENSORBOARD_FOLDER).glob("events.out.tfevents.*"))


class _Writer(Protocol):
    def __init__(self, folder: Path, step: int) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...


class _CSV:
    """A table with a row a step; a column that comes later is empty above."""

    def __init__(self, folder: Path, step: int) -> None:
        self._path, self._names, kept = folder / METRICS_CSV, ["step"], []
        if step and self._path.is_file():
            with self._path.open(newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)
                # A row that was cut off has no value in some column.
                whole = [row for row in rows if None not in row.values()]
                self._names = [*(rows.fieldnames or self._names)]
            kept = [row for row in whole if int(row["step"]) < step]
        self._start(kept)

    def _start(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the table anew, under another name until it is complete."""
        partial = self._path.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._names)
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(self._path)
        self._file = self._path.open("a", newline="", encoding="utf-8")
        self._rows = csv.DictWriter(self._file, self._names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        new = [name for name in metrics if name not in self._names]
        if new:
            self._file.close()
            with self._path.open(newline="", encoding="utf-8") as file:
                rows = [*csv.DictReader(file)]
            self._names += new
            self._start(rows)
        self._rows.writerow({"step": step, **metrics})
        self._file.flush()


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if not step:  # TensorBoard would draw both runs as one
            for file in _event_files(folder):
                file.unlink()
        to = str(folder / _TENSORBOARD_FOLDER)
        self._writer = SummaryWriter(to, purge_step=step or None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


_WRITERS: dict[str, type[_Writer]] = {"csv": _CSV, "tensorboard": _TensorBoard}


def _folder(cfg: Any) -> Path | None:
    return None if cfg.output_path is None else Path(cfg.output_path)
