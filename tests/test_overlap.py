"""What runs beside exchanges, what that hides, and what it costs: by hand, by law, and on both roads."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moesim
from moesim.closed_form.expected import expected_work
from moesim.closed_form.run import observe
from moesim.closed_form.slots import Leg, evaluate, stretched
from moesim.engine.beside import Exchanges
from moesim.engine.simulation import simulate_step
from moesim.errors import ScenarioError
from moesim.randomness import Streams
from moesim.results.overlap_cost import overlap_note, step_without_overlap
from moesim.step.layout import Chunk
from moesim.step.model import StepModel
from moesim.step.operations import Aside, Operation, Recompute, one_chain, slot_operations
from moesim.step.routed import even_work

MEASURED = Path(__file__).parents[1].parent / "shared" / "measurements"
MODEL: dict[str, Any] = {
    "layers": 8,
    "moe_layers": 6,
    "d_model": 4096,
    "n_heads": 32,
    "n_experts": 32,
    "top_k": 4,
    "d_ff_expert": 2048,
    "d_ff_dense": 8192,
    "n_shared_experts": 1,
    "shared_expert_width": 4096,
    "vocab": 32000,
}
# Exchanges over slow links, and a host that is never late: what is hidden shows, what is launched twice does not.
BASE: dict[str, Any] = {
    "model": MODEL,
    "cluster": {"gpu": "h100-sxm", "gpus": 32},
    "parallelism": {"pipeline": 2, "expert": 16},
    "workload": {"sequence_length": 8192, "global_batch": 128},
    "routing": {"load": "uniform"},
    "dispatcher": "deepep-normal",
    "stack_options": {"cuda_graphs": "full"},
    "simulation": {"microbatch_samples": 1},
}
EVERYTHING: dict[str, Any] = {"shared_experts": True, "weight_gradients": "delayed"}
OVERLAPS: list[dict[str, Any]] = [
    {"shared_experts": True},
    {"weight_gradients": "delayed"},
    EVERYTHING,
    {"two_batch": True},
    {"two_batch": True, **EVERYTHING},
    {"expert_communication": True},
    {"expert_communication": True, **EVERYTHING},
]


def scenario(**changes: Any) -> moesim.Scenario:
    """Exchanges slow the compute beside them, unless it is said otherwise."""
    return moesim.load({**BASE, **changes, "overlap": {"interference": "beside", **changes.get("overlap", {})}})


def estimate(**changes: Any) -> moesim.Result:
    return moesim.estimate(scenario(**changes), even_if_infeasible=True)


def step(**changes: Any) -> float:
    return estimate(**changes).summary["step_time"].value


def words(operations: tuple[Operation, ...], stream: str) -> str:
    short = {"attention": "A", "router": "R", "dispatch": "D", "experts": "E", "combine": "C", "shared": "S"}
    marks = {"forward": "", "recompute": "r", "backward": "b", "weight": "w"}
    return " ".join(short[found.kind] + marks[found.phase] for found in operations if found.stream == stream)


LAYER = Chunk(1, (0, 1), False, False, 0)


def chain(side: str, aside: Aside) -> tuple[Operation, ...]:
    ahead, back = (LAYER, None) if side == "forward" else (None, LAYER)
    return slot_operations(ahead, back, None, ("moe", "moe"), Recompute(), aside)


def test_shared_experts_stand_beside_both_exchanges() -> None:
    ahead, back = (chain(side, Aside(shared=(2 / 3, 1 / 3))) for side in ("forward", "backward"))
    assert words(ahead, "compute") == "A R S E S A R S E S"
    assert words(ahead, "communication") == "D C D C"
    assert words(back, "compute") == "Sb Eb Sb Ab Sb Eb Sb Ab"
    assert [found.share for found in ahead if found.kind == "shared"] == [2 / 3, 1 / 3, 2 / 3, 1 / 3]
    assert [found.share for found in back if found.kind == "shared"] == [1 / 3, 2 / 3, 1 / 3, 2 / 3]
    first = next(place for place, found in enumerate(ahead) if found.kind == "shared")
    assert ahead[ahead[first].after[0]].kind == "router"  # the shared expert waits for no token from elsewhere
    # The output is there when the last combine has ended and so has the last shared expert.
    assert [found.kind for found in ahead if found.exit] == ["combine", "shared"]
    assert [found.kind for found in back if found.exit] == ["attention"]


def test_weight_gradients_wait_for_the_next_exchange() -> None:
    back = chain("backward", Aside(weights=True))
    assert words(back, "compute") == "Eb Ew Ab Aw Eb Ew Ab Aw"
    assert words(back, "communication") == "Db Cb Db Cb"
    issued = [(found.kind, found.phase) for found in back]
    assert issued.index(("combine", "backward")) < issued.index(("experts", "weight"))
    # The gradients go on to the neighbour before the last weight gradients.
    assert [found.exit for found in back] == [False] * (len(back) - 2) + [True, False]


def test_two_halves_take_turns() -> None:
    ahead = chain("forward", Aside(parts=2))
    assert words(ahead, "compute") == "A R A R E E A R A R E E"
    assert words(ahead, "communication") == "D D C C D D C C"
    assert {found.share for found in ahead} == {0.5}
    assert [found.entry for found in ahead] == [True, False, True] + [False] * (len(ahead) - 3)
    assert [found.kind for found in ahead if found.exit] == ["combine", "combine"]
    assert not one_chain(ahead)
    assert one_chain(chain("forward", Aside()))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(
        [
            Aside(parts, shared, weights)
            for parts in (1, 2)
            for shared in (None, (0.5, 0.5))
            for weights in (False, True)
        ]
    ),
    st.sampled_from([Recompute(), Recompute(everything=True), Recompute(experts=True)]),
    st.sampled_from([("forward",), ("backward",), ("forward", "backward")]),
    st.booleans(),
)
def test_slots_can_be_walked_and_do_the_same_work(
    aside: Aside, recompute: Recompute, sides: tuple[str, ...], ends: bool
) -> None:
    """Whatever stands beside: everything waits for something issued before it, and the work is that of plain slots."""
    chunk = Chunk(0, (0, 1, 2), ends, ends, int(ends))
    kinds, paired = ("moe", "dense", "moe"), len(sides) == 2
    chosen = Aside(1, aside.shared, aside.weights) if paired else aside
    ahead, back = (chunk if side in sides else None for side in ("forward", "backward"))
    found = slot_operations(ahead, back, None, kinds, recompute, chosen)
    plain = slot_operations(ahead, back, None, kinds, recompute)
    for place, operation in enumerate(found):
        assert all(before < place for before in operation.after)
        assert operation.entry == (not operation.after)

    def work(operations: tuple[Operation, ...]) -> dict[tuple[str, int, str], float]:
        total: dict[tuple[str, int, str], float] = {}
        for operation in operations:
            key = operation.kind, operation.layer, operation.phase
            total[key] = total.get(key, 0.0) + operation.share
        return total

    expected, own = work(plain), work(found)
    moved = {key: value for key, value in own.items() if key[0] != "shared" and key[2] != "weight"}
    assert moved == pytest.approx(expected)
    if aside.weights and back is not None:
        owed = {key[:2]: value for key, value in own.items() if key[2] == "weight"}
        computes = {
            key[:2]: value
            for key, value in own.items()
            if key[2] == "backward" and key[0] not in ("dispatch", "combine")
        }
        assert owed == pytest.approx(computes)


spans = st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(0.01, 2.0)), max_size=5)


@settings(deadline=None)
@given(spans, st.floats(0.0, 3.0), st.floats(0.0, 4.0), st.floats(1.0, 2.0))
def test_slowed_work_by_its_law(gaps: list[tuple[float, float]], begin: float, seconds: float, slowed: float) -> None:
    """Work done is the time alone plus the time beside over the slow-down, on the array road as on the scalar one."""
    books, edges, now = Exchanges(), [], 0.0
    for gap, long in gaps:
        edges.append((now + gap, now + gap + long))
        now += gap + long
        books.begins(np.array([edges[-1][0]]))
        books.ends(np.array([edges[-1][1]]))
    done = float(books.finished(np.array([begin]), seconds, slowed)[0])
    beside = sum(max(0.0, min(done, last) - max(begin, first)) for first, last in edges)
    assert done - begin - beside + beside / slowed == pytest.approx(seconds, abs=1e-9)
    operations = tuple(
        [Operation("dispatch", 0, "forward", "forward", "communication", (), True, False)] * len(edges)
        + [Operation("attention", 0, "forward", "forward", "compute", (), True, True)]
    )
    if not edges or begin > 0 or any(gap > 0 for gap, _ in gaps):
        return
    legs = [Leg(last - first, 0.0) for first, last in edges] + [Leg(seconds, seconds)]
    assert stretched(operations, legs, [slowed] * len(legs))[-1].busiest == pytest.approx(done)


def test_a_slot_by_hand() -> None:
    """Two halves of attention 2, dispatch 3, experts 4: the second attention and the first experts run beside."""
    operations = (
        Operation("attention", 0, "forward", "forward", "compute", (), True, False),
        Operation("attention", 0, "forward", "forward", "compute", (), True, False),
        Operation("dispatch", 0, "forward", "forward", "communication", (0,), False, False),
        Operation("dispatch", 0, "forward", "forward", "communication", (1,), False, False),
        Operation("experts", 0, "forward", "forward", "compute", (2,), False, False),
        Operation("experts", 0, "forward", "forward", "compute", (3,), False, True),
    )
    legs = [Leg(seconds, seconds) for seconds in (2.0, 2.0, 3.0, 3.0, 4.0, 4.0)]
    assert evaluate(operations, legs).seconds == 2 + 3 + 4 + 4
    # At half speed beside: attention 2..6, where the dispatch of 2..5 runs beside it for 3 and does 1.5 of its 2;
    # then alone 5..5.5. Experts: the first dispatch ended at 5, the second runs 5.5..8.5: experts 5.5..10 (1.5 + 2.5).
    slow = stretched(operations, legs, [2.0, 2.0, 1.0, 1.0, 2.0, 2.0])
    assert [leg.busiest for leg in slow] == pytest.approx([2.0, 3.5, 3.0, 3.0, 5.5, 4.0])
    assert evaluate(operations, slow).seconds == pytest.approx(2 + 3.5 + 5.5 + 4)


def test_the_interference_is_the_measured_one() -> None:
    """DeepSeek-V3's grouped products beside exchanges on 20 of 132 SMs, against the same alone."""
    found = StepModel(
        moesim.load(
            Path(__file__).parents[1] / "scenarios" / "deepseek-v3-2048-h800.yaml", ["overlap.interference=beside"]
        )
    )
    law = found.interference
    assert law is not None
    assert law.alone.rates.gemm / law.beside.rates.gemm == pytest.approx(132 / 112 * law.data["products"])
    # What the trace leaves of the memory bandwidth to a kernel that moves 893 MB in 319 us.
    assert 0.02 < law.memory_taken < 1 - 893e6 / 318.5e-6 / 3.35e12
    trace, alone = MEASURED / "dsv3_profile_train_summary.csv", MEASURED / "gemm_published_tables.csv"
    if not trace.exists():
        pytest.skip("no measurements beside the checkout")
    with trace.open(encoding="utf-8") as lines:
        beside = sum(float(row["mean_us"]) for row in csv.DictReader(lines) if row["op"].startswith("grouped_gemm fc"))
    with alone.open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["metric"] == "derived_time"]
    shapes = ("groups=4 M=8192 N=4096 K=7168", "groups=4 M=8192 N=7168 K=2048")
    by_itself = sum(
        float(row["value"])
        for row in rows
        if row["op_or_model"].endswith(shapes) and row["kind"] == "grouped_gemm_contiguous"
    )
    assert 132 / 112 * law.data["products"] == pytest.approx(beside / by_itself, rel=0.005)


