"""Runs a sweep: points one after another into tasks, answers into the store as they come, the store into a table.

A point is known by the hash of everything that its answer depends on. What the store holds under that hash is not
computed again, and two points of one hash are computed once.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from moesim.catalog.loader import OVERLAY_VARIABLE
from moesim.catalog.yaml_files import read_mapping
from moesim.errors import FileError, ScenarioError, UserError
from moesim.results.result import Road
from moesim.scenario.loading import AnyScenario
from moesim.scenario.scenario import Scenario
from moesim.scenario.serving import ServingScenario
from moesim.shipped import named
from moesim.specs.explain import explain
from moesim.specs.sweep import SweepSpec
from moesim.sweeps.base import Base, Source, base_of, mistakes
from moesim.sweeps.dask_executor import DaskPool
from moesim.sweeps.executors import Executor, InProcess
from moesim.sweeps.header import HEADER, header_of
from moesim.sweeps.local import LocalPool
from moesim.sweeps.nouns import metrics_of
from moesim.sweeps.result import Sweep
from moesim.sweeps.sampling import Values, points_of
from moesim.sweeps.store import MemoryStore, Store, folder_store
from moesim.sweeps.table import Row, arrow_table
from moesim.sweeps.work import Task
from moesim.version import __version__

Progress = Callable[[str, float, float | None], None]
"""Hears what is being done, which share of it is over, and how many seconds are left (None: not known yet)."""
Over = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]

FEW = 32
"""Estimated points that take less time than worker processes take to start."""


def sweep(
    scenario: Source,
    over: Over | None = None,
    seeds: int | Sequence[int] | None = None,
    *,
    road: Road = "estimate",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    executor: Literal["local", "dask"] | Executor = "local",
    workers: int | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Answers `scenario` at many points: one row a point, the same table whatever computes it.

    `over`: every combination of fields and their values, or a list of points. `seeds`: how many, or which; each point
    is answered under each. In place of a scenario a sweep file, or a mapping of its shape, says all of this.
    `out` keeps every answer in a folder as soon as it is there; with `resume` what it holds is not computed again. The
    folder has to be of this sweep: same scenario, road and question, and no field varied there that is not varied now.
    `executor`: "local", `workers` processes (0: this one; None: one a core, or this one for a few estimates); "dask",
    the workers of the scheduler at `address`, or `workers` loopback ones.
    Raises `ScenarioError` for mistakes that no point mends; a point that is illegal, does not fit, or fails is a row.
    """
    spec, base = statement(scenario, over, seeds, road)
    chosen = executor_of(executor, workers, address, few=spec.road == "estimate" and spec.count <= FEW)
    points = points_of(spec)
    base = base.held_to_noun(points[0] if points else {})
    metrics_of(base.noun or "training", spec.metrics)
    problems, untried = mistakes(base, points)
    if problems:
        raise ScenarioError(problems, base.where)
    place: AbstractContextManager[Store] = nullcontext(MemoryStore())
    if out is not None:
        place = folder_store(Path(out), resume, header_of(spec, base))
    elif resume:
        raise UserError("resume needs the folder of the earlier run: out")
    with place as store:
        found = _Run(spec, base, points, progress).into(store, chosen)
        if out is not None:
            untried += _replaced(found.missing_from(out))
            found.save(out)
    return replace(found, notes=(*found.notes, *untried))


def _replaced(points: int) -> list[str]:
    if not points:
        return []
    return [
        f"the table that lay there had {points:,} points that this sweep has not, or that another release answered; "
        "their answers are kept"
    ]


def statement(
    scenario: Source, over: Over | None = None, seeds: int | Sequence[int] | None = None, road: Road = "estimate"
) -> tuple[SweepSpec, Base]:
    """What a sweep asks, checked, and the scenario that it varies."""
    if isinstance(scenario, Scenario | ServingScenario):
        return _spec_of({"scenario": {}, **_asked(over, seeds, road)}, scenario.name), base_of(scenario)
    path = None if isinstance(scenario, Mapping) else named(Path(scenario))
    document = scenario if isinstance(scenario, Mapping) else read_mapping(path or Path(scenario))
    where = str(path) if path else "sweep"
    if "scenario" not in document:
        spec = _spec_of({"scenario": {}, **_asked(over, seeds, road)}, where)
        return spec, base_of(path or document)
    if over is not None or seeds is not None:
        raise UserError(f"{where} is a sweep, which says itself what varies")
    spec = _spec_of(document, where)
    return spec, base_of(spec.scenario, path)


def _asked(over: Over | None, seeds: int | Sequence[int] | None, road: Road) -> dict[str, Any]:
    kind = "grid" if isinstance(over, Mapping) else "list"
    points = {} if over is None else {kind: over}
    return {**points, "seeds": seeds, "road": road}


def _spec_of(document: Mapping[str, Any], where: str) -> SweepSpec:
    try:
        return SweepSpec.model_validate(document)
    except ValidationError as error:
        raise ScenarioError(explain(error, SweepSpec), where) from error


