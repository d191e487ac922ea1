"""Placements: every expert somewhere, equal slots, what each strategy promises, and which replica a copy goes to."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import UnknownNameError, UserError
from moesim.placement import RULES, STRATEGIES, Placement, Target, balance, expert_rank, place, replica_shares, split
from moesim.placement.coactivation import pair_counts, reached
from moesim.placement.destinations import destinations
from moesim.placement.judge import rank_loads
from moesim.placement.packing import pack, pack_weights
from moesim.placement.replication import replicate
from moesim.placement.strategies import WITHOUT_REPLICAS

# The example of DeepSeek's EPLB README: two layers of 12 experts, 16 replicas, 4 groups, 2 nodes, 8 GPUs, and its plan.
EPLB_LOADS = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
)
EPLB_PLAN = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def uneven(seed: int, layers: int, experts: int, sigma: float = 0.8) -> np.ndarray:
    """Loads [L, E], log-normal as DeepSeek-V3's are (catalog profile deepseek-v3-like)."""
    return np.exp(sigma * np.random.default_rng(seed).standard_normal((layers, experts)))


def busiest(placement: Placement, loads: np.ndarray) -> np.ndarray:
    """Load of the busiest rank of each layer [L], replicas sharing alike."""
    counts = np.repeat(loads[:, None, :] / placement.ranks, placement.ranks, axis=1)
    return rank_loads(placement, counts, replica_shares(placement, "uniform")).max(axis=-1)


def planted(seed: int, tokens: int = 4000, experts: int = 32, families: int = 4) -> np.ndarray:
    """Choices [T, 1, 4] of tokens that mostly stay within one of several shuffled families of experts."""
    generator = np.random.default_rng(seed)
    members = np.random.default_rng(7).permutation(experts).reshape(families, -1)
    family = generator.integers(0, families, tokens)
    scores = generator.gumbel(size=(tokens, experts))
    scores[np.arange(tokens)[:, None], members[family]] += 5.0
    return np.argsort(-scores, axis=1)[:, None, :4]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("ranks", "per_domain", "redundant"), [(8, 2, 0), (8, 4, 16), (4, None, 4), (16, 4, 32)])
def test_every_strategy_places_every_expert_on_equal_ranks(
    strategy: str, ranks: int, per_domain: int | None, redundant: int
) -> None:
    redundant = 0 if strategy in WITHOUT_REPLICAS else redundant
    choices = np.concatenate([planted(1), planted(2), planted(3)], axis=1)
    loads = np.array([np.bincount(choices[:, layer].ravel(), minlength=32) for layer in range(3)])
    target = Target(ranks, per_domain, redundant, groups=4)
    pairs = pair_counts(choices, 32)
    found = place(strategy, target, loads, pairs)
    assert found.expert_of_slot.shape == (3, ranks, (32 + redundant) // ranks)
    assert (found.replica_counts >= 1).all()
    assert (found.replica_counts.sum(axis=1) == 32 + redundant).all()
    assert found.redundant == redundant
    assert found.weights_per_rank == 3 * found.slots
    assert found.extra_weights_per_rank == pytest.approx(3 * redundant / ranks)
    again = place(strategy, target, loads, pairs)
    assert np.array_equal(found.expert_of_slot, again.expert_of_slot)


def test_replicas_and_ranks_of_an_expert() -> None:
    found = Placement.of_slots([0, 1, 2, 0, 3, 0], ranks=3, experts=4)
    assert found.replicas(0, 0).tolist() == [0, 3, 5]
    assert found.replica_counts.tolist() == [[3, 1, 1, 1]]
    assert found.replica_slots[0].tolist() == [[0, 3, 5], [1, -1, -1], [2, -1, -1], [4, -1, -1]]
    assert found.rank_of.tolist() == [[0, 0, 1, 2]]


def test_the_blind_strategies_by_hand() -> None:
    assert expert_rank(8, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert expert_rank(8, 4, "round-robin").tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    trivial = place("contiguous", Target(3, redundant=2), np.ones((1, 4)))
    assert trivial.physical.tolist() == [[0, 1, 2, 3, 0, 1]]


def test_the_published_example_of_eplb() -> None:
    found = place("hierarchical", Target(8, 4, 4, groups=4), EPLB_LOADS)
    assert found.physical.tolist() == EPLB_PLAN


def test_greedy_packing_by_hand_and_against_every_packing() -> None:
    assert pack(np.array([[4.0, 3.0, 2.0, 1.0]]), 2).tolist() == [[[0, 3], [1, 2]]]
    weights = np.random.default_rng(3).random((5, 6))
    best = [
        min(np.max(row[list(order)].reshape(3, 2).sum(axis=1)) for order in permutations(range(6))) for row in weights
    ]
    # two a pack, heaviest with lightest: the rule is then the best there is
    assert pack_weights(weights, pack(weights, 3)).max(axis=1) == pytest.approx(best)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8]), st.floats(0.0, 3.0))