@settings(deadline=None, max_examples=15)
@given(st.integers(8, 60), st.integers(1, 60), st.sampled_from(["attention", "experts", "router", "head", "dense"]))
def test_more_multiprocessors_for_exchanges_never_speed_compute_up(fewer: int, more: int, kind: str) -> None:
    layer = 7 if kind != "dense" else 0
    operation = Operation(kind, layer, "forward", "forward", "compute", (), True, True)
    factors = []
    for held in (fewer, fewer + more):
        chosen = scenario(dispatcher={"kind": "deepep-normal", "multiprocessors": held}, overlap={"two_batch": True})
        law = StepModel(chosen).interference
        assert law is not None
        factors.append(law.factor(operation, deferred=False))
    assert 1.0 <= factors[0] <= factors[1] * (1 + 1e-12)
    reserved = [
        StepModel(
            scenario(
                dispatcher={"kind": "deepep-normal", "multiprocessors": held},
                overlap={"two_batch": True, "interference": "reserved"},
            )
        )
        .prices.even(kind, "moe" if layer else "dense")
        .total
        for held in (fewer, fewer + more)
    ]
    assert reserved[0] <= reserved[1]


@pytest.mark.parametrize("overlap", OVERLAPS, ids=str)
def test_a_free_lunch_is_cheaper_than_a_shared_one_and_that_than_a_reserved_one(overlap: dict[str, Any]) -> None:
    free, beside, reserved = (
        step(overlap={**overlap, "interference": kind}) for kind in ("none", "beside", "reserved")
    )
    assert free < beside < reserved < 1.35 * free


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("overlap", [{"shared_experts": True}, {"weight_gradients": "delayed"}, EVERYTHING], ids=str)
def test_work_moved_beside_exchanges_never_costs_more_than_its_interference(
    overlap: dict[str, Any], schedule: str
) -> None:
    plain = estimate(schedule=schedule)
    free = estimate(schedule=schedule, overlap={**overlap, "interference": "none"})
    real = estimate(schedule=schedule, overlap=overlap)
    total = plain.summary["step_time"].value
    assert free.summary["step_time"].value < 0.995 * total
    exchanged = plain.summary["dispatch_time"].value + plain.summary["combine_time"].value
    law = StepModel(scenario(schedule=schedule, overlap=overlap)).interference
    assert law is not None
    worst = 132 / 108 * law.data["products"]
    pipeline_passes = 1 + 2 * BASE["parallelism"]["pipeline"] / scenario().microbatches
    assert (
        real.summary["step_time"].value
        < free.summary["step_time"].value + (1 - 1 / worst) * exchanged * pipeline_passes
    )


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "dualpipe", "zero-bubble-h1", "zero-bubble-v"])
def test_two_halves_hide_more_than_they_cost_where_exchanges_are_long(schedule: str) -> None:
    layout = {"pipeline": 2, "expert": 16}
    plain = estimate(schedule=schedule, parallelism=layout)
    halves = estimate(schedule=schedule, parallelism=layout, overlap={"two_batch": True})
    assert halves.summary["step_time"].value < 0.93 * plain.summary["step_time"].value
    waits = [
        result.breakdown.get("exposed dispatch", 0.0) + result.breakdown.get("exposed combine", 0.0)
        for result in (plain, halves)
    ]
    assert waits[1] < 0.5 * waits[0]


