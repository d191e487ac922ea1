"""The steady state of many pools of engines: the closed form, with the seconds of iterations read off a grid.

What an iteration takes depends on the engine and its settings alone, so it is asked of the law once, on a grid of
decoding requests and prompt tokens, for all rates and counts of engines; and what the law works out of a layout (its
experts, its exchanges) is kept for all settings. Numbers are within a few percent of `moesim estimate`.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InfeasibleError
from moesim.iteration.batch import Batch
from moesim.iteration.law import IterationLaw
from moesim.planner.serving_reading import Question, Settings
from moesim.planner.serving_space import with_settings
from moesim.scenario.serving import Pool, ServingScenario
from moesim.serving.demand import Demand, demand_of
from moesim.serving.steady_engine import SteadyEngine, SteadyState
from moesim.specs.serving import InstanceSpec, Phase

Floats = NDArray[np.float64]
_DECODING, _TOKENS = 22, 14
_BY_LOAD = ("experts", "peak")
"""Parts of an iteration that the placement of experts changes."""


class State(NamedTuple):
    """A pool in its steady state: latencies, output tokens and requests a second, shares of memory and of the rate, and
    the seconds in which a prompt's KV cache moves, and waits for a seat where outputs are apart."""

    first: float
    each: float
    tokens: float
    memory: float
    rate: float
    moved: float
    seat: float


class SharedLaw(IterationLaw):
    """The law of an instance with tables that others of the same layout filled."""

    def __init__(
        self, scenario: ServingScenario, instance: InstanceSpec, phase: Phase, tables: dict[tuple[str, str], Floats]
    ) -> None:
        super().__init__(scenario, instance, phase)
        self.tables = tables


class Grid:
    """Seconds of an iteration on a grid of decoding requests and prompt tokens, linear between its points."""

    def __init__(self, engine: SteadyEngine) -> None:
        most = max(engine.most, 1.0)
        room = float(engine.scenario.engine.token_budget * engine.replicas)
        one = min(engine.demand.new, room)
        self.decoding = [0.0, *np.unique(np.concatenate([[1e-3], np.geomspace(0.5, 2.0 * most, _DECODING)]))]
        self.tokens = [0.0, *np.unique(np.concatenate([[1e-3, one / 4, one], np.geomspace(1.0, room, _TOKENS)]))]
        if not engine.decodes:
            self.decoding = self.decoding[:1]
        if not engine.prefills:
            self.tokens = self.tokens[:1]
        self.values = self._asked(engine)

    def _asked(self, engine: SteadyEngine) -> list[list[float]]:
        points = [engine.batch(float(many), float(new)) for many in self.decoding for new in self.tokens]
        whole = _stacked(points)
        busiest = [point.busiest for point in points if point.busiest is not None]
        if busiest:
            whole = Batch(whole.prefill_tokens, whole.prefill_context, whole.decode_requests, whole.decode_context,
                          _stacked(busiest))  # fmt: skip
        seconds = engine.law.seconds(whole).reshape(len(self.decoding), len(self.tokens))
        return [[float(value) for value in row] for row in seconds]

    def __call__(self, decoding: float, tokens: float) -> float:
        """Seconds of an iteration of so many decoding requests and prompt tokens."""
        row, across = _place(self.decoding, decoding)
        column, along = _place(self.tokens, tokens)
        first, then = self.values[row], self.values[min(row + 1, len(self.decoding) - 1)]
        right = min(column + 1, len(self.tokens) - 1)
        upper = first[column] + along * (first[right] - first[column])
        lower = then[column] + along * (then[right] - then[column])
        return upper + across * (lower - upper)


def _stacked(points: list[Batch]) -> Batch:
    """Single iterations as one batch."""
    return Batch(
        np.concatenate([point.prefill_tokens for point in points]),
        np.concatenate([point.prefill_context for point in points]),
        np.concatenate([point.decode_requests for point in points]),
        np.concatenate([point.decode_context for point in points]),
    )


def _place(nodes: list[float], value: float) -> tuple[int, float]:
    """The node below a value, and how far it is to the next. Nothing is a case of its own: next to it the first node's
    answer holds."""
    if value <= 0.0 or len(nodes) == 1:
        return 0, 0.0
    if value <= nodes[1]:
        return 1, 0.0
    at = min(bisect_right(nodes, value) - 1, len(nodes) - 2)
    return at, min((value - nodes[at]) / (nodes[at + 1] - nodes[at]), 1.0)


class ScreenedEngine(SteadyEngine):
    """An engine whose iterations are read off a grid."""

    grid: Grid | None = None

    def seconds(self, decoding: float, tokens: float) -> float:
        """Seconds of one iteration of so many decoding requests and new prompt tokens."""
        if self.grid is None:
            return super().seconds(decoding, tokens)
        return self.grid(decoding, tokens)

    @cached_property
    def full(self) -> float:
        """Requests that decode where the engine does most; the same whatever the rate."""
        return super()._fullest()

    def _fullest(self) -> float:
        return self.full

    def _parts(self, decoding: float, mean: object) -> dict[str, float]:
        return {}


