"""Invariants of the whole answer over random legal scenarios, and both roads within their band on some of them.

The long runs: `python tests/roads.py --scenarios 2000 --seed 0`; more examples here: HYPOTHESIS_PROFILE=explore.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from roads import band, off
from scenario_strategy import Document, random_document, serving, training

import moesim
from moesim.step import prices
from moesim.step.model import StepModel
from moesim.units import UNITS, parse, show

SLACK = 1 + 1e-9
EXCHANGED = ("bytes_scale_up_per_gpu", "bytes_scale_out_per_gpu")
BANDWIDTHS = {
    "scale-up": ("cluster.scale_up_bandwidth", lambda cluster: cluster.gpu.scale_up_bandwidth),
    "scale-out": ("cluster.nic_bandwidth", lambda cluster: cluster.fabric.nic_bandwidth or cluster.gpu.nic_bandwidth),
    "memory": ("cluster.gpu.memory_bandwidth", lambda cluster: cluster.gpu.memory_bandwidth),
}
TWO_ROADS = 25
few = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def estimate(document: Document, *overrides: str) -> moesim.Result:
    """The closed form, whether or not it fits in memory."""
    return moesim.estimate(moesim.load(document, overrides), even_if_infeasible=True)


def seconds(document: Document, *overrides: str) -> float:
    """Its step time."""
    return estimate(document, *overrides).summary["step_time"].value


def pinned(document: Document) -> Document:
    """The same with the dispatcher and the layers by stage that it chooses by itself stated, so that both stay."""
    scenario = moesim.load(document)
    options = {**document["stack_options"]}
    if scenario.virtual_stages > 1:
        options["pipeline_layout"] = [len(chunk.layers) for chunk in StepModel(scenario).chunks]
    found = {**document, "stack_options": options}
    return {**found, "dispatcher": moesim.choose_dispatcher(scenario)[0]} if scenario.exchanges_tokens else found


def require_numbers(summary: dict[str, Any]) -> None:
    """Every metric is a number within its range, and nothing but what skew costs may be below zero."""
    for name, found in summary.items():
        assert math.isfinite(found.value), name
        assert found.low <= found.value + 1e-12 * abs(found.value), name
        assert found.value <= found.high + 1e-12 * abs(found.value), name
        if name not in ("skew_time", "skew_fraction", "bubble_amplification"):
            assert found.low >= 0.0, name


@settings(few, max_examples=40)
@given(training())
def test_every_metric_of_training_is_a_number_and_none_is_negative(document: Document) -> None:
    result = estimate(document)
    require_numbers(result.summary)
    assert min(result.breakdown.values()) >= 0.0
    assert sum(result.breakdown.values()) == pytest.approx(result.summary["step_time"].value, rel=1e-9)
    for name in ("exposed_communication_time", "pipeline_bubble_time", "optimizer_time"):
        assert result.summary[name].value <= result.summary["step_time"].value * SLACK


@settings(few, max_examples=12)
@given(serving())
def test_every_metric_of_serving_is_a_number_and_none_is_negative(document: Document) -> None:
    scenario = moesim.load(document)
    for found in (moesim.estimate(scenario, even_if_infeasible=True), moesim.simulate(scenario)):
        require_numbers(found.summary)
        assert found.summary["requests_per_second"].value > 0.0


@pytest.mark.parametrize("link", BANDWIDTHS)
@settings(few, max_examples=25)
@given(document=training(), factor=st.sampled_from([2.0, 1.1, 8.0]))
def test_more_bandwidth_is_never_slower(link: str, document: Document, factor: float) -> None:
    """With two choices pinned, which go by what is quickest alone: `auto` takes the quickest exchange, whatever SMs it
    holds, and layers are cut into stages by what they cost, whatever the ends wait for. And with the host's time aside:
    it is laid over a layer's parts in proportion, so that a part that shrinks leaves more of it to the others: to rows
    beyond the mean, and to a forward that runs twice. With it at most a tenth, in layers that are called host-bound. A
    quicker exchange also takes more of the memory's bandwidth from what runs beside it, for less time."""
    path, of = BANDWIDTHS[link]
    plain = pinned(document)
    own = of(moesim.load(plain).cluster)
    assume(own is not None)
    wider = f"{path}={own * factor}"
    slow, fast = estimate(plain), estimate(plain, wider)
    told = any(note.startswith("host-bound") for note in fast.notes)
    most = slow.summary["step_time"].value * (1.1 if told else 1.0005)
    assert fast.summary["step_time"].value <= most
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prices, "issue_seconds", lambda *_: 0.0)
        beside = plain["overlap"].get("interference", "none") != "none"
        assert seconds(plain, wider) <= seconds(plain) * (1.002 if beside else SLACK)


@settings(few, max_examples=25)
@given(training(exchanges=True), st.sampled_from(["sequence_length", "global_batch", "micro_batch"]))
def test_more_tokens_never_move_fewer_bytes(document: Document, what: str) -> None:
    plain = pinned(document)
    more = deepcopy(plain)
    for key in {what, "global_batch"} if what == "micro_batch" else {what}:
        more["workload"][key] *= 2
    less, much = estimate(plain).summary, estimate(more).summary
    assert sum(less[name].value for name in EXCHANGED) > 0.0
    for name in EXCHANGED:
        assert much[name].value >= less[name].value / SLACK, name


