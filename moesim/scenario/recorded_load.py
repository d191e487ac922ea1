"""A load that was recorded or fitted: its file found, its content noted, and held against the scenario's model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from moesim.catalog import recorded
from moesim.errors import Problem, UserError, nearest_hint, shorten
from moesim.routing.profile import RoutingProfile
from moesim.traces import store
from moesim.traces.trace import RouterTrace

Document = dict[str, Any]


def resolve_load(resolved: Document, found: list[Problem], folder: Path) -> None:
    """Finds the file of a load that was recorded or fitted, notes its content, and checks it against the model."""
    load = resolved["routing"].get("load")
    kind = next((key for key in ("trace", "fitted") if isinstance(load, dict) and isinstance(load.get(key), str)), None)
    if kind is None:
        return
    where = f"routing.load.{kind}"
    try:
        path, name = _file("traces" if kind == "trace" else "fitted", load[kind], folder)
        digest = store.digest(path)
        if load.get("digest") not in (None, digest):
            found.append(Problem(where, f"{shorten(name)} is not the file that this scenario was made with"))
            return
        noun = store.load(path) if kind == "trace" else RoutingProfile.load(path)
    except (UserError, OSError) as error:
        found.append(Problem(where, str(error)))
        resolved["routing"]["load"] = {"name": "uniform"}
        return
    sources = load.get("sources") or {}
    if "" not in sources and kind not in sources:
        where_from = " ".join(part for part in (noun.meta.model, noun.meta.source, noun.meta.device) if part)
        sources = {**sources, kind: {"basis": "measured" if kind == "trace" else "fitted", "where": where_from or name}}
    load = resolved["routing"]["load"] = {**load, kind: name, "digest": digest, "sources": sources}
    load.setdefault("domains", list(noun.meta.domains))
    _fits_the_model(resolved, noun, path, found)


def _file(kind: recorded.Kind, name: str, folder: Path) -> tuple[Path, str]:
    """The file of a recorded load, and what to call it: its name in the catalog, or its path from here."""
    beside = folder / name
    if name not in recorded.names(kind) and beside.is_file():
        return beside, beside.as_posix()
    return recorded.find(kind, name), name


def _fits_the_model(resolved: Document, noun: RouterTrace | RoutingProfile, path: Path, found: list[Problem]) -> None:
    """A recorded load speaks of the model's experts; a fitted one lends its spread to a model with others."""
    model, load, meta = resolved.get("model"), resolved["routing"]["load"], noun.meta
    if not isinstance(model, dict) or not isinstance(model.get("n_experts"), int):
        return
    have, want = (meta.experts, meta.top_k), (model["n_experts"], model.get("top_k"))
    unknown = [name for name in load.get("mix") or {} if name not in meta.domains]
    if unknown:
        hint = nearest_hint(str(unknown[0]), meta.domains)
        found.append(Problem("routing.load.mix", f"no domain {shorten(unknown[0])!r} was recorded{hint}"))
    if have == want or (isinstance(noun, RoutingProfile) and have[0] == want[0]):
        return
    told = f"{have[0]} experts, top-{have[1]}"
    if isinstance(noun, RouterTrace):
        found.append(
            Problem("routing.load.trace", f"recorded with {told}; {model.get('name')} has {want[0]}, top-{want[1]}")
        )
        return
    spread, tilt = _simple_law(path, load["digest"])
    why = f"borrowed from {load['fitted']}, fitted with {told}: the spread of its experts and sequences alone"
    resolved["routing"]["load"] = {
        "name": load.get("name", "inline"),
        "log_normal": list(spread),
        "sequence_tilt": tilt,
        "domains": load["domains"],
        "note": why,
        "sources": {"": {"basis": "assumed", "where": why}},
    }


@lru_cache(maxsize=16)
def _simple_law(path: Path, digest: str) -> tuple[tuple[float, float], float]:
    """The simple law of the profile in a file with this digest; kept, for a large one takes a second to work out."""
    return RoutingProfile.load(path).simple_law()
