"""Tests of copies, pickles and moved SAEs: equal to the original, independent of it."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from sae_lens_hierarchical import (
    HierarchicalTopKSAE,
    HierarchicalTopKSAEConfig,
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
)

D_IN, D_SAE, K_MAX = 12, 40, 8
NORMALIZATIONS = ["none", "layer_norm", "constant_norm_rescale"]


def through_torch_save(sae: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(sae, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda sae: pickle.loads(pickle.dumps(sae)),
    "torch.save": through_torch_save,
    "moved": lambda sae: copy.deepcopy(sae).to("cpu").to(torch.float64).float(),
}


def make_sae(**options: Any) -> HierarchicalTopKSAE:
    cfg = HierarchicalTopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k_max=K_MAX, **options)
    sae = HierarchicalTopKSAE(cfg)
    sae.b_dec.data.normal_()
    return sae


def tokens(seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(5, D_IN, generator=generator) + scale


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_a_copy_computes_the_same_and_disturbs_nothing(
    make_copy: Callable[[Any], Any], normalize: str
) -> None:
    sae = make_sae(normalize_activations=normalize)
    x, other = tokens(1), tokens(2, scale=30)
    ks = [1, 3, 8]
    wanted, wanted_other = sae.reconstruct(x, ks), sae.reconstruct(other, ks)
    adaptive = sae.encode_adaptive(x, 0.3)

    acts = sae.encode(x)  # and its statistics wait for decode
    twin = make_copy(sae)

    torch.testing.assert_close(twin.decode(acts), wanted[-1])
    assert torch.equal(twin.reconstruct(other, ks), wanted_other)
    torch.testing.assert_close(twin(other), wanted_other[-1])
    torch.testing.assert_close(sae.decode(acts), wanted[-1])
    assert torch.equal(twin.encode_adaptive(x, 0.3).k, adaptive.k)
    twin.k = 2
    twin.W_dec.data.zero_()
    assert sae.k == K_MAX
    assert torch.equal(sae.reconstruct(x, ks), wanted)


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_a_copy_reshapes_heads_for_itself(make_copy: Callable[[Any], Any]) -> None:
    sae = make_sae(reshape_activations="hook_z")
    twin = make_copy(sae)  # before either knows the size of a head
    x = tokens(1).view(5, 3, 4)

    twin(x)

    assert sae.d_head is None  # the original's reshaping is its own
    torch.testing.assert_close(make_copy(twin)(x), sae(x))
    twin.turn_off_forward_pass_hook_z_reshaping()
    assert sae(x).shape == x.shape


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_a_copy_in_training_trains_alike(
    make_copy: Callable[[Any], Any], normalize: str
) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"normalize_activations": normalize}
    sae = HierarchicalTopKTrainingSAE(
        HierarchicalTopKTrainingSAEConfig(
            d_in=D_IN,
            d_sae=D_SAE,
            k=K_MAX,
            unit_norm_decoder=True,
            **options,
        )
    )

    def loss(one: HierarchicalTopKTrainingSAE, x: Tensor) -> Tensor:
        dead = torch.arange(D_SAE) < 3
        return one.training_forward_pass(
            step_input=TrainStepInput(x, {}, dead, 0, False)
        ).loss

    expected = loss(sae, tokens(1)).detach()
    sae.zero_grad()
    twin = make_copy(sae)

    loss(sae, tokens(2, scale=30))  # whose statistics are not those of the copy
    actual = loss(twin, tokens(1))

    torch.testing.assert_close(actual, expected)
    actual.backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    torch.testing.assert_close(twin.W_dec.norm(dim=-1), torch.ones(D_SAE))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_compact_forms_never_touch_the_k_in_use(normalize: str) -> None:
    sae = make_sae(normalize_activations=normalize)
    sae.k = 5
    seen: list[int] = []
    for point in (sae.hook_sae_acts_pre, sae.hook_sae_recons):
        point.register_forward_hook(lambda *_: seen.append(sae.k))

    sae.reconstruct(tokens(1), [1, 8])
    sae.encode_adaptive(tokens(1), 0.5)
    sae.encode_ranked(tokens(1), 2)

    assert set(seen) == {5}
    assert sae.k == 5


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_threads_reconstruct_at_once(normalize: str) -> None:
    sae = make_sae(normalize_activations=normalize)
    inputs = {k: tokens(k, scale=k) for k in range(1, 9)}
    expected = {k: sae.reconstruct(x, [k]) for k, x in inputs.items()}
    wrong: list[int] = []
    start = threading.Barrier(len(inputs))

    def work(k: int) -> None:
        start.wait()
        for _ in range(50):
            # Products in a thread may be summed in another order.
            found = sae.reconstruct(inputs[k], [k])
            if not torch.allclose(found, expected[k], rtol=0, atol=1e-4):
                wrong.append(k)
            sae.encode_adaptive(inputs[k], 0.5)

    threads = [threading.Thread(target=work, args=(k,)) for k in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert sae.k == K_MAX


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_decoding_twice_gives_the_same_twice(normalize: str) -> None:
    sae, x = make_sae(normalize_activations=normalize), tokens(1)
    ranked = sae.encode_ranked(x)

    first, second = sae.decode_ranked(ranked), sae.decode_ranked(ranked)

    assert torch.equal(first, second)
    torch.testing.assert_close(first, sae(x))


@pytest.mark.parametrize("normalize", NORMALIZATIONS[1:])
def test_decoding_before_encoding_is_refused(normalize: str) -> None:
    sae = make_sae(normalize_activations=normalize)

    with pytest.raises(RuntimeError, match=f"'{normalize}' .* encode it first"):
        sae.decode(torch.zeros(2, D_SAE))
