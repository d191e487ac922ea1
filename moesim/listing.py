"""What the catalog holds, for people: an overview, one kind's entries, one entry with its sources."""

from __future__ import annotations

import sys
from typing import Any

from rich.table import Table

from moesim import catalog, shipped
from moesim.catalog import recorded
from moesim.catalog.yaml_files import read_mapping
from moesim.errors import UnknownNameError
from moesim.network.coefficients import law
from moesim.network.dispatchers import DISPATCHERS
from moesim.routing.profile import RoutingProfile
from moesim.routing.routers import describe
from moesim.specs.model import ModelSpec
from moesim.specs.parameters import count
from moesim.traces import store
from moesim.traces.trace import RouterTrace
from moesim.units import show
from moesim.validation import cases

Rows = list[dict[str, Any]]


def overview() -> Rows:
    """Every kind with the number of its entries."""
    return [{"kind": kind, "entries": len(_names(kind))} for kind in _kinds()]


def entries(kind: str) -> Rows:
    """The entries of one kind, each with its main figures."""
    return [_row(kind, name) for name in _names(kind)]


def entry(kind: str, name: str) -> dict[str, Any]:
    """One entry as plain data, every number with its source."""
    if kind == "dispatchers":
        if name not in DISPATCHERS:
            raise UnknownNameError("dispatcher", name, DISPATCHERS)
        fitted = {"nccl-all-to-all": "nccl-domain", "all-gather-reduce-scatter": "nccl-domain"}.get(name, name)
        data = law(fitted).data
        told: dict[str, Any] = {key: data[key] for key in ("source", "residual", "valid") if key in data}
        return {"name": name, "law": " ".join(_summary(name).split()), **told}
    if kind == "cases":
        return {"name": name, "cases": [_fact(case) for case in _case_file(name)]}
    if kind == "scenarios":
        return {"name": name, **_shipped(name)}
    if kind not in _kinds():
        raise UnknownNameError("catalog kind", kind, _kinds())
    if kind in recorded.KINDS:
        return {"name": name, **_recorded(kind, name).meta.model_dump(mode="json")}
    found = {"name": name, **catalog.raw(kind, name)}
    if kind == "routers":
        found["does"] = describe(found["rule"])
    if kind == "models":
        model = catalog.load("models", name)
        counted = count(model)
        found["computed"] = {"total_parameters": counted.total, "active_parameters": counted.active}
    return found


def search(text: str, kind: str | None = None) -> Rows:
    """Entries, of one kind or of all, of which the name or a main figure holds every word of `text`, in any case."""
    words = text.lower().split()
    found = []
    for one in (kind,) if kind else _kinds():
        for row in entries(one):
            told = " ".join([one, *map(str, row.values())]).lower()
            if all(word in told for word in words):
                own = {"type" if key == "kind" else key: value for key, value in row.items()}
                found.append({"kind": one, **own})
    return found


def sources(kind: str, name: str) -> Rows:
    """Where the numbers of an entry come from: field ("" for the entry as a whole), basis, place, quote, date."""
    found = entry(kind, name)
    told = found.get("sources")
    known = dict(told) if isinstance(told, dict) else {}
    if "source" in found:
        known.setdefault("", found["source"])
    if "cases" in found:
        known |= {case["id"]: case["source"] for case in found["cases"]}
    return [{"field": field, **_source(source)} for field, source in known.items() if source]


def _source(source: Any) -> dict[str, Any]:
    return dict(source) if isinstance(source, dict) else {"where": str(source)}


def table(rows: Rows, kind: str | None) -> Table:
    """Rows as a table."""
    drawn = Table(title=kind or "catalog", box=None, header_style="bold")
    for column in rows[0] if rows else ():
        drawn.add_column(column.replace("_", " "), overflow="fold", no_wrap=column == "name")
    for row in rows:
        drawn.add_row(*(str(value) for value in row.values()))
    return drawn


def _kinds() -> tuple[str, ...]:
    return tuple(sorted({*catalog.kinds(), "dispatchers", "cases", "scenarios", *recorded.KINDS}))


def _names(kind: str) -> tuple[str, ...]:
    if kind == "dispatchers":
        return tuple(DISPATCHERS)
    if kind == "cases":
        return tuple(path.stem for path in cases.shipped())
    if kind == "scenarios":
        return tuple(shipped.files())
    if kind in recorded.KINDS:
        return recorded.names(kind)
    if kind not in _kinds():
        raise UnknownNameError("catalog kind", kind, _kinds())
    return catalog.names(kind)


