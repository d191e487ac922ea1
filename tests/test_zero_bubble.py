"""Zero-bubble schedules: their papers' bubbles and memory, from the order, the closed form and the simulation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_fixture import Times, ends, length

import moesim
from moesim.closed_form.run import observe
from moesim.engine.simulation import simulate_step
from moesim.errors import ScenarioError
from moesim.randomness import Streams
from moesim.step.data_parallel import replicas
from moesim.step.layout import chunks_on
from moesim.step.memory import memory_parts
from moesim.step.model import StepModel
from moesim.step.operations import Recompute, slot_operations
from moesim.step.schedules import Order, Slot, in_flight, inputs, order, stays

DENSE: dict[str, Any] = {
    "model": {"layers": 16, "d_model": 2048, "n_heads": 16, "d_ff_dense": 8192, "vocab": 0},
    "cluster": {"gpu": "h100-sxm", "gpus": 16},
    "parallelism": {"pipeline": 4},
    "workload": {"sequence_length": 2048, "global_batch": 48},
    "routing": {"load": "uniform"},
}
MOE: dict[str, Any] = {
    **DENSE,
    "model": {
        "layers": 16,
        "moe_layers": 16,
        "d_model": 1024,
        "n_heads": 16,
        "n_experts": 32,
        "top_k": 4,
        "d_ff_expert": 512,
        "vocab": 32000,
    },
    "parallelism": {"pipeline": 2, "expert": 8},
    "simulation": {"microbatch_samples": 2},
}


def spans(schedule: Order, last_chunk: int, times: Times) -> list[float]:
    """Of each rank the time from its first forward's begin to its last slot's end; it starts as the V's last does."""
    return [end - stage * times[0] for stage, end in enumerate(ends(schedule, last_chunk, times=times))]


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 20), st.floats(0.25, 4.0), st.floats(0.25, 4.0), st.floats(0.0, 1.0))
def test_zb_h1_bubble(stages: int, more: int, f: float, b: float, share: float) -> None:
    """(P - 1)(Tf + Tb - Tw) (Qi et al. 2023, table 2), as long as weights take the least of the three."""
    batches, w = stages + more, share * min(f, b)
    total = length(order("zero-bubble-h1", stages, 1, batches, False), stages - 1, times=(f, b, w))
    assert total - batches * (f + b + w) == pytest.approx((stages - 1) * (f + b - w), abs=1e-9)


@pytest.mark.parametrize(("stages", "batches"), [(2, 4), (4, 8), (8, 32)])
def test_zb_h1_leaves_a_third_of_the_1f1b_bubble(stages: int, batches: int) -> None:
    """(Qi et al. 2023, section 2.1.)"""
    bubble = {kind: length(order(kind, stages, 1, batches, False), stages - 1) - 3 * batches
              for kind in ("1f1b", "zero-bubble-h1")}  # fmt: skip
    assert bubble["zero-bubble-h1"] == pytest.approx(bubble["1f1b"] / 3)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 20))
def test_zb_v_leaves_no_rank_idle(stages: int, more: int) -> None:
    """No bubble where Tf = Tb = Tw (Qi et al. 2024, table 1): a rank works from its first slot to its last."""
    batches = 2 * stages - 1 + more
    schedule = order("zero-bubble-v", stages, 2, batches, False)
    assert spans(schedule, 2 * stages - 1, (1.0, 1.0, 1.0)) == [6.0 * batches] * stages


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 20), st.floats(0.25, 4.0), st.floats(0.0, 1.0), st.floats(0.5, 1.0))
def test_zb_v_step_is_longer_by_its_start(stages: int, more: int, b: float, forward: float, weight: float) -> None:
    """(P - 1) tb of a chunk for tf <= tb and tb / 2 <= tw <= tb, where ranks begin and end a step together."""
    batches, f, w = 2 * stages - 1 + more, forward * b, weight * b
    total = length(order("zero-bubble-v", stages, 2, batches, False), 2 * stages - 1, times=(f, b, w))
    assert total - 2 * batches * (f + b + w) == pytest.approx((stages - 1) * b, abs=1e-9)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 30))
