"""Tests of the norms of activations, and of what few tokens hold."""

from __future__ import annotations

import pytest
import torch

from sae_lens_hierarchical.ops.norms import describe_concentration, median, norms


def test_norms_of_half_precision_do_not_overflow() -> None:
    x = torch.full((2, 3, 16), 3e4, dtype=torch.float16)
    torch.testing.assert_close(norms(x), torch.full((2, 3), 1.2e5), rtol=1e-3, atol=0)


def test_a_median_of_nothing_is_refused() -> None:
    assert median(torch.tensor([3.0, 1.0, 2.0])) == 2
    for nothing in (torch.zeros(4), torch.zeros(0)):
        with pytest.raises(ValueError, match="median norm is above 0"):
            median(nothing)


def test_the_fewest_tokens_that_hold_half_are_counted() -> None:
    found = torch.ones(1000)
    assert describe_concentration(found, "here") is None
    found[:3] = 1e3
    sentence = str(describe_concentration(found, "here"))
    assert sentence.startswith("2 of 1,000 tokens (0.20%) hold half of the sum of")
    assert "at here" in sentence
    for odd in (torch.zeros(9), torch.zeros(0), torch.tensor([1.0, torch.inf])):
        assert describe_concentration(odd, "here") is None