@pytest.mark.parametrize("overlap", OVERLAPS, ids=str)
def test_exposed_exchanges_are_part_of_all_exchanges(overlap: dict[str, Any]) -> None:
    found = estimate(parallelism={"pipeline": 1, "expert": 16}, overlap=overlap)
    exposed = found.breakdown.get("exposed dispatch", 0.0) + found.breakdown.get("exposed combine", 0.0)
    assert exposed <= (found.summary["dispatch_time"].value + found.summary["combine_time"].value) * (1 + 1e-9)
    assert sum(found.breakdown.values()) == pytest.approx(found.summary["step_time"].value)


def test_two_halves_pay_twice_what_a_kernel_costs_once() -> None:
    """Latency, weights and launches twice; bytes and arithmetic once."""
    whole, halves = StepModel(scenario()), StepModel(scenario(overlap={"two_batch": True, "interference": "none"}))
    once, twice = whole.mover.even, halves.mover.even
    for direction in ("dispatch", "combine"):
        one, two = getattr(once, direction), getattr(twice, direction)
        assert two.latency == pytest.approx(2 * one.latency)
        for name in ("bytes_up", "bytes_out", "received_up", "received_out"):
            assert getattr(two, name) == pytest.approx(getattr(one, name))
        assert one.busiest.max() < two.busiest.max() < 2 * one.busiest.max()
    few = np.full(2, 16.0)  # so few rows that reading the weights is all that counts
    reading = 2 * whole.prices.row.weight_elements * 2.0 / whole.prices.rates.memory
    more = halves.prices.experts(few)[0] / halves.prices.stack_factor - whole.prices.experts(few)[0]
    assert more == pytest.approx(reading, rel=0.02)
    assert halves.prices.attention.total == whole.prices.attention.total
    # A host that is late decides how long a layer takes; with two halves it is late twice.
    small = {**MODEL, "d_model": 256, "n_heads": 2, "d_ff_expert": 256, "shared_expert_width": 256}
    layers = []
    for halved in (False, True):
        prices = StepModel(scenario(stack_options={}, model=small, overlap={"two_batch": halved})).prices
        layers.append(sum(prices.even(kind, "moe").total for kind in ("attention", "experts")))
    assert layers[1] == pytest.approx(2 * layers[0], rel=0.01)