def _recorded(kind: str, name: str) -> RouterTrace | RoutingProfile:
    if kind == "traces":
        return store.load(recorded.find("traces", name))
    return RoutingProfile.load(recorded.find("fitted", name))


def _case_file(name: str) -> list[cases.Case]:
    """The facts of one shipped case file."""
    known = {path.stem: path for path in cases.shipped()}
    if name not in known:
        raise UnknownNameError("case file", name, known)
    return cases.read([known[name]])


def _shipped(name: str) -> dict[str, Any]:
    """What a shipped scenario, sweep or plan says."""
    known = shipped.files()
    if name not in known:
        raise UnknownNameError("shipped scenario", name, known)
    return read_mapping(known[name])


def _fact(case: cases.Case) -> dict[str, Any]:
    return {"id": case.id, "kind": case.kind, "measured": dict(case.measured), "source": case.source}


def _summary(name: str) -> str:
    """The first paragraph of the law's own description."""
    return (sys.modules[type(DISPATCHERS[name]).__module__].__doc__ or "").split("\n\n")[0]


def _row(kind: str, name: str) -> dict[str, Any]:
    if kind == "dispatchers":
        return {"name": name, "law": _summary(name)}
    if kind == "cases":
        found = _case_file(name)
        kinds = ", ".join(sorted({case.kind for case in found}))
        return {"name": name, "facts": len(found), "kinds": kinds}
    if kind == "scenarios":
        return {"name": name, "question": _shipped(name).get("question", "-")}
    if kind in recorded.KINDS:
        meta = _recorded(kind, name).meta
        size = {"experts": meta.experts, "top_k": meta.top_k, "layers": len(meta.model_layers)}
        return {"name": name, **size, "domains": len(meta.domains), "device": meta.device or "-"}
    if kind == "models":
        return _model_row(name, catalog.load("models", name))
    if kind == "gpus":
        gpu = catalog.load("gpus", name)
        nic = show(gpu.nic_bandwidth, "B/s") if gpu.nic_bandwidth else "-"
        up = show(gpu.scale_up_bandwidth, "B/s") if gpu.scale_up_bandwidth else "-"
        return {
            "name": name,
            "bf16": show(gpu.bf16, "FLOP/s"),
            "fp8": show(gpu.fp8, "FLOP/s") if gpu.fp8 else "-",
            "memory": show(gpu.memory, "B"),
            "memory_bandwidth": show(gpu.memory_bandwidth, "B/s"),
            "scale_up": f"{gpu.scale_up_kind} {up}",
            "domain": gpu.gpus_per_domain,
            "nic": nic,
        }
    if kind == "fabrics":
        fabric = catalog.load("fabrics", name)
        nic = show(fabric.nic_bandwidth, "B/s") if fabric.nic_bandwidth else "the GPU's"
        return {"name": name, "kind": fabric.kind, "nic": nic, "oversubscription": fabric.oversubscription}
    if kind == "profiles":
        profile = catalog.load("profiles", name)
        skew = f"zipf {profile.zipf}" if profile.zipf is not None else f"log-normal {profile.log_normal or 0}"
        if profile.fitted or profile.trace:
            skew = f"fitted {profile.fitted}" if profile.fitted else f"trace {profile.trace}"
        return {"name": name, "popularity": skew, "sequence_tilt": profile.sequence_tilt, "note": profile.note}
    entry = catalog.raw(kind, name)
    if kind == "routers":
        told = describe(entry["rule"])
        return {"name": name, "rule": entry["rule"], **{key: told[key] for key in ("bytes", "drops", "balance")}}
    if kind == "calibrations":
        source = entry.get("source", {})
        return {"name": name, "basis": source.get("basis", "-"), "fitted_on": source.get("where", "-")}
    return {"name": name, **{key: str(value) for key, value in entry.items() if key != "sources"}}


def _model_row(name: str, model: ModelSpec) -> dict[str, Any]:
    counted = count(model)
    return {
        "name": name,
        "total": show(counted.total, "parameter"),
        "active": show(counted.active, "parameter"),
        "layers": model.layers,
        "moe_layers": model.moe_layers,
        "experts": model.n_experts or "-",
        "top_k": model.top_k or "-",
    }
