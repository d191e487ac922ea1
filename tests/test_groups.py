"""Groups of ranks: every kind parts all ranks, they cross as the degrees say, and prices assume just these."""

from __future__ import annotations

import json
from io import StringIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import moesim
from moesim.errors import ScenarioError
from moesim.network import topology
from moesim.results.groups_table import groups_table
from moesim.step import data_parallel, mover, prices
from moesim.step.data_parallel import replicas
from moesim.step.draws import shares
from moesim.step.groups import described, folding, groups, numbers
from moesim.step.model import StepModel

ROOT = Path(__file__).parents[1]
MODEL = {
    "layers": 16,
    "moe_layers": 16,
    "d_model": 1536,
    "n_heads": 48,
    "n_experts": 48,
    "top_k": 4,
    "d_ff_expert": 768,
    "vocab": 32000,
}
KINDS = {"tensor", "context", "data", "data-context", "pipeline", "expert", "expert-tensor", "expert-data"}


def scenario(gpus: int, domain: int = 8, kind: str = "auto", **layout: int) -> moesim.Scenario:
    batch = 4 * gpus  # a multiple of every number of replicas, and of the pipeline
    return moesim.load(
        {
            "model": MODEL,
            "cluster": {"gpu": "h100-sxm", "gpus": gpus, "gpus_per_domain": domain},
            "parallelism": layout,
            "schedule": kind,
            "workload": {"sequence_length": 2304, "global_batch": batch},
            "routing": {"load": "uniform"},
            "simulation": {"microbatch_samples": 1},
        }
    )


@st.composite
def layouts(draw: st.DrawFn) -> moesim.Scenario:
    """Layouts whose expert degrees need not divide, nor be divided by, those of attention."""
    sizes = st.sampled_from([1, 2, 3, 4])
    tensor, context, pipeline, data = draw(sizes), draw(sizes), draw(sizes), draw(st.sampled_from([1, 2, 3, 6, 8]))
    stage = tensor * context * data
    expert = draw(st.sampled_from([n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 48) if stage % n == 0]))
    split = draw(st.sampled_from([n for n in (1, 2, 3, 4) if stage % (n * expert) == 0]))
    kind = draw(st.sampled_from(["1f1b", "zero-bubble-v"])) if pipeline % 2 else "dualpipe"
    return scenario(
        stage * pipeline,
        kind=kind,
        tensor=tensor,
        context=context,
        pipeline=pipeline,
        expert=expert,
        expert_tensor=split,
    )


