"""Every router and every kind of load in a scenario: both roads, from the same key, agree."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

import moesim
from moesim import catalog
from moesim.errors import ScenarioError
from moesim.routing.routers import ROUTERS
from moesim.traces import store

ROOT = Path(__file__).parents[1]
SMALL = {
    "model": {"base": "olmoe-1b-7b", "layers": 6, "moe_layers": 6, "n_experts": 32, "top_k": 4},
    "cluster": {"gpu": "h100-sxm", "gpus": 8, "fabric": "none"},
    "parallelism": {"expert": 8},
    "workload": {"sequence_length": 1024, "global_batch": 256, "micro_batch": 4},
    "routing": {"load": {"log_normal": 0.4, "sequence_tilt": 0.5}},
    "simulation": {"microbatch_samples": 8},
}
# How far the roads may differ in step time: what a rule makes of uneven weights is a closed form with stated gaps.
WIDER = {"top-p": 0.06, "routing-network": 0.08, "hierarchical-top-k": 0.06, "sinkhorn": 0.05}


def both(*settings: str) -> tuple[moesim.Result, moesim.Result]:
    scenario = moesim.load(SMALL, settings)
    return moesim.estimate(scenario), moesim.simulate(scenario)


def value(result: moesim.Result, name: str) -> float:
    return result.summary[name].value


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_runs_both_roads(name: str) -> None:
    top_k = ROUTERS[name].only_top_k or 4
    estimated, simulated = both(f"routing.router={name}", f"model.top_k={top_k}")
    apart = WIDER.get(name, 0.04)
    assert value(estimated, "step_time") == pytest.approx(value(simulated, "step_time"), rel=apart)
    for metric in ("bytes_scale_up_per_gpu", "expert_load_max_over_mean"):
        assert value(estimated, metric) == pytest.approx(value(simulated, metric), rel=0.15), metric
    even = ROUTERS[name](moesim.load(SMALL, [f"routing.router={name}", f"model.top_k={top_k}"]).model.router, 32, top_k)
    if even.balanced:
        assert value(simulated, "skew_time") == pytest.approx(0.0, abs=0.01 * value(simulated, "step_time"))


def test_every_named_router_loads() -> None:
    for name in catalog.names("routers"):
        rule = catalog.raw("routers", name)["rule"]
        top_k = ROUTERS[rule].only_top_k or 4
        scenario = moesim.load(SMALL, [f"routing.router={name}", f"model.top_k={top_k}"])
        assert scenario.model.router.rule == rule


def test_a_named_router_replaces_the_models_own() -> None:
    """Nothing of the model's router is left behind, and a parameter given with the name counts."""
    work = {"sequence_length": 1024, "global_batch": 512, "micro_batch": 4}
    base = {**SMALL, "model": "deepseek-v3", "cluster": {"gpu": "h100-sxm", "gpus": 1024}, "workload": work}
    spec = moesim.load(base, ["routing.router=mixtral", "parallelism.pipeline=8"]).model.router
    assert (spec.groups, spec.bias, spec.scale) == (1, False, 1.0)
    jittered = moesim.load(SMALL, ["routing.router={name: switch, jitter: 0.1}", "model.top_k=1"]).model.router
    assert (jittered.rule, jittered.jitter) == ("switch-top-1", 0.1)


def test_what_a_router_does_to_bytes_and_copies() -> None:
    """A second expert by chance sends fewer copies, a shuffle twice the bytes, slots what they are and no more."""
    always = both("routing.router=mixtral", "model.top_k=2")[1]
    by_chance = both("routing.router=gshard", "model.top_k=2")[1]
    assert 0.6 < value(by_chance, "bytes_scale_up_per_gpu") / value(always, "bytes_scale_up_per_gpu") < 0.9
    plain = both("routing.router={name: base, shuffle: false}", "model.top_k=1")[1]
    shuffled = both("routing.router={name: base, shuffle: true}", "model.top_k=1")[1]
    ratio = value(shuffled, "bytes_scale_up_per_gpu") / value(plain, "bytes_scale_up_per_gpu")
    assert ratio == pytest.approx(2.0, rel=1e-6)
    slots = [both(f"routing.router={{name: soft-moe, slots: {n}}}", "model.top_k=1")[1] for n in (1, 8)]
    ratio = value(slots[1], "bytes_scale_up_per_gpu") / value(slots[0], "bytes_scale_up_per_gpu")
    assert ratio == pytest.approx(8.0, rel=1e-6)


