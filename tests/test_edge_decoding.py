"""Experts in host memory while tokens are decoded: what caches hold and miss, on both roads."""

from __future__ import annotations

import numpy as np
import pytest
from edge_fixture import BASE, HITS, SPEED, WAITING, decode, estimated, law_of, load

import moesim
from moesim.iteration.offload import expert_bytes
from moesim.routing.cache import expected_hits
from moesim.serving.deployment import engine_pools, pool_laws
from moesim.serving.expert_cache import expert_caches


@pytest.mark.parametrize("prefetch", ["none", "previous-layer"])
@pytest.mark.parametrize("keep", ["recent", "popular"])
@pytest.mark.parametrize("concurrency", [1, 6])
def test_a_larger_cache_and_a_quicker_link_are_never_slower(keep: str, prefetch: str, concurrency: int) -> None:
    many = f"workload.arrivals.concurrency={concurrency}"
    sizes = [
        estimated(SPEED, many, resident=kept, keep=keep, prefetch=prefetch) for kept in (1, 2, 4, 8, 16, 24, 28, 31, 32)
    ]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[0]
    links = [
        estimated(SPEED, many, resident=12, keep=keep, prefetch=prefetch, host_bandwidth=f"{rate} GB/s")
        for rate in (1, 2, 4, 8, 16, 64, 256)
    ]
    assert links == sorted(links)
    assert links[1] > 1.5 * links[0]


def test_all_resident_is_no_off_load() -> None:
    plain, kept = moesim.estimate(load()), moesim.estimate(load(resident=32, prefetch="previous-layer"))
    assert plain.summary == kept.summary
    assert plain.breakdown == kept.breakdown
    assert plain.memory == kept.memory
    drawn, held = moesim.simulate(load()), moesim.simulate(load(resident=32))
    assert drawn.summary == held.summary
    endless = estimated(SPEED, resident=4, host_bandwidth="9000 TB/s")
    assert endless == pytest.approx(plain.summary[SPEED].value, rel=1e-3)


@pytest.mark.parametrize("keep", ["recent", "popular"])
@pytest.mark.parametrize("load_of", ["uniform", "{zipf: 0.7}"])
def test_one_request_hits_as_tokens_one_by_one_do(keep: str, load_of: str) -> None:
    """The same share as a training scenario's expert_cache_hit_fraction, and as the law of the cache itself."""
    training = moesim.load(
        {
            "model": "gpt-oss-20b",
            "cluster": BASE["cluster"],
            "workload": {"sequence_length": 256, "global_batch": 1},
            "placement": {"offload": {"resident": 12, "host_bandwidth": "8 GB/s", "keep": keep}},
        },
        [f"routing.load={load_of}"],
    )
    own = moesim.estimate(training, even_if_infeasible=True).summary[HITS].value
    found = estimated(HITS, f"routing.load={load_of}", resident=12, keep=keep)
    assert found == pytest.approx(own, abs=0.01)
    law = law_of(f"routing.load={load_of}", resident=12, keep=keep)
    chance = law.load.moments.chance
    hits = expected_hits(chance, 12, keep)  # type: ignore[arg-type]
    assert found == pytest.approx((chance * hits).sum() / chance.sum(), rel=1e-9)


def test_a_fetch_takes_its_bytes_over_the_link() -> None:
    """One request, hardly any compute beside the link: wanted x missed experts of every layer, at the served format."""
    scenario = load(resident=8)
    law = law_of(resident=8)
    model = scenario.model
    bytes_of = expert_bytes(scenario, law.instance)
    assert bytes_of == pytest.approx(3 * model.d_model * model.d_ff_expert * 17 / 32, rel=0.01)  # 4 bits and scales
    missing = law.expected_missing(decode(1.0))
    assert missing is not None
    assert missing.wanted.sum(axis=-1) == pytest.approx(np.full((1, len(law.load.layers)), model.top_k))
    link = missing.missing.mean() * model.moe_layers * bytes_of / 8e9
    parts = law.parts(decode(1.0))
    assert float(parts["expert_fetch"][0]) < link < float(parts["expert_fetch"][0]) + float(parts["experts"][0])


