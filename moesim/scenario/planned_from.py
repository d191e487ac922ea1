"""A recording that a placement is planned from: found, its content noted, and held against the scenario's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moesim import catalog
from moesim.catalog import recorded
from moesim.errors import Problem, UnknownNameError, UserError
from moesim.traces import store

Document = dict[str, Any]
WHERE = "placement.planned_from"


def resolve_plan(resolved: Document, found: list[Problem], folder: Path) -> None:
    """Finds what `placement.planned_from` names, notes a file's content, and checks a trace against the model."""
    spec = resolved.get("placement")
    name = spec.get("planned_from") if isinstance(spec, dict) else None
    if not isinstance(spec, dict) or not isinstance(name, str) or not name:
        return
    try:
        path, called = _file(name, folder)
        digest = store.digest(path) if path is not None and not path.is_dir() else None
        if spec.get("digest") not in (None, digest):
            found.append(Problem(WHERE, f"{name} is not the file that this scenario was made with"))
        elif path is not None and path.suffix == recorded.SUFFIX:
            _fits_the_model(path, name, resolved.get("model"), found)
    except (UserError, OSError) as error:
        found.append(Problem(WHERE, str(error)))
        resolved["placement"] = {key: value for key, value in spec.items() if key not in ("planned_from", "digest")}
        return
    resolved["placement"] = {**spec, "planned_from": called, "digest": digest}


def _file(name: str, folder: Path) -> tuple[Path | None, str]:
    """The file of a recording (None for a load profile that is a law), and what to call it."""
    profiles, traces, fitted = catalog.names("profiles"), recorded.names("traces"), recorded.names("fitted")
    if name in profiles:
        profile = catalog.load("profiles", name)
        if profile.trace is not None:
            return recorded.find("traces", profile.trace), name
        return (None if profile.fitted is None else recorded.find("fitted", profile.fitted)), name
    if name in traces or name in fitted:
        return recorded.find("traces" if name in traces else "fitted", name), name
    beside = folder / name
    if beside.exists():
        return beside, beside.as_posix()
    if not Path(name).exists():
        raise UnknownNameError("file, trace or load profile", name, {*profiles, *traces, *fitted})
    return Path(name), name


def _fits_the_model(path: Path, name: str, model: Any, found: list[Problem]) -> None:
    experts = model.get("n_experts") if isinstance(model, dict) else None
    try:
        have = store.load(path).meta.experts
    except UserError:
        return  # a fitted profile; what it lacks is told when it is drawn from
    if isinstance(experts, int) and have != experts:
        found.append(Problem(WHERE, f"{name} has {have} experts, {model.get('name', 'the model')} {experts}"))
