"""Tests of the tables that people read in the terminal."""

from __future__ import annotations

import math
from io import StringIO
from typing import Any

from rich.console import Console

from sae_lens_hierarchical.eval.table import BudgetMetrics, MetricsTable
from sae_lens_hierarchical.report import terminal_tables
from tests.helpers import make_metrics


def jumprelu(k: int, explained_variance: float, **changes: Any) -> BudgetMetrics:
    """Return a row of a JumpReLU SAE of L0 = 9.4."""
    settings: dict[str, Any] = {"sae": "JumpReLU-8", "architecture": "jumprelu"}
    settings |= {"trained_k": 9, "l0": 9.4} | changes
    return make_metrics(k, explained_variance, **settings)


def shown(rows: list[BudgetMetrics], ks: list[int]) -> list[str]:
    """Return the lines that a terminal of 80 columns shows, spaces made one."""
    console = Console(width=80, file=StringIO())
    for table in terminal_tables(MetricsTable(rows), ks):
        console.print(table)
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    return [" ".join(line.replace("┃", "│").split()) for line in lines]


def test_a_jumprelu_sae_is_shown_as_it_is_whatever_ks_are_asked_for() -> None:
    rows = [jumprelu(1, 0.3, l0=1.0), jumprelu(32, 0.808)]
    own = jumprelu(9, 0.809, activation="own", ce_loss_score=0.945)

    lines = shown([*rows, own], [1, 32])

    assert "│ JumpReLU-8 │ 1 │ 1.0 │ 0.300 │ 0.700 │ 0.300 │ 1 │" in lines
    assert "│ JumpReLU-8 │ 32 │ 9.4 │ 0.808 │ 0.192 │ 0.300 │ 32 │" in lines
    by_rank, by_threshold = (
        n for n, line in enumerate(lines) if line.startswith("│ SAE │ k │ L0 │ EV │")
    )
    assert lines[by_rank - 2].startswith("The k largest features of each token")
    assert lines[by_threshold - 2].startswith("All features above a threshold")
    row = "│ JumpReLU-8 │ own │ 9.4 │ 0.809 │ 0.191 │ 0.945 │ 9 │"
    assert lines.index(row) > by_threshold
    assert "own: the SAE as it is" in " ".join(lines)


def test_one_threshold_for_all_features_is_shown_at_each_k() -> None:
    ours = [make_metrics(k, 0.1 * k, l0=float(k)) for k in (1, 4)]
    above = [
        make_metrics(k, 0.11 * k, l0=k + 0.04, activation="jumprelu") for k in (1, 4)
    ]

    lines = shown(ours + above, [4])

    assert "│ HierarchicalTopK │ 4 │ 4.0 │ 0.400 │ 0.600 │ 0.300 │ 4 │" in lines
    assert "│ HierarchicalTopK │ 4 │ 4.0 │ 0.440 │ 0.560 │ 0.300 │ 4 │" in lines
    assert not any("│ 1 │" in line for line in lines)


def test_without_thresholds_there_is_one_table() -> None:
    ours = [make_metrics(k, 0.1 * k) for k in (1, 4)]
    at_other_ks = make_metrics(4, 0.44, activation="jumprelu")

    assert len(terminal_tables(MetricsTable(ours), [1, 4])) == 1
    assert len(terminal_tables(MetricsTable([*ours, at_other_ks]), [1])) == 1


def test_what_was_not_measured_is_a_dash() -> None:
    row = make_metrics(4, 0.5, ce_tokens=0, ce_loss_score=math.nan)

    assert "│ HierarchicalTopK │ 4 │ 3.5 │ 0.500 │ 0.500 │ - │ 4 │" in shown([row], [4])


def test_a_name_in_brackets_is_no_markup() -> None:
    rows = [make_metrics(4, 0.4, sae=name) for name in ("run[v1]", "run[/old]")]

    lines = shown(rows, [4])

    for name in ("run[v1]", "run[/old]"):
        assert any(line.startswith(f"│ {name} │ 4 │") for line in lines)
