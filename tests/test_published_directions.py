"""What published tables say of better and worse: dispatcher, micro-batch, overlap, layout, capacity, GPU-hours."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import moesim
from moesim.validation.cases import SHIPPED, Case, read

ROOT = Path(__file__).parents[1]
EFA = "megatron-bridge-aws-efa"
RATE = "tokens_per_second_per_gpu"
NOISE = 1.06  # one configuration under two releases differs by 6 % in the median


def said(document: dict[str, Any]) -> float:
    """Predicted tokens/s of a GPU."""
    return moesim.estimate(moesim.load(document), even_if_infeasible=True).summary[RATE].value


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [case for case in read([SHIPPED / "train-step.yaml"]) if case.scenario is not None]


@pytest.fixture(scope="module")
def on_efa(cases: list[Case]) -> dict[tuple[str, int, bool], tuple[float, float]]:
    """Measured and predicted rate of DeepSeek-V3 on 256 B300 by (dispatcher, micro-batch, overlap); 16 x 400 Gb/s of
    EFA a node, as the table's heading says."""
    found = {}
    for case in cases:
        document = case.scenario or {}
        if document["stack"] == EFA:
            document = {**document, "cluster": {**document["cluster"], "fabric": "efa-v4-800g"}}
            wanted = document["overlap"]["expert_communication"]
            key = (document["dispatcher"]["kind"], document["workload"]["micro_batch"], wanted)
            found[key] = (case.measured[RATE], said(document))
    assert len(found) == 6
    return found


def test_every_pair_on_efa_is_in_order(on_efa: dict[tuple[str, int, bool], tuple[float, float]]) -> None:
    """Which dispatcher, which micro-batch, and whether overlap (with two chunks a rank, nothing recomputed) wins."""
    for (first, (one, law_one)), (second, (two, law_two)) in combinations(on_efa.items(), 2):
        if max(one, two) / min(one, two) > NOISE:
            assert (one > two) == (law_one > law_two), (first, second)


def test_size_of_the_gains_on_efa(on_efa: dict[tuple[str, int, bool], tuple[float, float]]) -> None:
    """Nothing of these rows but the library's own wire rate, call time and host time is fitted on them."""
    for key, (measured, predicted) in on_efa.items():
        assert predicted / measured == pytest.approx(1.0, abs=0.22), key


def test_layouts_of_one_model_are_in_order(cases: list[Case]) -> None:
    """Layouts, batches and formats of one model on one GPU and one stack, where they differ by more than noise."""
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for case in cases:
        document = case.scenario or {}
        if document["stack"] != EFA and not case.known:
            model = document["model"] if isinstance(document["model"], str) else document["model"].get("name", "")
            rates = groups.setdefault((model, document["cluster"]["gpu"], document["stack"]), [])
            rates.append((case.measured[RATE], said(document)))
    right = [
        (one > two) == (law_one > law_two)
        for rates in groups.values()
        for (one, law_one), (two, law_two) in combinations(rates, 2)
        if max(one, two) / min(one, two) > NOISE
    ]
    assert len(right) > 400
    assert sum(right) / len(right) >= 0.97


def test_folding_expert_parallelism_apart_from_tensor_parallelism_wins(cases: list[Case]) -> None:
    """MoE Parallel Folding, table 1: the folded layout, then the same without, then tensor with expert parallelism
    alone, then full sharding."""
    orders = [("00028", "00027", "00026", "00025", "00024"), ("00033", "00032", "00030", "00029")]
    rates = {case.id.rpartition("/")[2]: case for case in cases if "moe-parallel-folding" in case.id}
    for order in orders:
        measured = [rates[number].measured[RATE] for number in order]
        predicted = [said(rates[number].scenario or {}) for number in order]
        assert measured == sorted(measured, reverse=True)
        assert predicted == sorted(predicted, reverse=True), order


def test_capacity_factors_of_switch() -> None:
    """Switch Transformers, table 1: 860, 910 and 1,000 examples/s at capacity factors 2.0, 1.25 and 1.0 (32 cores of
    TPU v3, 2^20 tokens a step)."""
    table = {2.0: 860.0, 1.25: 910.0, 1.0: 1000.0}
    document = {
        "model": "switch-base-128e",
        "cluster": {"gpu": "tpu-v3", "gpus": 16},
        "parallelism": {"expert": 16},
        "workload": {"sequence_length": 512, "global_batch": 2048, "micro_batch": 2},
        "dispatcher": "nccl-all-to-all",
    }
    rates = {
        factor: said({**document, "routing": {"load": "uniform", "capacity": {"factor": factor, "pad": True}}})
        for factor in table
    }
    assert rates[2.0] < rates[1.25] < rates[1.0]
    for factor in (1.25, 1.0):
        assert rates[factor] / rates[2.0] == pytest.approx(table[factor] / table[2.0], rel=0.09)


def test_deepseek_v3_hours_a_trillion_tokens() -> None:
    """180K H800 GPU-hours a trillion tokens (DeepSeek-V3 report, section 3.1)."""
    scenario = moesim.load(ROOT / "scenarios" / "deepseek-v3-2048-h800.yaml", ["workload.total_tokens=1T"])
    assert moesim.estimate(scenario).summary["gpu_hours"].value == pytest.approx(180e3, rel=0.05)
