"""Laws of the whole step by hand: where layers are cut, what sharded gradients, messages and recomputing cost."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moesim
from moesim.step.balance import Weights, cut, weights
from moesim.step.data_parallel import exposed_by_chunk
from moesim.step.model import StepModel
from moesim.validation.cases import SHIPPED, read

RATE = "tokens_per_second_per_gpu"
TINY: dict[str, Any] = {
    "model": {
        "layers": 8,
        "moe_layers": 8,
        "d_model": 2048,
        "n_heads": 16,
        "n_experts": 32,
        "top_k": 4,
        "d_ff_expert": 1024,
        "vocab": 32000,
    },
    "cluster": {"gpu": "h100-sxm", "gpus": 64},
    "parallelism": {"pipeline": 4, "expert": 8},
    "workload": {"sequence_length": 2048, "global_batch": 512},
    "routing": {"load": "uniform"},
}
V3: dict[str, Any] = {
    "model": "deepseek-v3",
    "cluster": {"gpu": "h800-sxm", "gpus": 2048},
    "parallelism": {"pipeline": 16, "expert": 64},
    "workload": {"sequence_length": 4096, "global_batch": 15360},
    "routing": {"load": "uniform"},
    "dispatcher": "deepep-normal",
    "stack_options": {"cuda_graphs": "full"},
}


def result(document: dict[str, Any], **changes: Any) -> moesim.Result:
    """The estimate of a document with some keys changed."""
    return moesim.estimate(moesim.load({**document, **changes}), even_if_infeasible=True)


def seconds(document: dict[str, Any], **changes: Any) -> float:
    """Its step time."""
    return result(document, **changes).summary["step_time"].value


@given(
    layers=st.lists(st.sampled_from([0.5, 1.0]), min_size=16, max_size=64),
    shape=st.sampled_from([(4, 4, False), (4, 8, False), (4, 8, True), (8, 8, True), (2, 8, False)]),
    behind=st.floats(0.0, 4.0),
)
def test_a_cut_names_every_layer_and_leaves_no_rank_much_more(
    layers: list[float], shape: tuple[int, int, bool], behind: float
) -> None:
    stages, count, mirrored = shape
    sizes = cut(Weights(tuple(layers), 0.0, behind), stages, count, mirrored)
    assert sum(sizes) == len(layers)
    assert min(sizes[1:-1]) >= 1
    ends = np.cumsum(sizes)
    work = np.array([sum(layers[end - size : end]) for size, end in zip(sizes, ends, strict=True)])
    work[-1] += behind
    ranks: defaultdict[int, float] = defaultdict(float)
    for chunk, value in enumerate(work):
        ranks[min(chunk, count - 1 - chunk) if mirrored else chunk % stages] += value
    least = max((sum(layers) + behind) / len(ranks), behind)
    # A rank of several chunks is filled layer by layer from both ends: at most two layers too many.
    assert max(ranks.values()) <= least + 2.0


@pytest.mark.parametrize("kind", ["1f1b", "dualpipe", "zero-bubble-v"])
def test_no_layer_moved_makes_deepseek_v3_quicker(kind: str) -> None:
    """The chosen cut, against every cut with one layer of a first, middle or last chunk elsewhere."""
    own = [len(chunk.layers) for chunk in StepModel(moesim.load({**V3, "schedule": kind})).chunks]
    chosen, last = seconds(V3, schedule=kind), len(own) - 1
    places = sorted({0, 1, last // 2, last - 1, last})
    for giver in places:
        for taker in places:
            sizes = list(own)
            sizes[giver] -= 1
            sizes[taker] += 1
            if giver != taker and min(sizes[1:-1]) > 0 and min(sizes) >= 0:
                other = {**V3["stack_options"], "pipeline_layout": sizes}
                assert chosen < 1.012 * seconds(V3, schedule=kind, stack_options=other), sizes


def test_dense_layers_and_heads_count_as_they_cost() -> None:
    """By arithmetic alone the first stages of DeepSeek-V3 would be as full as others: 19 % of the step."""
    work = weights(moesim.load(V3))
    assert work.layers[0] == work.layers[2] < 0.8
    assert work.layers[3] == 1.0
    assert 2.0 < work.behind < 3.5  # one MTP module and two heads
    naive = {**V3["stack_options"], "pipeline_layout": [4, 5, *[4] * 13, 0]}
    assert seconds(V3) < 0.9 * seconds(V3, stack_options=naive)


def test_layers_that_divide_stay_divided_and_a_choice_is_told() -> None:
    even = result({**TINY, "model": {**TINY["model"], "vocab": 500_000}})
    assert not [note for note in even.notes if note.startswith("layers by virtual stage")]
    told = [note for note in result(V3).notes if note.startswith("layers by virtual stage")]
    assert len(told) == 1
    stated = {**V3["stack_options"], "pipeline_layout": [*[4] * 15, 1]}
    assert not [note for note in result(V3, stack_options=stated).notes if note.startswith("layers by virtual")]


def test_collectives_of_several_chunks_by_hand() -> None:
    """Four chunks, a microbatch's backward of 4 s, chunks' ends 3 chunk computations apart."""
    # 8 s: of the last part 2 s less 1 s behind its own backward; all of it less (3 x 3 + 1) s.
    assert exposed_by_chunk(8.0, 4.0, 4, 3, 0.0) == pytest.approx(1.0)
    assert exposed_by_chunk(40.0, 4.0, 4, 3, 0.0) == pytest.approx(30.0)
    assert exposed_by_chunk(8.0, 4.0, 4, 3, 0.5) == pytest.approx(4.0)
    assert exposed_by_chunk(8.0, 4.0, 1, 3, 0.1) == pytest.approx(4.0)
    assert exposed_by_chunk(8.0, 4.0, 4, 3, 1.0) == pytest.approx(8.0)


def test_sharded_gradients_are_reduced_for_every_microbatch() -> None:
    layout = TINY["parallelism"]
    models = {
        kind: StepModel(moesim.load({**TINY, "parallelism": {**layout, "data_sharding": kind}}))
        for kind in ("optimizer", "gradients", "full")
    }
    state, gradients = models["optimizer"].data_parallel[0], models["gradients"].data_parallel[0]
    assert gradients.a_slot == (0.0, pytest.approx(state.reduce))
    assert (gradients.reduce, gradients.gather) == (0.0, state.gather)
    times = {
        kind: result(TINY, parallelism={**layout, "data_sharding": kind}, overlap={"data_parallel": False})
        for kind in models
    }
    spent = {kind: found.breakdown["data parallel"] for kind, found in times.items()}
    batches = models["gradients"].scenario.microbatches
    reduce = np.mean([rank.reduce for rank in models["optimizer"].data_parallel])
    assert spent["gradients"] - spent["optimizer"] == pytest.approx((batches - 1) * reduce, rel=1e-6)
    assert spent["optimizer"] < spent["gradients"] < 2.0 * spent["full"]


def test_messages_hold_up_ranks_that_are_ready() -> None:
    """A middle rank takes two messages a microbatch, the last one, which has the head and sets the pace, one."""
    model = StepModel(moesim.load(TINY))
    share, batches = model.prices.data["pipeline_exposed"], model.scenario.microbatches
    behind, beside = seconds(TINY, overlap={"pipeline": False}), seconds(TINY)
    one = batches * (1 - share) * model.prices.hop
    assert 0.9 * one < behind - beside < 1.5 * one
    alone = {"parallelism": {"pipeline": 1, "expert": 8}}
    assert seconds(TINY, **alone) == seconds(TINY, **alone, overlap={"pipeline": False})


@pytest.mark.parametrize("module", ["core_attn", "layernorm", "moe_act", "shared_experts"])
@pytest.mark.parametrize("length", [256, 8192])
def test_recomputing_is_never_free(module: str, length: int) -> None:
    """Neither where the GPU nor where the host decides how long a layer takes."""
    model = {**TINY["model"], "n_shared_experts": 1, "shared_expert_width": 1024}
    document = {**TINY, "model": model, "workload": {"sequence_length": length, "global_batch": 512}}
    assert seconds(document, recompute=[module]) > 1.0005 * seconds(document)


def test_recomputed_feed_forward_repeats_passes_and_collectives() -> None:
    model = {"layers": 8, "d_model": 2048, "n_heads": 16, "d_ff_dense": 8192, "vocab": 32000}
    document = {**TINY, "model": model, "parallelism": {"tensor": 4}}
    plain, again = (StepModel(moesim.load({**document, "recompute": r})).prices for r in ("none", ["mlp"]))
    assert again.dense.backward - plain.dense.backward == pytest.approx(plain.dense.forward)
    pair = plain.tensor_parallel["dense"]
    assert again.collectives["dense"].backward == pytest.approx(pair.backward + pair.forward)
    assert again.collectives["attention"] == plain.collectives["attention"]


def test_a_compiled_program_fuses_expert_layers() -> None:
    document = {**TINY, "cluster": {"gpu": "tpu-v3", "gpus": 64}, "dispatcher": "nccl-all-to-all"}
    apart, fused = (result(document, stack_options={"fused_expert_mlp": said}) for said in (False, True))
    assert apart.summary["step_time"].value == fused.summary["step_time"].value
    assert StepModel(moesim.load(document)).prices.issue_seconds("moe") == 0.0


def test_bias_does_not_grow_with_the_number_of_gpus() -> None:
    """MoE Parallel Folding's strong scaling: one batch of 1,024 sequences on 64 to 1,024 GPUs."""
    found: defaultdict[int, list[float]] = defaultdict(list)
    for case in read([SHIPPED / "train-step.yaml"]):
        document = case.scenario or {}
        if "moe-parallel-folding" in case.id and document["workload"]["global_batch"] == 1024:
            found[document["cluster"]["gpus"]].append(result(document).summary[RATE].value / case.measured[RATE] - 1)
    bias = {gpus: float(np.mean(misses)) for gpus, misses in found.items()}
    assert sorted(bias) == [64, 128, 256, 512, 1024]
    assert max(map(abs, bias.values())) < 0.04, bias
