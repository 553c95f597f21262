"""Tests of what is measured of features, against plain computations on all tokens."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    ActivationsStore,
    HookedSAETransformer,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from torch import Tensor

from sae_lens_hierarchical import HierarchicalTopKSAE
from sae_lens_hierarchical.data import BUNDLED_HOOK_NAME, load_bundled_dataset
from sae_lens_hierarchical.features import collect_features, random_features
from sae_lens_hierarchical.features.histograms import Histograms
from sae_lens_hierarchical.features.table import FeatureStatistics, FeatureTable
from tests.helpers import make_crude_sae

K, D_SAE = 8, 96
KS = [1, 2, 4, 8]


@pytest.fixture(scope="module")
def sae(model: HookedSAETransformer) -> HierarchicalTopKSAE:
    return make_crude_sae(model)


@pytest.fixture(scope="module")
def tokens(model: HookedSAETransformer, sae: HierarchicalTopKSAE) -> Tensor:
    store = ActivationsStore.from_sae(
        model, sae, load_bundled_dataset("held_out"), streaming=False
    )
    return store.get_batch_tokens(50)


@pytest.fixture(scope="module")
def table(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> FeatureTable:
    return collect_features(sae, model, tokens.split(7), range(D_SAE))


class Plain:
    """All activations of an SAE, as nobody could keep them of a long stream.

    Attributes:
        acts: Those at K, [contexts, length, d_sae].
        ranks: From 1; where the activation is 0 they mean nothing.
    """

    def __init__(self, sae: Any, model: HookedSAETransformer, tokens: Tensor) -> None:
        _, cache = model.run_with_cache(tokens, names_filter=BUNDLED_HOOK_NAME)
        bos: Any = model.tokenizer.bos_token_id  # pyright: ignore[reportOptionalMemberAccess]
        self.keep = tokens.ne(bos)
        with torch.no_grad():
            acts = sae.encode(cache[BUNDLED_HOOK_NAME])
        self.acts = acts * self.keep[..., None]
        order = self.acts.argsort(dim=-1, descending=True, stable=True)
        self.ranks = order.argsort(dim=-1) + 1
        self.tokens = int(self.keep.sum())

    def at_k(self, k: int) -> Tensor:
        return self.acts * (self.ranks <= k)


@pytest.fixture(scope="module")
def plain(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> Plain:
    return Plain(sae, model, tokens)


def test_frequencies_ranks_and_means(table: FeatureTable, plain: Plain) -> None:
    assert table.ks == KS
    assert table.tokens == plain.tokens
    for one in table.features:
        acts, ranks = plain.acts[..., one.feature], plain.ranks[..., one.feature]
        active = acts > 0
        assert one.ranks == [int((ranks[active] == r + 1).sum()) for r in range(K)]
        assert one.firings == int(active.sum())
        assert one.frequency == pytest.approx(
            [
                float((plain.at_k(k)[..., one.feature] > 0).sum()) / plain.tokens
                for k in KS
            ]
        )
        if one.firings:
            assert one.mean_rank == pytest.approx(float(ranks[active].double().mean()))
            assert one.mean_activation == pytest.approx(float(acts[active].mean()))
        assert one.max_activation == pytest.approx(float(acts.max()))


def test_histograms_of_activations_are_split_by_rank(
    table: FeatureTable, plain: Plain
) -> None:
    for one in table.features:
        for group, (before, k) in enumerate(zip([0, *KS], KS, strict=False)):
            acts = (plain.at_k(k) - plain.at_k(before))[..., one.feature]
            bins = (acts[acts > 0] / one.bin_width).long()
            counts = torch.bincount(bins, minlength=len(one.activations[group]))
            assert one.activations[group] == counts.tolist()
        if one.firings:
            end = len(one.activations[0]) * one.bin_width
            assert end - one.bin_width <= one.max_activation <= end
            assert len(one.activations[0]) > 32


def strongest(one: FeatureStatistics, k: int) -> list[tuple[int, int]]:
    """Return the contexts that the page shows first at k, and their peaks."""
    first: dict[int, int] = {}
    for context in one.contexts:
        if context.rank <= k:
            first.setdefault(context.context, context.position)
    return list(first.items())[:10]


def test_the_strongest_contexts_at_each_k_are_those_of_all(
    table: FeatureTable, plain: Plain
) -> None:
    for one in table.features:
        for k in KS:
            largest, position = plain.at_k(k)[..., one.feature].max(dim=1)
            order = largest.argsort(descending=True, stable=True)[:10]
            expected = [(int(c), int(position[c])) for c in order if largest[c] > 0]
            assert strongest(one, k) == expected


def test_contexts_of_each_range_of_ranks_are_there(
    table: FeatureTable, plain: Plain
) -> None:
    for one in table.features:
        for before, k in zip([0, *KS], KS, strict=False):
            acts = (plain.at_k(k) - plain.at_k(before))[..., one.feature]
            wanted = min(3, int((acts.amax(1) > 0).sum()))
            assert sum(before < c.rank <= k for c in one.contexts) >= wanted


def test_contexts_show_the_tokens_around_the_peak(
    table: FeatureTable,
    plain: Plain,
    tokens: Tensor,
    model: HookedSAETransformer,
) -> None:
    length = tokens.shape[1]
    for one in table.features:
        for context in one.contexts:
            start = context.position - context.peak
            end = start + len(context.tokens)
            assert start == max(0, context.position - 24)
            assert end == min(length, context.position + 13)
            ids = tokens[context.context, start:end]
            if not any("\ufffd" in t for t in model.to_str_tokens(ids)):
                assert context.tokens == model.to_str_tokens(ids)
            acts = plain.acts[context.context, start:end, one.feature]
            ranks = plain.ranks[context.context, start:end, one.feature]
            (places,) = acts.nonzero(as_tuple=True)
            assert [place for place, _, _ in context.active] == places.tolist()
            assert [rank for *_, rank in context.active] == ranks[places].tolist()
            assert [act for _, act, _ in context.active] == pytest.approx(
                acts[places].tolist()
            )
            at_peak = {place: rest for place, *rest in context.active}[context.peak]
            assert at_peak == [context.activation, context.rank]


def test_companions_are_there_more_often_than_by_chance(
    table: FeatureTable, plain: Plain
) -> None:
    active = plain.acts > 0
    frequency = active.sum((0, 1)) / plain.tokens
    found = 0
    for one in table.features:
        here = active[..., one.feature]
        own = plain.ranks[..., one.feature, None]
        before = (active & (plain.ranks < own))[here].float().mean(0)
        after = (active & (plain.ranks > own))[here].float().mean(0)
        for companions, shares in ((one.before, before), (one.after, after)):
            found += len(companions)
            for other, share, of_all in companions:
                assert other != one.feature
                assert share == pytest.approx(float(shares[other]))
                assert of_all == pytest.approx(float(frequency[other]))
                assert share > of_all
    assert found > D_SAE


def test_the_feature_that_always_joins_comes_first(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    twins = make_crude_sae(model)
    with torch.no_grad():
        twins.W_enc[:, 1] = 0.9 * twins.W_enc[:, 0]

    leader, twin = collect_features(twins, model, [tokens], [0, 1]).features

    assert leader.after[0].feature == 1
    assert leader.after[0].share > 0.5
    assert twin.before[0] == (0, 1.0, leader.frequency[-1])


def test_logit_effects_are_the_decoder_row_times_the_unembedding(
    table: FeatureTable, sae: HierarchicalTopKSAE, model: HookedSAETransformer
) -> None:
    last_norm = model.state_dict()["ln_final.w"]
    effects = (sae.W_dec.detach() * last_norm) @ model.W_U
    effects = effects - effects.mean(1, keepdim=True)
    for one in table.features:
        assert one.promoted is not None
        assert one.suppressed is not None
        of_it = effects[one.feature]
        for shown, expected in (
            (one.promoted, of_it.topk(10)),
            (one.suppressed, of_it.topk(10, largest=False)),
        ):
            assert [x for _, x in shown] == pytest.approx(
                expected.values.tolist(), rel=1e-4
            )
        best = model.to_str_tokens(of_it.argmax()[None])
        assert [one.promoted[0][0]] == best or "\ufffd" in best[0]
    assert table.no_logits is None


def test_a_topk_sae_is_measured_up_to_its_k(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    settings: dict[str, Any] = {
        "d_in": 128,
        "d_sae": D_SAE,
        "metadata": sae.cfg.metadata,
    }
    topk = TopKSAE(TopKSAEConfig(**settings, k=6))
    weights = sae.state_dict()
    del weights["thresholds"]
    topk.load_state_dict(weights)

    (one,) = (table := collect_features(topk, model, [tokens], [17])).features

    assert table.ks == [1, 2, 4, 6]
    assert table.architecture == "topk"
    plain = Plain(topk, model, tokens)
    ranks = plain.ranks[..., 17][plain.acts[..., 17] > 0]
    assert one.ranks == [int((ranks == r + 1).sum()) for r in range(6)]


def test_the_sae_is_measured_up_to_k_max_whatever_it_is_set_to(
    table: FeatureTable, model: HookedSAETransformer, tokens: Tensor
) -> None:
    small = make_crude_sae(model, k=2)

    again = collect_features(small, model, tokens.split(7), range(D_SAE))

    assert again == table
    assert small.k == 2


def test_the_top_features_have_the_largest_summed_activation(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor, plain: Plain
) -> None:
    found = collect_features(sae, model, iter(tokens.split(7)), top=5)

    order = plain.acts.sum((0, 1)).argsort(descending=True)[:5]
    assert [one.feature for one in found.features] == order.tolist()
    assert found.tokens == plain.tokens  # those on which they were found count too


def test_random_features_are_any_and_repeat() -> None:
    some = random_features(1000, 20, seed=3)

    assert some == random_features(1000, 20, seed=3) == sorted(set(some))
    assert some != random_features(1000, 20, seed=4)
    assert random_features(20, 20, seed=0) == list(range(20))


def test_no_batch_is_kept(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    seen: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Tensor]:
        for _ in range(3):
            for part in tokens.split(5):
                batch = part.clone()
                assert sum(one() is not None for one in seen) <= 2
                seen.append(weakref.ref(batch))
                yield batch

    (one,) = collect_features(sae, model, stream(), [3]).features

    assert len(one.contexts) <= 10 * len(KS)
    assert one.firings > len(one.contexts)


def test_ranges_of_histograms_do_not_depend_on_the_order() -> None:
    values = torch.rand(5000).pow(4) * 100
    rows, groups = torch.randint(3, (5000,)), torch.randint(2, (5000,))
    expected = Histograms(4, 2)
    expected.add(rows, groups, values)
    for order in (values.argsort(), values.argsort(descending=True)):
        histograms = Histograms(4, 2)
        for some in order.split(77):
            histograms.add(rows[some], groups[some], values[some])
        for row in range(4):
            assert histograms.of(row) == expected.of(row)
    width, counts = expected.of(0)
    assert width * 64 == 128
    assert sum(map(sum, counts)) == int((rows == 0).sum())
    assert expected.of(3)[1] == [[], []]


def test_a_dead_feature_has_no_means(
    model: HookedSAETransformer, tokens: Tensor
) -> None:
    dead = make_crude_sae(model)
    with torch.no_grad():
        dead.b_enc[5] = -1e9

    (one,) = collect_features(dead, model, [tokens], [5]).features

    assert (one.firings, one.mean_rank, one.mean_activation) == (0, None, None)
    assert (one.before, one.after, one.contexts) == ([], [], [])


@pytest.mark.parametrize(
    ("features", "top", "message"),
    [
        ([D_SAE], 1, "features must be integers from 0 to d_sae - 1 = 95, got 96"),
        ([-1], 1, "got -1"),
        ([1.5], 1, "got 1.5"),
        ([4, 9, 4], 1, r"features must name each once, got \[4, 9, 4\]"),
        ([], 1, "the number of features must be an integer from 1 to 96, got 0"),
        (None, 0, "top must be an integer from 1 to 96, got 0"),
        (None, 97, "top must be an integer from 1 to 96, got 97"),
    ],
)
def test_bad_features_are_refused(
    features: Sequence[int] | None,
    top: int,
    message: str,
    sae: HierarchicalTopKSAE,
    model: HookedSAETransformer,
) -> None:
    with pytest.raises(ValueError, match=message):
        collect_features(sae, model, [], features, top=top)


def test_random_refuses_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="random must be an integer from 1 to 96"):
        random_features(96, 97, seed=0)
    with pytest.raises(ValueError, match="random must be an integer from 1 to 2048"):
        random_features(65_536, 4096, seed=0)


def test_saes_without_ranks_are_refused(
    sae: HierarchicalTopKSAE, model: HookedSAETransformer, tokens: Tensor
) -> None:
    other: SAE[Any] = JumpReLUSAE(JumpReLUSAEConfig(d_in=128, d_sae=D_SAE))
    with pytest.raises(ValueError, match="that is a jumprelu SAE, which has no K larg"):
        collect_features(other, model, [tokens], [0], name="that")


def test_what_does_not_fit_the_model_is_refused(
    model: HookedSAETransformer, tokens: Tensor
) -> None:
    bad = make_crude_sae(model)
    bad.cfg.metadata.hook_name = "blocks.9.hook_resid_post"
    with pytest.raises(ValueError, match=r"'blocks.9.hook_resid_post' is no hook of"):
        collect_features(bad, model, [tokens], [0])
    bad.cfg.metadata.hook_name = "blocks.2.mlp.hook_post"
    with pytest.raises(
        ValueError, match=r"has d_in = 128, but .*hook_post is 512 wide"
    ):
        collect_features(bad, model, [tokens], [0])
    bos = torch.full_like(tokens[:2], 0)
    bad.cfg.metadata.hook_name = BUNDLED_HOOK_NAME
    bad.cfg.metadata.exclude_special_tokens = list(range(1, 4096))
    with pytest.raises(ValueError, match="batches must hold tokens that are not spec"):
        collect_features(bad, model, [bos], [0])


def test_a_hook_beside_the_residual_stream_has_no_logit_effects(
    model: HookedSAETransformer, tokens: Tensor
) -> None:
    inside = make_crude_sae(model)
    inside.cfg.metadata.hook_name = "blocks.2.ln2.hook_normalized"

    (one,) = (table := collect_features(inside, model, [tokens], [0])).features

    assert one.promoted is one.suppressed is None
    assert table.no_logits is not None
    assert "not known to be in the residual stream" in table.no_logits
