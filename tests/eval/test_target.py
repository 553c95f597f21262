"""Tests of the standard error of explained variance, and of the k that reaches it."""

from __future__ import annotations

import pytest
import torch
from sae_lens import HookedSAETransformer

from sae_lens_hierarchical.data import load_bundled_dataset
from sae_lens_hierarchical.eval.standard_error import (
    ContextGroups,
    group_of_tokens,
    sum_by_group,
)
from sae_lens_hierarchical.eval.sweep import sweep
from sae_lens_hierarchical.eval.table import MetricsTable
from sae_lens_hierarchical.eval.target import smallest_ks
from tests.helpers import make_crude_sae, make_metrics


def test_it_is_the_jackknife_over_contexts(model: HookedSAETransformer) -> None:
    sae = make_crude_sae(model)
    text = load_bundled_dataset("held_out")[0]["text"]
    tokens = model.to_tokens(text)[0, : 6 * 20].view(6, 20)

    def rows(contexts: list[int], batch_size: int = 4) -> MetricsTable:
        batches = tokens[contexts].split(batch_size)
        return MetricsTable(sweep({"it": sae}, model, batches, [2, 8], ce_batches=0))

    everything = rows([*range(6)])
    without = [rows([i for i in range(6) if i != left_out]) for left_out in range(6)]

    for n, row in enumerate(everything.rows):
        values = torch.tensor([t.rows[n].explained_variance for t in without]).double()
        expected = float((5 * values.var(correction=0)).sqrt())
        assert row.explained_variance_se == pytest.approx(expected, rel=1e-3)
        alone = rows([*range(6)], batch_size=1).rows[n]
        assert alone.explained_variance_se == pytest.approx(row.explained_variance_se)
    assert rows([0]).rows[0].explained_variance_se is None


def test_it_is_how_much_other_contexts_change_explained_variance() -> None:
    """Over more contexts than there are groups, which differ from each other."""
    contexts, length = 100, 6
    keep = torch.ones(contexts, length, dtype=torch.bool)
    keep[::3, 2:] = False
    estimates, errors = [], []
    for _ in range(300):
        scales = torch.rand(contexts, 1, 1).expand(-1, length, -1)[keep]
        x = torch.randn(int(keep.sum()), 4) + 3
        squared = (scales * torch.randn_like(x)).pow(2).sum(dim=1)
        estimates.append(1 - squared.mean() / x.var(dim=0, correction=0).sum())
        groups, sums = ContextGroups(4), torch.zeros(32, dtype=torch.float64)
        for start in range(0, contexts, 7):
            part = slice(start, start + 7)
            among = group_of_tokens(keep[part], start)
            here = slice(int(keep[:start].sum()), int(keep[: start + 7].sum()))
            groups.add(x[here], among)
            sums += sum_by_group(squared[here], among)
        errors.append(groups.standard_error(sums) or 0.0)

    spread = float(torch.stack(estimates).std())
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.15)


def table(*evs: float, se: float | None = 0.02) -> MetricsTable:
    ks = (1, 2, 4, 8, 16)
    return MetricsTable(
        [
            make_metrics(k, ev, explained_variance_se=se)
            for k, ev in zip(ks, evs, strict=False)
        ]
    )


@pytest.mark.parametrize(
    ("evs", "se", "expected"),
    [
        (
            (0.5, 0.6, 0.7, 0.79, 0.83),
            0.02,
            "between k = 8 and k = 16 (95 % interval: above k = 4)",
        ),
        (
            (0.5, 0.6, 0.7, 0.79, 0.85),
            0.002,
            "between k = 8 and k = 16 (95 % interval: between k = 8 and k = 16)",
        ),
        ((0.5, 0.9), 0.02, "k = 2 (95 % interval: k = 2)"),
        ((0.9, 0.95), 0.02, "k = 1 (95 % interval: k = 1)"),
        ((0.5, 0.6), 0.02, "none up to k = 2 (95 % interval: above k = 2)"),
        ((0.79,), 0.1, "none up to k = 1 (95 % interval: any k)"),
        ((0.5, 0.6, 0.9), None, "between k = 2 and k = 4"),
        ((0.5, 0.8, 0.7, 0.9), None, "k = 2"),
    ],
    ids=str,
)
def test_the_smallest_k(
    evs: tuple[float, ...], se: float | None, expected: str
) -> None:
    (found,) = smallest_ks(table(*evs, se=se), 0.8)

    assert (found.sae, str(found)) == ("HierarchicalTopK", expected)


def test_other_modes_do_not_count() -> None:
    rows = [make_metrics(4, 0.9, activation="own"), make_metrics(2, 0.9)]

    (found,) = smallest_ks(MetricsTable(rows), 0.8)

    assert str(found) == "k = 2 or below"
