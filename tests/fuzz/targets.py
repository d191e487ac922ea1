"""The targets: one function `bytes -> None` each, for everything that moesim reads; files are written where it runs.

A target raises what moesim raises; which of that is allowed is the guard's business.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import moesim
from moesim import listing
from moesim.calibration import tables
from moesim.catalog import loader
from moesim.catalog.yaml_files import parse_mapping, read_mapping
from moesim.errors import InternalError, UserError
from moesim.planner import reading, serving_reading, serving_run
from moesim.planner import run as planning
from moesim.routing.profile import RoutingProfile
from moesim.scenario.loading import load, to_yaml
from moesim.serving.trace_file import read_trace
from moesim.shipped import scenarios
from moesim.sweeps.base import mistakes
from moesim.sweeps.nouns import metrics_of
from moesim.sweeps.run import statement
from moesim.sweeps.sampling import points_of
from moesim.traces import store
from moesim.traces.recordings import read_recording
from moesim.traces.trace import RouterTrace
from moesim.validation import cases
from moesim.validation.run import validate

from . import dashboard, seeds

SHORT = 40
"""Candidates that the target which searches a plan may screen."""
_SMALL = {
    "name": "small",
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 8},
    "parallelism": {"expert": 8},
    "workload": {"global_batch": 64},
}
_numbers = count()


@dataclass(frozen=True)
class Target:
    """What is fuzzed: the function, its seeds, what it covers, and how many inputs CI gives it."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    covers: str
    in_ci: int = 2000


def scenario(data: bytes) -> None:
    """A scenario file read; with its defaults it reads back, some of them by way of their text."""
    document = load(_file("input.yaml", data)).document()
    load(parse_mapping(to_yaml(document), "shown") if _one_in_eight(data) else document)


def estimate(data: bytes) -> None:
    """A scenario file and, where it is legal, its answer by the closed form."""
    _answered(_file("input.yaml", data))


def plan(data: bytes) -> None:
    """A plan file as far as its questions: everything but the search."""
    path = _file("input.yaml", data)
    document = read_mapping(path)
    if serving_run.serves(document, path.parent):
        serving_reading.questions(*serving_run.from_file(document, path, {}))
    else:
        reading.questions(*planning._with_scenario(*planning.statement(path, {})))


def search(data: bytes) -> None:
    """A plan file, searched briefly."""
    moesim.plan(_file("input.yaml", data), simulate=0, candidates=SHORT, workers=1)


def sweep(data: bytes) -> None:
    """A sweep file as far as its points: everything but the answers."""
    spec, base = statement(_file("input.yaml", data))
    points = points_of(spec)
    base = base.held_to_noun(points[0] if points else {})
    metrics_of(base.noun or "training", spec.metrics)
    mistakes(base, points)


def case(data: bytes) -> None:
    """A file of validation cases, read."""
    cases.read([_file("cases.yaml", data)])


def predict(data: bytes) -> None:
    """A file of validation cases, read and held against the laws; what a row calls our bug is one."""
    rows = validate([_file("cases.yaml", data)]).cases
    bug = next((row.reason for row in rows if "our bug" in row.reason), None)
    if bug is not None:
        raise InternalError(bug)


def catalog(data: bytes) -> None:
    """A file of the user's own catalog folder: its entries read and checked, one in eight files listed and used."""
    kind = data.partition(b"\n")[0].strip(b"# \r").decode("utf-8", "replace")
    kind = kind if kind in loader.kinds() else "models"
    folder = Path(f"overlay{next(_numbers)}")
    folder.mkdir()
    path = _file(str(folder / f"{kind}.yaml"), data)
    os.environ[loader.OVERLAY_VARIABLE] = str(folder)
    try:
        for name in sorted(loader._names_in(path))[:2]:
            loader.raw(kind, name)
            if _one_in_eight(data):
                listing.entry(kind, name)
                _answered(_with_entry(kind, name))
        if _one_in_eight(data):
            listing.entries(kind)
    finally:
        del os.environ[loader.OVERLAY_VARIABLE]
        shutil.rmtree(folder)


def _with_entry(kind: str, name: str) -> dict[str, Any]:
    """A scenario with the catalog's entry in it."""
    changes: dict[str, dict[str, Any]] = {
        "models": {"model": name, "parallelism": {}},
        "gpus": {"cluster": {"gpu": name, "gpus": 8}},
        "fabrics": {"cluster": {"gpu": "h100-sxm", "gpus": 16, "fabric": name}},
        "profiles": {"routing": {"load": name}},
        "routers": {"routing": {"router": name}},
    }
    return {**_SMALL, **changes.get(kind, {})}


def calibration(data: bytes) -> None:
    """A calibration file of the user's own, under a scenario that is read, one in eight times answered too."""
    path = _file(f"calibration{next(_numbers)}.yaml", data)
    cluster = {"gpu": "h100-sxm", "gpus": 16, "calibration": str(path)}
    scenario = {**_SMALL, "cluster": cluster, "parallelism": {"expert": 16}}
    try:
        (_answered if _one_in_eight(data) else load)(scenario)
    finally:
        path.unlink()