def test_peak_memory_is_1f1bs(stages: int, batches: int) -> None:
    """P microbatches on every rank, weights owed included (Qi et al. 2023, table 2; 2024, table 1): in the V, of half
    a rank's layers 2P; and never more than there are."""
    plain = [in_flight(slots) for slots in order("zero-bubble-h1", stages, 1, batches, False)]
    assert plain == [min(stages, batches)] * stages
    folded = [in_flight(slots) for slots in order("zero-bubble-v", stages, 2, batches, False)]
    assert max(folded) <= 2 * min(stages, batches)
    if batches >= 2 * stages - 1:
        assert folded == [2 * stages] * stages
        paired = order("zero-bubble-v", stages, 2, batches, True)
        assert max(in_flight(slots) for slots in paired) <= 2 * stages + 1


def test_pairs_are_of_both_halves_of_the_v() -> None:
    """So that a rank's pair waits for one neighbour alone; a pair's weight gradients come after it."""
    stages, batches = 4, 16
    for stage, slots in enumerate(order("zero-bubble-v", stages, 2, batches, True)):
        pairs = [slot for slot in slots if slot.forward is not None and slot.backward is not None]
        assert len(pairs) > batches
        assert all({slot.forward.chunk, slot.backward.chunk} == {stage, 7 - stage} for slot in pairs)
        assert all(slot.weight is None for slot in pairs)


def test_the_turn_of_the_v_sends_no_message() -> None:
    """One rank holds both chunks there; a message lengthens every other way from chunk to chunk."""
    stages, batches = 3, 5
    schedule = order("zero-bubble-v", stages, 2, batches, False)
    kept = [stays(slots, 5) for slots in schedule]
    assert kept[:2] == [frozenset(), frozenset()]
    assert kept[2] == {(side, chunk, m) for m in range(batches) for side, chunk in (("forward", 2), ("backward", 3))}
    assert all(not stays(slots, 3) for slots in order("dualpipe", 4, 1, 8, True))
    alone = tuple(tuple(slot for slot in slots if not any(w and w.microbatch for w in slot)) for slots in schedule)
    hops = 4 * (stages - 1)  # down, up, up's backward and down's
    assert length(alone, 5, hop=10.0) == pytest.approx(length(alone, 5) + 10.0 * hops)


def model_of(document: dict[str, Any], *overrides: str) -> StepModel:
    return StepModel(moesim.load(document, list(overrides)))


def test_layers_stand_in_a_v() -> None:
    model = model_of(MOE, "parallelism.pipeline=4", "schedule.kind=zero-bubble-v", "cluster.gpus=32")
    assert [chunks_on(model.scenario, rank) for rank in range(4)] == [(0, 7), (1, 6), (2, 5), (3, 4)]
    for rank, slots in enumerate(model.order):
        assert {slot.forward.chunk for slot in slots if slot.forward} == set(chunks_on(model.scenario, rank))
    assert sum(len(chunk.layers) for chunk in model.chunks) == 16
    # Each chunk is held once; DualPipe holds it twice.
    held = sum(part.dense + 8 * part.expert for part in model.held)
    plain = model_of(MOE, "parallelism.pipeline=4", "schedule.kind=1f1b", "cluster.gpus=32")
    assert held == pytest.approx(sum(part.dense + 8 * part.expert for part in plain.held))
    assert replicas(model.scenario) == replicas(plain.scenario)
    # What a data-parallel collective hides behind: one microbatch on both chunks.
    totals = [sum(map(sum, of.compute_seconds)) for of in (model, plain)]
    assert totals[0] == pytest.approx(totals[1])


def test_names() -> None:
    kinds = {kind: moesim.load(DENSE, [f"schedule.kind={kind}"]).schedule_kind
             for kind in ("zero-bubble", "zero-bubble-h1", "zero-bubble-v")}  # fmt: skip
    assert kinds == {"zero-bubble": "zero-bubble-h1", "zero-bubble-h1": "zero-bubble-h1",
                     "zero-bubble-v": "zero-bubble-v"}  # fmt: skip
    said = [moesim.load(DENSE, ["schedule.kind=zero-bubble-v", f"parallelism.virtual_pipeline={n}"]) for n in (1, 2)]
    assert [scenario.virtual_stages for scenario in said] == [8, 8]