def test_greedy_is_never_worse_than_contiguous(seed: int, ranks: int, sigma: float) -> None:
    loads = uneven(seed, 3, 32, sigma)
    greedy, plain = (place(name, Target(ranks), loads) for name in ("greedy", "contiguous"))
    assert (busiest(greedy, loads) <= busiest(plain, loads) * (1 + 1e-12)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_replication_minimises_the_busiest_replica(seed: int) -> None:
    """Against every way to give three more replicas to four experts."""
    loads = uneven(seed, 1, 4)
    _, work = replicate(loads, 7)
    ways = [np.bincount(extra, minlength=4) + 1 for extra in np.ndindex(4, 4, 4)]
    assert work.max() == pytest.approx(min((loads[0] / way).max() for way in ways))


@pytest.mark.parametrize("strategy", ["global", "hierarchical"])
def test_replication_lowers_the_busiest_rank(strategy: str) -> None:
    loads = uneven(5, 12, 64)
    most = [balance(busiest_of(strategy, loads, redundant)).max_over_mean for redundant in (0, 8, 32)]
    assert most[0] > most[1] > most[2]


def busiest_of(strategy: str, loads: np.ndarray, redundant: int) -> np.ndarray:
    found = place(strategy, Target(8, 2, redundant, groups=8), loads)
    return rank_loads(found, np.repeat(loads[:, None] / 8, 8, axis=1), replica_shares(found, "uniform"))


@pytest.mark.parametrize("strategy", ["groups", "hierarchical"])
@pytest.mark.parametrize("groups", [8, 4, 2])
def test_groups_stay_whole_within_domains(strategy: str, groups: int) -> None:
    """Four domains: of eight groups two each, of four one each, of two groups each on two whole domains."""
    loads = uneven(6, 5, 64)
    found = place(strategy, Target(16, 4, 0 if strategy == "groups" else 16, groups=groups), loads)
    group = found.expert_of_slot * groups // 64
    homes = max(1, 4 // groups)
    for layer in group:
        parts = [set(part.ravel().tolist()) for part in layer.reshape(4 // homes, -1)]
        assert sorted(name for part in parts for name in part) == list(range(groups))


def test_the_bound_on_places_reached() -> None:
    """S1 - S2 while no token has more than two experts in a place; a third saves one place more, not two pairs."""
    assert reached(np.array(10.0), np.array(0.0)) == 10.0
    assert reached(np.array(10.0), np.array(3.0)) == pytest.approx(7.0)
    # four tokens, each with three of its experts there: 12 chosen, 12 pairs
    assert reached(np.array(12.0), np.array(12.0)) == pytest.approx(4.0)
    assert reached(np.array(0.0), np.array(0.0)) == 0.0


def test_pair_counts_by_hand() -> None:
    found = pair_counts(np.array([[[0, 1]], [[1, 2]], [[0, 1]], [[2, 255]]]), 3)
    assert found[0].tolist() == [[2, 2, 0], [2, 3, 1], [0, 1, 2]]


def test_coactivation_finds_planted_families() -> None:
    """On tokens that the plan has not seen: nearly one domain a token, where blind placements reach three of four."""
    seen, unseen = planted(1), planted(2)
    loads = np.bincount(seen.ravel(), minlength=32)[None]
    source = np.arange(4000) % 8
    at = {}
    for strategy in ("contiguous", "greedy", "co-activation"):
        found = place(strategy, Target(8, 2), loads, pair_counts(seen, 32))
        at[strategy] = destinations(found, unseen, source, replica_shares(found, "uniform"), 2)
    assert at["contiguous"].domains > 2.4
    assert at["greedy"].domains > 2.4
    assert at["co-activation"].domains < 1.25
    assert at["co-activation"].ranks < at["greedy"].ranks


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.05, 0.3]))
def test_coactivation_keeps_to_its_tolerance(seed: int, tolerance: float) -> None:
    generator = np.random.default_rng(seed)
    taste = generator.normal(0, 1.5, 32)
    choices = np.argsort(-(taste + generator.gumbel(size=(600, 32))), axis=1)[:, None, :4]
    loads = np.bincount(choices.ravel(), minlength=32)[None]
    greedy = place("greedy", Target(8, 4), loads)
    kept = place("co-activation", Target(8, 4), loads, pair_counts(choices, 32), tolerance)
    assert busiest(kept, loads) <= (1 + tolerance) * busiest(greedy, loads) * (1 + 1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(RULES), st.sampled_from([1, 2, 4, 8]), st.integers(0, 3))
def test_copies_are_conserved_by_every_choice_of_replica(seed: int, rule: str, per_domain: int, more: int) -> None:
    generator = np.random.default_rng(seed)
    loads = uneven(seed, 2, 16)
    found = place("global", Target(8, per_domain, 8 * more), loads)
    shares = replica_shares(found, rule, per_domain, loads)
    whole = generator.integers(0, 50, (3, 2, 8, 16))
    for counts in (whole, whole / 7.0):
        sent = split(counts, found, shares)
        assert sent.dtype.kind == counts.dtype.kind
        assert sent.shape == (3, 2, 8, 16 + 8 * more)
        assert sent.min() >= 0
        for layer in range(2):
            back = np.zeros((3, 8, 16))
            np.add.at(back, (slice(None), slice(None), found.physical[layer]), sent[:, layer])
            assert back == pytest.approx(counts[:, layer], abs=1e-9)
        assert np.array_equal(sent, split(counts, found, shares))


def test_whole_copies_follow_the_shares() -> None:
    """Over many sources the remainders even out, so that no replica is favoured."""
    found = Placement.of_slots(np.tile([0, 1], 32), ranks=32, experts=2)
    sent = split(np.full((1, 32, 2), 7), found, replica_shares(found, "uniform"))
    assert np.abs(sent.sum(axis=1) - 7.0).max() <= 2


def test_nearest_stays_on_the_rank_then_in_the_domain() -> None:
    # expert 0 on ranks 0 and 3, expert 1 on 1 and 2, the others once; domains {0, 1} and {2, 3}
    found = Placement.of_slots([0, 2, 1, 3, 1, 4, 0, 5], ranks=4, experts=6)
    shares = replica_shares(found, "nearest", ranks_per_domain=2)[0]
    goes = [[0, 0, 6, 6], [2, 2, 4, 4]]
    for expert, slots in enumerate(goes):
        for source, slot in enumerate(slots):
            assert shares[source, slot] == 1.0, (expert, source)
    assert (shares[:, [1, 3, 5, 7]] == 1.0).all()
    apart = Placement.of_slots([0, 1, 2, 3, 0, 4, 5, 6], ranks=4, experts=7)
    none_near = replica_shares(apart, "nearest", ranks_per_domain=1)[0]
    assert none_near[1, [0, 4]].tolist() == [0.5, 0.5]


def test_load_proportional_is_at_least_as_even_as_uniform() -> None:
    loads = uneven(8, 6, 64)
    found = place("hierarchical", Target(16, 4, 16, groups=8), loads)
    counts = np.repeat(loads[:, None] / 16, 16, axis=1)
    at = {rule: balance(rank_loads(found, counts, replica_shares(found, rule, 4, loads))) for rule in RULES}
    assert at["load-proportional"].max_over_mean < at["uniform"].max_over_mean


def test_destinations_follow_the_replica_that_is_chosen() -> None:
    # both experts on every rank: the nearest replica is at home, the uniform one anywhere
    found = Placement.of_slots([0, 1, 0, 1, 0, 1, 0, 1], ranks=4, experts=2)
    choices, source = np.tile(np.array([[[0, 1]]]), (4000, 1, 1)), np.arange(4000) % 4
    near = destinations(found, choices, source, replica_shares(found, "nearest", 2), 2)
    assert (near.domains, near.ranks, near.other_domains) == (1.0, 1.0, 0.0)
    spread = destinations(found, choices, source, replica_shares(found, "uniform"), 2)
    assert spread.ranks > 1.5
    assert spread.other_domains == pytest.approx(0.75, abs=0.26)


def test_definitions_of_balance_by_hand() -> None:
    found = balance(np.array([[4.0, 2.0], [1.0, 1.0]]))
    assert found.max_over_mean == pytest.approx((4 / 3 + 1) / 2)
    assert found.mean_over_max == pytest.approx((3 / 4 + 1) / 2)
    assert found.excess == pytest.approx(1 / 6)
    assert found.ratio_of_sums == pytest.approx((3 + 1) / (4 + 1))
    assert balance(np.zeros((2, 4))).max_over_mean == 1.0


@pytest.mark.parametrize(
    ("strategy", "target", "says"),
    [
        ("greedy", {"ranks": 7}, "32 experts cannot be spread evenly over 7"),
        ("global", {"ranks": 8, "redundant": 3}, "35 experts cannot be spread evenly over 8"),
        ("global", {"ranks": 8, "redundant": -8}, "-8 redundant experts"),
        ("greedy", {"ranks": 8, "redundant": 8}, "global or hierarchical"),
        ("groups", {"ranks": 8}, "one group"),
        ("hierarchical", {"ranks": 6, "ranks_per_domain": 2, "redundant": 4, "groups": 4}, "one number must divide"),
        ("hierarchical", {"ranks": 8, "groups": 5}, "5 equal groups"),
        ("greedy", {"ranks": 8, "ranks_per_domain": 3}, "domains of 3 ranks do not divide 8"),
        ("co-activation", {"ranks": 8}, "counts do not tell pairs"),
        ("gredy", {"ranks": 8}, "nearest: greedy"),
    ],
)
def test_refusals_say_what_and_what_instead(strategy: str, target: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        place(strategy, Target(**target), np.ones((1, 32)))


def test_other_refusals() -> None:
    found = place("contiguous", Target(4), np.ones((1, 8)))
    with pytest.raises(UnknownNameError, match="nearest: nearest"):
        replica_shares(found, "neares")
    with pytest.raises(UserError, match="needs the experts' loads"):
        replica_shares(found, "load-proportional")
    with pytest.raises(UserError, match="needs the experts' loads"):
        expert_rank(8, 4, "greedy")
    with pytest.raises(UserError, match="expert 3 of layer 0 has no slot"):
        Placement.of_slots([0, 1, 2, 0], ranks=2, experts=4)
    with pytest.raises(UserError, match="beyond the 4"):
        Placement.of_slots([0, 1, 2, 4], ranks=2, experts=4)
    with pytest.raises(UserError, match="not negative"):
        place("greedy", Target(2), np.array([[1.0, -1.0]]))
