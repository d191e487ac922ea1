"""Plans of serving: the winner beats a brute force, limits bind, words tell, answers do not depend on workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import moesim
from moesim.catalog.yaml_files import read_mapping
from moesim.cli import app
from moesim.errors import ScenarioError
from moesim.planner.serving_figures import best_first, excesses, limits_of, objective_of
from moesim.planner.serving_plan import ServingModelPlan, ServingPlan
from moesim.planner.serving_reading import Question, questions
from moesim.planner.serving_run import from_file, statement
from moesim.planner.serving_scan import all_figures, scan
from moesim.planner.serving_search import DOUBT
from moesim.planner.serving_space import Candidate, Pooled, engines, scenario_of
from moesim.serving.closed_form import steady_state

SCENARIO: dict[str, Any] = {
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm"},
    "workload": {
        "kind": "serving",
        "requests": 200,
        "input_tokens": 1024,
        "output_tokens": 128,
        "arrivals": {"kind": "poisson", "rate": 40},
    },
    "routing": {"load": "aux-loss-balanced"},
}
SMALL: dict[str, Any] = {
    "cluster.gpus": [2, 4],
    "instance.gpus": [1, 2, 4],
    "instance.tensor": [1, 2],
    "instance.pipeline": 1,
    "engine.token_budget": 4096,
    "engine.two_batch_overlap": False,
    "placement.redundant_experts": [0, 8],
}
LIMITS = {"time_to_first_token": "1 s", "time_per_output_token": "6 ms"}


def question(**said: Any) -> Question:
    """The question of a plan over the small space."""
    spec = statement(SCENARIO, {"search": SMALL, "limits": LIMITS, **said}, "small", anew=False)
    return questions(spec, Path())[0]


def planned(scenario: dict[str, Any] = SCENARIO, **said: Any) -> ServingModelPlan:
    """A plan over the small space, by the closed form alone unless said."""
    asked = {"search": SMALL, "limits": LIMITS, "simulate": 0, **said}
    found = moesim.plan(scenario, workers=1, **asked)
    assert isinstance(found, ServingPlan)
    return found.models[0]


def brute_force(asked: Question) -> list[Candidate]:
    """Every legal deployment of the small space, written out."""
    hardware, found = asked.hardware[0], []
    for gpus in hardware.counts:
        for setting in asked.settings:
            legal = {
                (g, p): engines(asked, hardware, g, p).legal[setting] for g in (1, 2, 4) for p in (None, "prefill")
            }
            for size in (1, 2, 4):
                alike = legal[size, None] if gpus % size == 0 else ()
                found += [Candidate(0, gpus, (Pooled(one, gpus // size),), setting) for one in alike]
                for other in (1, 2, 4):
                    for many in range(1, gpus // size + 1):
                        left = gpus - many * size
                        if left <= 0 or left % other:
                            continue
                        found += [
                            Candidate(0, gpus, (Pooled(one, many), Pooled(two, left // other)), setting)
                            for one in legal[size, "prefill"]
                            for two in legal[other, "prefill"]
                        ]
    return found


@pytest.fixture(scope="module")
def exact() -> list[tuple[Candidate, Any]]:
    """The closed form of every deployment of the small space."""
    asked = question()
    return [(one, steady_state(scenario_of(asked, one))) for one in brute_force(asked)]


def test_every_deployment_is_judged(exact: list[tuple[Candidate, Any]]) -> None:
    found = scan(question())
    assert found.judged == len(exact)
    assert found.candidates
    assert set(found.candidates) <= {one for one, _ in exact}


def test_the_scan_is_the_closed_form_within_its_doubt(exact: list[tuple[Candidate, Any]]) -> None:
    found, told = scan(question()), dict(exact)
    figures = all_figures(found)
    for place, one in enumerate(found.candidates):
        state = told[one]
        assert state.feasible == (figures.rate_share[place] <= 1.0 and figures.memory_share[place] <= 1.0)
        if state.feasible:
            assert figures.time_to_first_token[place] == pytest.approx(state.time_to_first_token, rel=DOUBT - 1)
            assert figures.time_per_output_token[place] == pytest.approx(state.time_per_output_token, rel=DOUBT - 1)


@pytest.mark.parametrize("objective", ["cost", "fewest-gpus", "throughput", "latency"])
def test_the_winner_is_at_least_as_good_as_every_deployment(objective: Any, exact: list[tuple[Candidate, Any]]) -> None:
    plan = planned(objective=objective)
    assert plan.winner is not None
    values = []
    for one, state in exact:
        if state.feasible and state.time_to_first_token <= 1.0 and state.time_per_output_token <= 6e-3:
            per_gpu = state.output_tokens_per_second / one.gpus
            values.append({"latency": state.request_latency, "throughput": -per_gpu}.get(objective, one.gpus / per_gpu))
    assert values
    row = plan.winner
    gpus, per_gpu = row.figures.gpus[0], row.figures.per_gpu[0]
    own = {"latency": row.figures.request_latency[0], "throughput": -per_gpu}.get(objective, gpus / per_gpu)
    assert own <= min(values) + 1e-3 * abs(min(values))


def test_rows_keep_the_limits_and_the_rest_has_a_reason() -> None:
    plan = planned()
    for row in plan.rows:
        assert row.summary["time_per_output_token"].value <= 6e-3
        assert row.summary["time_to_first_token"].value <= 1.0
    assert plan.feasible + sum(plan.rejected.values()) == plan.total
    assert set(plan.rejected) == set(plan.meanings)
    assert plan.pareto


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"time_per_output_token": "1 us"}, "time_per_output_token"),
        ({"time_to_first_token": "1 us"}, "time_to_first_token"),
        ({"request_latency": "1 us"}, "request_latency"),
        ({"gpus": 1}, "gpus"),
        ({"memory_headroom": "94%"}, "memory"),
    ],
)
def test_a_limit_that_nothing_keeps_binds_and_says_what_relaxes(limits: dict[str, Any], code: str) -> None:
    plan = planned(limits=limits)
    assert not plan.rows
    assert plan.closest is not None
    assert next(iter(plan.closest.over)) == code
    assert max(plan.rejected, key=lambda one: plan.rejected[one] if one in (code,) else -1) == code
    one = next(one for one in plan.relaxations if one.limit == code)
    assert one.needed > one.allowed
    assert any("would relax" in sentence for sentence in plan.words)


def test_the_relaxation_works() -> None:
    told = planned(limits={"time_per_output_token": "1 ms"}).relaxations[0]
    relaxed = planned(limits={"time_per_output_token": told.needed * 1.0001})
    assert relaxed.winner is not None


def test_too_many_requests_bind_by_the_rate() -> None:
    crowd = {**SCENARIO, "workload": {**SCENARIO["workload"], "arrivals": {"kind": "poisson", "rate": 5000}}}
    plan = planned(crowd, limits={})
    assert not plan.rows
    assert "rate" in plan.rejected
    assert any("requests/s instead of 5,000" in sentence for sentence in plan.words)


def test_a_bigger_limit_never_makes_the_answer_worse() -> None:
    costs = []
    for limit in ("2.5 ms", "4 ms", "8 ms", "20 ms"):
        row = planned(limits={"time_per_output_token": limit}).winner
        costs.append(np.inf if row is None else float(row.figures.cost[0]))
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < np.inf


def test_answers_do_not_depend_on_the_workers() -> None:
    asked = {"search": SMALL, "limits": LIMITS, "simulate": 2}
    one, two = (moesim.plan(SCENARIO, workers=workers, **asked).as_dict() for workers in (1, 2))
    assert json.dumps(one) == json.dumps(two)
    assert one["models"][0]["rows"][0]["road"] == "simulate"


def test_the_simulation_judges_what_it_alone_can_tell() -> None:
    strict = planned(limits={"time_to_first_token": "40 ms", "goodput_fraction": "100%"}, simulate=1)
    for row in strict.rows:
        if row.road == "simulate":
            assert row.summary["goodput_fraction"].value == 1.0
    with pytest.raises(ScenarioError, match="only the simulation can tell"):
        planned(limits={"time_per_output_token_p99": "1 s"})


def test_the_order_of_candidates_follows_the_objective() -> None:
    asked = question()
    figures, limits = all_figures(scan(asked)), limits_of(asked)
    for objective in ("cost", "fewest-gpus", "throughput", "latency"):
        values = objective_of(objective, figures)[best_first(objective, limits, figures)]
        finite = values[np.isfinite(values)]
        assert (np.diff(finite) >= -2e-3 * np.abs(finite[1:])).all()
    assert excesses(limits, figures).shape == (len(figures), len(limits))


def test_prefill_decode_and_closed_loops_have_one_kind_of_engine() -> None:
    work = SCENARIO["workload"]
    prefill = {**{key: work[key] for key in work if key != "output_tokens"}, "kind": "prefill"}
    for changed in (prefill, {**work, "kind": "decode"}, {**work, "arrivals": {"kind": "closed", "concurrency": 64}}):
        plan = planned(
            {**SCENARIO, "workload": changed}, limits={"time_to_first_token": "10 s"}, objective="throughput"
        )
        assert plan.winner is not None
        assert not plan.winner.layout["disaggregated"]


def test_the_scenarios_own_deployment_is_compared() -> None:
    own = {**SCENARIO, "cluster": {"gpu": "h100-sxm", "gpus": 4}, "instance": {"gpus": 4, "tensor": 4, "expert": 4}}
    found = moesim.plan(moesim.load(own), search={"engine.token_budget": 4096}, simulate=0, workers=1)
    plan = found.models[0]
    assert isinstance(plan, ServingModelPlan)
    assert plan.own is not None
    assert plan.own.layout["instance.tensor"] == 4
    assert any(sentence.startswith("Your deployment") for sentence in plan.words)
    kept = moesim.plan(own, simulate=0, workers=1).models[0]
    assert kept.winner.layout["instance.tensor"] == 4


@pytest.mark.parametrize(
    ("said", "where"),
    [
        ({"search": {"instance.tensr": [1]}}, "search.instance.tensr"),
        ({"search": {"instance.tensor": [0]}}, "search.instance.tensor.0"),
        ({"limits": {"dollars_per_hour": 5}}, "limits.dollars_per_hour"),
        ({"limits": {"goodput_fraction": "99%"}, "simulate": 1}, "limits.goodput_fraction"),
        ({"objective": "time"}, "objective"),
    ],
)
def test_mistakes_are_told_with_their_place(said: dict[str, Any], where: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        planned(**said)
    assert where in [problem.where for problem in caught.value.problems]


def test_a_plan_is_saved_and_its_winner_runs(tmp_path: Path) -> None:
    found = moesim.plan(SCENARIO, search=SMALL, limits=LIMITS, prices={"h100-sxm": 2.5}, simulate=1, workers=1)
    names = [path.name for path in found.save(tmp_path)]
    assert names == ["candidates.parquet", "winner.yaml", "plan.html", "plan.json"]
    winner = moesim.load(tmp_path / "winner.yaml")
    assert winner.key == found.winner.scenario.key
    table = pq.read_table(tmp_path / "candidates.parquet")
    assert table.schema.field("time_to_first_token").metadata[b"unit"] == b"s"
    assert json.loads((tmp_path / "plan.json").read_text())["models"][0]["winner"] == winner.name
    page = (tmp_path / "plan.html").read_text()
    assert "tokens/s/GPU" in page
    assert "http-equiv" in page


LINE = "plan --serve --model olmoe-1b-7b --gpu h100-sxm --gpus 1,2 --rate 20 --input-tokens 512 --output-tokens 64"
MORE = " --ttft 2s --simulate 0 --search instance.pipeline=1 --search engine.token_budget=4096 --workers 1"


def test_a_line_is_a_whole_question() -> None:
    found = CliRunner().invoke(app, [*(LINE + MORE).split(), "--tpot", "50 ms", "--json"])
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["models"][0]["winner"].startswith("olmoe-1b-7b-1-h100-sxm")
    assert told["limits"]["time_per_output_token"] == pytest.approx(0.05)


def test_a_line_that_nothing_answers_ends_with_three() -> None:
    command = [sys.executable, "-m", "moesim", *(LINE + MORE).split(), "--tpot", "1 us"]
    told = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}, timeout=300, check=False
    )
    assert told.returncode == 3
    assert "time_per_output_token" in told.stderr
    assert max(map(len, told.stdout.splitlines())) <= 80


def test_the_shipped_plan_reads() -> None:
    path = Path(__file__).parents[1] / "scenarios" / "plans" / "gpt-oss-120b-serving-20-per-s.yaml"
    spec, folder = from_file(read_mapping(path), path, {})
    asked = questions(spec, folder)[0]
    assert {one.cluster.gpu.name for one in asked.hardware} == {"h100-sxm", "h200-sxm"}
    assert asked.limits.time_per_output_token == pytest.approx(0.02)
    assert spec.question
