"""The sampler against a twin in plain Python (bit for bit), against the routers (in law), and against theory."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import numpy as np
import pytest

from moesim.errors import InternalError, UserError
from moesim.network.demand import Choices, balanced_demand
from moesim.placement import expert_rank
from moesim.randomness import Streams
from moesim.routing import _kernels, reference
from moesim.routing.capacity import DIALECTS, CapacityRule, keep_first
from moesim.routing.counts import RoutingCounts
from moesim.routing.expected import distinct_places
from moesim.routing.loads import layer_weights
from moesim.routing.race_draws import RaceDraws
from moesim.routing.routers import ROUTERS, router
from moesim.routing.routers.top_k import SigmoidTopK, SoftmaxTopK
from moesim.routing.sampler import RoutingSampler
from moesim.specs.model import RouterSpec
from moesim.specs.routing import CapacitySpec, LoadProfile

WORD = 2**64 - 1
PLAIN = RouterSpec()
UNIFORM, SKEWED = LoadProfile(), LoadProfile(zipf=0.7, sequence_tilt=0.4)
LIMITS = {
    "no-groups": {},
    "max": {"groups": 8, "top_groups": 3, "group_score": "max"},
    "top2-sum": {"groups": 8, "top_groups": 3, "group_score": "top2-sum"},
    "all-groups": {"groups": 8, "top_groups": 8},
    "one-expert-groups": {"groups": 32, "top_groups": 6, "group_score": "top2-sum"},
}
RACES = [rule for rule, kind in ROUTERS.items() if kind in (SoftmaxTopK, SigmoidTopK)]
SPECS = [
    pytest.param(RouterSpec(rule=rule, **limit), id=f"{rule}/{name}")
    for rule in RACES
    for name, limit in LIMITS.items()
]
V3 = RouterSpec(rule="sigmoid-top-k", groups=8, top_groups=4, group_score="top2-sum")
V3_SIZES = {"experts": 256, "top_k": 8, "ranks": 64, "tokens_per_rank": 2048}


def sampler(spec: RouterSpec = PLAIN, profile: LoadProfile = SKEWED, **changes) -> RoutingSampler:
    numbers = {"experts": 32, "top_k": 4, "layers": 3, "ranks": 8, "ranks_per_domain": 3, "tokens_per_rank": 150}
    numbers |= {"sequences_per_rank": 2, "capacity": None, "streams": Streams(7)} | changes
    placement = numbers.get("placement", expert_rank(numbers["experts"], numbers["ranks"]))
    return RoutingSampler(
        race(spec, profile, **{key: value for key, value in numbers.items() if key in RACE}),
        placement=placement,
        **{
            key: numbers[key]
            for key in ("top_k", "tokens_per_rank", "ranks", "ranks_per_domain", "capacity", "streams")
        },
    )


COUNTING = ("top_k", "tokens_per_rank", "ranks", "ranks_per_domain", "capacity", "streams")
RACE = ("experts", "top_k", "layers", "ranks", "tokens_per_rank", "sequences_per_rank", "streams")


def race(spec: RouterSpec, profile: LoadProfile, *, experts: int, top_k: int, layers: int, **numbers) -> RaceDraws:
    popularity = layer_weights(profile, experts, layers, top_k, numbers["streams"])
    return RaceDraws(router(spec, experts, top_k), profile, popularity, **numbers)


def same(first: RoutingCounts, second: RoutingCounts) -> bool:
    return all(first.__dict__[name].tobytes() == second.__dict__[name].tobytes() for name in first.__dict__)


def mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)


def random_word(key: int, row: int, j: int) -> int:
    step = 0x9E3779B97F4A7C15
    return mix((mix((key + row * step) & WORD) + (j + 1) * step) & WORD)


def twin_alias(weights: np.ndarray) -> tuple[list[int], list[int]]:
    """Odds of staying, in units of 2^-32, and where to go instead."""
    total = 0.0
    for weight in weights.tolist():
        total += weight
    share = [weight * (len(weights) / total) for weight in weights.tolist()]
    stay, other = [2**32 - 1] * len(share), list(range(len(share)))
    small = [e for e, x in enumerate(share) if x < 1.0]
    large = [e for e, x in enumerate(share) if x >= 1.0]
    while small and large:
        e, rich = small.pop(), large[-1]
        stay[e], other[e] = int(share[e] * 2**32), rich
        share[rich] -= 1.0 - share[e]
        if share[rich] < 1.0:
            small.append(large.pop())
    return stay, other


def twin_order(weights: np.ndarray, words: int, key: int, row: int) -> list[tuple[int, int]]:
    """All experts in the order of arrival for one token, each with the number of the draw that found it."""
    stay, other = twin_alias(weights)
    found: dict[int, int] = {}
    for j in range(words):
        word = random_word(key, row, j // 2)
        scaled = (word >> 32 if j % 2 == 0 else word & 0xFFFFFFFF) * len(weights)
        cell = scaled >> 32
        found.setdefault(cell if (scaled & 0xFFFFFFFF) < stay[cell] else other[cell], j)
    for j in range(words, words + len(weights) - len(found)):
        unseen = [e for e in range(len(weights)) if e not in found]
        left = 0.0
        for e in unseen:
            left += float(weights[e])
        target = float(random_word(key, row, j) >> 11) * (left / 2**53)
        for e in unseen:
            target -= float(weights[e])
            if target < 0.0:
                break
        found[e] = j
    return list(found.items())


def twin_choices(sample: RoutingSampler, layer: int, index: int, rank: int) -> np.ndarray:
    """What `RoutingSampler.choices` must give, rule by rule, from the whole order of arrival."""
    draws = sample.draws
    law, S, T = draws._law, draws.sequences_per_rank, sample.tokens_per_rank
    weights = np.concatenate([np.broadcast_to(w, (max(len(w), (span.last - span.first) * S), w.shape[1]))
                              for span, w in draws._spans(layer, index, 0, sample.ranks, T)])  # fmt: skip
    key = mix((int(draws._seed(layer, index)) + (rank + 1) * 0x9E3779B97F4A7C15) & WORD)
    chosen = []
    for row in range(T):
        sequence = next(s for s in range(S) if row < (s + 1) * T // S)
        order = twin_order(weights[rank * S + sequence], law.words, key, row)
        scores: dict[int, list[int]] = {g: [] for g in range(law.groups)}
        for expert, j in order:
            scores[int(law.group[expert])].append(int(law.score[j]))
        best = sorted(scores, key=lambda g: (-sum(scores[g][: law.best]), g))
        kept = set(best[: law.top_groups] if law.best else best)
        chosen.append([expert for expert, _ in order if law.group[expert] in kept][: law.top_k])
    return np.array(chosen)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    "profile",
    [UNIFORM, SKEWED, LoadProfile(log_normal=4.0, sequence_tilt=3.0)],
    ids=["uniform", "skewed", "so skewed that draws give way to scans"],
)
def test_choices_equal_the_twin(spec, profile):
    drawn = sampler(spec, profile, tokens_per_rank=60)
    for layer, index, rank in ((0, 0, 0), (2, 5, 7)):
        np.testing.assert_array_equal(drawn.choices(layer, index, rank), twin_choices(drawn, layer, index, rank))


@pytest.mark.parametrize("dialect", [None, *DIALECTS])
@pytest.mark.parametrize("limit", ["no-groups", "max", "top2-sum"])
def test_counts_equal_the_plain_road(dialect, limit):
    capacity = CapacitySpec(factor=1.0, dialect=dialect, priority="position") if dialect else None
    placement = np.random.default_rng(2).permutation(expert_rank(32, 8))
    drawn = sampler(RouterSpec(**LIMITS[limit]), capacity=capacity, placement=placement)
    counts = drawn.sample(1, 2)
    choices = np.stack([drawn.choices(1, 2, rank) for rank in range(8)]).astype(np.int64)
    kept = np.ones(choices.shape, bool)
    if capacity:
        rule = CapacityRule.of(capacity)
        whole = rule.scope == "whole-group"
        rows = rule.capacity(150 * (8 if whole else 1), 32, 4)
        parts = choices.reshape(1, -1, 4) if whole else choices
        kept = np.stack([keep_first(part, rows, rule.precedence(4).order) for part in parts]).reshape(choices.shape)
        assert not kept.all()
    by_rank = [reference.count_places(choices[r], kept[r], placement, 8) for r in range(8)]
    by_domain = [reference.count_places(choices[r], kept[r], placement // 3, 3) for r in range(8)]
    np.testing.assert_array_equal(counts.copies, [copies for copies, _ in by_rank])
    np.testing.assert_array_equal(counts.rank_tokens, [reached for _, reached in by_rank])
    np.testing.assert_array_equal(counts.domain_tokens, [reached for _, reached in by_domain])
    np.testing.assert_array_equal(counts.expert_routed, np.bincount(choices.ravel(), minlength=32))
    np.testing.assert_array_equal(counts.expert_kept, np.bincount(choices[kept], minlength=32))
    np.testing.assert_array_equal(counts.tokens, np.full(8, 150))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dialect", [None, "tutel", "megablocks", "megatron"])
def test_conservation(spec, dialect):
    drawn = sampler(spec, capacity=CapacitySpec(factor=0.8, dialect=dialect) if dialect else None)
    counts = drawn.sample(0, 0)
    assert counts.expert_routed.sum() == 8 * 150 * 4
    assert counts.copies.sum() == counts.expert_kept.sum()
    assert (counts.expert_kept <= counts.expert_routed).all()
    assert bool(counts.expert_kept.sum() == counts.expert_routed.sum()) == (dialect is None)
    assert (counts.rank_tokens <= counts.copies).all()
    assert (counts.domain_tokens <= 150).all()
    if dialect is None:
        np.testing.assert_array_equal(counts.copies.sum(axis=1), 150 * 4)


@pytest.mark.parametrize("limit", LIMITS)
def test_the_order_of_calls_and_the_threads_change_nothing(limit):
    spec = RouterSpec(rule="sigmoid-top-k", **LIMITS[limit])
    points = [(layer, sample) for layer in range(3) for sample in range(4)]
    one_by_one = {point: sampler(spec).sample(*point) for point in points}
    shared = sampler(spec)
    with ThreadPoolExecutor(2) as pool:
        together = dict(zip(points[::-1], pool.map(lambda point: shared.sample(*point), points[::-1]), strict=True))
    assert all(same(one_by_one[point], together[point]) for point in points)
    assert not same(one_by_one[0, 0], one_by_one[0, 1])
    assert not same(one_by_one[0, 0], sampler(spec, streams=Streams(8)).sample(0, 0))


def test_more_draws_at_a_time_change_nothing():
    """How many draws a token starts with is a matter of speed."""
    drawn = sampler(V3, **V3_SIZES)
    expected = drawn.choices(0, 0, 3)
    for draws in (1, 9, 33, 64, 200):
        drawn.draws._law = drawn.draws._law._replace(draws=draws)
        np.testing.assert_array_equal(drawn.choices(0, 0, 3), expected)


def standard_errors(first: np.ndarray, second: np.ndarray, experts: int) -> np.ndarray:
    """How far apart two samples of choices [T, K] put each expert's inclusion probability, in standard errors."""
    n, m = len(first), len(second)
    p, q = (np.bincount(choices.ravel(), minlength=experts) / len(choices) for choices in (first, second))
    pooled = (p * n + q * m) / (n + m)
    return np.abs(p - q) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m) + 1e-12)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("profile", [UNIFORM, LoadProfile(log_normal=1.0)], ids=["uniform", "log-normal"])
