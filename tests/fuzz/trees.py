"""Trees of plain data, as YAML and JSON hold them, and one change to them: a place dropped, retyped or replaced."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

import yaml

EXTREMES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 8, 64, 1000, 1e-300, 0.5, -0.0, 1.5, 1e9, 1e12, 1e30, 1e300),
    *(math.nan, math.inf, -math.inf, 2**31, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**12, 10**30, 10**400),
    *(
        "",
        " ",
        "nan",
        "1e999",
        "-1",
        "0",
        "1_000",
        "1e9",
        "400 Gb/s",
        "80 GiB",
        "-3 GB/s",
        "1e400 GB",
        "1T",
        "10%",
        "5 s",
    ),
    *("auto", "none", "uniform", "dropless", "training", "serving", "decode", "inline", "1..2", "+-20%", "2026-01-01"),
    *("..", "../../etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/mem", "a\0b", "x" * 5000, "9" * 5000),
    *("模型\u202e", "<img src=x onerror=alert(1)>", "a.b.c", "{base: x}", "~", "\\", "%s%n", "\ufeff", "\U0001f98a"),
    *([], {}, [[]], [None], [0], [1, 2], [1.5, "x"], {"": 0}, {"base": "olmoe-1b-7b"}, {"low": 1, "high": 2}),
    *({"factor": 1.25}, {"zipf": 1.0}, {"trace": "trace.safetensors"}, {"fitted": "fitted.safetensors"}),
    *([1] * 300, [[1, 2], [3]], {"a": {"b": {"c": {}}}}, {str(n): n for n in range(50)}),
)
MOST = 200_000
LINES_PARSED = 64
DEPTH = 60
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Words:
    """The seeds of a target, and what their keys and values can lend to another input."""

    seeds: tuple[bytes, ...]

    @cached_property
    def _harvest(self) -> tuple[list[Any], list[Any]]:
        keys: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for seed in self.seeds:
            for node in trees(seed):
                for key, value in _pairs(node):
                    keys[repr(key)] = key
                    values[repr(value)[:200]] = value
        return list(keys.values()) or ["key"], list(values.values()) or [0]

    @property
    def keys(self) -> list[Any]:
        """Every key of every seed."""
        return self._harvest[0]

    @property
    def values(self) -> list[Any]:
        """Every value of every seed."""
        return self._harvest[1]


def trees(data: bytes) -> Iterable[Any]:
    """The trees in an input: its YAML or JSON document, or its lines of JSON."""
    document = parsed(data)
    if document is not None:
        return [document]
    return [node for line in data.splitlines()[:LINES_PARSED] if (node := read_json(line)) is not None]


def parsed(data: bytes) -> Any:
    """The mapping or list that the input is as a whole; None where it is neither."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    if text.lstrip()[:1] in ("{", "["):
        found = read_json(data)
    elif "," in text.partition("\n")[0] or len(text) > MOST:
        found = None
    else:
        try:
            found = yaml.load(text, Loader=_LOADER)
        except (yaml.YAMLError, ValueError, RecursionError, TypeError, OverflowError):
            found = None
    return found if isinstance(found, (dict, list)) else None


def read_json(data: bytes) -> Any:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, (dict, list)) else None


def _pairs(node: Any, depth: int = DEPTH) -> Iterable[tuple[Any, Any]]:
    """Every key and value below a node, as deep as changes go."""
    items = node.items() if isinstance(node, dict) else [] if not isinstance(node, list) else enumerate(node)
    for key, value in items:
        if isinstance(node, dict):
            yield key, value
        if depth:
            yield from _pairs(value, depth - 1)


def changed_tree(tree: Any, random: Random, words: Words) -> Any:
    """A tree with one place changed; `tree` itself may be changed too."""
    places = list(_places(tree))
    if not places:
        return _extreme(random)
    node, key = random.choice(places)
    value = node[key]
    how = random.randrange(12)
    if how < 4:
        node[key] = _extreme(random)
    elif how < 6:
        node[key] = deepcopy(random.choice(words.values))
    elif how == 6:
        del node[key]
    elif how == 7:
        node[key] = _retyped(value, random)
    elif how == 8:
        node[key] = _scaled(value, random)
    elif how == 9 and isinstance(node, dict):
        node[_key(random, words)] = node.pop(key)
    elif how == 10 and isinstance(node, dict):
        node[_key(random, words)] = deepcopy(random.choice(words.values))
    else:
        other, where = random.choice(places)
        node[key] = other[where] if not _holds(other[where], node) else value
    return tree


def _extreme(random: Random) -> Any:
    return deepcopy(random.choice(EXTREMES))


def _places(node: Any, depth: int = DEPTH) -> Iterable[tuple[Any, Any]]:
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        if depth:
            yield from _places(node[key], depth - 1)


def _holds(tree: Any, node: Any) -> bool:
    return tree is node or any(value is node for _, value in _pairs(tree)) or any(of is node for of, _ in _places(tree))


def _key(random: Random, words: Words) -> Any:
    key = random.choice(words.keys)
    return (key, f"{key}s", f"{key}"[1:], f"{key}.x", 5, "")[random.randrange(9) % 6 if random.randrange(3) == 0 else 0]


def _retyped(value: Any, random: Random) -> Any:
    how = random.randrange(5)
    if how == 0:
        return [value]
    if how == 1:
        return {"base": value}
    if how == 2:
        return json.dumps(value, default=str)
    if how == 3:
        return list(value.values()) if isinstance(value, dict) else {"0": value}
    return str(value) if not isinstance(value, str) else len(value)


def _scaled(value: Any, random: Random) -> Any:
    """A number times or beside itself; of text and lists more of the same."""
    how = random.randrange(8)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value * (0, 2, 50)[how % 3] if isinstance(value, (str, list)) else not value
    try:
        return (value * -1, value * 2, value * 10, value * 1000, value * 10**6, value // 2, value + 1, value / 3)[how]
    except OverflowError:
        return math.inf
