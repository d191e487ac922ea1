"""Turns pydantic's errors into problems a planner understands: where, what, allowed, nearest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from moesim.errors import Problem, nearest_hint, shorten

MOST = 1000

_SAY = {
    "missing": "is required",
    "int_type": "expected a whole number, got {got}",
    "int_from_float": "expected a whole number, got {got}",
    "int_parsing": "expected a whole number, got {got}",
    "float_type": "expected a number, got {got}",
    "float_parsing": "expected a number, got {got}",
    "finite_number": "expected a finite number, got {got}",
    "bool_type": "expected true or false, got {got}",
    "bool_parsing": "expected true or false, got {got}",
    "string_type": "expected text, got {got}",
    "string_pattern_mismatch": "may hold letters, digits, spaces and . + - _ (a folder is named after it), got {got}",
    "model_type": "expected a mapping of keys, got {got}",
    "dict_type": "expected a mapping of keys, got {got}",
    "tuple_type": "expected a list, got {got}",
    "greater_than": "must be above {gt}, got {got}",
    "greater_than_equal": "must be at least {ge}, got {got}",
    "less_than": "must be below {lt}, got {got}",
    "less_than_equal": "must be at most {le}, got {got}",
}


def explain(error: ValidationError, model: type[BaseModel]) -> Iterator[Problem]:
    """One problem for each place where validation failed, of the first `MOST`; a union's members are told as one."""
    seen: dict[str, list[str]] = {}
    for item in error.errors(include_url=False)[:MOST]:
        where, owner = _place(item["loc"], model, item["type"] == "extra_forbidden")
        seen.setdefault(where, [])
        text = _what(item, owner)
        if item["type"] == "literal_error" and seen[where] and not isinstance(item["input"], str):
            text = f"say {', '.join(_allowed(item))}"  # a number that another alternative has refused already
        if text not in seen[where]:
            seen[where].append(text)
    for where, texts in seen.items():
        # Where one alternative of a union fails inside, the others' complaint that it is there at all says nothing.
        if not any(other.startswith(f"{where}.") for other in seen):
            yield Problem(where, "; or ".join(texts))


def _what(item: Any, owner: type[BaseModel] | None) -> str:
    kind, got = item["type"], shorten(item.get("input"))
    if kind == "extra_forbidden":
        known = set(owner.model_fields) if owner else set()
        return f"unknown key{nearest_hint(str(item['loc'][-1]), known)}"
    if kind == "literal_error":
        return f"{got!r} is not known{nearest_hint(got, _allowed(item))}"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    text = _SAY.get(kind)
    return text.format(got=got, **item.get("ctx", {})) if text else f"{item['msg']}, got {got}"


def _allowed(item: Any) -> list[str]:
    """The words that a literal may be."""
    return [word.strip(" '") for word in item["ctx"]["expected"].replace(" or ", ",").split(",")]


def _place(
    location: tuple[int | str, ...], model: type[BaseModel], ends_in_key: bool
) -> tuple[str, type[BaseModel] | None]:
    """The dotted key of a location, without pydantic's names of union members, and the noun that owns its last part."""
    owner: type[BaseModel] | None = model
    parts: list[str] = []
    for depth, part in enumerate(location):
        last = depth == len(location) - 1
        known = owner is not None and part in owner.model_fields
        if isinstance(part, str) and not known and not last and (owner is None or not parts or _is_alternative(part)):
            owner = _alternative(part, owner)
            continue
        if last and isinstance(part, str) and _is_alternative(part) and not known and not ends_in_key:
            continue
        parts.append(shorten(str(part), 100))
        if last:
            break
        if isinstance(part, str):  # what stands in a list belongs to the list's own noun
            owner = _inner(owner, part) if owner is not None else None
    return ".".join(parts), owner


def _is_alternative(part: str) -> bool:
    """Whether a location part is pydantic's name for a member of a union, not a key of the file."""
    return (
        part in ("float", "int", "str", "bool")
        or part.startswith("constrained-")
        or any(mark in part for mark in "[('")
        or part[:1].isupper()
    )


def _alternative(part: str, owner: type[BaseModel] | None) -> type[BaseModel] | None:
    return next((spec for spec in _all_specs() if spec.__name__ == part), owner)


def _all_specs() -> list[type[BaseModel]]:
    found, queue = [], [BaseModel]
    while queue:
        children = queue.pop().__subclasses__()
        found.extend(children)
        queue.extend(children)
    return found


def _inner(owner: type[BaseModel], part: int | str) -> type[BaseModel] | None:
    field = owner.model_fields.get(str(part))
    if field is None:
        return None
    candidates, seen = [field.annotation], 0
    while seen < len(candidates):
        candidates.extend(get_args(candidates[seen]))
        seen += 1
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)
