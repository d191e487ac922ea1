"""Loads that drift, placements that follow what was seen, and what moves for them."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.catalog import recorded
from moesim.errors import UserError
from moesim.placement import Placement, Target
from moesim.placement.drift import LEAST, Domains, domain_walk, domains_of, draw, load_of, popularity_walk, walk
from moesim.placement.migration import held, moves, relabelled
from moesim.placement.rebalancing import Memory, Rules, over_time, placed_loads, plans, rank_loads, renewed, seen
from moesim.placement.swaps import mended
from moesim.traces import store

LAYERS, EXPERTS, TOP_K = 3, 32, 4


def chance(seed: int = 0) -> np.ndarray:
    weights = np.exp(0.5 * np.random.default_rng(seed).standard_normal((LAYERS, EXPERTS)))
    return TOP_K * weights / weights.sum(axis=1, keepdims=True)


def test_a_walk_keeps_its_spread_and_forgets_as_fast_as_it_says() -> None:
    count, spread, correlation, lag = 20_000, 0.7, 10.0, 5
    start = spread * np.random.default_rng(1).standard_normal(count)
    walked = walk(start, spread, correlation, 40, np.random.default_rng(2))
    assert np.array_equal(walked[0], start)
    # four standard errors of a standard deviation, and of a correlation
    assert walked[-1].std() == pytest.approx(spread, abs=4 * spread / np.sqrt(2 * count))
    expected = np.exp(-lag / correlation)
    found = np.corrcoef(walked[20], walked[20 + lag])[0, 1]
    assert found == pytest.approx(expected, abs=4 * (1 - expected**2) / np.sqrt(count))
    with pytest.raises(UserError, match="correlation"):
        walk(start, spread, 0.0, 3, np.random.default_rng(0))


def test_popularity_starts_as_it_is_and_every_token_keeps_its_choices() -> None:
    start = chance()
    walked = popularity_walk(start, 400, 5.0, np.random.default_rng(3))
    assert walked[0] == pytest.approx(start, rel=1e-6)
    assert walked.sum(axis=-1) == pytest.approx(TOP_K)
    assert walked.max() < 1.0
    spread, was = np.log(walked[50:]).std(axis=-1).mean(axis=0), np.log(start).std(axis=-1)
    assert spread == pytest.approx(was, rel=0.1)
    again = popularity_walk(start, 400, 5.0, np.random.default_rng(3))
    assert np.array_equal(walked, again)


def test_an_expert_never_chosen_begins_at_the_least_chance() -> None:
    start = chance()
    start[:, 0] = 0.0
    walked = popularity_walk(start, 2, 100.0, np.random.default_rng(0))
    assert walked[0, :, 0] == pytest.approx(LEAST * start.mean(axis=1), rel=0.2)


def test_domains_mix_by_their_shares() -> None:
    trace = store.load(recorded.find("traces", "cpu-small-top-4-of-16-bias"))
    found = domains_of(trace, trace.layers)
    assert found.share.sum() == pytest.approx(1.0)
    assert found.chance.sum(axis=-1) == pytest.approx(4.0)
    still = domain_walk(found, 5, 10.0, 0.0, np.random.default_rng(0))
    assert still == pytest.approx(np.broadcast_to(np.einsum("d,dle->le", found.share, found.chance), still.shape))
    moved = domain_walk(found, 50, 10.0, 1.0, np.random.default_rng(0))
    assert moved[0] == pytest.approx(still[0])
    assert np.abs(moved[-1] - still[0]).max() > 0.01
    assert (moved <= found.chance.max(axis=0) + 1e-12).all()
    assert (moved >= found.chance.min(axis=0) - 1e-12).all()
    with pytest.raises(UserError, match="one domain"):
        domains_of(trace.select(trace.domain == trace.domain[0]), trace.layers)


def test_domains_take_the_layer_of_the_same_depth() -> None:
    trace = store.load(recorded.find("traces", "cpu-small-top-4-of-16-bias"))
    wide: Domains = domains_of(trace, 2 * trace.layers)
    assert np.array_equal(wide.chance[:, 0], wide.chance[:, 1])
    assert wide.concentration.shape == (2 * trace.layers,)


def test_drawn_tokens_spread_as_multinomial_and_dirichlet_say() -> None:
    start = chance()
    share = start / TOP_K
    many, tokens, sequences = 4000, 2000, 10
    alike = draw(np.repeat(start[None], many, 0), np.full(LAYERS, np.inf), tokens, sequences, np.random.default_rng(4))
    assert (alike.sum(axis=-1) == tokens * TOP_K).all()
    assert alike.mean(axis=0) == pytest.approx(tokens * start, rel=0.03)
    assert alike.var(axis=0) == pytest.approx(tokens * TOP_K * share * (1 - share), rel=0.15)
    # variance between sequences: that of the load, over ten of them
    between = (0.4 * start) ** 2
    load = load_of(start, between)
    taste = draw(np.repeat(start[None], many, 0), load.concentration, tokens, sequences, np.random.default_rng(5))
    added = (taste.var(axis=0) - alike.var(axis=0)).sum(axis=-1)
    assert added == pytest.approx(tokens**2 * between.sum(axis=-1) / sequences, rel=0.06)


def history(steps: int = 60) -> np.ndarray:
    return draw(
        popularity_walk(chance(), steps, 20.0, np.random.default_rng(6)),
        np.full(LAYERS, np.inf),
        4000,
        1,
        np.random.default_rng(7),
    )


def test_what_is_seen_is_the_window_or_the_average_it_says() -> None:
    loads = history(12)
    window = seen(loads, Memory(window=3))
    assert np.array_equal(window[0], np.ones_like(window[0]))
    assert window[2] == pytest.approx(loads[:2].mean(axis=0))
    assert window[12] == pytest.approx(loads[9:].mean(axis=0))
    half = seen(loads, Memory(half_life=2.0))
    weights = 0.5 ** (np.arange(8)[::-1] / 2.0)
    assert half[8] == pytest.approx(np.einsum("n,nle->le", weights, loads[:8]) / weights.sum())
    with pytest.raises(UserError, match="window"):
        Memory(window=0)
    with pytest.raises(UserError, match="half-life"):
        Memory(half_life=0.0)


@pytest.mark.parametrize("memory", [Memory(window=4), Memory(half_life=3.0)])
def test_no_placement_looks_into_the_future(memory: Memory) -> None:
    loads, changed, at = history(), history(), 31
    changed[at:] = changed[at:, :, ::-1]
    results = []
    for series in (loads, changed):
        known = seen(series, memory)[:-1]
        planned = plans("greedy", Target(8), known)
        results.append([change.expert_of_slot for change in renewed(planned, known, 5, Rules(8, True, 0.0), 1)])
    # steps 1, 6 ... 31: the last one has seen steps up to 30
    assert all(np.array_equal(one, other) for one, other in zip(results[0][:7], results[1][:7], strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(results[0][7:], results[1][7:], strict=True))


def test_placements_change_at_the_interval_and_follow_the_load() -> None:
    loads = history()
    known = seen(loads, Memory(window=2))[:-1]
    planned = plans("greedy", Target(8), known)
    rules = Rules(8, True)
    changes = list(renewed(planned, known, 7, rules, 4))
    assert [change.step for change in changes] == [4, 11, 18, 25, 32, 39, 46, 53]
    assert [change.step for change in renewed(planned, known, None, rules, 4)] == [4]
    often = rank_loads(list(renewed(planned, known, 1, rules, 4)), loads)
    never = rank_loads(list(renewed(planned, known, None, rules, 4)), loads)
    assert often.sum(axis=-1) == pytest.approx(loads[4:].sum(axis=-1))
    found, stale = over_time(often[:, None]), over_time(never[:, None])
    assert len(found) == 56
    assert np.mean([one.max_over_mean for one in found]) < np.mean([one.max_over_mean for one in stale]) - 0.05
    for one in found:
        assert one.excess == pytest.approx(one.max_over_mean - 1.0)
        assert one.mean_over_max >= 1.0 / one.max_over_mean - 1e-12


def test_what_is_there_stays_and_the_nearest_holder_sends() -> None:
    # two domains of two ranks, two slots each; expert 0 is held in both domains
    before = np.array([[[0, 1], [2, 3], [0, 4], [5, 6]]])
    after = np.array([[[0, 1], [0, 3], [2, 4], [0, 5]]])
    found = moves(before, after, 7, 2).experts
    expected = np.zeros((1, 4, 4))
    expected[0, 0, 1] = 1  # expert 0 to rank 1, from its own domain
    expected[0, 1, 2] = 1  # expert 2, held nowhere nearer
    expected[0, 2, 3] = 1  # expert 0 to rank 3, from its own domain
    assert np.array_equal(found, expected)
    swapped = before[:, :, ::-1]
    assert moves(before, swapped, 7, 2).total == 0.0


def test_holders_send_in_turn() -> None:
    before = np.array([[[0, 1], [0, 2], [3, 4], [5, 6]]])
    after = np.array([[[0, 1], [0, 2], [0, 3], [0, 5]]])
    found = moves(before, after, 7, 4).experts
    assert found[0, 0].sum() == found[0, 1].sum() == 1.0
    assert moves(before, after, 7, 4).most_arriving == 1.0


@pytest.mark.parametrize(("free", "domain"), [(True, 4), (False, 4), (True, 16), (False, 5)])
def test_naming_the_ranks_anew_moves_no_more_and_changes_no_load(free: bool, domain: int) -> None:
    generator = np.random.default_rng(8)
    before = np.array([generator.permutation(64).reshape(16, 4) for _ in range(4)])
    order = generator.permutation(16)
    assert moves(before, relabelled(before, before[:, order], 64, 16, True), 64, 16).total == 0.0
    after = np.array([generator.permutation(64).reshape(16, 4) for _ in range(4)])
    named = relabelled(before, after, 64, domain, free)
    assert np.array_equal(np.sort(named.sum(axis=-1)), np.sort(after.sum(axis=-1)))
    plain, best = (moves(before, found, 64, domain).experts for found in (after, named))
    assert best.sum() <= plain.sum()
    place = np.arange(16) // domain
    crosses = place[:, None] != place
    weight = np.where(crosses, 1.0, 0.1)
    assert (best * weight).sum() <= (plain * weight).sum() + 1e-9
    if not free and 16 % domain == 0:
        # domains hold what they held, under other names
        groups = {tuple(sorted(part.ravel())) for part in after[0].reshape(16 // domain, -1)}
        assert {tuple(sorted(part.ravel())) for part in named[0].reshape(16 // domain, -1)} == groups


def test_mending_is_nearly_as_even_and_moves_far_less() -> None:
    loads = history(2).astype(np.float64)
    now = plans("greedy", Target(8), loads[:1])[0]
    planned = plans("greedy", Target(8), loads[1:])[0]
    goal = placed_loads(planned, loads[1]).max(axis=-1)
    found = mended(now, loads[1], 1.02 * goal)
    assert (placed_loads(found, loads[1]).max(axis=-1) <= 1.02 * goal).all()
    assert np.array_equal(np.sort(found.reshape(LAYERS, -1)), np.sort(now.reshape(LAYERS, -1)))
    assert moves(now, found, EXPERTS, 8).total < 0.5 * moves(now, planned, EXPERTS, 8).total
    assert np.array_equal(mended(now, loads[1], np.full(LAYERS, np.inf)), now)


def test_mending_keeps_replicas_and_what_cannot_be_mended_follows_the_plan() -> None:
    known = history(30).astype(np.float64)
    planned = plans("global", Target(8, 4, 8), known)
    changes = list(renewed(planned, known, 3, Rules(4, True, 0.01)))
    for change in changes:
        Placement(change.expert_of_slot, EXPERTS)
        goal = placed_loads(planned[change.step], known[change.step]).max(axis=-1)
        assert (placed_loads(change.expert_of_slot, known[change.step]).max(axis=-1) <= 1.01 * goal + 1e-9).all()
    assert held(changes[0].expert_of_slot, EXPERTS).any(axis=1).all()


def test_replicas_share_their_load() -> None:
    loads = np.array([[[6.0, 2.0, 4.0]]])
    slots = np.array([[[0, 1], [0, 2]]])
    assert np.array_equal(placed_loads(slots, loads), [[[5.0, 7.0]]])