@pytest.mark.parametrize("overflow", ["drop", "next-best", "reroute", "recycle"])
@pytest.mark.parametrize("priority", ["position", "probability", "batch-prioritized", "random"])
def test_capacity_in_full(overflow: str, priority: str) -> None:
    routing = f"routing.capacity={{factor: 1.1, overflow: {overflow}, priority: {priority}}}"
    estimated, simulated = both(routing)
    dropped = value(simulated, "dropped_token_fraction")
    assert (dropped > 0.02) == (overflow == "drop")
    assert value(estimated, "dropped_token_fraction") == pytest.approx(dropped, abs=0.01)
    assert value(simulated, "expert_load_max_over_mean") > 1.2


def test_the_dropped_count_does_not_depend_on_the_priority() -> None:
    dropped = {
        value(both(f"routing.capacity={{factor: 1.0, priority: {priority}}}")[1], "dropped_token_fraction")
        for priority in ("position", "probability", "batch-prioritized", "random")
    }
    assert len(dropped) == 1


TRACE = "cpu-small-top-4-of-16-"
RECORDED = ("model.n_experts=16", "model.top_k=4", "model.layers=4", "model.moe_layers=4")


@pytest.mark.parametrize("moment", ["early", "middle", "late"])
@pytest.mark.parametrize("run", ["balancing-loss", "bias", "unbalanced"])
def test_a_trace_replayed_at_a_moment_of_training(run: str, moment: str) -> None:
    load = f"routing.load={{trace: {TRACE}{run}, moment: {moment}}}"
    estimated, simulated = both(load, *RECORDED)
    assert value(estimated, "step_time") == pytest.approx(value(simulated, "step_time"), rel=0.06)
    assert value(estimated, "expert_load_max_over_mean") == pytest.approx(
        value(simulated, "expert_load_max_over_mean"), rel=0.12
    )


def test_collapse_grows_and_costs_step_time() -> None:
    """Late in training the router that nobody balanced is the most uneven, and its step the longest."""
    late = {
        run: both(f"routing.load={{trace: {TRACE}{run}, moment: late}}", *RECORDED)[1]
        for run in ("unbalanced", "balancing-loss", "bias")
    }
    skew = {run: value(result, "expert_load_max_over_mean") for run, result in late.items()}
    assert skew["unbalanced"] > 2 * skew["balancing-loss"] > 2 * skew["bias"] * 0.99
    assert value(late["unbalanced"], "step_time") > 1.3 * value(late["bias"], "step_time")


def test_domains_in_blocks_are_less_even_than_mixed() -> None:
    load = f"{{trace: {TRACE}bias, mix: {{code: 1, languages: 1}}, blocks: %s}}"
    (quick, mixed), (quick_blocks, blocks) = (
        both(f"routing.load={load % word}", *RECORDED) for word in ("false", "true")
    )
    for estimated, simulated in ((quick, mixed), (quick_blocks, blocks)):
        assert value(estimated, "step_time") == pytest.approx(value(simulated, "step_time"), rel=0.05)
    assert value(blocks, "expert_load_max_over_mean") > 1.05 * value(mixed, "expert_load_max_over_mean")
    assert value(blocks, "step_time") > value(mixed, "step_time")