class Screen:
    """The states of pools of one question's hardware, each worked out once."""

    def __init__(self, question: Question, hardware: int) -> None:
        self.base = question.hardware[hardware].base
        self.demand: Demand = demand_of(self.base)
        self.moves = self.base.workload.kind == "serving"
        self._tables: dict[tuple[InstanceSpec, tuple[str, str]], dict[tuple[str, str], Floats]] = {}
        self._of_load: dict[tuple[InstanceSpec, int], dict[tuple[str, str], Floats]] = {}
        self._engines: dict[tuple[InstanceSpec, Settings, Phase], tuple[ScreenedEngine | None, float]] = {}
        self._states: dict[tuple[InstanceSpec, Settings, Phase, int], State | None] = {}
        self._moved: dict[InstanceSpec, float] = {}

    def state(self, layout: InstanceSpec, count: int, setting: Settings, phase: Phase) -> State | None:
        """The steady state of `count` engines; None where the cluster lacks links that they need."""
        key = (layout, setting, phase, count)
        if key not in self._states:
            try:
                self._states[key] = self._found(layout, count, setting, phase)
            except InfeasibleError:
                self._states[key] = None
        return self._states[key]

    @property
    def asked(self) -> int:
        """Pools whose state was worked out."""
        return len(self._states)

    def _found(self, layout: InstanceSpec, count: int, setting: Settings, phase: Phase) -> State:
        engine, memory = self._engine(layout, setting, phase)
        if engine is None:
            return State(inf, inf, 0.0, memory, 0.0, 0.0, 0.0)
        engine.pool = Pool(phase, layout, count)
        found = engine.closed() if self.demand.concurrency is not None else engine.open(self.demand.rate)
        return State(
            first=found.time_to_first_token if found.feasible else inf,
            each=found.time_per_output_token if engine.decodes else 0.0,
            tokens=found.output_tokens_per_second,
            memory=memory,
            rate=self._rate_share(found),
            moved=self._transfer(layout, engine.law) if phase == "prefill" and self.moves else 0.0,
            seat=found.seat_wait if phase == "decode" and self.moves else 0.0,
        )

    def _rate_share(self, found: SteadyState) -> float:
        """Requests that come over those that can be served; 0 where they are no more."""
        return 0.0 if found.feasible else max(self.demand.rate / found.requests_per_second, 1.0 + 1e-9)

    def _transfer(self, layout: InstanceSpec, law: IterationLaw) -> float:
        if layout not in self._moved:
            self._moved[layout] = float(law.kv_transfer_seconds(self.demand.prompt))
        return self._moved[layout]

    def _engine(self, layout: InstanceSpec, setting: Settings, phase: Phase) -> tuple[ScreenedEngine | None, float]:
        """The engine, None where it cannot hold a request; and its share of the memory that it is given."""
        key = (layout, setting, phase)
        if key not in self._engines:
            scenario = self._scenario(layout, setting)
            law = SharedLaw(scenario, layout, phase, self._known(layout, setting))
            engine = ScreenedEngine(scenario, Pool(phase, layout, 1), self.demand, law)
            parts = law.memory_parts
            taken = sum(value for name, value in parts.items() if name != "kv_cache")
            share = taken / (scenario.cluster.gpu.memory * scenario.engine.kv_cache_fraction)
            if engine.refusal() is None:
                engine.grid = Grid(engine)
                self._learn(layout, setting, law)
                self._engines[key] = engine, share
            else:
                lacking = 1.0 / engine.most if engine.most > 0 else 1.0
                self._engines[key] = None, max(share, lacking, 1.0 + 1e-9)
        return self._engines[key]

    def _scenario(self, layout: InstanceSpec, setting: Settings) -> ServingScenario:
        """The scenario of one engine among others, on the size of cluster that the plan starts from."""
        gpus = max(2 * layout.gpus, self.base.cluster.gpus // layout.gpus * layout.gpus)
        cluster = self.base.cluster.model_copy(update={"gpus": gpus})
        update = {"cluster": cluster, "instance": layout, "disaggregated": None}
        return self.base.model_copy(update={**update, **with_settings(self.base, setting)})

    def _known(self, layout: InstanceSpec, setting: Settings) -> dict[tuple[str, str], Floats]:
        """What is known already of a layout's iterations."""
        found = dict(self._tables.get((layout, setting.dispatchers), {}))
        return {**found, **self._of_load.get((layout, setting.redundant), {})}

    def _learn(self, layout: InstanceSpec, setting: Settings, law: SharedLaw) -> None:
        shared = self._tables.setdefault((layout, setting.dispatchers), {})
        own = self._of_load.setdefault((layout, setting.redundant), {})
        for key, value in law.tables.items():
            (own if key[0] in _BY_LOAD else shared)[key] = value
