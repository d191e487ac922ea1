"""The recordings of the page Traces: shipped ones by name, uploaded ones by content, kept on disk while the app runs.

An upload is read by moesim's importers alone, which run nothing that is in a file; pickles and torch files (which are
pickles inside) are refused before they are opened.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import streamlit as st

from moesim.catalog import recorded
from moesim.catalog.yaml_files import parse_mapping
from moesim.errors import FileError, UserError, shorten
from moesim.routing.profile import RoutingProfile
from moesim.traces import importers, store
from moesim.traces.counts import Recording
from moesim.traces.trace import RouterTrace
from shared import answers, files

TYPES = ("safetensors", "npz", "npy", "json", "jsonl", "csv")
UNSAFE = ("pickle", "torch")
UPLOADED = "upload-"
RECORDINGS = 8
MOST_UPLOADS = 16


def most_bytes() -> int:
    """The largest upload."""
    return int(st.get_option("server.maxUploadSize")) << 20


def take(name: str, content: bytes, format_: str | None, options: str) -> str:
    """Reads an upload and keeps it; returns what the link calls it. Raises `UserError` with what is wrong."""
    if len(content) > most_bytes():
        raise FileError(f"{shorten(name)} has {len(content):,} bytes; at most {most_bytes():,} are taken")
    given = _options(options)
    digest = hashlib.blake2b(content + repr((format_, sorted(given.items()))).encode(), digest_size=8).hexdigest()
    with TemporaryDirectory(dir=files.folder()) as place:
        path = Path(place) / _plain_name(name)
        path.write_bytes(content)
        found = _read(path, format_, given)
    answers.kept("recordings", RECORDINGS).get(f"{UPLOADED}{digest}", lambda: found)
    if isinstance(found, RouterTrace):
        _make_room()
        store.save(found, files.folder() / f"{digest}.safetensors")
    return f"{UPLOADED}{digest}"


def _read(path: Path, format_: str | None, options: dict[str, Any]) -> Recording:
    if importers.Source(path).kind in UNSAFE:
        raise FileError(
            f"{path.name} is a pickle or a torch file, which could run code when it is read, so it is not: "
            f"write {', '.join(TYPES)}, or use `moesim trace import` where it was made"
        )
    try:
        return importers.read(path, format_, **options)
    except UserError as error:
        raise FileError(str(error).replace(str(path), path.name)) from error


def recording(name: str) -> Recording:
    """A recording by its name in the link; raises `UserError` where it is not there."""
    return answers.kept("recordings", RECORDINGS).get(name, lambda: store.load(file_of(name)))


def file_of(name: str) -> Path:
    """The trace file of a recording; raises `UserError` where it has none."""
    if not name.startswith(UPLOADED):
        return recorded.find("traces", name)
    path = files.folder() / f"{_hexadecimal(name.removeprefix(UPLOADED))}.safetensors"
    if not path.is_file():
        raise FileError("this link shows an upload that the dashboard does not hold any more: upload it again")
    return path


def is_there(name: str) -> bool:
    """Whether a recording can be shown: a shipped one, or an upload that is still held."""
    if answers.kept("recordings", RECORDINGS).holds(name):
        return True
    found = answers.attempt(lambda: file_of(name))
    return found.value is not None


def keep_profile(name: str, profile: RoutingProfile) -> Path:
    """Writes the profile that was fitted to a recording; returns its file, for `routing.load.fitted`."""
    path = files.folder() / f"{_plain_name(name)}-fit.safetensors"
    profile.save(path)
    return path


def _make_room() -> None:
    """Takes the oldest uploads away where there are too many."""
    held = sorted(files.folder().glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    for path in held[: max(0, len(held) - MOST_UPLOADS + 1)]:
        path.unlink(missing_ok=True)


def _options(text: str) -> dict[str, Any]:
    """Import options in a line: "top_k=8, experts=64"."""
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"option {shorten(part)!r} is not of the form key=value, e.g. top_k=8")
        found[key.strip()] = parse_mapping(f"value: {value}", f"option {shorten(key)}")["value"]
    return found


def _plain_name(name: str) -> str:
    """A file name without anything that leads elsewhere, its suffix kept."""
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in name)
    return plain.lstrip(".-")[-80:] or "recording"


def _hexadecimal(text: str) -> str:
    return "".join(letter for letter in text if letter in "0123456789abcdef")[:32]
