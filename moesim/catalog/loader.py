"""Finds catalog entries by kind and name, in the package's data and in the user's overlay folder.

A kind is a file `KIND.yaml` or a folder `KIND/*.yaml`; a file maps names to entries. Its `sources` are shared by all of
them, and a key such as "bf16, fp8" there stands for both fields. The folder that the variable MOESIM_CATALOG names has
the same layout and goes before the package; its entries may start from another one with `base: NAME`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, overload

from pydantic import ValidationError

from moesim.catalog.measured_values import check_values
from moesim.catalog.yaml_files import read_mapping, read_text
from moesim.errors import FileError, Problem, ScenarioError, UnknownNameError, UserError, nearest_hint, shorten
from moesim.specs.base import SourcedSpec
from moesim.specs.cluster import FabricSpec
from moesim.specs.explain import explain
from moesim.specs.gpu import GpuSpec
from moesim.specs.model import ModelSpec, RouterSpec
from moesim.specs.routing import LoadProfile

OVERLAY_VARIABLE = "MOESIM_CATALOG"
Entry = dict[str, Any]

_PACKAGED = Path(__file__).parent / "data"
_NOT_MODELLED = "not_modelled"
MOST_BASES = 20
# Folders whose files are lists of facts (moesim.validation), not mappings of names to entries.
_LISTS = {"cases"}
_SPECS: dict[str, type[SourcedSpec]] = {
    "models": ModelSpec,
    "gpus": GpuSpec,
    "fabrics": FabricSpec,
    "profiles": LoadProfile,
}
_TOP_LEVEL_KEY = re.compile(r"^([A-Za-z0-9][\w.+-]*):(?=\s|$)", re.MULTILINE)


@overload
def load(kind: Literal["models"], name: str) -> ModelSpec: ...
@overload
def load(kind: Literal["gpus"], name: str) -> GpuSpec: ...
@overload
def load(kind: Literal["fabrics"], name: str) -> FabricSpec: ...
@overload
def load(kind: Literal["profiles"], name: str) -> LoadProfile: ...
@overload
def load(kind: str, name: str) -> SourcedSpec: ...
def load(kind: str, name: str) -> SourcedSpec:
    """The noun that a catalog name stands for.

    Raises `UnknownNameError`, and `ScenarioError` with every problem of an overlay entry that is not valid.
    """
    if kind not in _SPECS:
        raise UnknownNameError("kind of noun", kind, _SPECS)
    return _SPECS[kind].model_validate({"name": name, **raw(kind, name)})


def calibration(name: str, measured: str | None = None) -> Entry:
    """A calibration, shared and not to be changed; read again only where the overlay folder is another one.

    `measured` is the path of a calibration file of the user's own: what it says of `name` goes before the catalog.
    """
    if measured is None:
        return _cached_calibration(name, os.environ.get(OVERLAY_VARIABLE))
    path = Path(measured)
    return _cached_measured(name, path, path.stat().st_mtime_ns, os.environ.get(OVERLAY_VARIABLE))


@lru_cache(maxsize=64)
def _cached_calibration(name: str, overlay: str | None) -> Entry:
    return raw("calibrations", name)


@lru_cache(maxsize=64)
def _cached_measured(name: str, path: Path, stamp: int, overlay: str | None) -> Entry:
    return _deep(raw("calibrations", name), _document(path).get(name, {}))


def measured(name: str, folder: Path) -> Path:
    """The calibration file that a scenario in `folder` means by `name`: a path, or NAME of `measured/NAME.yaml` in the
    overlay folder. Raises `UserError` where there is none, or where it holds names that this release does not use."""
    path = _measured_path(name, folder)
    known = _packaged_names("calibrations")
    for found in sorted(_names_in(path) - known):
        raise UserError(f"{path}: {found}: not a calibration that this release uses{nearest_hint(found, known)}")
    _check_measured(path, path.stat().st_mtime_ns)
    return path


@lru_cache(maxsize=64)
def _check_measured(path: Path, stamp: int) -> None:
    """Raises `FileError` for a value that no law could take in place of the shipped one."""
    for name, entry in _document(path).items():
        if name != "sources":
            check_values(raw("calibrations", name), entry, f"{path}: {name}")


def _measured_path(name: str, folder: Path) -> Path:
    overlay = os.environ.get(OVERLAY_VARIABLE)
    own = Path(overlay).expanduser() / "measured" if overlay else None
    candidates = [folder / name, *([own / f"{name}.yaml"] if own else [])]
    for path in candidates:
        if path.is_file():
            return path.absolute()
    known = [path.stem for path in sorted(own.glob("*.yaml"))] if own else []
    looked = f"no file {shorten(str(candidates[0]), 200)}"
    there = "no calibration of that name in the overlay folder's `measured`"
    raise UserError(f"{looked}, and {there}{nearest_hint(name, known)}")


def names(kind: str) -> tuple[str, ...]:
    """All names of a kind, sorted, the overlay's included."""
    return tuple(sorted({name for path in _files(kind) for name in _names_in(path)}))