@pytest.mark.parametrize("tasks", [0, 4, 64])
def test_routing_networks_by_task(tasks: int) -> None:
    many = "simulation.microbatch_samples=32"
    estimated, simulated = both(f"routing.router={{name: routing-network, tasks: {tasks}}}", many)
    assert value(estimated, "expert_load_max_over_mean") == pytest.approx(
        value(simulated, "expert_load_max_over_mean"), rel=0.15
    )


def test_newcomers_tenants_and_balancing_do_what_they_say() -> None:
    plain = value(both()[1], "expert_load_max_over_mean")
    new = both("routing.load.newcomers={experts: 8, popularity: 0.05}")
    assert value(new[1], "expert_load_max_over_mean") > 1.15 * plain
    pinned = both("routing.load.tenants={count: 8, experts: 2}")
    healed = both("routing.load.balancing={kind: bias-update, rate: 0.002, steps: 3000}")
    assert (
        value(healed[1], "expert_load_static_max_over_mean")
        < 1.02
        < value(both()[1], "expert_load_static_max_over_mean")
    )
    for estimated, simulated in (new, pinned, healed):
        assert value(estimated, "step_time") == pytest.approx(value(simulated, "step_time"), rel=0.05)


@pytest.mark.parametrize("keep", ["recent", "popular"])
def test_off_loaded_experts(keep: str) -> None:
    """A larger cache hits more and fetches less; both roads agree on both."""
    hits, steps = [], []
    for resident in (1, 2, 4):
        offload = f"placement.offload={{resident: {resident}, host_bandwidth: 30 GB/s, keep: {keep}}}"
        estimated, simulated = both(offload)
        for metric, apart in (("expert_cache_hit_fraction", 0.05), ("step_time", 0.12 * value(simulated, "step_time"))):
            assert value(estimated, metric) == pytest.approx(value(simulated, metric), abs=apart), metric
        hits.append(value(simulated, "expert_cache_hit_fraction"))
        steps.append(value(simulated, "step_time"))
    assert hits == sorted(hits)
    assert steps == sorted(steps, reverse=True)
    assert hits[-1] > 0.99  # all but the first use of each expert
    assert steps[-1] == pytest.approx(value(both()[1], "step_time"), rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "where", "words"),
    [
        (["routing.load={trace: cpu-small-switch-top-1}"], "routing.load.trace", "8 experts, top-1"),
        (["routing.load={trace: cpu-smal-switch}"], "routing.load.trace", "nearest"),
        (["routing.load={trace: no/such.safetensors}"], "routing.load.trace", "no such file"),
        ([f"routing.load={{trace: {TRACE}bias, mix: {{cod: 1}}}}", *RECORDED], "routing.load.mix", "nearest: code"),
        ([f"routing.load={{trace: {TRACE}bias, zipf: 1}}", *RECORDED], "routing.load", "one law"),
        ([f"routing.load={{trace: {TRACE}bias, digest: abc}}", *RECORDED], "routing.load.trace", "is not the file"),
        (["routing.load={zipf: 0.5, moment: late}"], "routing.load", "moment needs a load that is fitted or a trace"),
        ([f"routing.load={{trace: {TRACE}bias}}", "routing.router=switch", "model.top_k=1"], "routing", "top-1"),
        (["routing.router=switch"], "model.router", "top_k = 1 only"),
        (["routing.load.newcomers={experts: 32, popularity: 1}"], "routing.load.newcomers.experts", "32 experts"),
        (["routing.load.tenants={count: 16, experts: 2}"], "routing.load.tenants", "pin 32 of 32"),
        (["placement.offload={resident: 5, host_bandwidth: 1 GB/s}"], "placement.offload.resident", "4 experts"),
        (["routing.capacity={factor: 1, overflow: dorp}"], "routing.capacity", "drop"),
    ],
)
def test_mistakes_are_named(settings: list[str], where: str, words: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        moesim.load(SMALL, settings)
    assert any(problem.where.startswith(where) and words in problem.what for problem in caught.value.problems), str(
        caught.value
    )


def test_a_shown_scenario_reads_back_and_knows_its_file() -> None:
    scenario = moesim.load(SMALL, [f"routing.load={{trace: {TRACE}bias}}", *RECORDED])
    again = moesim.load(scenario.document())
    assert again.key == scenario.key
    assert again.routing.load.digest == store.digest(ROOT / f"moesim/catalog/data/traces/{TRACE}bias.safetensors")
    assert again.routing.load.basis("trace") == "measured"


def test_a_trace_beside_the_scenario_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / f"moesim/catalog/data/traces/{TRACE}bias.safetensors", tmp_path / "mine.safetensors")
    document = {**SMALL, "model": {"base": "olmoe-1b-7b", "layers": 4, "moe_layers": 4, "n_experts": 16, "top_k": 4}}
    document["routing"] = {"load": {"trace": "mine.safetensors"}}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    monkeypatch.chdir(ROOT)
    assert value(moesim.estimate(moesim.load(tmp_path / "one.yaml")), "step_time") > 0


