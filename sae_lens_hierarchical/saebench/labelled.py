"""SAEBench's labelled datasets: which there are, their folders, and rows they need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from datasets import load_dataset

from sae_lens_hierarchical.saebench.extra import dataset_info, scr_and_tpp_main

__all__ = [
    "PROBING_DATASETS",
    "SCR_DATASETS",
    "check_names",
    "check_rows",
    "folders_of",
]

PROBING_DATASETS = sorted(dataset_info.chosen_classes_per_dataset)
SCR_DATASETS = sorted(scr_and_tpp_main.COLUMN2_VALS_LOOKUP)


def check_names(field: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Check that SAEBench has datasets of these names.

    Args:
        field: What was given, for the error.
        names: The names.
        known: Those that there are.

    Raises:
        ValueError: If one is unknown.
    """
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"{field} must be some of {known}, got {unknown}")


def folders_of(names: Sequence[str]) -> list[str]:
    """Return the folders, or names on the Hub, that hold datasets, each once."""
    return list(dict.fromkeys(map(_folder, names)))


def check_rows(config: Any) -> None:
    """Check that the datasets of SCR and TPP have enough rows for SAEBench.

    Args:
        config: SAEBench's config of the eval.

    Raises:
        ValueError: If a dataset cannot be had, or lacks a split, a column or rows.
    """
    sizes = {"train": config.train_set_size, "test": config.test_set_size}
    for name in config.dataset_names:
        folder = _folder(name)
        try:
            splits: Any = load_dataset(folder)
        except OSError as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            raise ValueError(
                f"scr_and_tpp needs the dataset {folder}, which is no folder with data "
                f"in the working directory and does not come from the Hub ({reason}): "
                f"scr_datasets may be some of {SCR_DATASETS}"
            ) from None
        about = dataset_info.dataset_metadata[folder]
        columns = [about["column1_name"], about["column2_name"]]
        for split, size in sizes.items():
            there = splits[split].column_names if split in splits else []
            if not {*columns, about["text_column_name"]} <= set(there):
                raise ValueError(
                    f"scr_and_tpp needs a split {split} of {folder} with columns "
                    f"{about['text_column_name']}, {columns[0]} and {columns[1]}"
                )
            rows = zip(*(splits[split][column] for column in columns), strict=True)
            count = Counter((str(a), b) for a, b in rows)
            for (a, b), fewest in _needed(name, about, config, size // 4):
                if count[a, b] < fewest:
                    raise ValueError(
                        f"scr_and_tpp, which takes {size} rows, needs at least "
                        f"{fewest:,} rows of {folder} in {split} with {columns[0]} = "
                        f"{a} and {columns[1]} = {b}, and it has {count[a, b]:,}"
                    )


def _folder(name: str) -> str:
    return name.split("_class_set")[0].split("_sentiment")[0]


def _needed(
    name: str, about: Any, config: Any, quarter: int
) -> Iterator[tuple[tuple[str, Any], int]]:
    """Yield (first label as text, second label) and how many rows there must be."""
    first, second = about["column1_mapping"], about["column2_mapping"]
    positive, negative = scr_and_tpp_main.COLUMN2_VALS_LOOKUP[name]
    if not config.perform_scr:
        for label in dataset_info.chosen_classes_per_dataset[name]:
            yield (label, second[positive]), quarter
            yield (label, second[negative]), quarter
        return
    for pair in config.column1_vals_lookup[name]:
        a, b = (str(first[label]) for label in pair)
        # Both labels go together in twice as many, and SAEBench wants one more.
        yield (a, second[positive]), 2 * quarter + 1
        yield (b, second[negative]), 2 * quarter + 1
        yield (a, second[negative]), quarter
        yield (b, second[positive]), quarter
