"""Tests of the SAE in SAELens's own tools: the Hub loader, hooked models, evals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    ActivationsStore,
    HookedSAETransformer,
    SAETransformerBridge,
    run_evals,
)
from sae_lens.evals import EvalConfig
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from sae_lens_hierarchical import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from sae_lens_hierarchical.data import BUNDLED_HOOK_NAME
from tests.hub_server import HubServer


def make_sae(hook_name: str = BUNDLED_HOOK_NAME, d_in: int = 128) -> Any:
    torch.manual_seed(0)
    sae = HierarchicalTopKSAE(HierarchicalTopKSAEConfig(d_in=d_in, d_sae=64, k_max=8))
    metadata = sae.cfg.metadata
    metadata.hook_name = hook_name
    metadata.context_size, metadata.prepend_bos = 32, True
    return sae


def test_loads_from_the_hub(hub: HubServer) -> None:
    sae = make_sae()
    sae.k = 3
    sae.save_model(hub.repo("user/repo") / "layer_2")

    loaded = SAE.from_pretrained("user/repo", "layer_2")

    assert isinstance(loaded, HierarchicalTopKSAE)
    assert (loaded.k, loaded.k_max) == (3, 8)
    x = torch.randn(5, 128)
    torch.testing.assert_close(loaded(x), sae(x))


def test_splices_into_a_hooked_model(model: HookedSAETransformer) -> None:
    sae = make_sae()
    tokens = model.to_tokens("Some words to run the model on.")
    acts_hook = f"{BUNDLED_HOOK_NAME}.hook_sae_acts_post"
    clean = model(tokens)

    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for k in (2, 8):
        with sae.at_k(k):
            logits, cache = model.run_with_cache_with_saes(tokens, saes=[sae])
        assert isinstance(logits, Tensor)
        seen[k] = logits, cache[acts_hook]

    assert [(acts != 0).sum(-1).max() for _, acts in seen.values()] == [2, 8]
    assert not torch.equal(seen[2][0], seen[8][0])
    model.add_sae(sae, use_error_term=True)
    torch.testing.assert_close(model(tokens), clean, rtol=1e-4, atol=1e-4)
    model.reset_saes()
    torch.testing.assert_close(model(tokens), clean)


@pytest.mark.parametrize("k", [2, 8])
def test_features_are_ablated_and_steered_at_any_k(
    model: HookedSAETransformer, k: int
) -> None:
    sae = make_sae()
    tokens = model.to_tokens("Some words to run the model on.")
    _, cache = model.run_with_cache(tokens, names_filter=BUNDLED_HOOK_NAME)
    seen: list[Tensor] = []

    def edit(acts: Tensor, hook: Any) -> Tensor:
        seen.append(acts)
        edited = acts * (acts < acts.amax(-1, keepdim=True))  # ablate the largest
        edited[..., 7] = 3.0  # steer
        return edited

    with sae.at_k(k), torch.no_grad():
        logits = model.run_with_hooks_with_saes(
            tokens,
            saes=[sae],
            fwd_hooks=[(f"{BUNDLED_HOOK_NAME}.hook_sae_acts_post", edit)],
        )
        acts = sae.encode(cache[BUNDLED_HOOK_NAME])
        output = sae.decode(edit(acts, None))
    expected = model.run_with_hooks(
        tokens, fwd_hooks=[(BUNDLED_HOOK_NAME, lambda *_, **__: output)]
    )

    assert torch.equal(seen[0], acts)
    assert (acts != 0).sum(-1).max() == k
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_splices_into_a_transformer_bridge(model: HookedSAETransformer) -> None:
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=model.cfg.d_vocab, n_positions=64
    )
    bridge = SAETransformerBridge.boot_transformers(
        "gpt2", hf_model=GPT2LMHeadModel(config), tokenizer=model.tokenizer
    )
    sae = make_sae("blocks.0.hook_out", d_in=32)
    tokens = torch.arange(12).unsqueeze(0)

    for k in (1, 8):
        with sae.at_k(k):
            _, cache = bridge.run_with_cache_with_saes(tokens, saes=[sae])
        acts = cache["blocks.0.hook_out.hook_sae_acts_post"]
        assert (acts != 0).sum(-1).max() == k


def test_saelens_evals_run_on_it(model: HookedSAETransformer, text: Dataset) -> None:
    sae = make_sae()
    explained = []
    for k in (1, 8):
        sae.k = k
        store = ActivationsStore.from_sae(model, sae, text, streaming=False)
        metrics, _ = run_evals(
            sae,
            store,
            model,
            ActivationScaler(),
            EvalConfig(
                batch_size_prompts=4,
                n_eval_reconstruction_batches=1,
                compute_ce_loss=True,
                compute_kl=True,
                compute_l2_norms=True,
                compute_sparsity_metrics=True,
                compute_variance_metrics=True,
                compute_featurewise_density_statistics=True,
            ),
        )
        assert metrics["sparsity"]["l0"] == k
        assert "ce_loss_score" in metrics["model_performance_preservation"]
        explained.append(metrics["reconstruction_quality"]["mse"])
    assert explained[0] != explained[1]