def huggingface(data: bytes) -> None:
    """A model as the hub describes it, in a scenario that is read, one in eight times answered too."""
    _file("config.json", data)
    scenario = {**_SMALL, "model": {"huggingface": "config.json"}, "parallelism": {}}
    (_answered if _one_in_eight(data) else load)(scenario)


def _answered(scenario: Any) -> None:
    found: Any = load(scenario)
    moesim.estimate(found, even_if_infeasible=True)


def _one_in_eight(data: bytes) -> bool:
    """Whether an input is one of those that get the slower check as well: always the same ones."""
    return zlib.crc32(data) % 8 == 0


def trace(data: bytes) -> None:
    """A recording of any tool, below a line with import options; a trace that comes of it is sound."""
    first, _, content = data.partition(b"\n")
    options = [text for text in first.decode("utf-8", "replace").split(";") if text]
    found = read_recording(_file("recording", content), None, options)
    if isinstance(found, RouterTrace):
        store.check(found)


def fitted(data: bytes) -> None:
    """A fitted profile, and a scenario of another model that borrows its law."""
    path = _file("fitted.safetensors", data)
    RoutingProfile.load(path)
    load({**_SMALL, "routing": {"load": {"fitted": str(path)}}})


def requests(data: bytes) -> None:
    """A trace of requests: CSV, Parquet or JSON lines, by its first bytes."""
    suffix = "parquet" if data.startswith(b"PAR1") else "jsonl" if data.startswith(b"{") else "csv"
    read_trace(_file(f"requests.{suffix}", data))


def measurements(data: bytes) -> None:
    """A table of measurements: as `calibrate` reads it, and as `validate` does."""
    parquet, packed = data.startswith(b"PAR1"), data.startswith(b"\x1f\x8b")
    path = _file(f"table.{'parquet' if parquet else 'csv.gz' if packed else 'csv'}", data)
    with suppress(UserError):
        cases.read([path])
    tables.read([path])


def settings(data: bytes) -> None:
    """A shipped scenario's name and, line by line, overrides of it as `--set` takes them."""
    name, *lines = data.decode("utf-8", "replace").split("\n")
    files = {**scenarios(), **_serving()}
    load(files.get(name.strip(), files["olmoe-8-h100"]), [line for line in lines if line])


def _serving() -> dict[str, Path]:
    return {path.stem: path for path in sorted((seeds.SCENARIOS / "serving").glob("*.yaml"))}


def all_settings() -> list[bytes]:
    """Every field of some shipped scenarios as an override."""
    found = []
    for name, path in {**scenarios(), **_serving()}.items():
        lines = [f"{field}={value}" for field, value in _flat(load(path).document(), "")]
        found += ["\n".join([name, *lines[place::5][:4]]).encode() for place in range(5)]
    return found


def _flat(node: Any, where: str) -> list[tuple[str, str]]:
    """Dotted fields of a document and their values as YAML on one line."""
    if isinstance(node, dict) and node and "sources" not in where:
        return [pair for key, value in node.items() for pair in _flat(value, f"{where}.{key}" if where else str(key))]
    return [(where, to_yaml({"x": node}).partition(":")[2].strip().replace("\n", " ") if _plain(node) else "null")]


def _plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, list)) and len(str(value)) < 200


def _file(name: str, data: bytes) -> Path:
    path = Path(name)
    path.write_bytes(data)
    return path


TARGETS: dict[str, Target] = {
    "scenario": Target(scenario, lambda: seeds.shipped("."), "scenarios of training, read and shown"),
    "serving": Target(scenario, lambda: seeds.shipped("serving"), "scenarios of serving, read and shown"),
    "plan": Target(plan, lambda: seeds.inlined("plans")[1:] + seeds.shipped("."), "plans of training"),
    "plan-serving": Target(plan, lambda: seeds.inlined("plans")[:1] + seeds.shipped("serving"), "plans of serving"),
    "sweep": Target(sweep, lambda: seeds.inlined("sweeps"), "sweeps, as far as their points"),
    "case": Target(case, seeds.cases, "validation cases, read"),
    "catalog": Target(catalog, seeds.catalog, "files of a catalog of one's own"),
    "calibration": Target(calibration, seeds.calibrations, "calibrations of one's own"),
    "huggingface": Target(huggingface, seeds.huggingface, "models as the hub describes them"),
    "trace": Target(trace, seeds.recordings, "recordings of every importer"),
    "fitted": Target(fitted, seeds.fitted, "fitted load profiles", 200),
    "requests": Target(requests, seeds.requests, "traces of requests"),
    "measurements": Target(measurements, seeds.measurements, "measurement tables", 200),
    "set": Target(settings, all_settings, "--set expressions over shipped scenarios"),
    "url": Target(dashboard.Dashboard(), dashboard.seeds, "links into the dashboard, up to its charts"),
    "estimate": Target(estimate, lambda: seeds.shipped("."), "scenarios of training, estimated where legal", 60),
    "estimate-serving": Target(estimate, lambda: seeds.shipped("serving"), "the same of serving", 30),
    "validate": Target(predict, seeds.cases, "validation cases, held against the laws", 60),
    "search": Target(search, lambda: seeds.inlined("plans"), "plans, searched briefly", 6),
}  # fmt: skip
