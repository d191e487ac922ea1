"""Answers of moesim for the pages: kept by content hash, and mistakes as values instead of tracebacks."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar, cast

import streamlit as st

import moesim
from moesim import shipped
from moesim.catalog.yaml_files import parse_mapping, read_mapping
from moesim.errors import InternalError, MoesimError, Problem, ScenarioError, shorten
from moesim.files import plain_name
from moesim.results.assemble import require_memory
from moesim.scenario.loading import AnyScenario, load_serving, load_training, override_key
from moesim.scenario.serving import ServingScenario
from moesim.serving.result import ServingResult
from shared import files, reach

T = TypeVar("T")

ESTIMATES = 256
SIMULATIONS = 12
OTHERS = 256


@dataclass(frozen=True)
class Answer(Generic[T]):
    """A value, or the problems that stand in its way; `infeasible` where the answer is that it does not fit."""

    value: T | None = None
    problems: tuple[Problem, ...] = ()
    infeasible: bool = False

    def need(self) -> T:
        """The value, where `problems` is known to be empty."""
        return cast(T, self.value)


def attempt(ask: Callable[[], T]) -> Answer[T]:
    """What `ask` returns; a mistake or a refusal becomes problems, our own bug one that asks for a report."""
    try:
        return Answer(ask())
    except ScenarioError as error:
        return Answer(problems=error.problems)
    except moesim.InfeasibleError as error:
        return Answer(problems=(Problem("", str(error)),), infeasible=True)
    except MoesimError as error:
        said = f"internal error, please report it: {error}" if isinstance(error, InternalError) else str(error)
        return Answer(problems=(Problem("", said),))
    except MemoryError:
        return Answer(problems=(Problem("", "this needs more memory than this machine has"),))
    except Exception as error:  # a page never shows a traceback; the log has it
        logging.getLogger("moesim.dashboard").exception("internal error")
        said = f"internal error, please report it: {type(error).__name__}: {shorten(str(error), 200)}"
        return Answer(problems=(Problem("", said),))


class Kept:
    """The latest answers by key, at most `size` of them, shared by all sessions; whoever reads must not change them."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, Lock()
        self._held: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, ask: Callable[[], T]) -> T:
        """The answer kept under `key`, or that of `ask`; two that ask at once may both work."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return cast(T, self._held[key])
        value = ask()
        with self._lock:
            self._held[key] = value
            while len(self._held) > self._size:
                self._held.popitem(last=False)
        return value

    def holds(self, key: Hashable) -> bool:
        """Whether an answer is kept under `key`."""
        with self._lock:
            return key in self._held


@st.cache_resource
def kept(kind: str, size: int) -> Kept:
    """The answers of one kind: "estimates", "simulations", or a page's own."""
    return Kept(size)


def scenario_files() -> dict[str, Path]:
    """Name -> file of every shipped scenario of training."""
    return shipped.scenarios()


def serving_files() -> dict[str, Path]:
    """Name -> file of every shipped scenario of serving."""
    folders = {path.parent / "serving" for path in shipped.scenarios().values()}
    return {f"serving/{path.stem}": path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def scenario(name: str, settings: tuple[str, ...] = ()) -> Answer[moesim.Scenario]:
    """The shipped scenario `name` with overrides applied."""
    known = scenario_files()
    if name not in known:
        return Answer(problems=(Problem("scenario", f"no scenario {shorten(name)!r} is shipped"),))
    ask = lambda: _read(known[name], settings, load_training)  # noqa: E731
    return kept("scenarios", ESTIMATES).get((name, settings, reach.opened_wider()), ask)


def serving(name: str, settings: tuple[str, ...] = ()) -> Answer[ServingScenario]:
    """The shipped serving scenario `name` with overrides applied."""
    ask = lambda: _read(serving_files()[name], settings, load_serving)  # noqa: E731
    return kept("scenarios", ESTIMATES).get((name, settings, reach.opened_wider()), ask)


def _read(path: Path, settings: tuple[str, ...], load: Callable[[Path, tuple[str, ...]], T]) -> Answer[T]:
    """A shipped file under overrides; files of this machine are not for readers on other machines."""
    named = attempt(lambda: files.refused(read_mapping(path), settings))
    if named.problems or named.value:
        return Answer(problems=named.problems or named.need())
    return attempt(lambda: load(path, settings))


def own_scenario(text: str, name: str, settings: tuple[str, ...] = ()) -> Answer[AnyScenario]:
    """The scenario in the text of a YAML file that the reader brought, with overrides applied."""
    key = (hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), name, settings, reach.opened_wider())

    def ask() -> AnyScenario:
        document = parse_mapping(text, name)
        named = files.refused(document, settings)
        if named:
            raise ScenarioError(named, name)
        return moesim.load({"name": plain_name(name), **document}, settings)

    return kept("scenarios", ESTIMATES).get(key, lambda: attempt(ask))


def written(name: str, settings: tuple[str, ...]) -> Answer[dict[str, Any]]:
    """The scenario file `name` with overrides put in, as it would be written by hand: no defaults filled in."""

    def ask() -> dict[str, Any]:
        document = read_mapping({**scenario_files(), **serving_files()}[name])
        for setting in settings:
            document = override_key(document, setting)
        return document

    return attempt(ask)


def estimate(asked: moesim.Scenario) -> Answer[moesim.Result]:
    """The closed form, also where the model does not fit in memory (the summary's `fits_in_memory` says so)."""

    def ask() -> Answer[moesim.Result]:
        begin = time.perf_counter()
        found = attempt(lambda: moesim.estimate(asked, even_if_infeasible=True))
        kept("seconds", ESTIMATES).get(asked.key, lambda: time.perf_counter() - begin)
        return found

    return kept("estimates", ESTIMATES).get((asked.name, asked.key), ask)


def steady(asked: ServingScenario) -> Answer[ServingResult]:
    """The steady state in closed form, also where there is none (a note says what limits it)."""
    ask = lambda: attempt(lambda: moesim.estimate(asked, even_if_infeasible=True))  # noqa: E731
    return kept("estimates", ESTIMATES).get((asked.name, asked.key), ask)


def serve(asked: ServingScenario, progress: Callable[[str, float], None] | None = None) -> Answer[ServingResult]:
    """The simulation of all requests; `progress(what, share)` hears how far it is."""
    ask = lambda: attempt(lambda: moesim.simulate(asked, progress))  # noqa: E731
    return kept("simulations", SIMULATIONS).get((asked.name, asked.key), ask)


def seconds(asked: moesim.Scenario) -> float:
    """How long the closed form of `asked` took; infinite where it has not been asked."""
    return kept("seconds", ESTIMATES).get(asked.key, lambda: math.inf)


def simulate(asked: moesim.Scenario, progress: Callable[[str, float], None] | None = None) -> Answer[moesim.Result]:
    """The simulation, also where the model does not fit in memory; `progress(what, share)` hears how far it is."""
    ask = lambda: attempt(lambda: moesim.simulate(asked, progress, even_if_infeasible=True))  # noqa: E731
    return kept("simulations", SIMULATIONS).get((asked.name, asked.key), ask)


def memory_problem(asked: moesim.Scenario, result: moesim.Result) -> tuple[Problem, ...]:
    """What to say where the model does not fit in the GPU's memory; nothing where it does."""
    refused = attempt(lambda: require_memory(asked, result.memory))
    return tuple(Problem("cluster.gpu", problem.what) for problem in refused.problems)


def simulated(asked: moesim.Scenario | ServingScenario) -> bool:
    """Whether the simulation of `asked` is kept already."""
    return kept("simulations", SIMULATIONS).holds((asked.name, asked.key))
