"""Counts of OLMoE's analysis scripts as JSON: "model/expert_counts/domain" -> counts [layers][experts]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import FileError, UserError, nearest_hint, shorten
from moesim.traces.counts import RouterCounts
from moesim.traces.importers.base import Importer, ImportOptions, Source, model_places
from moesim.traces.importers.sglang import whole_numbers
from moesim.traces.trace import TraceMeta

_KIND = "expert_counts"
_FIRST = "expert_counts_top1"


def _recognises(source: Source) -> bool:
    return b"/expert_counts" in source.head and isinstance(source.value, dict)


def _read(source: Source, options: ImportOptions) -> RouterCounts:
    tables = source.value
    if not isinstance(tables, dict):
        raise FileError(f"cannot read {source.path}: it is not one JSON object (cut?)")
    found = [name.split("/") for name in tables if name.count("/") == 2]
    models = sorted({model for model, kind, _ in found if kind == _KIND})
    if not models:
        raise FileError(f"cannot read {source.path}: it has no counts under a name such as olmoe/{_KIND}/c4")
    model = options.part or models[0]
    if model not in models or (options.part is None and len(models) > 1):
        hint = nearest_hint(options.part or "", map(shorten, models))
        held = shorten(", ".join(models), 160)
        raise UserError(f"{source.path} holds counts of {held}; choose one with the option part{hint}")
    domains = [domain for name, kind, domain in found if name == model and kind == _KIND]
    named = {domain: f"{shorten(domain)} of {source.path}" for domain in domains}
    counts = [whole_numbers(tables[f"{model}/{_KIND}/{domain}"], 2, where) for domain, where in named.items()]
    if len({table.shape for table in counts}) != 1 or min(table.min(initial=0) for table in counts) < 0:
        raise FileError(
            f"cannot read {source.path}: the domains of {shorten(model)} differ in layers or experts, or count below 0"
        )
    block = np.array(counts)
    layers = options.model_layers or model_places(range(block.shape[1]), source.path)
    if len(layers) != block.shape[1]:
        raise UserError(f"option model_layers names {len(layers)} layers; {source.path} has {block.shape[1]}")
    note = "" if options.model_layers else "the file does not say which of the model's layers these are"
    meta = TraceMeta(
        experts=block.shape[2],
        top_k=options.top_k or _top_k(tables, model, domains, block, source),
        model_layers=layers,
        domains=tuple(domains),
        model=options.model or model,
        source=options.source,
        licence=options.licence,
        device=options.device,
        software="OLMoE analysis scripts",
        note=note,
    )
    return RouterCounts(block, np.arange(len(domains), dtype=np.int32), np.full(len(domains), -1, np.int32), meta)


def _top_k(tables: dict[str, object], model: str, domains: list[str], counts: NDArray[np.int64], source: Source) -> int:
    """All choices over first choices, where the file counts both."""
    for index, domain in enumerate(domains):
        first = tables.get(f"{model}/{_FIRST}/{domain}")
        if first is not None:
            total = whole_numbers(first, 2, f"first choices of {shorten(domain)} of {source.path}").sum()
            found = counts[index].sum() / total if total > 0 else 0.0
            if found >= 1 and abs(found - round(found)) < 1e-3:
                return round(found)
    raise UserError(f"{source.path} does not say how many experts a token chooses; give the option top_k, e.g. 8")


OLMOE_COUNTS = Importer(
    "olmoe-counts", "counts by expert and domain of OLMoE's analysis scripts, as JSON", _recognises, _read
)
