"""Reads the project's YAML: plain data only, one mapping a file, every refusal one line that names the file.

The tree is built from the parser's event stream in one pass, so that limits hold before memory or the C stack is spent:
file size, nesting, number of values after aliases are expanded, duplicate keys. Dates stay text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
    StreamStartEvent,
)
from yaml.nodes import ScalarNode

from moesim.errors import FileError, shorten

MAX_BYTES = 2 << 20
MAX_VALUES = 100_000
MAX_ALIASES = 100
MAX_DEPTH = 40
MAX_DIGITS = 100

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + kind for kind in ("str", "int", "float", "bool", "null")}
_TEXT = {_TAG + "timestamp", _TAG + "value"}
_MERGE = _TAG + "merge"


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; raises `FileError` where there is none to be had."""
    return parse_mapping(read_text(path), str(path))


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """The UTF-8 text of a regular file of at most `limit` bytes; raises `FileError` naming the file and the reason."""
    try:
        if path.is_dir():
            raise FileError(f"{path}: is a folder, expected a file")
        if not path.exists():
            raise FileError(f"{path}: no such file")
        if not path.is_file():
            raise FileError(f"{path}: is not a regular file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FileError(f"{shorten(str(path), 200)}: cannot be read: {reason}") from error
    if len(data) > limit:
        raise FileError(f"{path}: is larger than {limit >> 20} MiB, the most that is read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def parse_mapping(text: str, source: str) -> dict[str, Any]:
    """The mapping that YAML `text` holds; `source` names its origin in messages. Raises `FileError`."""
    loader = None
    try:
        loader = _Loader(text)
        return _Tree(loader, source).document()
    except yaml.MarkedYAMLError as error:
        mark, what = error.problem_mark, error.problem or error.context or "syntax error"
        raise FileError(f"{source}: {_place(mark)}{what}") from error
    except yaml.YAMLError as error:
        what = getattr(error, "reason", None) or "cannot be parsed as YAML"
        raise FileError(f"{source}: {what} (character {getattr(error, 'position', '?')})") from error
    finally:
        if loader is not None:
            loader.dispose()


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""


class _Tree:
    """Builds plain data from a loader's events, counting as it goes."""

    def __init__(self, loader: Any, source: str) -> None:
        self.loader = loader
        self.source = source
        self.values = 0
        self.aliases = 0
        self.anchors: dict[str, tuple[Any, int]] = {}

    def document(self) -> dict[str, Any]:
        """The one document of the stream, which must be a mapping with text keys."""
        event = self._next()
        if isinstance(event, StreamStartEvent):
            event = self._next()
        if isinstance(event, StreamEndEvent):
            raise FileError(f"{self.source}: is empty, expected a mapping of keys")
        first = self._next()
        tree = self._value(first, 0)
        if tree is None:
            raise FileError(f"{self.source}: is empty, expected a mapping of keys")
        if not isinstance(tree, dict):
            self._refuse(first, f"expected a mapping of keys, got {'a list' if isinstance(tree, list) else 'a value'}")
        odd = [key for key in tree if not isinstance(key, str)]
        if odd:
            self._refuse(first, f"the key {shorten(odd[0])} is not text; put it in quotes")
        event = self._next()
        if isinstance(event, DocumentEndEvent):
            event = self._next()
        if not isinstance(event, StreamEndEvent):
            self._refuse(event, "a second document starts here; one file holds one")
        return tree

    def _next(self) -> Event:
        event: Event = self.loader.get_event()
        return event

    def _refuse(self, event: Event, what: str) -> NoReturn:
        raise FileError(f"{self.source}: {_place(event.start_mark)}{what}")

    def _value(self, event: Event, depth: int) -> Any:
        if isinstance(event, AliasEvent):
            return self._alias(event)
        before = self.values
        self._count(event, 1)
        if isinstance(event, ScalarEvent):
            value = self._scalar(event)
        elif depth >= MAX_DEPTH:
            self._refuse(event, f"nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, MappingStartEvent):
            value = self._mapping(event, depth)
        else:
            value = self._sequence(event, depth)
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            self.anchors[anchor] = (value, self.values - before)
        return value

    def _count(self, event: Event, number: int) -> None:
        self.values += number
        if self.values > MAX_VALUES:
            self._refuse(event, f"holds more than {MAX_VALUES:,} values")

    def _alias(self, event: AliasEvent) -> Any:
        self.aliases += 1
        if self.aliases > MAX_ALIASES:
            self._refuse(event, f"holds more than {MAX_ALIASES} aliases")
        if event.anchor not in self.anchors:
            self._refuse(event, f"the alias *{shorten(event.anchor)} refers to nothing above it")
        value, size = self.anchors[event.anchor]
        self._count(event, size)
        return value

    def _scalar(self, event: ScalarEvent) -> Any:
        tag = event.tag or self.loader.resolve(ScalarNode, event.value, event.implicit)
        if tag in _TEXT or tag == _MERGE:
            return event.value
        if tag not in _SCALARS:
            self._refuse(event, f"the tag {shorten(tag.removeprefix(_TAG))!r} is not read, only plain data")
        if len(event.value) > MAX_DIGITS and not tag.endswith(":str"):
            self._refuse(event, f"{shorten(event.value)!r} is longer than the {MAX_DIGITS} characters of a number")
        try:
            return self.loader.construct_object(ScalarNode(tag, event.value))
        except (ValueError, KeyError, OverflowError):
            self._refuse(event, f"{shorten(event.value)!r} is not a {tag.removeprefix(_TAG)} that can be read")

    def _sequence(self, event: Event, depth: int) -> list[Any]:
        self._untagged(event)
        items: list[Any] = []
        while not isinstance(inner := self._next(), SequenceEndEvent):
            items.append(self._value(inner, depth + 1))
        return items

    def _mapping(self, event: Event, depth: int) -> dict[Any, Any]:
        self._untagged(event)
        pairs: dict[Any, Any] = {}
        defaults: dict[Any, Any] = {}
        while not isinstance(key_event := self._next(), MappingEndEvent):
            key = self._value(key_event, depth + 1)
            value = self._value(self._next(), depth + 1)
            if key == "<<" and isinstance(key_event, ScalarEvent) and not key_event.style:
                defaults |= self._merged(key_event, value)
            elif isinstance(key, (dict, list)):
                self._refuse(key_event, "a key must be text or a number, got a collection")
            elif key in pairs:
                self._refuse(key_event, f"the key {shorten(key)!r} is given twice")
            else:
                pairs[key] = value
        return {**defaults, **pairs} if defaults else pairs

    def _merged(self, event: Event, value: Any) -> dict[Any, Any]:
        """What a `<<` key brings in: a mapping, or a list of mappings of which the first wins."""
        sources = value if isinstance(value, list) else [value]
        if not all(isinstance(source, dict) for source in sources):
            self._refuse(event, "<< merges a mapping or a list of mappings")
        merged: dict[Any, Any] = {}
        for source in reversed(sources):
            merged |= source
        return merged

    def _untagged(self, event: Event) -> None:
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", _TAG + "map", _TAG + "seq"):
            self._refuse(event, f"the tag {shorten(tag.removeprefix(_TAG))!r} is not read, only plain data")


__all__ = ["MAX_BYTES", "parse_mapping", "read_mapping", "read_text"]