def sharing(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How many ranks each group of one kind shares with each of another [groups, groups]."""
    ranks = first.size
    of = [np.zeros(ranks, dtype=int) for _ in range(2)]
    for owner, members in zip(of, (first, second), strict=True):
        owner[members] = np.arange(len(members))[:, None]
    table = np.zeros((len(first), len(second)), dtype=int)
    np.add.at(table, (of[0], of[1]), 1)
    return table


@settings(deadline=None, max_examples=60)
@given(layouts())
def test_every_kind_parts_all_ranks(chosen: moesim.Scenario) -> None:
    found, layout = groups(chosen), chosen.parallelism
    assert set(found) == KINDS
    for members in found.values():
        assert sorted(members.ravel().tolist()) == list(range(chosen.cluster.gpus))
        assert np.all(np.diff(members, axis=1) > 0)
    copies = 2 if chosen.schedule_kind == "dualpipe" else 1
    sizes = {name: members.shape[1] for name, members in found.items()}
    assert sizes == {
        "tensor": layout.tensor,
        "context": layout.context,
        "data": chosen.data_parallel,
        "data-context": copies * chosen.data_parallel * layout.context,
        "pipeline": layout.pipeline,
        "expert": layout.expert,
        "expert-tensor": layout.expert_tensor,
        "expert-data": copies * chosen.expert_data_parallel,
    }
    assert (sizes["data-context"], sizes["expert-data"]) == (replicas(chosen).dense, replicas(chosen).expert)
    assert np.all(np.diff(found["tensor"], axis=1) == 1)
    assert np.all(np.diff(found["expert-tensor"], axis=1) == 1)


@settings(deadline=None, max_examples=60)
@given(layouts())
def test_groups_cross_as_their_degrees_say(chosen: moesim.Scenario) -> None:
    """Any two of tensor, context, data and pipeline share one rank or none, and so do the experts' kinds; those of a
    stage multiply up to it."""
    found = groups(chosen)
    for family in (("tensor", "context", "data", "pipeline"), ("expert-tensor", "expert", "expert-data", "pipeline")):
        for first in family:
            for second in family:
                mirrored = chosen.schedule_kind == "dualpipe" and {first, second} == {"expert-data", "pipeline"}
                if first < second:
                    assert sharing(found[first], found[second]).max() == (2 if mirrored else 1)
    stage = chosen.cluster.gpus // chosen.parallelism.pipeline
    for family in (("tensor", "context", "data"), ("expert-tensor", "expert")):
        size = prod(found[name].shape[1] for name in family)
        assert stage % size == 0
    assert prod(found[name].shape[1] for name in ("tensor", "context", "data")) == stage
    for name in KINDS - {"pipeline", "data-context", "expert-data"}:
        assert np.all(found[name] // stage == found[name][:, :1] // stage), f"{name} groups stay in their stage"
    assert np.array_equal(np.unique(found["pipeline"] // stage, axis=0), [np.arange(chosen.parallelism.pipeline)])
    # The attention's parameters lie at one place in the stage, an expert's too.
    context = sharing(found["data-context"], found["context"])
    assert set(np.unique(context)) <= {0, chosen.parallelism.context}


@settings(deadline=None, max_examples=30)
@given(layouts())
def test_routing_draws_assume_the_same_replicas(chosen: moesim.Scenario) -> None:
    """Consecutive expert ranks that share a replica's sequences are those of one tensor x context block."""
    layout = chosen.parallelism
    block = layout.tensor * layout.context
    share = shares(StepModel(chosen)).share
    first = groups(chosen)["expert"][0] // block
    if layout.expert % share == 0 and block % layout.expert_tensor == 0:
        assert all(len(set(part.tolist())) == 1 for part in first.reshape(-1, share))


@pytest.mark.parametrize(
    "layout",
    [
        {"tensor": 2, "context": 2, "pipeline": 4, "expert": 8, "expert_tensor": 1},
        {"tensor": 4, "context": 2, "pipeline": 2, "expert": 4, "expert_tensor": 2},
        {"tensor": 8, "pipeline": 2, "expert": 16},
        {"tensor": 2, "pipeline": 2, "expert": 8, "expert_tensor": 4},
    ],
    ids=str,
)
def test_prices_assume_these_groups(layout: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network that a step asks for has the ranks, the stride and the domains of one of the kinds."""
    chosen = scenario(64, **layout)
    asked: dict[str, set[tuple[int, int, int]]] = {}

    def noted(name: str) -> Any:
        def noting(cluster: Any, ranks: int, stride: int = 1, **more: int) -> topology.GroupNetwork:
            return kept(topology.group(cluster, ranks, stride, **more))

        def kept(net: topology.GroupNetwork) -> topology.GroupNetwork:
            asked.setdefault(name, set()).add((net.ranks, net.stride if net.ranks > 1 else 1, net.domains))
            return net

        monkeypatch.setattr(prices, "pair", lambda *where: kept(topology.pair(*where)))
        return noting

    for module in (mover, data_parallel, prices):
        monkeypatch.setattr(module, "group", noted(module.__name__.rpartition(".")[2]))
    moesim.estimate(chosen, even_if_infeasible=True)
    kinds = {kind.name: (kind.size, kind.stride, kind.domains[0]) for kind in described(chosen)}
    assert all(kind.domains[0] == kind.domains[1] for kind in described(chosen))
    assert asked["mover"] == {kinds["expert"]}
    assert asked["data_parallel"] == {kinds["data-context"], kinds["expert-data"]}
    stage = 64 // layout["pipeline"]
    neighbours = (2, stage, 2 if stage >= 8 else 1)
    inner = {kinds[name] for name in ("tensor", "context", "expert-tensor") if kinds[name][0] > 1}
    assert asked["prices"] == inner | {neighbours}


def test_dualpipe_sums_gradients_over_mirrored_stages() -> None:
    chosen = scenario(64, kind="dualpipe", pipeline=4, expert=4)
    found = groups(chosen)
    assert found["expert-data"][0].tolist() == [0, 4, 8, 12, 48, 52, 56, 60]
    assert found["data-context"][1].tolist() == [*range(16, 32), *range(32, 48)]
    kind = {kind.name: kind for kind in described(chosen)}["expert-data"]
    assert kind.stride is None
    net = topology.group(chosen.cluster, kind.size, stride=4, mirrored=4)
    assert kind.domains == (net.domains, net.domains)
    assert "mirrored stages (first and last, and so on) hold the same parameters" in folding(chosen)
    assert "mirrored" not in folding(scenario(64, pipeline=4, expert=4))


def test_a_group_may_straddle_domains() -> None:
    """64 of the 72 GPUs of a rack fill it; the next 64 begin in its rest."""
    kinds = {kind.name: kind for kind in described(scenario(192, domain=72, expert=24, pipeline=1, tensor=1))}
    assert kinds["expert"].domains == (1, 1)
    kinds = {kind.name: kind for kind in described(scenario(192, domain=72, expert=48, pipeline=1, tensor=1))}
    assert kinds["expert"].domains == (1, 2)
    assert not kinds["expert"].inside


def test_domains_of_torus_and_of_lone_gpus() -> None:
    torus = moesim.load(ROOT / "scenarios" / "glam-1.2t-1024-tpu-v4.yaml")
    assert all(kind.inside for kind in described(torus))
    lone = moesim.load(ROOT / "scenarios" / "edge-gpt-oss-20b-1-jetson.yaml")
    assert {kind.groups for kind in described(lone)} == {1}


def test_described_deepseek_v3() -> None:
    """64-way expert parallelism over 8 nodes (DeepSeek-V3 report, section 3.2)."""
    chosen = moesim.load(ROOT / "scenarios" / "deepseek-v3-2048-h800.yaml")
    kinds = {kind.name: kind for kind in described(chosen)}
    expert = kinds["expert"]
    assert (expert.groups, expert.size, expert.stride, expert.domains) == (32, 64, 1, (8, 8))
    assert (expert.example, expert.example_domains, expert.inside) == ("0-63", "0-7", False)
    assert kinds["pipeline"].example == "0, 128, 256, ..., 1920"
    assert json.loads(json.dumps(expert.as_dict()))["domains"] == [8, 8]


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"tensor": 8, "expert": 8}, "lies inside one tensor group of 8 and exchanges tokens of one replica"),
        ({"tensor": 4, "expert": 16}, "crosses 4 tensor groups of 4 and exchanges tokens of 4 replicas."),
        ({"tensor": 8, "context": 2, "expert": 16}, "of one replica; it is larger than data 4, so it takes tensor"),
        ({"expert": 16, "context": 2}, "An expert group of 16 exchanges tokens of 8 replicas."),
        ({"tensor": 2}, "Every expert is at home on every rank"),
        ({"tensor": 4, "expert": 4, "expert_tensor": 4}, "crosses 4 tensor groups of 4"),
    ],
)
def test_folding_is_explained(layout: dict[str, int], said: str) -> None:
    text = folding(scenario(64, **layout))
    assert text.startswith("The 64 GPUs of a pipeline stage are tensor ")
    assert said in text


def test_dense_models_have_no_expert_groups() -> None:
    dense = moesim.load(ROOT / "scenarios" / "dense-100b-512-h100.yaml")
    assert set(groups(dense)) == {"tensor", "context", "data", "data-context", "pipeline"}
    assert folding(dense).endswith("the model has no experts.")


def shown(chosen: moesim.Scenario) -> str:
    out = StringIO()
    Console(file=out, width=140, markup=False, emoji=False).print(groups_table(described(chosen)))
    return out.getvalue()


def test_table() -> None:
    text = shown(scenario(64, tensor=4, context=2, pipeline=2, expert=8, expert_tensor=2))
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith(" ") and line.strip()}
    assert set(rows) >= KINDS
    assert "inside one" in rows["tensor"]
    assert "0, 2, 4, ..., 14" in rows["expert"]
    plain = shown(scenario(64, pipeline=2, expert=8))
    assert "of one rank: tensor, context, expert-tensor" in plain
    assert "data-context" not in plain


def test_numbers() -> None:
    assert numbers(np.array([3])) == "3"
    assert numbers(np.array([0, 1])) == "0, 1"
    assert numbers(np.array([0, 1, 2, 8, 10])) == "0-2, 8, 10"
    assert numbers(np.arange(0, 100, 10)) == "0, 10, 20, ..., 90"


@pytest.mark.parametrize(
    ("gpus", "layout", "where", "words"),
    [
        (64, {"expert": 48}, "parallelism.expert", ["does not divide", "data 64 x context 1 x tensor 1", "nearest"]),
        (16, {"expert": 24}, "parallelism.expert", ["= 24 ranks", "has only 16 GPUs", "nearest expert: 16"]),
        (64, {"expert": 16, "pipeline": 8, "tensor": 2}, "parallelism.expert", ["has only 8 GPUs", "data 4 x"]),
        (64, {"expert": 5}, "parallelism.expert", ["48 experts do not divide over 5", "nearest: 4"]),
        (64, {"expert": 96}, "parallelism.expert", ["48 experts do not divide over 96"]),
        (64, {"expert": 16, "expert_tensor": 8}, "parallelism.expert", ["= 128 ranks", "nearest expert: 8"]),
        (64, {"expert_tensor": 128}, "parallelism.expert", ["expert 1 x expert_tensor 128"]),
        (60, {"expert": 2, "expert_tensor": 5}, "parallelism.expert_tensor", ["768 does not divide by 5"]),
        (80, {"tensor": 5}, "parallelism.tensor", ["48 attention heads"]),
        (64, {"context": 5}, "cluster.gpus", ["64 GPUs do not divide by", "context 5"]),
        (64, {"pipeline": 5, "expert": 3}, "cluster.gpus", ["64 GPUs do not divide by", "pipeline 5"]),
        (64, {"data": 5}, "parallelism.data", ["64", "not 5"]),
        (64, {"tensor": 2, "sequence_parallel": False}, "parallelism.sequence_parallel", ["must be true"]),
    ],
)
def test_a_layout_that_cannot_be_says_why(gpus: int, layout: dict[str, int], where: str, words: list[str]) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario(gpus, **layout)
    found = [problem for problem in caught.value.problems if problem.where == where]
    assert len(found) == 1
    assert all(word in found[0].what for word in words), found[0].what
    others = {problem.where for problem in caught.value.problems} - {where}
    assert others <= {"workload.sequence_length"}  # what a wrong tensor or context degree does besides