def test_inclusion_probabilities_are_the_routers(spec, profile):
    """The race's law equals the router's on Gumbel logits: exactly but for "top2-sum" (see its bias below)."""
    drawn = sampler(spec, profile, tokens_per_rank=5000)
    fast = np.concatenate([drawn.choices(0, 0, rank) for rank in range(8)]).astype(np.int64)
    plain = reference.draw(router(spec, 32, 4), drawn.draws.popularity[0], 40_000, np.random.default_rng(1)).experts
    assert standard_errors(fast, plain, 32).max() < 4.5
    for k in range(4):  # and so does the law of each place in the order
        assert standard_errors(fast[:, k : k + 1], plain[:, k : k + 1], 32).max() < 4.5


def test_inclusion_probabilities_against_plackett_luce():
    """Four experts, two chosen: every ordered pair's probability is known."""
    drawn = sampler(profile=LoadProfile(zipf=1.0), experts=4, top_k=2, ranks=2, tokens_per_rank=100_000)
    w = drawn.draws.popularity[1] / drawn.draws.popularity[1].sum()
    choices = np.concatenate([drawn.choices(1, 0, rank) for rank in range(2)])
    for a, b in permutations(range(4), 2):
        theory = w[a] * w[b] / (1 - w[a])
        observed = (choices == (a, b)).all(axis=1).mean()
        assert abs(observed - theory) < 4.5 * np.sqrt(theory * (1 - theory) / len(choices))