@pytest.mark.parametrize("scope", ["source-rank", "whole-group"])
def test_capacity_of_a_rank_as_in_deepseek_v2(scope: str) -> None:
    """What a rank's experts take together: fewer copies are dropped than expert by expert, and both roads agree."""
    each = f"routing.capacity={{factor: 1.0, scope: {scope}, per: %s}}"
    by_rank, by_expert = both(each % "rank"), both(each % "expert")
    metric = "dropped_token_fraction"
    assert 0.005 < value(by_rank[1], metric) < 0.8 * value(by_expert[1], metric)
    assert value(by_rank[0], metric) == pytest.approx(value(by_rank[1], metric), abs=0.015)
    assert value(by_rank[1], "rank_load_max_over_mean") <= 1.02 / (1.0 - value(by_rank[1], metric))
    with pytest.raises(ScenarioError, match="drops the lowest gates"):
        moesim.load(SMALL, ["routing.capacity={factor: 1.0, per: rank, pad: true}"])


FITTED = ("routing.load=cpu-small-bias-like", *RECORDED)


@pytest.mark.parametrize("name", [name for name in ROUTERS if name != "routing-network"])
def test_every_router_takes_a_fitted_load(name: str) -> None:
    """The law gives the weights, the rule makes of them what it makes of any: both roads know it."""
    top_k = ROUTERS[name].only_top_k or 4
    settings = [setting for setting in FITTED if "top_k" not in setting]
    estimated, simulated = both(*settings, f"routing.router={name}", f"model.top_k={top_k}")
    assert value(estimated, "step_time") == pytest.approx(value(simulated, "step_time"), rel=0.08)
    assert value(estimated, "bytes_scale_up_per_gpu") == pytest.approx(
        value(simulated, "bytes_scale_up_per_gpu"), rel=0.15
    )


def test_a_fitted_load_is_thinned_hashed_or_refused() -> None:
    two = ["routing.load=cpu-small-bias-like", "model.n_experts=16", "model.top_k=2"]
    always, chance = (both(*two, f"routing.router={name}")[1] for name in ("mixtral", "gshard"))
    assert 0.6 < value(chance, "bytes_scale_up_per_gpu") / value(always, "bytes_scale_up_per_gpu") < 0.9
    one = ["routing.load=cpu-small-bias-like", "model.n_experts=16", "model.top_k=1", "routing.router=hash"]
    plain = ["routing.load=uniform", *one[1:]]
    loads = [value(both(*settings)[1], "expert_load_max_over_mean") for settings in (one, plain)]
    assert loads[0] == loads[1]
    with pytest.raises(ScenarioError, match="name a simple law"):
        moesim.load(SMALL, [*FITTED, "routing.router=routing-network"])