def test_event_counts_are_pinned() -> None:
    def counts(**overlap: Any) -> dict[str, int]:
        frame = moesim.simulate(scenario(overlap=overlap), even_if_infeasible=True).operations
        return {str(kind): int(number) for kind, number in frame.kind.value_counts().items()}

    batches, moe, dense = scenario().microbatches, 6, 2
    plain = counts()
    assert plain["dispatch"] == plain["combine"] == plain["experts"] == 2 * moe * batches
    halves = counts(two_batch=True)
    once = {"send", "optimizer", "parameter gathering", "gradient reduction"}
    assert halves == {kind: number * (1 if kind in once else 2) for kind, number in plain.items()}
    shared = counts(shared_experts=True)
    assert shared == {**plain, "shared": 4 * moe * batches}
    delayed = counts(weight_gradients="delayed")
    computes = {"attention": moe + dense, "dense": dense, "experts": moe, "embedding": 1, "head": 1}
    assert delayed == {kind: number + computes.get(kind, 0) * batches for kind, number in plain.items()}


@pytest.mark.parametrize("overlap", [{"two_batch": True, **EVERYTHING}, {"expert_communication": True}], ids=str)
def test_only_what_runs_beside_an_exchange_is_slowed_in_the_simulation(overlap: dict[str, Any]) -> None:
    """Every compute operation lasts its own time and what it lost to the exchanges that its rank ran meanwhile."""
    model = StepModel(scenario(overlap=overlap))
    work, law = even_work(model), model.interference
    assert law is not None
    columns = simulate_step(model, work, 0, Streams(0)).columns
    free = StepModel(scenario(overlap={**overlap, "interference": "none"}))
    alone = simulate_step(free, even_work(free), 0, Streams(0)).columns
    pinned = ("stage", "chunk", "microbatch", "layer", "phase", "kind")

    def by_name(found: dict[str, Any]) -> dict[tuple[Any, ...], list[tuple[float, float]]]:
        times: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
        for row in range(len(found["begin"])):
            if found["stream"][row] == "compute":
                name = tuple(found[key][row] for key in pinned)
                times.setdefault(name, []).append((found["begin"][row], found["end"][row]))
        return times

    slow, quick, slowed = by_name(columns), by_name(alone), 0
    for stage in range(2):
        mine = (columns["stream"] == "communication") & (columns["stage"] == stage)
        spans = np.stack([columns["begin"][mine], columns["end"][mine]])
        for name, times in slow.items():
            if name[0] != stage:
                continue
            operation = Operation(name[5], name[3], name[4], "forward", "compute", (), True, True)
            factor = law.factor(operation, model.aside.weights)
            for (begin, end), (first, last) in zip(times, quick[name], strict=True):
                beside = np.maximum(0.0, np.minimum(end, spans[1]) - np.maximum(begin, spans[0])).sum()
                assert end - begin == pytest.approx(last - first + beside * (1 - 1 / factor), abs=1e-9)
                slowed += beside > 0
    assert slowed > 100