@pytest.mark.parametrize(
    ("spec", "experts", "top_k", "ranks"),
    [
        (RouterSpec(), 256, 8, 64),
        (RouterSpec(), 60, 4, 12),
        (RouterSpec(groups=8, top_groups=4), 256, 8, 64),
        (RouterSpec(groups=8, top_groups=3), 160, 6, 8),
        (RouterSpec(groups=4, top_groups=2), 48, 5, 6),
    ],
)
def test_distinct_places_against_theory(spec, experts, top_k, ranks):
    drawn = sampler(spec, UNIFORM, experts=experts, top_k=top_k, ranks=ranks, tokens_per_rank=20_000)
    choices = drawn.choices(0, 0, 0).astype(np.int64)
    for places in (ranks, ranks // 2):
        reached = np.sort(choices * places // experts, axis=1)
        distinct = 1 + (np.diff(reached, axis=1) > 0).sum(axis=1)
        theory = distinct_places(places, experts, top_k, spec.groups, spec.top_groups)
        assert abs(distinct.mean() - theory) < 4.5 * distinct.std() / np.sqrt(len(distinct))


@pytest.mark.parametrize(
    ("profile", "experts", "top_k", "tolerance"),
    [
        (UNIFORM, 256, 8, 0.002),
        (LoadProfile(log_normal=1.0), 256, 8, 0.002),
        (UNIFORM, 64, 6, 0.004),
    ],
)
def test_bias_of_the_top2_sum_substitute(profile, experts, top_k, tolerance):
    """Groups are scored at mean times of arrival. With 400,000 tokens, that makes distinct groups 0.05-0.1 % more (256
    experts) or 0.2 % (64), distinct ranks 0.05-0.1 %; loads and pairs of groups and experts do not differ."""
    tokens, ranks = 40_000, experts // 4
    drawn = sampler(V3, profile, experts=experts, top_k=top_k, ranks=ranks, tokens_per_rank=tokens, layers=1)
    fast = drawn.choices(0, 0, 0).astype(np.int64)
    rule, generator = router(V3, experts, top_k), np.random.default_rng(4)
    parts = [reference.draw(rule, drawn.draws.popularity[0], tokens // 8, generator).experts for _ in range(8)]
    plain = np.concatenate(parts)
    for places in (8, ranks):
        place = np.arange(experts) * places // experts
        kept = np.ones(fast.shape, bool)
        means = [reference.count_places(choices, kept, place, places)[1].sum() / tokens for choices in (fast, plain)]
        assert abs(means[0] / means[1] - 1) < tolerance
    assert standard_errors(fast, plain, experts).max() < 5.0
    groups = [np.eye(8)[choices * 8 // experts].max(axis=1) for choices in (fast, plain)]
    together = [met.T @ met / tokens for met in groups]
    np.testing.assert_allclose(*together, atol=0.015)


def test_the_balanced_demand_is_the_mean_of_uniform_samples():
    drawn = sampler(RouterSpec(groups=8, top_groups=3), UNIFORM, tokens_per_rank=50_000)
    mean = balanced_demand(Choices(32, 4, 8, 3), 8, 3, 50_000.0)
    for name in ("copies", "rank_tokens", "domain_tokens"):
        np.testing.assert_allclose(getattr(drawn.sample(0, 0), name), getattr(mean, name), rtol=0.03, err_msg=name)
    assert mean.rank_tokens[0].sum() == pytest.approx(50_000 * distinct_places(8, 32, 4, 8, 3))


def test_known_distinct_places():
    """DeepSeek-V3's experts without its group limit, as the routing reference states them."""
    expected = {8: 5.30, 16: 6.52, 32: 7.27, 64: 7.68}
    for places, value in expected.items():
        assert distinct_places(places, 256, 8) == pytest.approx(value, abs=0.01)
    assert distinct_places(8, 256, 8, 8, 8) == pytest.approx(distinct_places(8, 256, 8))
    assert 3.9 < distinct_places(8, 256, 8, 8, 4) <= 4.0
    assert distinct_places(1, 256, 8) == pytest.approx(1.0)
    assert distinct_places(256, 256, 8) == pytest.approx(8.0)


def test_sequences_tilt_a_rank_apart():
    """One sequence's own tilt makes its load more uneven than that of many together; without tilt it does not."""
    spread = {}
    for tilt in (0.0, 1.0):
        drawn = sampler(profile=LoadProfile(sequence_tilt=tilt), tokens_per_rank=4000, sequences_per_rank=1)
        loads = drawn.sample(0, 0).copies / (4000 * 4 / 8)
        spread[tilt] = loads.std(axis=1).mean()
        assert loads.mean(axis=0).std() < 0.6 * spread[tilt] or tilt == 0.0
    assert spread[1.0] > 5 * spread[0.0]


@pytest.mark.parametrize(("experts", "top_k", "ranks"), [(8, 8, 4), (1, 1, 1), (2048, 2, 2048), (512, 22, 64)], ids=str)
def test_other_sizes(experts, top_k, ranks):
    drawn = sampler(experts=experts, top_k=top_k, ranks=ranks, tokens_per_rank=40, sequences_per_rank=3)
    counts = drawn.sample(0, 0)
    assert counts.copies.sum() == ranks * 40 * top_k
    assert counts.rank_tokens.max() <= 40
    assert all(len(set(row)) == top_k for row in drawn.choices(0, 0, ranks - 1).tolist())


def test_refusals():
    with pytest.raises(UserError, match="65535"):
        sampler(experts=2**17, ranks=8)
    with pytest.raises(UserError, match="tokens can be sampled"):
        sampler(tokens_per_rank=2**30)
    with pytest.raises(InternalError, match="placement"):
        sampler(placement=np.full(32, 8))
    with pytest.raises(UserError, match="evenly"):
        expert_rank(33, 8)


def test_compiled_code_needs_no_folder_for_its_cache(monkeypatch):
    compile_ = _kernels.numba.njit

    def no_folder(*, cache: bool = False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_(**options)

    monkeypatch.setattr(_kernels.numba, "njit", no_folder)
    assert _kernels.compiled(lambda x: x + 1)(2) == 3


def test_rules_and_counts_do_not_import_the_compiler():
    rooms = "moesim.routing.routers, moesim.routing.capacity, moesim.routing.counts, moesim.routing.expected"
    code = f"import sys, moesim.placement, {rooms}; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