@pytest.mark.parametrize(
    ("overrides", "where", "words"),
    [
        (["schedule.kind=zero-bubble-v", "parallelism.virtual_pipeline=3"], "parallelism.virtual_pipeline", "2 chunks"),
        (["schedule.kind=zero-bubble", "parallelism.virtual_pipeline=2"], "parallelism.virtual_pipeline", "needs"),
        (["schedule.kind=zero-bubble-v", "model.layers=5"], "parallelism.pipeline", "2 chunks a rank"),
        (
            ["schedule.kind=zero-bubble", "overlap.expert_communication=true", "parallelism.expert=8"],
            "overlap.expert_communication",
            "zero-bubble-v or dualpipe",
        ),
    ],
)
def test_what_cannot_run_is_said_once(overrides: list[str], where: str, words: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        moesim.load(MOE if "parallelism.expert=8" in overrides else DENSE, overrides)
    assert [problem.where for problem in caught.value.problems] == [where]
    assert words in caught.value.problems[0].what


def balanced(kind: str, *overrides: str) -> tuple[float, float, Times]:
    """(length of the pipeline's work alone, bubble, seconds of a rank's forward, input and weight gradients) as the
    simulation has them, messages between ranks taking no time."""
    model = model_of(DENSE, f"schedule.kind={kind}", *overrides)
    model.prices.__dict__["hop"] = 0.0
    step = simulate_step(model, None, 0, Streams(0))
    layers = model.scenario.model.layers / model.scenario.parallelism.pipeline
    parts = [model.prices.even(name, "dense") for name in ("attention", "dense")]
    f, b, w = (layers * (one + other) for one, other in zip(*parts, strict=True))
    return model.scenario.microbatches * (f + b + w), step.waited["bubble"], (f, b, w)


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("gpipe", []),
        ("1f1b", []),
        ("interleaved-1f1b", ["parallelism.virtual_pipeline=2"]),
        ("zero-bubble-h1", []),
        ("zero-bubble-v", []),
    ],
)
def test_simulated_bubble_is_the_textbooks(kind: str, overrides: list[str]) -> None:
    """P = 4, M = 12: balanced stages on simpy lose what the papers say (see the schedules' own tests)."""
    work, bubble, (f, b, w) = balanced(kind, *overrides)
    assert f < b <= 2 * w <= 2 * b
    expected = {
        "gpipe": 3 * (f + b + w),
        "1f1b": 3 * (f + b + w),
        "interleaved-1f1b": 3 * (f + b + w) / 2,
        "zero-bubble-h1": 3 * (f + b - w),
        "zero-bubble-v": 3 * b / 2,
    }
    assert bubble == pytest.approx(expected[kind], rel=1e-9)
    if kind in ("gpipe", "1f1b", "interleaved-1f1b"):
        chunks = 2 if overrides else 1
        assert bubble / (work + bubble) == pytest.approx(3 / (12 * chunks + 3), rel=1e-9)


def test_simulated_messages_of_a_v() -> None:
    """P = 4 has seven ways from chunk to chunk; that on the last rank is no message."""
    model = model_of(DENSE, "schedule.kind=zero-bubble-v")
    kinds = simulate_step(model, None, 0, Streams(0)).columns["kind"]
    assert (kinds == "send").sum() == 2 * 6 * model.scenario.microbatches


LAYOUTS = [
    ["schedule.kind=zero-bubble-h1"],
    ["schedule.kind=zero-bubble-v"],
    ["schedule.kind=zero-bubble-v", "parallelism.pipeline=1"],
    ["schedule.kind=zero-bubble-v", "parallelism.data_sharding=full"],
    ["schedule.kind=zero-bubble-h1", "workload.global_batch=12"],
    ["schedule.kind=zero-bubble-v", "workload.global_batch=12", "model.vocab=32000"],
    ["schedule.kind=zero-bubble-v", "recompute=full"],
    ["schedule.kind=dualpipe", "model.vocab=32000"],
    ["schedule.kind=interleaved-1f1b", "parallelism.virtual_pipeline=2", "model.vocab=32000"],
]


