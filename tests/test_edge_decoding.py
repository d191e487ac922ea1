"""Experts in host memory while tokens are decoded: caches, prefetch, memory, both roads, the curve over the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moesim
from moesim.curves import expert_cache_curve
from moesim.errors import InfeasibleError, ScenarioError, UserError
from moesim.iteration.fetch_wait import Layer, Link, expected_walk, walk
from moesim.iteration.law import Batch, IterationLaw
from moesim.iteration.offload import expert_bytes, host_bytes
from moesim.results.curve_charts import curve_chart
from moesim.routing.cache import expected_hits
from moesim.scenario.serving import ServingScenario
from moesim.serving.deployment import engine_pools, pool_laws
from moesim.serving.expert_cache import expert_caches

SCENARIOS = Path(__file__).parents[1] / "scenarios" / "serving"
EDGE, WORKSTATION = (
    SCENARIOS / "edge-gpt-oss-120b-1-jetson.yaml",
    SCENARIOS / "workstation-mixtral-8x7b-1-rtx-4090.yaml",
)
BASE: dict[str, Any] = {
    "model": "gpt-oss-20b",
    "cluster": {"gpu": "jetson-orin-agx-64g", "gpus": 1, "fabric": "none"},
    "instance": {"gpus": 1},
    "workload": {
        "kind": "decode",
        "requests": 30,
        "input_tokens": 256,
        "output_tokens": 96,
        "arrivals": {"kind": "closed", "concurrency": 1},
    },
    "engine": {"token_budget": 512, "max_requests": 16},
    "precision": {"expert_weights": "mxfp4"},
    "routing": {"load": {"zipf": 0.7}},
}
SPEED, HITS, WAITING = "output_tokens_per_second", "expert_cache_hit_fraction", "expert_fetch_fraction"


def load(*settings: str, **offload: Any) -> ServingScenario:
    """The base with `offload` (8 GB/s unless stated); without any it holds all experts."""
    placement = {"offload": {"host_bandwidth": "8 GB/s", **offload}} if offload else {}
    found = moesim.load({**BASE, "placement": placement}, settings)
    assert isinstance(found, ServingScenario)
    return found


def estimated(metric: str, *settings: str, **offload: Any) -> float:
    return moesim.estimate(load(*settings, **offload)).summary[metric].value


def law_of(*settings: str, **offload: Any) -> IterationLaw:
    scenario = load(*settings, **offload)
    return IterationLaw(scenario, scenario.pools[0].instance, "decode")


def decode(requests: float) -> Batch:
    none = np.zeros(1)
    return Batch(none, none, np.array([requests]), np.array([300.0 * requests]))


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


@pytest.mark.parametrize("experts", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("each", [0.1, 0.7, 3.0])
def test_prefetch_with_every_name_right_hides_all_it_can(experts: float, each: float) -> None:
    """Never slower than none; never quicker than compute, nor than the link; at both but for the first layer where
    layers are all alike."""
    count = np.full((1, 40), 3.0)
    layer = Layer(np.array([0.8]), np.array([experts]), np.array([experts / 4]))
    found, none = float(walk(layer, Link(each, 1.0), count)[0]), float(walk(layer, Link(each), count)[0])
    compute, link = 40 * (0.8 + experts), 40 * 3.0 * each
    assert found <= none + 1e-12
    assert found >= max(compute, link) - 1e-9
    assert found <= max(compute, link) + 0.8 + experts + 3.0 * each
    drawn = np.random.default_rng(0).integers(0, 7, (200, 40)).astype(np.float64)
    chance = np.full((1, 7), 1 / 7)
    for accuracy in (None, 0.0, 0.5, 1.0):
        seconds = walk(
            Layer(*(np.full(200, value) for value in (0.8, experts, experts / 4))), Link(each, accuracy), drawn
        )
        assert expected_walk(layer, Link(each, accuracy), chance, 40)[0] == pytest.approx(seconds.mean(), rel=0.03)


def test_prefetch_pays_by_its_accuracy() -> None:
    for bandwidth in ("2 GB/s", "8 GB/s", "64 GB/s"):
        for kept in (4, 16, 28):
            none = estimated(SPEED, resident=kept, host_bandwidth=bandwidth)
            ahead = [
                estimated(
                    SPEED, resident=kept, host_bandwidth=bandwidth, prefetch="previous-layer", prefetch_accuracy=share
                )
                for share in (0.0, 0.4, 0.8, 1.0)
            ]
            assert ahead == sorted(ahead)
            assert ahead[0] <= none <= ahead[-1]
    law = law_of(resident=8, prefetch="previous-layer", prefetch_accuracy=1.0)
    assert law.fetch is not None
    missing = law.expected_missing(decode(1.0))
    assert missing is not None
    parts = {name: float(value[0]) for name, value in law.parts(decode(1.0)).items()}
    layers = sum(parts.values()) - parts["head"] - parts["host"]
    link = missing.missing.mean() * 24 * law.fetch.link.each
    assert layers >= max(link, layers - parts["expert_fetch"])
    assert layers <= max(link, layers - parts["expert_fetch"]) * 1.2


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


def test_memory_is_of_what_is_kept() -> None:
    parts = {kept: law_of(resident=kept).memory_parts for kept in (8, 16)}
    assert parts[16]["weights_experts"] == pytest.approx(2 * parts[8]["weights_experts"])
    scenario = load(resident=8)
    instance = scenario.pools[0].instance
    whole = law_of().memory_parts["weights_experts"]
    assert parts[8]["weights_experts"] + host_bytes(scenario, instance) == pytest.approx(whole)
    assert parts[8]["experts_in_transit"] == pytest.approx(2 * expert_bytes(scenario, instance))
    found = moesim.estimate(scenario).summary["host_memory_per_gpu"]
    assert found.value == host_bytes(scenario, instance)
    assert "catalog knows no host memory" in found.note
    assert law_of(resident=8).kv_capacity_tokens > law_of(resident=16).kv_capacity_tokens > law_of().kv_capacity_tokens


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


@pytest.mark.parametrize(
    ("settings", "where", "words"),
    [
        (["placement.offload={resident: 33, host_bandwidth: 1 GB/s}"], "placement.offload.resident", "32 experts"),
        (["model=llama-3.1-8b", "routing={}", "precision={}"], "placement.offload", "no experts"),
        (["placement.offload.prefetch=next-layer"], "placement.offload.prefetch", "previous-layer"),
        (["placement.offload.prefetch_accuracy=1.5"], "placement.offload.prefetch_accuracy", "1"),
        (["placement.redundant_experts=2"], "placement.redundant_experts", "stand nowhere"),
    ],
)
def test_mistakes_are_told(settings: list[str], where: str, words: str) -> None:
    with pytest.raises(ScenarioError) as error:
        load(*settings, resident=4)
    assert any(problem.where == where and words in problem.what for problem in error.value.problems)


def test_training_fetches_without_prefetch() -> None:
    document = {"model": "gpt-oss-20b", "cluster": BASE["cluster"], "workload": {"global_batch": 1}}
    offload = "placement.offload={resident: 8, host_bandwidth: 8 GB/s, prefetch: previous-layer}"
    with pytest.raises(ScenarioError, match="for decode and serving"):
        moesim.load(document, [offload])


@pytest.mark.parametrize("path", [EDGE, WORKSTATION], ids=lambda path: path.stem)
def test_the_curve_over_the_cache(path: Path) -> None:
    """Speed rises with the experts kept, until memory says no; each point is what estimate says."""
    scenario = moesim.load(path)
    assert isinstance(scenario, ServingScenario)
    assert scenario.question
    offload = scenario.placement.offload
    assert offload is not None
    most = scenario.model.n_experts
    found = expert_cache_curve(scenario, (1, most // 4, most // 2, most))
    speeds = [one.value for _, one in found.answered(SPEED)]
    assert speeds == sorted(speeds)
    assert speeds[-1] > 1.5 * speeds[0]
    assert "memory" in found.points[-1].why  # the model is larger than the GPU's memory
    own = moesim.estimate(scenario).summary
    assert dict(found.answered(SPEED))[float(offload.resident)] == own[SPEED]
    assert found.here == offload.resident
    chart = curve_chart(found, [SPEED], "Tokens a second against experts kept").to_dict()
    assert "experts kept" in str(chart)
    with pytest.raises(InfeasibleError, match="memory"):
        moesim.estimate(moesim.load(path, [f"placement.offload.resident={most}"]))


def test_a_curve_needs_a_cache() -> None:
    with pytest.raises(UserError, match="not stated"):
        expert_cache_curve(load())


def test_prefetch_gains_at_most_what_is_computed() -> None:
    """Qwen3-30B-A3B with its experts off the GPU, an A6000: 84 to 88 % of the time is fetching, and to execute what was
    speculated takes 5 to 14 % off a token (arXiv 2603.19289). Here an L40S, the nearest of the catalog, and 25 GB/s
    of PCIe 4.0 x16 (assumed): kernels alone compute quicker, so there is more to wait for, less to hide it behind."""
    settings = (
        "model=qwen3-30b-a3b", "cluster={gpu: l40s, gpus: 1, fabric: none}", "precision={}", "routing.load=uniform",
    )  # fmt: skip
    offload = {"resident": 1, "host_bandwidth": "25 GB/s"}
    none = moesim.estimate(load(*settings, **offload)).summary
    ahead = moesim.estimate(load(*settings, **offload, prefetch="previous-layer", prefetch_accuracy=1.0)).summary
    assert 0.8 < none[WAITING].value < 0.97
    gain = 1.0 - none[SPEED].value / ahead[SPEED].value
    assert 0.02 < gain < 0.16