def test_a_straggler_and_jitter_are_simulated_with_interference() -> None:
    settings_ = {"microbatch_samples": 2, "jitter": 0.05, "stragglers": [{"rank": 3, "slowdown": 1.5}]}
    chosen = scenario(overlap={"two_batch": True, **EVERYTHING}, routing={"load": "gpt-oss-like"}, simulation=settings_)
    found = moesim.simulate(chosen, even_if_infeasible=True)
    assert sum(found.breakdown.values()) == pytest.approx(found.summary["step_time"].value, rel=1e-6)
    even = scenario(overlap={"two_batch": True, **EVERYTHING}, simulation={"microbatch_samples": 2})
    assert (
        found.summary["step_time"].value
        > 1.1 * moesim.simulate(even, even_if_infeasible=True).summary["step_time"].value
    )


def test_gradients_share_links_with_the_halves() -> None:
    settings_ = {"microbatch_samples": 1, "network": "max-min"}
    layout = {"pipeline": 1, "expert": 16, "data_sharding": "optimizer"}
    for overlap in ({"two_batch": True}, EVERYTHING):
        chosen = scenario(parallelism=layout, overlap=overlap, simulation=settings_)
        found = moesim.simulate(chosen, even_if_infeasible=True)
        assert sum(found.breakdown.values()) == pytest.approx(found.summary["step_time"].value, rel=1e-6)


