"""Draws from a fitted law agree with the law written out plainly, and depend on nothing but what they are asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from profile_fixture import made_up

from moesim.errors import UserError
from moesim.randomness import Streams
from moesim.routing import _class_kernels
from moesim.routing.profile_draws import CountSampler, ProfileDraws
from moesim.routing.profile_law import Seeds, Simulated, draw_sequences, layer_law, paths, plain_law
from moesim.routing.profile_twin import twin_choices, twin_path
from moesim.routing.race_draws import race_law
from moesim.routing.routers import router
from moesim.specs.model import RouterSpec

STANDARD_ERRORS = 4.5


def draws(profile, law=None, **changed):
    shape = {
        "layers": profile.layers,
        "ranks": 4,
        "tokens_per_rank": 96,
        "sequences_per_rank": 2,
        "streams": Streams(1),
    }
    story = {"mix": {}, "moment": None, "blocks": False}
    law = law or plain_law(profile.experts, profile.meta.top_k)
    return ProfileDraws(profile, router_law=law, **{**shape, **story, **changed})


def group_law(experts, top_k, score="max"):
    spec = RouterSpec(rule="sigmoid-top-k", groups=4, top_groups=2, group_score=score)
    return race_law(router(spec, experts, top_k))


def compiled(profile, layer, law, sequence, count, tokens, seed=7):
    """Choices [count, tokens, K] of sequences that all imitate one."""
    start, name = np.arange(count + 1) * tokens, np.arange(count).astype(np.uint64)
    which = Simulated(np.full(count, sequence), start, name)
    own = layer_law(profile, layer, law.top_k)
    choices, _ = draw_sequences(profile, layer, own, law, which, Seeds(seed, seed + 1, seed + 2))
    return choices.reshape(count, tokens, -1)


def plain(profile, layer, law, sequence, count, tokens):
    generator = np.random.default_rng(5)
    made = []
    for _ in range(count):
        path = twin_path(profile, sequence, tokens, generator)
        made.append(twin_choices(profile, layer, law, sequence, path, generator))
    return np.stack(made)


def features(choices, experts):
    """Per sequence: how often each expert is chosen, comes first, comes again 1, 2 and 5 tokens later, and how many
    experts a token has."""
    one_hot = np.zeros((*choices.shape[:2], experts + 1))
    np.put_along_axis(one_hot, choices.astype(int), 1.0, axis=2)
    one_hot = one_hot[..., :experts]
    first = np.stack([np.bincount(row, minlength=experts + 1)[:experts] for row in choices[:, :, 0]]) / choices.shape[1]
    again = [(one_hot[:, lag:] * one_hot[:, :-lag]).mean(axis=1) for lag in (1, 2, 5)]
    return np.concatenate([one_hot.mean(axis=1), first, *again, one_hot.sum(axis=2).mean(axis=1)[:, None]], axis=1)


CASES = {
    "repeats and noise": ({"repeat": 2.0, "noise": 0.4}, None),
    "independent tokens": ({"repeat": 0.0, "noise": 0.0}, None),
    "so skewed that the alias table gives up": ({"repeat": 30.0, "noise": 3.0, "top_k": 4}, None),
    "all experts chosen": ({"experts": 3, "top_k": 3}, None),
    "one choice": ({"top_k": 1, "repeat": 4.0}, None),
    "groups": ({"repeat": 2.0, "top_k": 3}, "max"),
}


@pytest.mark.parametrize("case", CASES)
def test_compiled_draws_follow_the_law(case):
    changed, groups = CASES[case]
    profile = made_up(**{"experts": 12, "top_k": 3, "layers": 2, "sequences": 4, **changed})
    K = profile.meta.top_k
    law = group_law(profile.experts, K, groups) if groups else plain_law(profile.experts, K)
    fast = features(compiled(profile, 1, law, 2, 1500, 40), profile.experts)
    slow = features(plain(profile, 1, law, 2, 150, 40), profile.experts)
    error = np.sqrt(fast.var(axis=0) / len(fast) + slow.var(axis=0) / len(slow))
    off = np.abs(fast.mean(axis=0) - slow.mean(axis=0))
    assert (off <= STANDARD_ERRORS * error + 2e-3).all(), case


def test_tokens_with_fewer_experts_follow_the_law():
    profile = made_up(experts=10, top_k=4, layers=1, sequences=3)
    width = np.array([[0.1, 0.2, 0.3, 0.2, 0.2]])
    profile = replace(profile, width=width)
    choices = compiled(profile, 0, plain_law(10, 4), 0, 500, 60)
    many = (choices < 10).sum(axis=2)
    assert np.allclose(np.bincount(many.ravel()) / many.size, width[0], atol=0.01)
    assert (np.sort(choices == 10, axis=2) == (choices == 10)).all()
    fast, slow = features(choices, 10), features(plain(profile, 0, plain_law(10, 4), 0, 150, 60), 10)
    error = np.sqrt(fast.var(axis=0) / len(fast) + slow.var(axis=0) / len(slow))
    assert (np.abs(fast.mean(axis=0) - slow.mean(axis=0)) <= STANDARD_ERRORS * error + 2e-3).all()
    other = compiled(profile, 0, plain_law(10, 3), 0, 5, 60)
    assert (other < 10).all()


def test_class_paths_follow_the_law():
    profile = made_up(classes=4, parts=2, sequences=3)
    which = Simulated(np.full(400, 1), np.arange(401) * 50, np.arange(400).astype(np.uint64))
    path = paths(profile, which, 3).reshape(400, 50)
    stays = [np.mean(path[:, 1:25][path[:, :24] == c] == c) for c in range(4)]
    odds = profile.share[1] * (1.0 - profile.stay)
    back = odds[0] / odds[0].sum()
    assert np.allclose(stays, profile.stay + (1.0 - profile.stay) * back, atol=0.05)
    assert np.allclose(
        np.bincount(path[:, 35:].ravel(), minlength=4) / path[:, 35:].size, profile.share[1, 1], atol=0.05
    )


@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
@pytest.mark.parametrize("experts", [1, 2, 7, 256])
def test_cells_hold_the_weights(experts, spread):
    weights = np.exp(np.random.default_rng(experts).normal(0.0, spread, experts))
    weights /= weights.mean()
    cells = np.zeros(experts, np.uint64)
    _class_kernels.fill_cells(weights, cells)
    stays = (cells >> np.uint64(32)) / 2.0**32
    found = np.bincount(np.arange(experts), weights=stays, minlength=experts)
    found += np.bincount((cells & np.uint64(2**32 - 1)).astype(int), weights=1.0 - stays, minlength=experts)
    assert np.allclose(found, weights, atol=1e-6 * experts)


def test_a_token_has_distinct_experts_in_the_race_it_names():
    profile = made_up(experts=20, top_k=5, sequences=8)
    drawn = draws(profile).draw(1, 3, 0, 4)
    assert drawn.choices.shape == (4, 96, 5)
    assert (np.diff(np.sort(drawn.choices, axis=2), axis=2) > 0).all()
    assert drawn.choices.max() < 20
    assert drawn.row.shape == (4, 96)
    assert set(np.unique(drawn.row)) == set(range(len(drawn.weights)))
    assert np.allclose(drawn.weights.mean(axis=1), 1.0)


def test_ranks_layers_and_samples_can_be_asked_for_in_any_order():
    profile = made_up()
    whole = draws(profile).draw(1, 2, 0, 4)
    other = draws(profile)
    other.draw(0, 0, 2, 3)
    parts = [other.draw(1, 2, first, last).choices for first, last in ((3, 4), (0, 1), (1, 3))]
    assert (np.concatenate([parts[1], parts[2], parts[0]]) == whole.choices).all()
    assert (other.draw(1, 3, 0, 4).choices != whole.choices).any()
    assert (draws(profile, streams=Streams(2)).draw(1, 2, 0, 4).choices != whole.choices).any()


def test_layers_share_classes_and_imitated_sequences():
    profile = replace(made_up(repeat=0.0, noise=0.0, directions=0), stay=np.zeros(6))
    drawn = [draws(profile).draw(layer, 0, 0, 4) for layer in (0, 1)]
    assert (drawn[0].row == drawn[1].row).all()


def test_a_model_with_more_layers_takes_those_at_the_same_depth():
    profile = made_up(layers=2)
    deep = draws(profile, layers=6)
    assert deep.layers.tolist() == sorted(deep.layers.tolist())
    assert set(deep.layers.tolist()) == {0, 1}


def test_mix_and_blocks_choose_the_domains():
    profile = made_up(sequences=12, domains=3)
    only = draws(profile, mix={"domain 1": 1.0}, ranks=16)
    assert set(profile.domain[only.simulated(0, 0, 16).library]) == {1}
    blocks = draws(profile, mix={"domain 0": 0.5, "domain 2": 0.5}, blocks=True, ranks=16)
    seen = [set(profile.domain[blocks.simulated(sample, 0, 16).library].tolist()) for sample in range(4)]
    assert all(len(domains) == 1 for domains in seen)
    assert set().union(*seen) == {0, 2}


def test_imitated_sequences_are_alike_in_length():
    profile = replace(made_up(sequences=40, domains=1), length=np.repeat([20, 2000], 20).astype(np.int32))
    short = draws(profile, tokens_per_rank=40, ranks=64).simulated(0, 0, 64)
    assert (profile.length[short.library] == 20).all()


@pytest.mark.parametrize("score", ["max", "top2-sum"])
def test_groups_limit_the_choices(score):
    profile = made_up(experts=16, top_k=4)
    drawn = draws(profile, group_law(16, 4, score)).draw(0, 0, 0, 4)
    groups = drawn.choices // 4
    assert max(len(set(token)) for token in groups.reshape(-1, 4)) <= 2
    assert (np.diff(np.sort(drawn.choices, axis=2), axis=2) > 0).all()


def test_too_many_experts_a_token_are_refused():
    with pytest.raises(UserError, match="17 experts a token"):
        draws(made_up(), plain_law(17, 17))


@pytest.mark.parametrize("repeat", [0.0, 3.0])
def test_counts_alone_are_close_to_counted_tokens(repeat):
    profile = made_up(layers=4, experts=32, top_k=4, repeat=repeat, noise=0.2, sequences=30)
    shape = {"ranks": 16, "tokens_per_rank": 512, "sequences_per_rank": 1}
    story = {"layers": 4, "mix": {}, "moment": None, "streams": Streams(4)}
    tokens, counts = draws(profile, **shape, **story), CountSampler(profile, **shape, **story)
    slow = np.stack([[[np.bincount(own.ravel(), minlength=32) for own in tokens.draw(layer, sample, 0, 16).choices]
                      for layer in range(4)] for sample in range(6)])  # fmt: skip
    fast = np.stack([counts.counts(sample) for sample in range(6)])
    assert fast.shape == slow.shape
    assert np.allclose(fast.sum(axis=-1), 512 * 4, rtol=0.02)
    assert np.corrcoef(fast.ravel(), slow.ravel())[0, 1] > 0.9
    for some in (lambda n: n, lambda n: n.sum(axis=2)):
        busiest = [(some(n).max(axis=-1) / some(n).mean(axis=-1)).mean() for n in (fast, slow)]
        assert busiest[0] == pytest.approx(busiest[1], rel=0.04)
    mean, between, shared = counts.moments()
    assert not shared.any()
    assert np.allclose(mean.sum(axis=1), 4.0, rtol=1e-3)
    assert np.abs(mean - slow.mean(axis=(0, 2)) / 512).mean() < 0.02
    seen = (slow / 512).var(axis=(0, 2))
    assert between.sum() == pytest.approx(seen.sum(), rel=0.25)
