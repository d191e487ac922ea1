"""Which inputs of scenarios differ: the cause behind every difference of their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

# A scenario's own name says nothing of the step, nor does the pedigree of its numbers.
_IDENTITY = ("name", "question")
_PROSE = ("sources", "note", "title")
_EXACT_DIGITS = 17


@dataclass(frozen=True)
class Difference:
    """One input that is not the same in all scenarios: its dotted path and its value in each, None where it has none.

    `follows`: the path of a catalog entry above it whose name differs too, so that this may come with the name.
    """

    path: str
    values: tuple[Any, ...]
    follows: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"path": self.path, "values": list(self.values)}


def differences(scenarios: Sequence[dict[str, Any]]) -> tuple[Difference, ...]:
    """Every differing input of filled-in scenarios: what a user states first, then what may follow from a name."""
    known = [
        {name: value for name, value in scenario.items() if name not in _IDENTITY}
        for scenario in map(_plain, scenarios)
    ]
    found = list(_differing(known, "", ""))
    return tuple(sorted(found, key=lambda one: bool(one.follows)))


def _differing(values: Sequence[Any], path: str, follows: str) -> list[Difference]:
    """The differences at and below a path; where not all have entries below it, the values differ as a whole."""
    if all(value == values[0] for value in values):
        return []
    if not all(isinstance(value, dict) for value in values):
        return [Difference(path, tuple(values), follows)]
    keys = [key for key in dict.fromkeys(key for value in values for key in value) if key not in _PROSE]
    inside = {key: [value.get(key) for value in values] for key in keys}
    renamed = path if "name" in inside and any(name != inside["name"][0] for name in inside["name"]) else ""
    below = []
    for key in keys:
        its_path = f"{path}.{key}" if path else key
        below += _differing(inside[key], its_path, follows if key == "name" else follows or renamed)
    return below


def _plain(value: Any) -> Any:
    """Tuples as lists, as a stored scenario has them."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def value_texts(difference: Difference) -> list[str]:
    """The values for reading; numbers show as many digits as tell them apart."""
    for digits in (4, 6, 9):
        texts = [_text(value, digits) for value in difference.values]
        if len(set(texts)) == len({repr(value) for value in difference.values}):
            return texts
    return [_text(value, _EXACT_DIGITS) for value in difference.values]


def _text(value: Any, digits: int) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e6):
        return f"{int(value):,}"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, dict):
        entries = (f"{key}: {_text(entry, digits)}" for key, entry in value.items() if entry not in (None, [], {}))
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, list):
        return f"[{', '.join(_runs([_text(entry, digits) for entry in value]))}]" if value else "none"
    return str(value)


def _runs(texts: list[str]) -> list[str]:
    """Equal neighbours once, with their number."""
    counted = [(text, len(list(group))) for text, group in groupby(texts)]
    return [f"{count} x {text}" if count > 1 else text for text, count in counted]
