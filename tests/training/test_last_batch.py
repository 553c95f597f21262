"""Tests of the look at what a trained SAE does with one more batch."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from sae_lens import SAE

from sae_lens_hierarchical import HierarchicalTopKSAE
from sae_lens_hierarchical.training.last_batch import explained_variance_by_k
from tests.helpers import BATCH, D_IN, make_training_sae


@pytest.mark.parametrize("own_b_dec", [True, False])
@pytest.mark.parametrize(
    "normalize_activations", ["none", "constant_norm_rescale", "layer_norm"]
)
def test_a_look_leaves_the_sae_as_it_is(
    normalize_activations: str, own_b_dec: bool, tmp_path: Path
) -> None:
    sae = make_training_sae(
        own_b_dec=own_b_dec, normalize_activations=normalize_activations
    )
    sae.thresholds.uniform_()
    before = copy.deepcopy(sae.state_dict())
    batch = 100 * torch.randn(BATCH, D_IN) + 50

    explained = explained_variance_by_k(sae, iter([batch]))

    after = sae.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    sae.save_inference_model(tmp_path)
    trained = SAE.load_from_disk(tmp_path)
    assert isinstance(trained, HierarchicalTopKSAE)
    assert [*explained] == [1, 2, 4, 6]
    variance = (batch - batch.mean(dim=0)).pow(2).sum()
    with torch.no_grad():
        unexplained = (trained.reconstruct(batch, [*explained]) - batch).pow(2)
    expected = 1 - unexplained.sum(dim=(1, 2)) / variance
    torch.testing.assert_close(torch.tensor([*explained.values()]), expected)
