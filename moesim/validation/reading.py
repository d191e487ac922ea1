"""Reads the list in a case file: YAML, JSON, YAML with one JSON mapping a line (the quickest), or a measurement table.

Plain data only, read under the same limits as every other file of the user's; long lists are parsed in parts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

from moesim.catalog.yaml_files import parse_mapping, read_mapping, read_text
from moesim.errors import FileError, shorten
from moesim.measurement.files import suffix_of
from moesim.validation.measured_rows import items

MAX_BYTES = 64 << 20
ITEMS_A_PART = 400
KEY = "cases"

_ANCHOR = re.compile(r"(?m)(?:^|[:\-\[{,])[ \t]*&[\w-]+")
_LINE = re.compile(r"\bline (\d+)\b")


def read_list(path: Path) -> list[Any]:
    """The items of the list in a file, of a measurement table its rows; raises `FileError` where it holds none."""
    if suffix_of(path) is not None:
        return list(items(path))
    text = read_text(path, MAX_BYTES)
    lines = text.splitlines()
    first = next((line for line in lines if line.strip() and not line.lstrip().startswith(("#", "---"))), "")
    if not first:
        raise FileError(f"{path}: is empty, expected a list of cases")
    found = _json_lines(lines, path)
    if found is None and first.lstrip().startswith(("[", "{")):
        found = _json(text, path)
    if found is None and re.match(r"\s*-(\s|$)", first):
        found = _yaml(lines, path)
    if found is None:
        found = _named(path)
    return found


def _json_lines(lines: list[str], path: Path) -> list[Any] | None:
    """One JSON mapping a line behind "- "; None where any line is something else."""
    told = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith(("#", "---"))]
    if not all(line.startswith("- {") and line.endswith("}") for line in told):
        return None
    try:
        return [json.loads(line[2:], object_pairs_hook=_pairs) for line in told]
    except json.JSONDecodeError:
        return None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: {shorten(str(error), 160)}") from error


def _json(text: str, path: Path) -> list[Any] | None:
    """A whole JSON file; None where the text is no JSON."""
    try:
        found = json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError:
        return _yaml([text], path) if text.lstrip().startswith("[") else None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: {shorten(str(error), 160)}") from error
    return _list(found, path)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counted = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counted.items() if count > 1)
        raise ValueError(f"the key {shorten(twice)!r} is given twice")
    return found


def _list(found: Any, path: Path) -> list[Any]:
    if isinstance(found, dict) and isinstance(found.get(KEY), list):
        found = found[KEY]
    if not isinstance(found, list):
        kind = "a mapping" if isinstance(found, dict) else "a value"
        raise FileError(f"{path}: expected a list of cases, got {kind}")
    return found


def _named(path: Path) -> list[Any]:
    """The list under the key `cases` of a mapping."""
    try:
        return _list(read_mapping(path), path)
    except FileError as error:
        text = str(error).replace("expected a mapping of keys", "expected a list of cases")
        raise FileError(text) from error


def _yaml(lines: list[str], path: Path) -> list[Any]:
    """A YAML list, parsed in parts of some hundred items, so that its length is no limit."""
    found: list[Any] = []
    for start, part in _parts(lines):
        lead = f"{KEY}: " if part.lstrip().startswith("[") else f"{KEY}:\n"
        shift = start - lead.count("\n")
        try:
            items = parse_mapping(lead + part, str(path))[KEY]
        except FileError as error:
            raise FileError(_shifted(str(error), shift)) from error
        found += _list(items or [], path)
    return found


def _shifted(message: str, lines: int) -> str:
    """A message about a part of a file, told in the lines of the whole."""
    return _LINE.sub(lambda match: f"line {int(match[1]) + lines}", message)


def _parts(lines: list[str]) -> list[tuple[int, str]]:
    """Runs of whole items and the number of lines before each; one run where anchors tie items together."""
    body = [line if not line.startswith("---") else "" for line in lines]
    if _ANCHOR.search("\n".join(body)):
        return [(0, "\n".join(body))]
    first = next(line for line in body if line.strip() and not line.lstrip().startswith("#"))
    dash = first[: len(first) - len(first.lstrip())] + "-"
    number, of_line = -1, []
    for line in body:
        number += line.startswith(dash) and line[len(dash) : len(dash) + 1] in ("", " ", "\t")
        of_line.append(max(number, 0) // ITEMS_A_PART)
    parts, before = [], 0
    for _, run in groupby(zip(of_line, body, strict=True), key=lambda pair: pair[0]):
        own = [line for _, line in run]
        parts.append((before, "\n".join(own)))
        before += len(own)
    return parts
