"""The scenario that a sweep varies, as the document its points change: what nobody sets keeps following its names.

A document that says `gpu: h100-sxm` lets the fabric follow another GPU; one with every default filled in does not. A
`Scenario` is therefore taken back to the shortest document that still means it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moesim import catalog
from moesim.catalog.yaml_files import read_mapping
from moesim.errors import MoesimError, Problem, ScenarioError
from moesim.scenario import loading
from moesim.scenario.loading import AnyScenario
from moesim.scenario.scenario import Scenario
from moesim.scenario.serving import ServingScenario
from moesim.specs.sweep import SEED_FIELDS
from moesim.sweeps.nouns import Noun, noun_of, require

Document = dict[str, Any]
Source = str | os.PathLike[str] | Mapping[str, Any] | AnyScenario

_NAMED = (
    ("model", "models"),
    ("cluster.gpu", "gpus"),
    ("cluster.fabric", "fabrics"),
    ("routing.load", "profiles"),
)
_FOLLOWING = ("cluster.fabric", "cluster.gpus_per_domain")
# Fields whose names are looked up, or from which others follow.
_LOOKED_UP = (
    "model",
    "cluster.gpu",
    "cluster.fabric",
    "cluster.calibration",
    "routing.load",
    "routing.router",
    "stack",
)
MOST_TRIED = 128
"""Values that are tried before a sweep begins; each takes a reading of the scenario, some 10 ms."""
# How a problem that no other field can mend begins or reads.
_UNMENDABLE = ("unknown ", "expected ")


@dataclass(frozen=True)
class Base:
    """The document of a scenario, where it came from, and the folder from which its paths are read.

    `noun`: what all its points are of; None where each may be of either.
    """

    document: Document
    where: str
    name: str | None
    folder: Path
    noun: Noun | None = None

    def prepared(self, fields: Iterable[str]) -> Base:
        """The same with every name looked up once for all points, where no field that varies has to do with names."""
        if any(_touches(name, field) for name in _LOOKED_UP for field in fields):
            return self
        try:
            return replace(self, document=self.at({}).document(), folder=Path())
        except ScenarioError:  # only legal with what the points set
            return self

    @property
    def seed(self) -> int:
        """`simulation.seed` as the document has it."""
        found = _get(self.document, SEED_FIELDS[0])
        return found if isinstance(found, int) else 0

    def held_to_noun(self, values: Mapping[str, Any]) -> Base:
        """The same for points that are all of what the one with these values is of."""
        return replace(self, noun=noun_of(self._document(values)))

    def at(self, values: Mapping[str, Any], seed: int | None = None) -> AnyScenario:
        """The scenario with the values set, as `--set` sets them. Raises `ScenarioError` with all its problems."""
        document = self._document(values)
        if seed is not None:
            for field in SEED_FIELDS:
                document = with_value(document, field, seed)
        found = _read(document, self.where, self.name, self.folder)
        return found if self.noun is None else require(found, self.noun, self.where)

    def _document(self, values: Mapping[str, Any]) -> Document:
        document = self.document
        for field, value in sorted(values.items(), key=lambda item: item[0].count(".")):
            document = with_value(document, field, value)
        return document


def _read(document: Document, where: str, name: str | None = None, folder: Path | None = None) -> AnyScenario:
    return loading._read(document, where, name=name, folder=folder)


def base_of(source: Source, file: Path | None = None) -> Base:
    """The base that a scenario, a mapping, or a path stands for; `file` is the sweep file that names it."""
    folder = file.parent if file else Path()
    if isinstance(source, Scenario | ServingScenario):
        return Base(_shortest(source), source.name, source.name, folder)
    if isinstance(source, Mapping):
        return Base(dict(source), str(file or "scenario"), file.stem if file else None, folder)
    path = folder / source
    return Base(read_mapping(path), str(path), path.stem, path.parent)


def with_value(document: Document, field: str, value: Any) -> Document:
    """`document` with one dotted field set; it is not changed itself. A catalog name on the way becomes a base."""
    return _put(document, field.split("."), value)


def _put(node: Any, keys: list[str], value: Any) -> Document:
    if isinstance(node, str):
        node = {"base": node}
    branch: Document = dict(node) if isinstance(node, dict) else {}
    head, *rest = keys
    branch[head] = _put(branch.get(head), rest, value) if rest else value
    return branch


def _touches(where: str, field: str) -> bool:
    """Whether one of two dotted places holds the other."""
    return f"{where}.".startswith(f"{field}.") or f"{field}.".startswith(f"{where}.")


def mistakes(base: Base, points: Iterable[Mapping[str, Any]]) -> tuple[list[Problem], list[str]]:
    """What no point of a sweep can mend, unknown keys and names and values of the wrong kind; and what was not tried.

    Every field's values are tried by themselves (of numbers the least and the largest), `MOST_TRIED` in all, and the
    first point as a whole. A value that only breaks a rule between fields is no mistake: its points are rows that say
    so.
    """
    points = list(points)
    found = _complaints(base, points[0]) if points else []
    values = _distinct(points)
    left: list[str] = []
    share = max(1, MOST_TRIED // max(1, len(values)))
    for place, (field, several) in enumerate(values.items()):
        tried = _evenly(several, share if place < MOST_TRIED else 0)
        for value in tried:
            found += [problem for problem in _complaints(base, {field: value}) if _touches(problem.where, field)]
        if len(tried) < len(several):
            left.append(f"{len(tried):,} of the {len(several):,} values of {field}")
    return list(dict.fromkeys(found)), _untried(left)


def _evenly(values: list[Any], most: int) -> list[Any]:
    """At most that many of the values, the first and the last among them, the others evenly between."""
    if len(values) <= most:
        return values
    last = len(values) - 1
    return [values[last * place // max(1, most - 1)] for place in range(most)]


def _untried(left: list[str]) -> list[str]:
    if not left:
        return []
    more = f", and as few of {len(left) - 3} other fields" if len(left) > 3 else ""
    told = f"before the start {', '.join(left[:3])}{more} were tried"
    return [f"{told}; a mistake in another one is a row with its reason, not a refusal"]


def _complaints(base: Base, values: Mapping[str, Any]) -> list[Problem]:
    try:
        base.at(values)
    except ScenarioError as error:
        return [problem for problem in error.problems if _unmendable(problem.what)]
    return []


def _unmendable(what: str) -> bool:
    return what.startswith(_UNMENDABLE) or " is not known" in what


def _distinct(points: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The values worth trying of each field."""
    values: dict[str, dict[str, Any]] = {}
    numbers: dict[str, list[float]] = {}
    for point in points:
        for field, value in point.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                numbers.setdefault(field, []).append(value)
            else:
                values.setdefault(field, {})[repr(value)] = value
    fields = dict.fromkeys((*values, *numbers))
    return {
        field: [*values.get(field, {}).values(), *{min(numbers[field]), max(numbers[field])}]
        if field in numbers
        else list(values[field].values())
        for field in fields
    }


def _shortest(scenario: AnyScenario) -> Document:
    """The scenario's document with names for catalog entries, and without what follows from them."""
    document = scenario.document()
    for field, kind in _NAMED:
        entry = _get(document, field)
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name in catalog.names(kind):
            document = _if_same(with_value(document, field, name), document, scenario)
    for field in _FOLLOWING:
        document = _if_same(_without(document, field), document, scenario)
    return document


def _if_same(shorter: Document, document: Document, scenario: AnyScenario) -> Document:
    try:
        same = _read(shorter, scenario.name).key == scenario.key
    except MoesimError:
        same = False
    return shorter if same else document


def _get(document: Document, field: str) -> Any:
    node: Any = document
    for key in field.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _without(document: Document, field: str) -> Document:
    room, _, key = field.partition(".")
    return {**document, room: {name: value for name, value in document[room].items() if name != key}}
