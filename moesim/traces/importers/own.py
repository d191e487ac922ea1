"""moesim's own traces, so that every recording is read through one door."""

from __future__ import annotations

from moesim.traces.importers.base import Importer, ImportOptions, Source
from moesim.traces.store import load
from moesim.traces.trace import RouterTrace


def _recognises(source: Source) -> bool:
    return "moesim_trace" in source.metadata


def _read(source: Source, _: ImportOptions) -> RouterTrace:
    return load(source.path)


OWN = Importer("moesim", "a trace that moesim wrote (.safetensors)", _recognises, _read)