def executor_of(name: str | Executor, workers: int | None, address: str | None, few: bool = False) -> Executor:
    """The executor of a name; raises `UserError` where the options do not go together."""
    if not isinstance(name, str):
        return name
    if name not in ("local", "dask"):
        raise UserError(f"unknown executor {name!r}; allowed: local, dask")
    if workers is not None and not 0 <= workers <= 1024:
        raise UserError(f"workers must be 0 to 1024, got {workers}")
    if name == "dask":
        return DaskPool(address, workers)
    if address is not None:
        raise UserError("address is that of a Dask scheduler: add --executor dask")
    return InProcess() if workers == 0 or (workers is None and few) else LocalPool(workers)


class _Run:
    """One run of a sweep, and how far it is: every row is settled once, as illegal, reused, or computed."""

    def __init__(self, spec: SweepSpec, base: Base, points: Sequence[Values], progress: Progress | None) -> None:
        self.spec, self.base, self.progress = spec, base.prepared(spec.fields), progress
        self.noun = base.noun or "training"
        self.rows = [Row(point, seed) for point in points for seed in spec.seed_list]
        self.identity = Identity(spec.road)
        self.seen: set[str] = set()
        self.settled = self.computed = self.stored = self.reused = 0
        self.failed: dict[str, dict[str, Any]] = {}

    def into(self, store: Store, executor: Executor) -> Sweep:
        """Computes what the store lacks, and gathers the table."""
        began = time.monotonic()
        try:
            with closing(executor.run(self._tasks(store))) as answers:
                for key, text in answers:
                    self._keep(store, key, text)
                    self._tell(time.monotonic() - began)
        except (FileError, UserError) as error:
            if isinstance(store, MemoryStore):
                raise
            said = f"{error}; {self.stored:,} points of this run are kept: go on with --resume"
            raise (FileError if isinstance(error, FileError) else UserError)(said) from error
        if self.progress is not None:
            self.progress("writing the table", 1.0, 0.0)
        table = arrow_table(self.spec, self.noun, self.rows, (self._outcome(store, row) for row in self.rows))
        return Sweep(table, self.computed, self.reused, tuple(self._notes(store)))

    def _tasks(self, store: Store) -> Iterator[Task]:
        """A task for every point whose answer is not there."""
        for row in self.rows:
            try:
                scenario = self.base.at(row.values, row.seed)
            except UserError as error:
                problems = error.problems if isinstance(error, ScenarioError) else [error]
                row.reason = "; ".join(map(str, problems))
                row.seed = row.seed if row.seed is not None else self.base.seed
                self.settled += 1
                continue
            row.seed, row.key = scenario.simulation.seed, self.identity.key(scenario)
            if row.key in self.seen or store.get(row.key) is not None:
                self.reused += 1
                self.settled += 1
            else:
                yield Task(row.key, self.spec.road, scenario.model_dump_json(), self.noun)
            self.seen.add(row.key)

    def _keep(self, store: Store, key: str, text: str) -> None:
        """Stores an answer. A failure is no answer: it stands in the table, and a later run tries again."""
        outcome = json.loads(text)
        if outcome["status"] == "failed":
            self.failed[key] = outcome
        else:
            store.put(key, text)
            self.stored += 1
        self.computed += 1
        self.settled += 1

    def _tell(self, elapsed: float) -> None:
        if self.progress is not None:
            left = (len(self.rows) - self.settled) * elapsed / self.computed
            self.progress("sweeping", self.settled / len(self.rows), left)

    def _outcome(self, store: Store, row: Row) -> dict[str, Any]:
        if not row.key:
            return {"status": "illegal", "reason": row.reason, "summary": {}}
        found = self.failed.get(row.key) or store.get(row.key)
        if found is None:
            raise FileError(f"the answer {row.key} was taken away or changed while the sweep ran; go on with --resume")
        return found

    def _notes(self, store: Store) -> Iterator[str]:
        if store.unnamed:
            yield f"the folder did not say whose answers it holds ({HEADER} is gone or was cut): taken for this sweep's"
        damaged = store.damaged
        if damaged:
            more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
            yield f"cut or changed, computed again: {', '.join(damaged[:3])}{more}"
        if self.failed:
            yield f"{len(self.failed)} points failed; --resume tries them again"


class Identity:
    """Names an answer by all that it depends on: the scenario, the road, the release, coefficients of the user."""

    def __init__(self, road: Road) -> None:
        overlay = os.environ.get(OVERLAY_VARIABLE)
        files = sorted(Path(overlay).expanduser().rglob("*.yaml")) if overlay else []
        self.ground = f"{road}/{__version__}/{_digest(files)}"
        self.calibrations: dict[str, str] = {}

    def key(self, scenario: AnyScenario) -> str:
        """The hash, in 32 hexadecimal digits."""
        own = scenario.cluster.calibration
        if own is not None and own not in self.calibrations:
            self.calibrations[own] = _digest([Path(own)])
        text = f"{scenario.key}/{self.ground}/{self.calibrations[own] if own is not None else ''}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digest(files: Sequence[Path]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for path in files:
        found.update(f"{path.name}/".encode() + hashlib.blake2b(path.read_bytes()).digest())
    return found.hexdigest()