@settings(few, max_examples=30)
@given(training(moe=True))
def test_perfect_balance_is_never_slower_than_skew(document: Document) -> None:
    """But where skew spares something: experts without a row, whose weights nobody reads; tokens whose several experts
    stand on one rank, which then travel once; experts that top-p needs no more, since fewer make up its share."""
    assume(document["routing"]["router"] != "top-p")
    routing = {**document["routing"], "capacity": "dropless"}
    tokens = {**document["workload"], "sequence_length": 1 << 15}
    plain = pinned({**document, "routing": {**routing, "load": "uniform"}, "workload": tokens})
    even, skewed = estimate(plain), estimate({**plain, "routing": routing})
    fewer = any(
        skewed.summary[name].value < even.summary[name].value * (1 - 1e-6) for name in EXCHANGED if name in even.summary
    )
    bound = 1.02 if fewer else 1.0005
    assert even.summary["step_time"].value <= skewed.summary["step_time"].value * bound
    assert skewed.summary["rank_load_max_over_mean"].value >= 1.0 - 1e-12


@settings(few, max_examples=20)
@given(training(moe=True))
def test_a_capacity_beyond_all_need_is_dropless(document: Document) -> None:
    routing = {**document["routing"], "capacity": "dropless"}
    wide = {**routing, "capacity": {"factor": 1000.0}}
    free, roomy = (estimate({**document, "routing": one}).summary for one in (routing, wide))
    assert max(roomy[name].value for name in ("dropped_token_fraction", "padded_token_fraction")) < 1e-12
    for name, found in free.items():
        assert roomy[name].value == pytest.approx(found.value, rel=1e-12, abs=1e-12), name


@settings(few, max_examples=20)
@given(training(moe=True))
def test_one_expert_parallel_rank_has_no_expert_traffic(document: Document) -> None:
    alone = deepcopy(document)
    alone["parallelism"]["expert"] = 1
    alone["placement"] = {}
    alone["overlap"] = {}
    found = estimate(alone).summary
    for name in (*EXCHANGED, "dispatch_time", "combine_time"):
        assert name not in found or found[name].value == 0.0, name


@pytest.mark.parametrize("index", range(TWO_ROADS))
def test_both_roads_agree_on_random_scenarios(index: int) -> None:
    document = random_document("training", 1, index)
    assert abs(off(document)) <= band(document)


def test_a_group_that_shares_its_buffers_sends_what_it_has_and_padding() -> None:
    """MegaBlocks counts capacity over the whole group: a rank may send an expert more than an even share of it."""
    routing = {"router": "switch", "load": "aux-loss-balanced"}
    routing["capacity"] = {"factor": 1.0, "dialect": "megablocks", "overflow": "next-best", "pad": True}  # type: ignore[assignment]
    model = {"layers": 2, "moe_layers": 2, "d_model": 512, "n_heads": 8, "n_experts": 16, "top_k": 1}
    document = {
        "model": {**model, "d_ff_expert": 2048, "vocab": 32000},
        "cluster": {"gpu": "a100-sxm-80g", "gpus": 16},
        "parallelism": {"expert": 8},
        "workload": {"sequence_length": 1024, "global_batch": 16},
        "routing": routing,
        "simulation": {"microbatch_samples": 4},
    }
    simulated, estimated = moesim.simulate(moesim.load(document)), estimate(document)
    up = "bytes_scale_up_per_gpu"
    assert simulated.summary[up].value == pytest.approx(estimated.summary[up].value, rel=0.02)


@pytest.mark.parametrize("dimension", UNITS)
@settings(max_examples=40)
@given(power=st.floats(-9.0, 18.0), minus=st.booleans())
def test_every_dimension_reads_back_as_it_is_shown(dimension: str, power: float, minus: bool) -> None:
    """Three digits are shown."""
    value = -(10.0**power) if minus else 10.0**power
    text = show(value, "fraction" if dimension == "1" else dimension)
    assert parse(text, dimension) == pytest.approx(value, rel=5.1e-3)


@pytest.mark.parametrize(
    ("unit", "symbols"),
    [
        ("GPU-h", {"GPU-h": 1.0, "k GPU-h": 1e3, "M GPU-h": 1e6}),
        ("parameter", {"": 1.0, "M": 1e6, "B": 1e9, "T": 1e12}),
        ("token/s", {"tokens/s": 1.0, "M tokens/s": 1e6}),
    ],
)
@settings(max_examples=40)
@given(power=st.floats(-3.0, 15.0))
def test_what_is_only_shown_reads_back_by_its_symbol(unit: str, symbols: dict[str, float], power: float) -> None:
    number, _, symbol = show(10.0**power, unit).partition(" ")
    assert float(number.replace(",", "")) * symbols[symbol] == pytest.approx(10.0**power, rel=5.1e-3)


@pytest.mark.parametrize("dimension", UNITS)
def test_every_unit_is_its_scale_from_both_sides(dimension: str) -> None:
    """Spelt behind its number, with and without a space; what is shown of it is it."""
    for unit, scale in UNITS[dimension].items():
        assert parse(f"3 {unit}", dimension) == parse(f"3{unit}", dimension) == pytest.approx(3 * scale, rel=1e-12)
        shown = show(3 * scale, "fraction" if dimension == "1" else dimension)
        assert parse(shown, dimension) == pytest.approx(3 * scale, rel=5.1e-3), unit
