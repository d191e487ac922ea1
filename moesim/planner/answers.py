"""One candidate answered in full by either road, in this process or in a worker's.

A worker is this file run as a program: it reads one question a line from standard input, {"road", "scenario"}, and
writes one answer a line to standard output. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Any, Literal

from moesim.errors import InfeasibleError, ScenarioError, UserError
from moesim.provenance import Quantity
from moesim.results.result import Result
from moesim.roads import estimate, simulate
from moesim.scenario.loading import AnyScenario
from moesim.scenario.scenario import Scenario
from moesim.scenario.serving import ServingScenario
from moesim.serving.result import ServingResult

Road = Literal["estimate", "simulate"]
BROKEN = "internal error: "
"""How the refusal of a candidate begins that failed by our mistake."""


@dataclass(frozen=True)
class Answer:
    """The small part of a `Result`, or why there is none (`refusal`)."""

    road: Road
    summary: dict[str, Quantity]
    breakdown: dict[str, float]
    memory: dict[str, float]
    notes: tuple[str, ...]
    refusal: str | None = None


def ask(road: Road, scenario: AnyScenario) -> Answer:
    """The answer of one road; a candidate that cannot be priced is one that says why."""
    try:
        found: Result | ServingResult = (estimate if road == "estimate" else simulate)(
            scenario, even_if_infeasible=True
        )
    except ScenarioError as error:
        return Answer(road, {}, {}, {}, (), "; ".join(map(str, error.problems)))
    except (InfeasibleError, UserError) as error:
        return Answer(road, {}, {}, {}, (), str(error))
    return Answer(road, found.summary, found.breakdown, found.memory, found.notes)


def as_line(answer: Answer) -> str:
    """The answer as one line of JSON."""
    summary = {name: quantity.as_dict() for name, quantity in answer.summary.items()}
    return json.dumps({**vars(answer), "summary": summary})


def from_line(line: str) -> Answer:
    """The answer in a line of JSON."""
    said: dict[str, Any] = json.loads(line)
    summary = {name: Quantity(**quantity) for name, quantity in said.pop("summary").items()}
    return Answer(summary=summary, notes=tuple(said.pop("notes")), **said)


def question_line(road: Road, scenario: AnyScenario) -> str:
    """A question as one line of JSON."""
    return json.dumps({"road": road, "scenario": scenario.model_dump(mode="json")})


def _safely(asked: dict[str, Any]) -> Answer:
    """The answer; our own mistake is told as one, for a worker that ends would only be started again."""
    try:
        serves = "arrivals" in asked["scenario"]["workload"]
        noun = ServingScenario if serves else Scenario
        return ask(asked["road"], noun.model_validate(asked["scenario"]))
    except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
        return Answer(asked["road"], {}, {}, {}, (), f"{BROKEN}{type(error).__name__}: {error}")


def serve() -> None:
    """Answers questions until there are no more. What anything else prints does not get between the answers."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        asked = json.loads(line)
        answers.write(as_line(_safely(asked)) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
