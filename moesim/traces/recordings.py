"""A recording by its name in the catalog, or a file in any known format."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moesim.catalog import recorded
from moesim.catalog.yaml_files import parse_mapping
from moesim.errors import UserError, shorten
from moesim.traces import importers, store
from moesim.traces.counts import Recording


def read_recording(
    recording: str | os.PathLike[str], format_: str | None = None, options: Iterable[str] | None = None
) -> Recording:
    """The trace of that name, or what the file holds; `options` such as "top_k=8" say what it leaves open.

    Raises `UserError` for an unknown name or option, `FileError` for a file that is not sound.
    """
    if str(recording) in recorded.names("traces") and format_ is None:
        return store.load(recorded.find("traces", str(recording)))
    given: dict[str, Any] = {}
    for option in options or ():
        key, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--option {shorten(option)!r} is not of the form key=value")
        given[key] = parse_mapping(f"value: {value}", f"--option {key}")["value"]
    if not Path(recording).exists():
        recorded.find("traces", str(recording))
    return importers.read(recording, format_, **given)