@pytest.mark.parametrize("run", ["bias", "balancing-loss", "unbalanced"])
def test_a_fit_and_the_replay_of_its_trace_agree(run: str) -> None:
    """Two roads to one load, at the length that was recorded: in step time, imbalance and traffic."""
    short = ["workload.sequence_length=64", "workload.micro_batch=16", "workload.global_batch=1024"]
    settings = [*RECORDED, *short, "simulation.microbatch_samples=16"]
    fitted = both(f"routing.load={{base: cpu-small-{run}-like, moment: late}}", *settings)[1]
    replayed = both(f"routing.load={{trace: {TRACE}{run}, moment: late}}", *settings)[1]
    for metric in ("step_time", "expert_load_max_over_mean", "rank_load_max_over_mean", "bytes_scale_up_per_gpu"):
        assert value(fitted, metric) == pytest.approx(value(replayed, metric), rel=0.08), metric


@pytest.mark.parametrize("split", ["tensor", "context"])
@pytest.mark.parametrize("load", ["gpt-oss-like", "{log_normal: 0.4, sequence_tilt: 1.0}"])
def test_ranks_of_one_replica_share_its_sequences(split: str, load: str) -> None:
    """Eight ranks of one replica hold one sequence between them: as uneven as that sequence is, on both roads."""
    model = ["model=gpt-oss-20b", "workload={sequence_length: 2048, global_batch: 8, micro_batch: 1}"]
    common = [*model, f"routing.load={load}", "simulation.microbatch_samples=16", "parallelism.data_sharding=optimizer"]
    alone, together = (
        [
            _answer(road, [*common, f"parallelism={{expert: 8, {split}: {degree}, data_sharding: optimizer}}"])
            for road in (moesim.estimate, moesim.simulate)
        ]
        for degree in (1, 8)
    )
    assert together[1] > 1.3 * alone[1]
    assert together[0] == pytest.approx(together[1], rel=0.25)
    assert alone[0] == pytest.approx(alone[1], rel=0.15)


def _answer(road, settings: list[str]) -> float:
    result = road(moesim.load(SMALL, settings), even_if_infeasible=True)
    return value(result, "expert_load_max_over_mean")


def test_noise_flattens_both_roads_alike() -> None:
    """The router's own noise, by a race or by its rule: less uneven, and no part of it counted twice."""
    for name in ("noisy-top-k", "{name: sinkhorn, balancing: false}"):
        skew = []
        for noise in (0.0, 2.0):
            router = name[:-1] + f", noise: {noise}}}" if name.startswith("{") else f"{{name: {name}, noise: {noise}}}"
            results = both(f"routing.router={router}", "routing.load={log_normal: 0.9}")
            skew.append([value(result, "expert_load_max_over_mean") for result in results])
        assert skew[1][1] < 0.8 * skew[0][1]
        if not name.startswith("{"):
            assert skew[1][0] == pytest.approx(skew[1][1], rel=0.08)
            raced = skew[1][1]
    assert skew[1][1] == pytest.approx(raced, rel=0.06)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["routing.router=soft-moe", "model.top_k=1", "routing.capacity={factor: 1}"], "slots instead of a capacity"),
        (["routing.router=expert-choice", "simulation.sampled_tokens=256"], "needs all of them"),
        ([f"routing.load={{trace: {TRACE}bias}}", *RECORDED, "routing.router=mixtral"], "replays its own router"),
    ],
)
def test_what_cannot_be_combined_is_said(settings: list[str], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        moesim.load(SMALL, settings)


def test_slots_move_where_all_tokens_are_gathered() -> None:
    """More slots than tokens on the all-gather: every slot is moved."""
    small = ["model.n_experts=64", "model.top_k=1", "routing.router={name: soft-moe, slots: 32}"]
    work = ["workload={sequence_length: 256, global_batch: 64, micro_batch: 1}", "parallelism.expert=4"]
    estimated, simulated = both(*small, *work, "dispatcher.kind=all-gather-reduce-scatter")
    assert value(estimated, "step_time") == pytest.approx(value(simulated, "step_time"), rel=0.02)