def test_more_requests_want_more_experts_of_which_less_each() -> None:
    law = law_of(resident=8)
    found = [law.expected_missing(decode(count)) for count in (1.0, 2.0, 8.0, 64.0, 1024.0)]
    wanted = [float(one.wanted.mean()) for one in found if one is not None]
    missing = [float(one.missing.mean()) for one in found if one is not None]
    assert wanted == sorted(wanted)
    assert wanted[0] == pytest.approx(4.0)
    assert wanted[-1] == pytest.approx(32.0, rel=0.01)
    assert missing[-1] == pytest.approx(24.0, rel=0.02)
    assert estimated(SPEED, "workload.arrivals.concurrency=8", resident=8) > estimated(SPEED, resident=8)


@pytest.mark.parametrize("keep", ["recent", "popular"])
@pytest.mark.parametrize(("concurrency", "prefetch"), [(1, "none"), (1, "previous-layer"), (5, "none")])
def test_both_roads_agree(keep: str, concurrency: int, prefetch: str) -> None:
    """Closed form against real caches fed with drawn tokens."""
    for kept in (6, 20, 28):
        scenario = load(f"workload.arrivals.concurrency={concurrency}", resident=kept, keep=keep, prefetch=prefetch)
        closed, drawn = moesim.estimate(scenario).summary, moesim.simulate(scenario).summary
        assert drawn[HITS].value == pytest.approx(closed[HITS].value, abs=0.03)
        assert drawn[SPEED].value == pytest.approx(closed[SPEED].value, rel=0.06)
        assert drawn[WAITING].value == pytest.approx(closed[WAITING].value, abs=0.03)


def test_a_request_with_a_taste_of_its_own_is_served_better() -> None:
    """Sequences that keep to experts of their own: a cache of recent ones gains, and both roads say so."""
    plain, own = "routing.load={zipf: 0.0}", "routing.load={zipf: 0.0, sequence_tilt: 1.0}"
    settings = ("workload.output_tokens=512", "workload.requests=6")
    for road in (moesim.estimate, moesim.simulate):
        flat = road(load(plain, *settings, resident=8)).summary[HITS].value
        tilted = road(load(own, *settings, resident=8)).summary[HITS].value
        assert tilted > flat + 0.1
    closed, drawn = (
        road(load(own, *settings, resident=8)).summary[HITS].value for road in (moesim.estimate, moesim.simulate)
    )
    assert drawn == pytest.approx(closed, abs=0.06)


def test_the_same_seed_fetches_the_same() -> None:
    first, again = (moesim.simulate(load(resident=10)) for _ in range(2))
    assert first.as_dict() == again.as_dict()
    other = moesim.simulate(load("routing.seed=5", "simulation.seed=5", resident=10))
    assert other.summary[SPEED].value != first.summary[SPEED].value


def test_caches_hold_what_they_say() -> None:
    """A chain never misses more than it wants, nor more than a rank's experts beyond those kept, once warm."""
    scenario = load("workload.arrivals.concurrency=8", resident=20)
    (law,) = pool_laws(scenario)
    caches = expert_caches(scenario, scenario.pools[0], law)
    assert caches is not None
    assert caches.decode.tokens.tolist() == [1, 2, 3, 4, 6, 8]
    for wanted, missing in zip(caches.decode.wanted, caches.decode.missing, strict=True):
        assert (missing <= wanted).all()
        assert missing.max() <= 12
    assert (caches.decode.wanted[0] == 4).all()
    assert engine_pools(load(), pool_laws(load()))[0].caches is None


def test_every_gpu_of_an_instance_fetches_its_own() -> None:
    """Two expert-parallel ranks keep six each of sixteen: half the bytes a link of twelve kept by one."""
    two = ("cluster={gpu: rtx-4090, gpus: 2, fabric: none}", "instance={gpus: 2, tensor: 2, expert: 2}")
    one = ("cluster={gpu: rtx-4090, gpus: 1, fabric: none}",)
    found = [moesim.estimate(load(*two, resident=6)), moesim.estimate(load(*one, resident=12))]
    assert found[0].summary[HITS].value == pytest.approx(found[1].summary[HITS].value, abs=0.03)
    assert (
        found[1].breakdown["expert fetch"] / 2 < found[0].breakdown["expert fetch"] < found[1].breakdown["expert fetch"]
    )
    drawn = moesim.simulate(load(*two, resident=6))
    assert drawn.summary[SPEED].value == pytest.approx(found[0].summary[SPEED].value, rel=0.08)
