"""Which files a reader's scenario may name: where the dashboard serves this machine alone, any that its user may read;
opened wider, none but the uploads that it holds itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import streamlit as st

from moesim import catalog
from moesim.catalog import recorded
from moesim.errors import Problem, UserError, shorten
from moesim.scenario.loading import override_key
from shared.reach import opened_wider

# Keys of a scenario whose value may be a path. What a name may stand for is in the catalog.
KEYS = ("trace", "fitted", "planned_from", "huggingface", "calibration", "path")
_DEPTH = 40


def refused(document: Mapping[str, Any], overrides: Iterable[str] = ()) -> tuple[Problem, ...]:
    """The places of a scenario, with overrides, that name a file which this reader may not have read."""
    if not opened_wider():
        return ()
    merged = dict(document)
    for override in overrides:
        try:
            merged = override_key(merged, override)
        except UserError:  # told when the scenario is loaded
            continue
    return tuple(_refused(merged, "", _DEPTH))


def _refused(node: Any, where: str, depth: int) -> Iterator[Problem]:
    pairs = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in pairs if depth else ():
        place = f"{where}.{key}" if where else str(key)
        if key in KEYS and isinstance(value, str) and not _allowed(value):
            said = f"{shorten(value)!r} names a file, and this dashboard is open to other machines"
            yield Problem(place, f"{said}: it takes names of the catalog, and recordings uploaded on the page Traces")
        else:
            yield from _refused(value, place, depth - 1)


def _allowed(value: str) -> bool:
    return value in _names() or _is_upload(value)


@cache
def _names() -> frozenset[str]:
    return frozenset((*recorded.names("traces"), *recorded.names("fitted"), *catalog.names("profiles")))


def _is_upload(value: str) -> bool:
    try:
        path = Path(value).resolve()
        return path.is_file() and path.parent == folder().resolve()
    except (OSError, ValueError):
        return False


def folder() -> Path:
    """Where uploads are kept; gone when the dashboard ends."""
    return Path(_temporary().name)


@st.cache_resource
def _temporary() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="moesim-dashboard-", ignore_cleanup_errors=True)