@pytest.mark.parametrize("overrides", LAYOUTS, ids=str)
def test_both_roads_agree_exactly_on_dense_models(overrides: list[str]) -> None:
    model = model_of(DENSE, *overrides)
    simulated, seen = simulate_step(model, None, 0, Streams(0)), observe(model, None)
    assert seen.seconds[0] == pytest.approx(simulated.seconds, rel=1e-9)
    assert seen.waited["bubble"] == pytest.approx(simulated.waited["bubble"], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("overlap", ["true", "false"])
@pytest.mark.parametrize("kind", ["zero-bubble-h1", "zero-bubble-v"])
def test_both_roads_agree_with_experts(kind: str, overlap: str) -> None:
    chosen = [f"schedule.kind={kind}", f"overlap.expert_communication={overlap}"]
    if kind == "zero-bubble-h1" and overlap == "true":
        chosen += ["parallelism.pipeline=1"]
    scenario = moesim.load(MOE, chosen)
    simulated, estimated = moesim.simulate(scenario).summary, moesim.estimate(scenario).summary
    assert estimated["step_time"].value == pytest.approx(simulated["step_time"].value, rel=0.02)


def test_overlap_in_the_v_hides_exchanges() -> None:
    chosen = [
        "schedule.kind=zero-bubble-v",
        "stack_options.cuda_graphs=full",
        "parallelism.expert=16",
        "cluster.gpus=32",
    ]
    hidden, plain = (moesim.estimate(moesim.load(MOE, [*chosen, f"overlap.expert_communication={wanted}"])).summary
                     for wanted in ("true", "false"))  # fmt: skip
    assert hidden["exposed_communication_time"].value < 0.8 * plain["exposed_communication_time"].value


def test_putting_weights_off_takes_no_work_away() -> None:
    """Forward, backward and weight gradients of all chunks take the same time together, put off or not."""
    model = model_of(MOE, "schedule.kind=zero-bubble-h1")
    kinds = model.scenario.model.layer_kinds
    busy = {}
    for deferred in (False, True):
        seconds = 0.0
        for chunk in model.chunks:
            slots = [slot_operations(None, chunk, None, kinds, Recompute())]
            slots += [slot_operations(None, None, chunk, kinds, Recompute())] if deferred else []
            for operation in (operation for slot in slots for operation in slot):
                even = model.prices.even(operation.kind, kinds[operation.layer])
                both = even.backward + (0.0 if deferred else even.weight)
                seconds += both if operation.phase == "backward" else even.weight
        busy[deferred] = seconds
    assert busy[True] == pytest.approx(busy[False], rel=1e-12)


def test_memory_counts_what_weights_owed_hold() -> None:
    """ZB-H1's last rank holds P microbatches where 1F1B's holds one; its first rank holds what 1F1B's does."""
    sizes = {}
    for kind in ("1f1b", "zero-bubble-h1", "zero-bubble-v"):
        sizes[kind] = memory_parts(model_of(DENSE, f"schedule.kind={kind}"), None)["activations"]
    assert sizes["zero-bubble-h1"] == pytest.approx(sizes["1f1b"])
    assert sizes["zero-bubble-v"] == pytest.approx(sizes["1f1b"])
    # Recomputed values are there from the backward on until the weight gradients have read them.
    full = {
        kind: memory_parts(model_of(DENSE, f"schedule.kind={kind}", "recompute=full"), None)["activations"]
        for kind in ("1f1b", "zero-bubble-h1")
    }
    assert full["1f1b"] < 0.5 * sizes["1f1b"]
    assert full["zero-bubble-h1"] == pytest.approx(sizes["zero-bubble-h1"])


def test_a_slot_of_weights_alone_waits_for_nobody() -> None:
    slots = [slot for slots in order("zero-bubble-v", 4, 2, 8, False) for slot in slots if slot.weight is not None]
    assert all(slot == Slot(weight=slot.weight) and inputs(slot, 7) == [] for slot in slots)