def test_tensor_parallel_overlap_has_two_spellings() -> None:
    layout = {"tensor": 4, "pipeline": 2, "expert": 16}

    def collectives(**changes: Any) -> float:
        return estimate(parallelism=layout, **changes).breakdown["tensor and context parallel"]

    hidden = collectives()
    graphs = {"cuda_graphs": "full"}
    assert collectives(overlap={"tensor_parallel": True}) == hidden
    assert collectives(stack_options={**graphs, "user_buffers": True}) == hidden
    open_ = collectives(overlap={"tensor_parallel": False})
    assert collectives(stack_options={**graphs, "user_buffers": False}) == open_
    share = StepModel(scenario()).prices.data["tensor_parallel"]["user_buffers"]
    assert hidden == pytest.approx(share * open_, rel=1e-6)
    assert collectives(overlap={"tensor_parallel": False}, stack_options={**graphs, "user_buffers": False}) == open_
    with pytest.raises(ScenarioError, match="says the same"):
        scenario(overlap={"tensor_parallel": True}, stack_options={"user_buffers": False})


@pytest.mark.parametrize(
    ("changes", "where", "said"),
    [
        ({"overlap": {"two_batch": True, "expert_communication": True}}, "overlap.two_batch", "choose one"),
        (
            {"overlap": {"two_batch": True}, "workload": {"sequence_length": 8191, "global_batch": 128}},
            "overlap.two_batch",
            "8191 tokens",
        ),
        ({"overlap": {"shared_experts": True}, "model": "mixtral-8x7b"}, "overlap.shared_experts", "no shared experts"),
        (
            {"overlap": {"weight_gradients": "delayed"}, "schedule": "zero-bubble"},
            "overlap.weight_gradients",
            "zero-bubble-h1 puts",
        ),
        ({"overlap": {"expert_communication": True}, "schedule": "gpipe"}, "overlap.expert_communication", "two_batch"),
    ],
)
def test_impossible_overlaps_are_refused(changes: dict[str, Any], where: str, said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario(parallelism={"pipeline": 2, "expert": 8}, **changes)
    found = {problem.where: problem.what for problem in caught.value.problems}
    assert said in found[where]


SWITCHES: list[dict[str, Any]] = [
    {"expert_communication": True}, {"two_batch": True}, {"shared_experts": True}, {"weight_gradients": "delayed"},
    {"expert_communication": True, "two_batch": True, "shared_experts": True, "weight_gradients": "delayed"},
]  # fmt: skip


@pytest.mark.parametrize("overlap", SWITCHES, ids=str)
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "zero-bubble", "zero-bubble-v"])
def test_switches_without_exchanges_are_told_and_do_nothing(overlap: dict[str, Any], schedule: str) -> None:
    """One rule for a dense model and for one expert-parallel rank, whatever the schedule and the model's parts."""
    dense = {"layers": 8, "d_model": 2048, "n_heads": 16, "d_ff_dense": 8192, "vocab": 32000}
    for changes in (
        {"model": dense, "parallelism": {"pipeline": 2}},
        {"model": "mixtral-8x7b", "parallelism": {"pipeline": 2}},
    ):
        on, off = (estimate(schedule=schedule, overlap=chosen, **changes) for chosen in (overlap, {}))
        told = [note for note in on.notes if "nothing to run beside" in note]
        assert len(told) == 1
        assert all(f"overlap.{name}" in told[0] for name in overlap)
        assert not any("nothing to run beside" in note for note in off.notes)
        assert on.summary["step_time"].value == off.summary["step_time"].value


def test_a_tensor_parallel_overlap_of_one_rank_is_told() -> None:
    assert any("parallelism.tensor is 1" in note for note in estimate(overlap={"tensor_parallel": True}).notes)
    assert not any("parallelism.tensor is 1" in note for note in estimate().notes)


SHIPPED = Path(__file__).parents[1] / "scenarios"
COSTS_MORE = [
    ("deepseek-v3-2048-h800", {"shared_experts": True}),
    ("mixtral-8x7b-64-h100", {"weight_gradients": "delayed"}),
    ("gpt-oss-120b-64-h100", {"two_batch": True}),
]


