"""The simulation: a slow rank delays its peers, disturbances are drawn from named streams, nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import moesim
from moesim.engine.conservation import check_routing, check_step
from moesim.engine.run import draw_routing
from moesim.engine.simulation import simulate_step
from moesim.errors import InternalError
from moesim.randomness import Streams
from moesim.step.model import StepModel
from moesim.step.placed import routing_sampler
from moesim.step.routed import RoutedWork, even_work, price_layers

BASE: dict[str, Any] = {
    "model": {
        "layers": 8,
        "moe_layers": 6,
        "d_model": 2048,
        "n_heads": 16,
        "n_experts": 32,
        "top_k": 4,
        "d_ff_expert": 1024,
        "d_ff_dense": 4096,
        "vocab": 32000,
    },
    "cluster": {"gpu": "h100-sxm", "gpus": 32},
    "parallelism": {"pipeline": 4, "expert": 8},
    "workload": {"sequence_length": 2048, "global_batch": 128},
    "routing": {"load": "uniform"},
    "simulation": {"microbatch_samples": 2},
}


def scenario(**changes: Any) -> moesim.Scenario:
    return moesim.load({**BASE, **changes})


def step_seconds(**simulation: Any) -> float:
    return moesim.simulate(scenario(simulation={"microbatch_samples": 2, **simulation})).summary["step_time"].value


def test_event_counts_are_pinned() -> None:
    """Operations follow from the layout: M microbatches x those of every layer, forward and backward, and the ends."""
    frame = moesim.simulate(scenario()).operations
    batches, moe, dense = 16, 6, 2
    counts = frame.kind.value_counts().to_dict()
    assert counts["dispatch"] == counts["combine"] == counts["experts"] == 2 * moe * batches
    assert counts["attention"] == 2 * (moe + dense) * batches
    assert counts["dense"] == 2 * dense * batches
    assert counts["router"] == moe * batches
    assert counts["embedding"] == counts["head"] == 2 * batches
    assert counts["send"] == 2 * 3 * batches
    assert counts["optimizer"] == 4


def test_a_straggler_delays_the_whole_group_by_its_slowdown_or_less() -> None:
    plain = step_seconds()
    slow = step_seconds(stragglers=[{"rank": 3, "slowdown": 1.5}])
    assert plain * 1.15 < slow < plain * 1.5


def test_a_slow_rank_makes_its_peers_wait_at_the_next_exchange() -> None:
    model = StepModel(scenario(simulation={"stragglers": [{"rank": 0, "slowdown": 2.0}]}))
    even = even_work(model)
    slow = simulate_step(model, even, 0, Streams(0))
    model_without = StepModel(scenario())
    plain = simulate_step(model_without, even_work(model_without), 0, Streams(0))
    exposed = ("dispatch", "combine")
    assert sum(slow.waited[kind] for kind in exposed) > 3 * sum(plain.waited[kind] for kind in exposed)


def test_jitter_costs_time_and_is_reproducible() -> None:
    plain = step_seconds()
    jittered = [step_seconds(jitter=0.1) for _ in range(2)]
    assert jittered[0] == jittered[1]
    assert plain < jittered[0] < 1.5 * plain
    assert step_seconds(jitter=0.1, seed=1) != jittered[0]


def test_more_steps_differ_and_are_averaged() -> None:
    result = moesim.simulate(
        scenario(simulation={"microbatch_samples": 4, "steps": 3}, routing={"load": "gpt-oss-like"})
    )
    frame = result.operations
    ends = frame.groupby("step").end.max().to_numpy()
    lengths = np.diff(ends, prepend=0.0)
    assert len(set(lengths)) == 3
    assert result.summary["step_time"].value == pytest.approx(lengths.mean(), rel=1e-3)


def test_skew_costs_time_and_balance_is_the_counterfactual() -> None:
    skewed = moesim.simulate(scenario(routing={"load": {"log_normal": 0.8}})).summary
    uniform = moesim.simulate(scenario()).summary
    assert skewed["step_time"].value > uniform["step_time"].value
    even = skewed["step_time"].value - skewed["skew_time"].value
    assert even == pytest.approx(uniform["step_time"].value - uniform["skew_time"].value)
    model = StepModel(scenario())
    assert even == pytest.approx(simulate_step(model, even_work(model), 0, Streams(0)).seconds, rel=1e-9)


def test_the_ideal_network_is_never_slower() -> None:
    assert step_seconds(network="ideal") < step_seconds()


def test_routing_is_conserved_and_a_breach_is_our_bug() -> None:
    model = StepModel(scenario(routing={"load": "mixtral-like", "capacity": {"factor": 1.0}}))
    work = draw_routing(model, lambda what, share: None)
    assert work is not None
    assert (work.expert_kept < work.expert_routed).any()
    check_routing(model, work)
    lost = work.expert_routed.copy()
    lost[0, 0, 0] -= 1
    with pytest.raises(InternalError, match="presented"):
        check_routing(model, replace(work, expert_routed=lost))
    with pytest.raises(InternalError, match="more copies"):
        check_routing(model, replace(work, expert_kept=work.expert_routed + 1))
    leaking = replace(work.dispatch, received_up=0.5 * work.dispatch.received_up)
    with pytest.raises(InternalError, match="bytes sent"):
        check_routing(model, replace(work, dispatch=leaking))


def test_an_overlapping_stream_is_our_bug() -> None:
    model = StepModel(scenario())
    step = simulate_step(model, even_work(model), 0, Streams(0))
    columns = {name: values.copy() for name, values in step.columns.items()}
    row = int(np.flatnonzero((columns["stream"] == "compute") & (columns["stage"] == 0))[5])
    columns["begin_mean"][row] -= 1e-3
    with pytest.raises(InternalError, match="overlaps itself"):
        check_step(model, [], columns)


def test_capacity_drops_and_padding() -> None:
    dropped = moesim.simulate(scenario(routing={"load": "olmoe-like", "capacity": {"factor": 1.0}})).summary
    assert 0.05 < dropped["dropped_token_fraction"].value < 0.6
    assert dropped["padded_token_fraction"].value == 0
    padded = moesim.simulate(scenario(routing={"load": "olmoe-like", "capacity": {"factor": 1.5, "pad": True}})).summary
    assert padded["padded_token_fraction"].value > 0.2
    assert padded["rank_load_max_over_mean"].value == pytest.approx(1.0)
    generous = moesim.simulate(scenario(routing={"load": "olmoe-like", "capacity": {"factor": 30.0}})).summary
    dropless = moesim.simulate(scenario(routing={"load": "olmoe-like"})).summary
    assert generous["dropped_token_fraction"].value == 0
    assert generous["step_time"].value == dropless["step_time"].value


def test_operations_carry_bytes_and_rows() -> None:
    result = moesim.simulate(scenario())
    frame = result.operations
    experts = frame[frame.kind == "experts"]
    assert (experts.rows == 8 * 2048 * 4).all()
    dispatch = frame[frame.kind == "dispatch"]
    assert (dispatch.bytes_up > 0).all()
    assert (dispatch.bytes_out == 0).all()  # eight ranks share one domain
    per_gpu = frame[frame.kind.isin(["dispatch", "combine"])].bytes_up.sum() / 32
    assert result.summary["bytes_scale_up_per_gpu"].value == pytest.approx(per_gpu, rel=0.01)


def draw_unchecked(model: StepModel) -> RoutedWork:
    return price_layers(model, routing_sampler(model).sample, 1)


def test_a_wrong_count_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts that skip rows, or traffic that leaves tokens behind, break conservation."""
    model = StepModel(scenario())
    honest = type(model).computed_rows
    monkeypatch.setattr(type(model), "computed_rows", lambda self, kept: 0.5 * honest(self, kept))
    work = draw_unchecked(model)
    monkeypatch.undo()
    with pytest.raises(InternalError, match="rows computed"):
        check_routing(model, work)
    work = draw_unchecked(model)
    check_routing(model, work)
    with pytest.raises(InternalError, match="fewer bytes"):
        check_routing(model, replace(work, needed=work.needed * 1.1))


def test_dualpipe_without_overlap_exposes_its_exchanges() -> None:
    exposed = {}
    for wanted in (True, False):
        chosen = scenario(
            schedule="dualpipe", overlap={"expert_communication": wanted}, stack_options={"cuda_graphs": "full"}
        )
        result = moesim.estimate(chosen)
        exposed[wanted] = result.summary["exposed_communication_time"].value
    assert exposed[True] < 0.8 * exposed[False]


def test_parts_add_up_with_every_kind_of_parallelism() -> None:
    layout = {"tensor": 4, "context": 2, "pipeline": 2, "expert": 4, "expert_tensor": 2}
    result = moesim.simulate(scenario(parallelism=layout), even_if_infeasible=True)
    assert sum(result.breakdown.values()) == pytest.approx(result.summary["step_time"].value, rel=1e-6)
    assert result.breakdown["tensor and context parallel"] > 0
