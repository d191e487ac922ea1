"""ExFlow's `trace.npy`: the expert of each token in each layer [tokens, layers], one choice a token."""

from __future__ import annotations

import numpy as np

from moesim.errors import FileError
from moesim.traces.importers.arrays import read_npy
from moesim.traces.importers.base import Importer, ImportOptions, Source
from moesim.traces.importers.build import Draft, build, even_lengths
from moesim.traces.trace import RouterTrace


def _recognises(source: Source) -> bool:
    if source.kind != "npy":
        return False
    found = read_npy(source.path)
    return found.ndim == 2 and found.dtype.kind in "iu"


def _read(source: Source, options: ImportOptions) -> RouterTrace:
    choices = read_npy(source.path)
    if choices.ndim != 2 or choices.dtype.kind not in "iu":
        raise FileError(f"cannot read {source.path}: it is {choices.dtype} {choices.shape}, not [tokens, layers] names")
    notes: list[str] = []
    lengths = even_lengths(len(choices), options, source.path, notes)
    draft = Draft(source.path, np.asarray(choices)[:, :, None], lengths, software="ExFlow", notes=notes)
    return build(draft, options)


EXFLOW = Importer(
    "exflow", "ExFlow's trace.npy: whole numbers [tokens, layers], one choice a token", _recognises, _read
)
