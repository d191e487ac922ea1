"""The overrides that turn one scenario into another: how a page or a command line says "the same, but so"."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from moesim import catalog
from moesim.errors import UserError
from moesim.results.compare_inputs import Difference, differences
from moesim.scenario.loading import load, override_key
from moesim.scenario.scenario import Scenario

ROUNDS = 4
"""What follows from a name is only seen when the name is set; more rounds than names that hang on each other."""
_NAMED = {"model": "models", "cluster.gpu": "gpus", "cluster.fabric": "fabrics", "routing.load": "profiles"}


def overrides_between(source: str | os.PathLike[str] | Mapping[str, Any], wanted: Scenario) -> tuple[str, ...]:
    """Overrides ("a.b=value") under which `moesim.load(source, overrides)` asks what `wanted` asks.

    Raises `UserError` where no such overrides are found: an entry written in full that the catalog does not hold.
    """
    found: dict[str, str] = {}
    for _ in range(ROUNDS):
        left = differences([_document(source, found), wanted.document()])
        if not left:
            return tuple(f"{path}={text}" for path, text in found.items())
        fresh = dict(_said(left))
        if all(found.get(path) == text for path, text in fresh.items()):
            break
        found |= fresh
    raise UserError(f"{wanted.name} cannot be told as overrides: {left[0].path} does not follow them")


def _document(source: Any, settings: Mapping[str, str]) -> dict[str, Any]:
    """The filled-in document of the source under settings."""
    return load(source, [f"{path}={text}" for path, text in settings.items()]).document()


def _said(left: tuple[Difference, ...]) -> Iterator[tuple[str, str]]:
    """An override for every difference but those that may come with a name."""
    for one in left:
        wanted = one.values[1]
        entry, _, key = one.path.rpartition(".")
        if key == "name" and entry in _NAMED and wanted in catalog.names(_NAMED[entry]):
            yield entry, str(wanted)
        elif not one.follows:
            yield one.path, _text(wanted)


def _text(value: Any) -> str:
    """A value as the text of an override: a word as it is where it reads back to itself, else JSON."""
    if isinstance(value, str) and value and all(letter.isalnum() or letter in "-_." for letter in value):
        plain = override_key({}, f"value={value}")["value"]
        return value if plain == value else json.dumps(value)
    return json.dumps(value)
