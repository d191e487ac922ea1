"""What every importer has in common: the file as it is recognised, what the user may add, and the importer itself."""

from __future__ import annotations

import os
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from moesim.errors import FileError, UserError, nearest_hint, shorten
from moesim.inputs import source_of
from moesim.specs.base import Spec
from moesim.specs.model import RouterSpec
from moesim.traces.counts import Recording
from moesim.traces.importers.arrays import zip_names
from moesim.traces.importers.json_text import MAX_TEXT, parse_json
from moesim.traces.tensors import is_tensor_file, read_tensors
from moesim.traces.torch_files import load_torch
from moesim.traces.trace import MAX_LAYERS

Kind = Literal["folder", "tensors", "npy", "npz", "torch", "pickle", "json", "text", "binary", "empty"]
HEAD = 1 << 16
MAX_NAMES = 100_000


class ImportOptions(Spec):
    """What a file may leave open. `experts`, `top_k`: of the model; `layers`: of the recording; `model_layers`: each
    recorded layer's place in the model; `dense_layers`: those to leave out; `sequence_length`: where tokens of equal
    sequences follow each other; `ranks`: the files to read; `router`: the rule, for logits; the rest goes into the
    trace's header (`part` chooses one of several recordings in a file)."""

    experts: int | None = Field(default=None, ge=1, le=65534)
    top_k: int | None = Field(default=None, ge=1, le=65534)
    layers: int | None = Field(default=None, ge=1, le=10000)
    model_layers: tuple[Annotated[int, Field(ge=0, le=MAX_LAYERS)], ...] | None = None
    dense_layers: tuple[int, ...] = ()
    sequence_length: int | None = Field(default=None, ge=1)
    ranks: tuple[int, ...] | None = None
    router: RouterSpec | None = None
    part: str | None = None
    model: str = ""
    domain: str = ""
    source: str = ""
    licence: str = ""
    device: str = ""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> ImportOptions:
        """The options of plain values; raises `UserError` for one that is unknown or out of range."""
        for name in options:
            if name not in cls.model_fields:
                raise UserError(f"unknown import option {shorten(name)!r}{nearest_hint(name, cls.model_fields)}")
        try:
            return cls(**options)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"import option {shorten(where)}: {shorten(first['msg'], 200)}") from error

    def need_top_k(self, source: Path) -> int:
        """`top_k`; raises `UserError` where it is absent."""
        if self.top_k is None:
            raise UserError(f"{source} does not say how many experts a token chooses; give the option top_k, e.g. 8")
        return self.top_k


def model_places(layers: Iterable[int], path: Path) -> tuple[int, ...]:
    """Each recorded layer's place in the model; raises `FileError` for one that no model has."""
    places = tuple(int(layer) for layer in layers)
    far = next((place for place in places if place > MAX_LAYERS), None)
    if far is not None:
        raise FileError(f"cannot read {path}: it names layer {far:,}; a model has at most {MAX_LAYERS:,} layers")
    return places


class Source:
    """A file or folder as far as it takes to recognise it; read once, whoever asks."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._is_folder = self.path.is_dir()
        if not self._is_folder:
            source_of(self.path)

    @cached_property
    def names(self) -> list[str]:
        """Names in the folder; empty for a file."""
        if not self._is_folder:
            return []
        try:
            found = sorted(entry.name for entry in islice(self.path.iterdir(), MAX_NAMES + 1))
        except OSError as error:
            raise FileError(f"cannot read {self.path}: {error.strerror or error}") from error
        if len(found) > MAX_NAMES:
            raise FileError(f"cannot read {self.path}: the folder holds more than {MAX_NAMES:,} files")
        return found

    @cached_property
    def head(self) -> bytes:
        """The file's first bytes, without the mark that Windows puts before UTF-8; empty for a folder."""
        if self._is_folder:
            return b""
        try:
            with self.path.open("rb") as file:
                return file.read(HEAD).removeprefix(BOM_UTF8)
        except OSError as error:
            raise FileError(f"cannot read {self.path}: {error.strerror or error}") from error

    @cached_property
    def kind(self) -> Kind:
        """What sort of file it is, by its first bytes."""
        head = self.head
        if self._is_folder:
            return "folder"
        if not head.strip():
            return "empty"
        if head.startswith(b"\x93NUMPY"):
            return "npy"
        if is_tensor_file(head):
            return "tensors"
        if head.startswith(b"PK"):
            return self._kind_of_zip()
        if head.startswith(b"\x80"):
            return "torch" if self.path.suffix in (".pt", ".pth") else "pickle"
        if b"\0" in head:
            return "binary"
        return "json" if head.lstrip()[:1] in (b"{", b"[") else "text"

    def _kind_of_zip(self) -> Kind:
        """An archive by its files: only arrays, or torch's pickle and what it refers to, or of another tool."""
        names = zip_names(self.path)
        if all(name.endswith(".npy") for name in names):
            return "npz"
        return "torch" if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names) else "binary"

    @cached_property
    def row(self) -> dict[str, Any]:
        """The first line as a JSON object; empty where it is none."""
        if self.kind != "json":
            return {}
        try:
            value = parse_json(self._first_line(), str(self.path))
        except FileError:
            return {}
        return value if isinstance(value, dict) else {}

    def _first_line(self) -> bytes:
        if b"\n" in self.head:
            return self.head.lstrip().partition(b"\n")[0]
        with self.path.open("rb") as file:
            return file.readline(MAX_TEXT)

    @cached_property
    def value(self) -> Any:
        """The whole file as one JSON value; None where it is none, e.g. JSON lines, or is too large for one."""
        if self.kind != "json" or self.path.stat().st_size > MAX_TEXT:
            return None
        if self.row and self.head.strip().count(b"\n"):
            return None
        try:
            return parse_json(self.path.read_bytes(), str(self.path))
        except FileError:
            return None

    @cached_property
    def metadata(self) -> dict[str, str]:
        """A tensor file's metadata; empty for another file."""
        return read_tensors(self.path).metadata if self.kind == "tensors" else {}

    @cached_property
    def torch(self) -> Any:
        """A torch file's content as numpy arrays and plain data; None for another file."""
        return load_torch(self.path) if self.kind == "torch" else None


@dataclass(frozen=True)
class Importer:
    """One format of one tool: what it is called, what it reads, and the two functions that do it."""

    name: str
    reads: str
    recognises: Callable[[Source], bool]
    read: Callable[[Source, ImportOptions], Recording]