@pytest.mark.parametrize(("name", "overlap"), COSTS_MORE, ids=[name for name, _ in COSTS_MORE])
def test_an_overlap_that_costs_more_than_it_hides_says_so(name: str, overlap: dict[str, Any]) -> None:
    """The time that the note tells for the step without is that of the step without."""

    def answer(**chosen: Any) -> moesim.Result:
        switched = [f"overlap.{key}={value}" for key, value in {"expert_communication": False, **chosen}.items()]
        return moesim.estimate(moesim.load(SHIPPED / f"{name}.yaml", switched), even_if_infeasible=True)

    plain, on = answer(), answer(**overlap)
    assert on.summary["step_time"].value > 1.02 * plain.summary["step_time"].value
    told = [note for note in on.notes if "than is hidden" in note]
    assert len(told) == 1
    assert told[0].startswith(f"overlap.{next(iter(overlap))} costs more")
    assert "SMs are kept from compute all step" in told[0] or "host issues more kernels" in told[0]
    said = float(told[0].split("about ")[1].split(" s a step")[0])
    assert said == pytest.approx(plain.summary["step_time"].value, rel=0.02)
    assert not any("than is hidden" in note for note in plain.notes)


@pytest.mark.parametrize("overlap", OVERLAPS, ids=str)
@pytest.mark.parametrize("interference", ["reserved", "beside"])
def test_the_step_without_overlap_is_told_from_the_step_with_it(overlap: dict[str, Any], interference: str) -> None:
    """The comparison behind the note, against the step without; and no note where the overlap pays."""
    for layout in ({"pipeline": 2, "expert": 16}, {"pipeline": 1, "expert": 8}):
        with_it, plain = (
            StepModel(scenario(parallelism=layout, overlap=chosen))
            for chosen in ({**overlap, "interference": interference}, {})
        )
        routed = expected_work(with_it)
        assert routed is not None
        seen, without = observe(with_it, routed), observe(plain, expected_work(plain)).seconds[0]
        assert step_without_overlap(with_it, routed, seen) == pytest.approx(without, rel=0.05)
        told = overlap_note(with_it, routed, seen, "estimate")
        if seen.seconds[0] < 0.99 * without:
            assert not told
        if seen.seconds[0] > 1.04 * without:
            assert told


def test_both_roads_tell_what_an_overlap_costs() -> None:
    chosen = ["overlap.weight_gradients=delayed", "simulation.microbatch_samples=2"]
    loaded = moesim.load(SHIPPED / "mixtral-8x7b-64-h100.yaml", chosen)
    for found in (moesim.estimate(loaded), moesim.simulate(loaded)):
        assert sum("than is hidden" in note for note in found.notes) == 1


def test_what_no_published_step_shows_is_assumed() -> None:
    plain, halves = estimate(), estimate(overlap={"two_batch": True})
    assert not any("no published step" in note for note in plain.notes)
    assert any("no published step" in note for note in halves.notes)
    found = halves.summary["step_time"]
    assert found.basis == "assumed"
    assert found.high > 1.3 * found.value


def test_overlap_without_exchanges_changes_nothing() -> None:
    layout = {"pipeline": 2, "expert": 1}
    assert step(parallelism=layout, overlap={"two_batch": True, **EVERYTHING}) == step(parallelism=layout)


def test_data_parallel_collectives_hide_behind_one_microbatch() -> None:
    """Gradients behind the last backward, parameters behind the first forward; under full sharding behind each slot."""
    for layout in ({"pipeline": 1, "expert": 16}, {"pipeline": 2, "expert": 8, "data_sharding": "full"}):
        model = StepModel(scenario(parallelism=layout))
        least = model.prices.data["data_parallel_exposed"]
        once, (forward, backward) = model.data_parallel[0], model.compute_seconds[0]
        hidden, open_ = (estimate(parallelism=layout, overlap={"data_parallel": beside}) for beside in (True, False))
        slots = scenario(parallelism=layout).microbatches
        if layout.get("data_sharding") == "full":
            parts, behind = once.a_slot, (forward, backward)
        else:
            parts, behind, slots = (once.gather, once.reduce), (forward, backward), 1
        waits = [max(least * part, part - time) for part, time in zip(parts, behind, strict=True)]
        if layout["pipeline"] == 1:
            assert hidden.breakdown["data parallel"] == pytest.approx(sum(waits) * slots)
            assert open_.breakdown["data parallel"] == pytest.approx(sum(parts) * slots)
        assert hidden.breakdown["data parallel"] < 0.7 * open_.breakdown["data parallel"]
