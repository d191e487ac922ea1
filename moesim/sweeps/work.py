"""What a worker does: one point in, its outcome out, as text; nothing that goes wrong with a point ends a sweep."""

from __future__ import annotations

import json
from typing import Literal, NamedTuple

from moesim.errors import InfeasibleError, UserError
from moesim.results.result import Road
from moesim.sweeps.nouns import Noun, summary_of
from moesim.version import __version__

Status = Literal["done", "infeasible", "illegal", "failed"]


class Task(NamedTuple):
    """A point to compute: the name of its answer, the road, and the scenario as JSON, every name in it resolved."""

    key: str
    road: Road
    scenario: str
    noun: Noun = "training"


class Answer(NamedTuple):
    """A point's outcome as the text that is stored."""

    key: str
    text: str


def answer(task: Task) -> Answer:
    """Computes a point. Every error becomes an outcome with its reason."""
    try:
        text = outcome("done", summary=_summary(task))
    except InfeasibleError as error:
        text = outcome("infeasible", str(error))
    except UserError as error:
        text = outcome("illegal", str(error))
    except Exception as error:  # noqa: BLE001 - a row with its reason: the other points go on
        text = outcome("failed", f"{type(error).__name__}: {error}")
    return Answer(task.key, text)


def answers(version: str, tasks: list[Task]) -> list[Answer]:
    """Computes several points on another machine, whose moesim has to be this one."""
    if __version__ != version:
        raise UserError(f"a worker has moesim {__version__}, the sweep is run by {version}: install the same there")
    return [answer(task) for task in tasks]


def outcome(status: Status, reason: str = "", summary: dict[str, list[float | str]] | None = None) -> str:
    """The text of an outcome; `summary` maps a metric to its value, low, high and basis."""
    document = {"status": status, "reason": reason, "summary": summary or {}}
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _summary(task: Task) -> dict[str, list[float | str]]:
    found = summary_of(task.noun, task.scenario, task.road)
    return {name: [q.value, q.low, q.high, q.basis] for name, q in found.items()}
