"""Tests of what AutoInterp is told of the texts, from one run of the model."""

# pyright: reportMissingImports=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_bench.sae_bench_utils import activation_collection
from sae_lens import (
    SAE,
    HookedSAETransformer,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)

from sae_lens_hierarchical import HierarchicalTopKSAE
from sae_lens_hierarchical.data import BUNDLED_HOOK_NAME, load_bundled_dataset
from sae_lens_hierarchical.saebench.encodings import encode, record_activations
from sae_lens_hierarchical.saebench.evals import draw_tokens
from sae_lens_hierarchical.saebench.pending import (
    PendingResult,
    each_with_its_sae,
    prepared_sae,
    set_k,
)


def make_sae(ours: HierarchicalTopKSAE, kind: str) -> SAE[Any]:
    metadata = ours.cfg.metadata
    if kind == "hierarchical_topk":
        return ours
    if kind == "topk":
        config = TopKSAEConfig(d_in=128, d_sae=96, k=4, metadata=metadata)
        sae = TopKSAE(config)
    else:
        config = JumpReLUSAEConfig(d_in=128, d_sae=96, metadata=metadata)
        sae = JumpReLUSAE(config)
        sae.threshold.data.fill_(1.0)
    sae.load_state_dict(sae.state_dict() | dict(ours.named_parameters()), strict=False)
    return sae


@pytest.mark.parametrize("kind", ["hierarchical_topk", "topk", "jumprelu"])
def test_one_encoding_is_what_saebench_finds_at_each_k(
    model: HookedSAETransformer, sae: HierarchicalTopKSAE, tmp_path: Path, kind: str
) -> None:
    texts = draw_tokens(model, sae, load_bundled_dataset("held_out"), 5)
    tokenizer: Any = model.tokenizer
    texts[1, 7:9] = tokenizer.eos_token_id
    recorded = record_activations(model, texts, [BUNDLED_HOOK_NAME], 2, tmp_path)
    counted = activation_collection.get_bos_pad_eos_mask(texts, tokenizer)
    ks = [None] if kind == "jumprelu" else [2, 8]
    latents = [90, 3, 4, 41]

    with prepared_sae("it", {"it": make_sae(sae, kind)}, "cpu") as prepared:
        set_k(prepared, ks[-1])
        x = recorded[BUNDLED_HOOK_NAME]
        encodings = encode(prepared, ks[-1], x, counted, batch_size=3)
        for k in ks:
            set_k(prepared, k)
            place: Any = (2, prepared.cfg.hook_layer, BUNDLED_HOOK_NAME, True)
            frequency = activation_collection.get_feature_activation_sparsity(
                texts, model, prepared, *place
            )
            acts = activation_collection.collect_sae_activations(
                texts, model, prepared, *place, latents, torch.bfloat16
            )

            at_k = encodings.at_k(k)
            torch.testing.assert_close(at_k.frequency(), frequency)
            torch.testing.assert_close(at_k.of_features(latents), acts)
            assert acts.count_nonzero() > 20


def test_an_sae_leaves_the_device_before_the_next_one_comes(
    sae: HierarchicalTopKSAE, tmp_path: Path
) -> None:
    saes = {"a": sae, "b": sae}
    results = [
        PendingResult(n, k, tmp_path / f"{n}_{k}", {}) for n in saes for k in (2, 8)
    ]
    seen: list[Any] = []

    for result, copy in each_with_its_sae(results, saes, "cpu"):
        seen.append(copy)
        assert copy.k == result.k
        assert [one.W_dec.is_meta for one in seen if one is not copy] == [True] * (
            2 * (result.name == "b")
        )

    assert all(one.W_dec.is_meta for one in seen)
    assert not sae.W_dec.is_meta
