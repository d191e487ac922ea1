"""Thrift's compact protocol, as far as it takes to read whole numbers out of a Parquet file's headers: nothing is
unpacked, and the C++ reader, which some damaged headers make end the process, is not asked.

A field is a byte (how far its number is from the last one's, its kind) and its value; a zero byte ends a structure
(apache/thrift, thrift-compact-protocol.md). Damage raises `IndexError` or `ValueError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BOOLEANS, _BYTE, _WHOLE, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12
_DEPTH = 8

Wanted = Mapping[int, Any]
"""Field -> None for a whole number, `LENGTH` for how many a list has, or what is wanted of the structure (of each of
the list of structures) that it is."""
LENGTH = "length"


def read_struct(data: bytes, at: int, wanted: Wanted) -> tuple[dict[int, Any], int]:
    """The wanted fields of the structure that begins there, and where it ends; one of another kind is left out."""
    found: dict[int, Any] = {}
    field = 0
    while data[at]:
        step, kind = data[at] >> 4, data[at] & 15
        at += 1
        field, at = (field + step, at) if step else _number(data, at)
        want = wanted.get(field, ...)
        if want is None and kind in _WHOLE:
            found[field], at = _number(data, at)
        elif isinstance(want, Mapping) and kind == _STRUCT:
            found[field], at = read_struct(data, at, want)
        elif isinstance(want, Mapping) and kind in _LISTS:
            found[field], at = _structs(data, at, want)
        else:
            if want == LENGTH and kind in _LISTS:
                found[field] = _listed(data, at)[0]
            at = _skipped(data, at, kind, 0)
    return found, at + 1


def _structs(data: bytes, at: int, wanted: Wanted) -> tuple[list[dict[int, Any]], int]:
    """Each of a list of structures, and where the list ends."""
    count, kind, at = _listed(data, at)
    if kind != _STRUCT:
        raise ValueError("a list of other things than structures")
    found = []
    for _ in range(min(count, len(data))):
        one, at = read_struct(data, at, wanted)
        found.append(one)
    return found, at


def _listed(data: bytes, at: int) -> tuple[int, int, int]:
    """How many a list has, of which kind, and where the first one begins."""
    count, kind = data[at] >> 4, data[at] & 15
    if count < 15:
        return count, kind, at + 1
    count, at = _unsigned(data, at + 1)
    return count, kind, at


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A signed whole number, and where it ends."""
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of too many bytes")


def _skipped(data: bytes, at: int, kind: int, depth: int) -> int:
    """Where a value of that kind ends."""
    if depth > _DEPTH:
        raise ValueError("nested too deeply")
    if kind in _BOOLEANS:
        return at
    if kind == _BYTE:
        return at + 1
    if kind in _WHOLE:
        return _unsigned(data, at)[1]
    if kind == _DOUBLE:
        return at + 8
    if kind == _BINARY:
        length, at = _unsigned(data, at)
        return at + length
    if kind in _LISTS:
        return _skipped_list(data, at, depth)
    if kind == _STRUCT:
        return _skipped_struct(data, at, depth)
    raise ValueError("a kind that headers do not hold")


def _skipped_list(data: bytes, at: int, depth: int) -> int:
    count, kind, at = _listed(data, at)
    for _ in range(min(count, len(data))):
        at = at + 1 if kind in _BOOLEANS else _skipped(data, at, kind, depth + 1)
        if at > len(data):
            raise ValueError("a list that goes on")
    return at


def _skipped_struct(data: bytes, at: int, depth: int) -> int:
    while data[at]:
        step, kind = data[at] >> 4, data[at] & 15
        at += 1
        if not step:
            at = _unsigned(data, at)[1]
        at = _skipped(data, at, kind, depth + 1)
    return at + 1