@cache
def kinds() -> tuple[str, ...]:
    """What the catalog holds: "models", "gpus", ...; the data folder decides, an overlay adds none."""
    found = {path.stem for path in _PACKAGED.glob("*.yaml")} | {path.parent.stem for path in _PACKAGED.glob("*/*.yaml")}
    return tuple(sorted(found - _LISTS))


def not_modelled() -> dict[str, str]:
    """Models of the literature that are not in the catalog, each with the reason."""
    return dict(_document(_PACKAGED / "models" / f"{_NOT_MODELLED}.yaml"))


def raw(kind: str, name: str) -> Entry:
    """A fresh copy of an entry as plain data, its sources spread out to one a field; the `name` is not part of it."""
    return _find(kind, name, _files(kind), ())


def derive(base: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> Entry:
    """`base` with `changes`, mappings merged; a changed field that brings no source is assumed, its source `where`."""
    merged = {**base}
    for field, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(base.get(field), Mapping) and field != "sources"
        merged[field] = {**base[field], **value} if both else value
    own = {"basis": "assumed", "where": where}
    changed = dict.fromkeys(set(changes) - {"sources", "name", "title", "note"}, own)
    sources = changes.get("sources")
    merged["sources"] = {**base.get("sources", {}), **changed, **(sources if isinstance(sources, Mapping) else {})}
    return merged


def _find(kind: str, name: str, files: list[Path], seen: tuple[str, ...]) -> Entry:
    for index, path in enumerate(files):
        if name not in _names_in(path):
            continue
        document = _document(path)
        entry = _with_sources(document, name, path)
        if path.is_relative_to(_PACKAGED):
            return entry
        if kind not in _SPECS:
            return _over_packaged(kind, name, entry, str(path))
        if "base" in entry:
            base = str(entry.pop("base"))
            if base in seen:
                raise FileError(f"{path}: {name}: its bases go in a circle: {' -> '.join((*seen, name, base))}")
            if len(seen) >= MOST_BASES:
                raise FileError(
                    f"{path}: {name}: more than {MOST_BASES} entries start from one another; base it on a later one"
                )
            # An entry may start from the one that it replaces.
            below = files[index + 1 :] if base == name else files
            entry = derive(_find(kind, base, below, seen if base == name else (*seen, name)), entry, str(path))
        _check(kind, name, entry, path)
        return entry
    reason = not_modelled().get(name) if kind == "models" else None
    if reason:
        raise UserError(f"model {name!r} cannot be computed with: {reason}")
    raise UnknownNameError(kind.removesuffix("s"), name, names(kind))


def _over_packaged(kind: str, name: str, entry: Entry, where: str) -> Entry:
    """An overlay's calibration (or router) over the packaged one of that name, so that no number is missing."""
    packaged = _packaged_names(kind)
    if name not in packaged and kind == "calibrations":
        raise UserError(f"{where}: {name}: not a name of {kind} that this release uses{nearest_hint(name, packaged)}")
    shipped: Entry = {}
    if name in packaged:
        shipped = _find(kind, name, [path for path in _files(kind) if path.is_relative_to(_PACKAGED)], ())
    if kind == "calibrations":
        check_values(shipped, entry, f"{where}: {name}")
    merged = _deep(shipped, entry)
    if kind == "routers":
        _check_router(name, merged, where)
    return merged


def _check_router(name: str, entry: Entry, where: str) -> None:
    """Raises `ScenarioError` for a router without a rule, or with a parameter that none has."""
    try:
        RouterSpec.model_validate({key: value for key, value in entry.items() if key != "sources"})
    except ValidationError as error:
        found = [Problem(f"{name}.{problem.where}", problem.what) for problem in explain(error, RouterSpec)]
        raise ScenarioError(found, where) from error
    if "rule" not in entry:
        raise ScenarioError([Problem(f"{name}.rule", "is required")], where)


def _deep(base: Entry, changes: Mapping[str, Any]) -> Entry:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(base.get(key), dict)
        merged[key] = _deep(base[key], value) if nested else value
    return merged


def _packaged_names(kind: str) -> set[str]:
    return {name for path in _files(kind) if path.is_relative_to(_PACKAGED) for name in _names_in(path)}


def _with_sources(document: Entry, name: str, path: Path) -> Entry:
    """A copy of an entry with the file's shared sources under its own."""
    entry = deepcopy(document[name])
    if not isinstance(entry, dict):
        raise FileError(f"{path}: {name}: expected a mapping of keys, got {shorten(entry)}")
    shared, own = document.get("sources", {}), entry.get("sources", {})
    if isinstance(shared, dict) and isinstance(own, dict) and (shared or own):
        entry["sources"] = {**_spread(deepcopy(shared)), **_spread(own)}
    return entry


def _spread(sources: Mapping[Any, Any]) -> Entry:
    """One key a field, for keys that list several."""
    return {field.strip(): source for fields, source in sources.items() for field in str(fields).split(",")}


def _check(kind: str, name: str, entry: Entry, path: Path) -> None:
    """Raises `ScenarioError` with all that is wrong with an overlay's entry, so that its file is named."""
    try:
        _SPECS[kind].model_validate({"name": name, **entry})
    except ValidationError as error:
        found = [Problem(f"{name}.{problem.where}", problem.what) for problem in explain(error, _SPECS[kind])]
        raise ScenarioError(found, str(path)) from error


def _files(kind: str) -> list[Path]:
    """The files that hold entries of a kind, the overlay's first."""
    if kind not in kinds():
        raise UnknownNameError("catalog kind", kind, kinds())
    overlay = os.environ.get(OVERLAY_VARIABLE)
    if not overlay:
        return list(_packaged_files(kind))
    folder = Path(overlay).expanduser().absolute()
    if not folder.is_dir():
        raise FileError(f"{OVERLAY_VARIABLE}={shorten(overlay, 200)}: is not a folder")
    try:
        _check_overlay(folder, folder.stat().st_mtime_ns)
    except OSError as error:
        raise FileError(f"{OVERLAY_VARIABLE}={shorten(overlay, 200)}: cannot be read: {error.strerror}") from error
    return [*_files_in(folder, kind), *_packaged_files(kind)]


@lru_cache(maxsize=8)
def _check_overlay(folder: Path, stamp: int) -> None:
    """Raises `FileError` for a file that is one of entries but for its name: gpu.yaml, gpus.yml, GPUs.yaml."""
    meant = {spelling: f"{kind}.yaml" for kind in kinds() for spelling in (f"{kind}.yaml", f"{kind}.yml")}
    # `calibration.yaml` is what `moesim calibrate` writes.
    meant |= {f"{kind[:-1]}.yaml": f"{kind}.yaml" for kind in kinds() if kind != "calibrations"}
    for name in sorted(os.listdir(folder)):
        wanted = meant.get(name.lower(), name)
        if name != wanted:
            raise FileError(f"{folder / name}: is not read from {OVERLAY_VARIABLE} under this name; name it {wanted}")


@cache
def _packaged_files(kind: str) -> tuple[Path, ...]:
    """The package's own files of a kind: looked for once, for they do not change while it runs."""
    return tuple(_files_in(_PACKAGED, kind))


def _files_in(folder: Path, kind: str) -> list[Path]:
    found = (folder / f"{kind}.yaml", *sorted((folder / kind).glob("*.yaml")))
    return [path for path in found if path.stem != _NOT_MODELLED and path.exists()]


def _names_in(path: Path) -> frozenset[str]:
    return _cached_names(path, path.stat().st_mtime_ns)


def _document(path: Path) -> Entry:
    return _cached_document(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=512)
def _cached_names(path: Path, stamp: int) -> frozenset[str]:
    """The names in a file. The package's own files are scanned, not parsed: they keep names at the start of a line."""
    if path.is_relative_to(_PACKAGED):
        return frozenset(_TOP_LEVEL_KEY.findall(read_text(path))) - {"sources"}
    return frozenset(_cached_document(path, stamp)) - {"sources"}


@lru_cache(maxsize=128)
def _cached_document(path: Path, stamp: int) -> Entry:
    """The parsed file; `stamp`, its time of change, makes an edited file a new one."""
    return read_mapping(path)
