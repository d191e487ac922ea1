"""Scenarios: names resolved, defaults filled in, every mistake told with its place, all of them together."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moesim
from moesim.errors import MoesimError, ScenarioError
from moesim.scenario.loading import override_key, to_yaml

SCENARIOS = sorted((Path(__file__).parents[1] / "scenarios").glob("*.yaml"))
GOOD: dict[str, Any] = {
    "model": "mixtral-8x7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 64},
    "parallelism": {"pipeline": 4, "expert": 8},
    "workload": {"global_batch": 256},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one key set; a catalog name on the way becomes a base, as `--set` does it."""
    document = override_key(copy.deepcopy(GOOD), f"{path}=0")
    *way, last = path.split(".")
    node = document
    for key in way:
        node = node[key]
    node[last] = value
    return document


def complaints(document: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ScenarioError) as caught:
        moesim.load(document)
    found: dict[str, str] = {}
    for problem in caught.value.problems:
        found[problem.where] = f"{found.get(problem.where, '')} {problem.what}"
    return found


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_shipped_scenario_opens_with_its_question(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("question: ")
    scenario = moesim.load(path)
    assert scenario.question.endswith((".", "?", ")", "sparse", "dense"))
    assert scenario.name == path.stem


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_filled_in_scenario_reads_back_to_itself(path: Path, tmp_path: Path) -> None:
    scenario = moesim.load(path)
    copied = tmp_path / "copy.yaml"
    copied.write_text(to_yaml(scenario.document()), encoding="utf-8")
    assert moesim.load(copied).key == scenario.key


def test_defaults_follow_from_the_gpu() -> None:
    scenario = moesim.load(GOOD)
    assert scenario.cluster.gpus_per_domain == 8
    assert scenario.cluster.fabric.kind == "rail-optimized"
    assert scenario.data_parallel == 16
    assert scenario.expert_data_parallel == 2
    assert scenario.microbatches == 16
    assert scenario.schedule_kind == "1f1b"
    rack = moesim.load({**GOOD, "cluster": {"gpu": "gb200-nvl72", "gpus": 64}})
    assert rack.cluster.gpus_per_domain == 72


def test_a_changed_catalog_number_is_the_users_own() -> None:
    scenario = moesim.load(GOOD, ["model.top_k=4", "cluster.gpu.memory=141 GB", "cluster.fabric.oversubscription=2"])
    assert scenario.model.top_k == 4
    assert scenario.model.n_experts == 8
    assert scenario.model.basis("top_k") == "assumed"
    assert scenario.cluster.gpu.memory == 141e9
    assert scenario.cluster.gpu.basis("bf16") == "datasheet"
    assert scenario.cluster.fabric.oversubscription == 2


def test_loads_can_be_named_or_stated() -> None:
    for load, field in (({"zipf": 0.6}, "zipf"), ({"log_normal": 0.8}, "log_normal")):
        profile = moesim.load({**GOOD, "routing": {"load": load}}).routing.load
        assert getattr(profile, field) == pytest.approx(next(iter(load.values())))
    assert moesim.load({**GOOD, "routing": {"load": "gpt-oss-like"}}).routing.load.name == "gpt-oss-like"


def test_a_huggingface_config_is_a_model(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        '{"model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,'
        ' "num_key_value_heads": 8, "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2,'
        ' "vocab_size": 32000, "tie_word_embeddings": false}'
    )
    scenario = moesim.load({**GOOD, "model": {"huggingface": str(config)}})
    assert scenario.model.n_experts == 8
    assert scenario.model.d_ff_expert == 14336


@pytest.mark.parametrize(
    ("path", "value", "where", "words"),
    [
        ("paralelism.expert", 8, "paralelism", ["unknown key", "parallelism"]),
        ("parallelism.experts", 8, "parallelism.experts", ["unknown key", "expert"]),
        ("model", "mixtral-8x7", "model", ["unknown model", "mixtral-8x7b"]),
        ("cluster.gpu", "h100", "cluster.gpu", ["unknown gpu", "h100-sxm"]),
        ("cluster.fabric", "infinibnd", "cluster.fabric", ["unknown fabric"]),
        ("routing.load", "uniformm", "routing.load", ["unknown profile", "uniform"]),
        ("routing.router", "nope", "routing.router", ["unknown router", "42 are known"]),
        ("dispatcher.kind", "deepep", "dispatcher.kind", ["unknown dispatcher", "deepep-normal"]),
        ("schedule.kind", "dualpip", "schedule.kind", ["dualpipe"]),
        ("cluster.gpus", 63, "cluster.gpus", ["63", "divide", "64"]),
        ("cluster.gpus", 3, "cluster.gpus", ["3 GPUs", "nearest: 4"]),
        ("cluster.gpus", 0, "cluster.gpus", ["at least 1"]),
        ("cluster.gpus", -8, "cluster.gpus", ["at least 1"]),
        ("cluster.gpus", 10**12, "cluster.gpus", ["at most"]),
        ("cluster.gpus", "many", "cluster.gpus", ["whole number"]),
        ("cluster.nic_bandwidth", "400 GB", "cluster.nic_bandwidth", ["unit of B"]),
        ("cluster.nic_bandwidth", "-5 GB/s", "cluster.nic_bandwidth", ["at least"]),
        ("cluster.nic_bandwidth", 0, "cluster.nic_bandwidth", ["at least"]),
        ("cluster.nic_bandwidth", float("nan"), "cluster.nic_bandwidth", ["finite"]),
        ("cluster.nic_bandwidth", "1e30 GB/s", "cluster.nic_bandwidth", ["at most"]),
        ("parallelism.expert", 3, "parallelism.expert", ["8 experts", "3 ranks"]),
        ("parallelism.expert", 16, "parallelism.expert", ["8 experts"]),
        ("parallelism.expert_tensor", 64, "parallelism.expert", ["has only"]),
        ("model.top_k", 9, "model.top_k", ["from 1 to n_experts 8"]),
        ("parallelism.tensor", 5, "parallelism.tensor", ["32 attention heads"]),
        ("workload.global_batch", 250, "workload.global_batch", ["divide", "256"]),
        ("workload.kind", "inference", "workload.kind", ["training", "serving"]),
        ("precision.compute", "nvfp4", "precision.compute", ["no nvfp4 rate", "fp8"]),
        ("parallelism.virtual_pipeline", 64, "parallelism.virtual_pipeline", ["too thin", "at most 8"]),
        ("parallelism.pipeline", 64, "parallelism.pipeline", ["too thin", "at most 34", "nearest: 32"]),
        ("parallelism.tensor", 3, "parallelism.tensor", ["32 attention heads", "allowed: 1, 2, 4", "nearest: 2"]),
        ("parallelism.expert_tensor", 3, "parallelism.expert_tensor", ["14336", "allowed: 1, 2", "nearest: 2"]),
        ("parallelism.data", 5, "parallelism.data", ["16"]),
        ("parallelism.data", 0, "parallelism.data", ["at least 1, got 0; or say auto"]),
        ("cluster.fabric", "none", "cluster.fabric", ["no scale-out network"]),
        ("simulation.stragglers", [{"rank": 8, "slowdown": 2.0}], "simulation.stragglers.0.rank", ["below"]),
        ("stack_options.pipeline_layout", [16, 0, 0, 16], "stack_options.pipeline_layout", ["first and the last"]),
        ("overlap.tensor_parallel", "maybe", "overlap.tensor_parallel", ["true or false"]),
        ("overlap.two_batch", 2, "overlap.two_batch", ["true or false"]),
        ("overlap.interference", "besides", "overlap.interference", ["beside"]),
        ("overlap.weight_gradients", "late", "overlap.weight_gradients", ["delayed"]),
        ("stack_options.pipeline_layout", [8, 8, 8], "stack_options.pipeline_layout", ["lists 3", "has 4"]),
        ("model.moe_layers", 100, "model.moe_layers", ["100 of 32"]),
        ("model.moe_layers", 8, "model.d_ff_dense", ["width"]),
        ("model.n_kv_heads", 3, "model.n_kv_heads", ["do not divide"]),
        ("model.n_shared_experts", 4, "model.shared_expert_width", ["width"]),
        ("routing.load", {"zipf": 1000}, "routing.load.zipf", ["at most 5"]),
        ("routing.load", {"zipf": 1, "log_normal": 1}, "routing.load", ["one law"]),
        ("cluster.nic_bandwidth", "1 b/s", "cluster.nic_bandwidth", ["at least"]),
        ("dispatcher.multiprocessors", 1000, "dispatcher.multiprocessors", ["132"]),
        ("dispatcher.kind", "one-sided-nvl", "dispatcher.kind", ["domain"]),
        ("workload.global_batch", 2**32 - 16, "workload.global_batch", ["microbatches"]),
        ("name", "../evil", "name", ["letters"]),
        ("stack_options.offload_layers", 99, "stack_options.offload_layers", ["32 layers"]),
        ("model.router", {"groups": 3, "top_groups": 2}, "model.router.groups", ["8 experts", "3 groups"]),
    ],
)
def test_mistakes_are_named_with_place_and_repair(path: str, value: Any, where: str, words: list[str]) -> None:
    document = changed(path, value)
    if value == "one-sided-nvl":
        document["cluster"]["gpus_per_domain"] = 4
    found = complaints(document)
    assert where in found, found
    for word in words:
        assert word in found[where]


@pytest.mark.parametrize(
    ("overrides", "where", "words"),
    [
        (["parallelism.virtual_pipeline=2", "workload.global_batch=240"], "workload.global_batch", ["nearest: 256"]),
        (["schedule.kind=dualpipe", "workload.global_batch=80"], "workload.global_batch", ["8 and even", "128 (8 "]),
        (["schedule.kind=dualpipe", "workload.global_batch=144"], "workload.global_batch", ["to be even", "160 (10 "]),
        (["schedule.kind=dualpipe", "workload.global_batch=96"], "workload.global_batch", ["least 2 x pipeline = 8;"]),
        (["schedule.kind=dualpipe", "parallelism.pipeline=1"], "parallelism.pipeline", ["even number", "nearest: 2"]),
        (["parallelism.tensor=2", "workload.sequence_length=4097"], "workload.sequence_length", ["4096, 4098"]),
    ],
)
def test_the_key_at_fault_is_named_with_what_would_do(overrides: list[str], where: str, words: list[str]) -> None:
    with pytest.raises(ScenarioError) as caught:
        moesim.load(GOOD, overrides)
    assert [problem.where for problem in caught.value.problems] == [where]
    assert all(word in caught.value.problems[0].what for word in words), caught.value.problems[0].what


def test_what_is_offered_as_nearest_is_accepted() -> None:
    """Every repair that a message names can be loaded."""
    for overrides, repair in (
        (["parallelism.virtual_pipeline=2", "workload.global_batch=240"], "workload.global_batch=256"),
        (["schedule.kind=dualpipe", "workload.global_batch=80"], "workload.global_batch=128"),
        (["schedule.kind=dualpipe", "workload.global_batch=144"], "workload.global_batch=160"),
        (["parallelism.virtual_pipeline=64"], "parallelism.virtual_pipeline=8"),
        (["parallelism.pipeline=64", "parallelism.expert=1"], "parallelism.pipeline=32"),
        (["parallelism.tensor=3"], "parallelism.tensor=2"),
    ):
        with pytest.raises(ScenarioError):
            moesim.load(GOOD, overrides)
        assert moesim.load(GOOD, [*overrides, repair]).microbatches >= 1


def test_all_problems_are_told_together() -> None:
    document = {
        "model": "mixtral-8x7b",
        "cluster": {"gpu": "h100-sxm", "gpus": -1, "fabrics": "x"},
        "workload": {"global_batch": 0},
        "overlap": {"data_parallel": "perhaps"},
    }
    found = complaints(document)
    assert {"cluster.gpus", "cluster.fabrics", "workload.global_batch", "overlap.data_parallel"} <= set(found)


def test_a_name_that_is_unknown_is_told_once() -> None:
    assert set(complaints(changed("model", "mixtral-8x7"))) == {"model"}
    assert set(complaints(changed("routing.load", "uniformm"))) == {"routing.load"}


def test_one_mistake_inside_an_alternative_is_told_once() -> None:
    found = complaints(changed("routing.capacity", {"factor": 1.25, "dialect": "swich"}))
    assert set(found) == {"routing.capacity.dialect"}
    assert "nearest: switch" in found["routing.capacity.dialect"]


def test_field_errors_do_not_hide_rules_between_fields() -> None:
    document = changed("cluster.nic_bandwith", 3)
    document["cluster"]["gpus"] = 65
    document["parallelism"]["expert"] = 3
    assert {"cluster.nic_bandwith", "cluster.gpus", "parallelism.expert"} <= set(complaints(document))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_json_of_a_scenario_reads_back_to_itself(path: Path, tmp_path: Path) -> None:
    scenario = moesim.load(path)
    copied = tmp_path / "copy.yaml"
    copied.write_text(json.dumps(scenario.document()), encoding="utf-8")
    assert moesim.load(copied).key == scenario.key


def test_an_empty_mapping_says_what_is_required() -> None:
    found = complaints({})
    assert "required" in found["model"]
    assert "required" in found["cluster"]
    assert "required" in found["workload"]


@pytest.mark.parametrize("expression", ["", "=", "a.b", "=3", "a..b=3", ".a=3", "x=[1", "a.b.c.d.e.f.g.h.i.j.k.l.m=1"])
def test_bad_overrides_are_refused(expression: str) -> None:
    with pytest.raises(MoesimError):
        moesim.load(GOOD, [expression])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        "model",
        "cluster",
        "cluster.gpu",
        "cluster.gpus",
        "parallelism",
        "parallelism.expert",
        "schedule",
        "workload",
        "workload.global_batch",
        "precision",
        "routing",
        "routing.load",
        "routing.router",
        "routing.capacity",
        "placement",
        "dispatcher",
        "overlap",
        "recompute",
        "stack",
        "stack_options",
        "simulation",
        "prices",
        "question",
        "name",
        "x",
    ]
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(KEYS, VALUES)
def test_whatever_is_written_is_read_or_refused(path: str, value: Any) -> None:
    document: Any = copy.deepcopy(GOOD)
    *way, last = path.split(".")
    node = document
    for key in way:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            return
    node[last] = value
    with contextlib.suppress(MoesimError):
        assert moesim.load(document).microbatches >= 1


def test_a_copy_forgets_what_was_worked_out() -> None:
    scenario = moesim.load(SCENARIOS[0])
    before = (scenario.microbatches, scenario.key)
    work = scenario.workload.model_copy(update={"micro_batch": 2 * scenario.workload.micro_batch})
    copy = scenario.model_copy(update={"workload": work})
    assert 2 * copy.microbatches == before[0]
    assert copy.key != before[1]
