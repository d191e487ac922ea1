"""Experts in host memory while tokens are decoded: prefetch, memory, mistakes, the curve over the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edge_fixture import BASE, EDGE, SPEED, WAITING, WORKSTATION, decode, estimated, law_of, load

import moesim
from moesim.curves import expert_cache_curve
from moesim.errors import InfeasibleError, ScenarioError, UserError
from moesim.iteration.fetch_wait import Layer, Link, expected_walk, walk
from moesim.iteration.offload import expert_bytes, host_bytes
from moesim.results.curve_charts import curve_chart
from moesim.scenario.serving import ServingScenario


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
