"""moesim's own trace format: one safetensors file, mapped when it is read, never a pickle.

Metadata (text by text): `moesim_trace` is the version, "1"; `meta` is `TraceMeta` as JSON. Tensors, T tokens, L layers,
K choices, S sequences, the tokens of a sequence together and in order:

- `starts` I64 [S+1]: first token of each sequence, and T at the end (8 bytes a sequence instead of 4 a token)
- `domain` I32 [S]: index into the header's domains; `step` I32 [S]: training step, -1 where unknown
- `position` I32 [T]: place in the sequence; absent where every sequence counts 0, 1, 2, ...
- `token_id` I32 [T] and `weights` F16 [T, L, K]: where recorded
- `experts` U8 (up to 254 experts) or U16 [T, L, K]: the type's largest value where a token has no expert

They stand in this order, so that each is aligned, and one trace always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from moesim.errors import FileError, UserError, shorten
from moesim.inputs import source_of
from moesim.traces.tensors import Tensors, read_tensors, write_tensors
from moesim.traces.trace import RouterTrace, TraceMeta, type_for

VERSION = "1"
_TYPES = {
    "starts": ("I64",),
    "domain": ("I32",),
    "step": ("I32",),
    "position": ("I32",),
    "token_id": ("I32",),
    "weights": ("F16",),
    "experts": ("U8", "U16"),
}
_REQUIRED = ("starts", "domain", "step", "experts")
_CHUNK = 1 << 22


def save(trace: RouterTrace, path: str | os.PathLike[str]) -> None:
    """Writes the trace, the whole file or none; raises `FileError` where it cannot, `UserError` for a bad trace."""
    check(trace)
    starts = trace.starts.astype(np.int64)
    arrays: dict[str, NDArray[Any]] = {"starts": starts, "domain": trace.domain, "step": trace.step}
    if not np.array_equal(trace.position, _counted(starts)):
        arrays["position"] = trace.position
    if trace.token_id is not None:
        arrays["token_id"] = trace.token_id
    if trace.weights is not None:
        arrays["weights"] = trace.weights
    metadata = {"moesim_trace": VERSION, "meta": trace.meta.model_dump_json()}
    write_tensors(path, {**arrays, "experts": trace.experts}, metadata)


def load(path: str | os.PathLike[str]) -> RouterTrace:
    """The trace of a file; `experts` and `weights` are mapped from it. Raises `FileError` where it is not sound."""
    source = Path(path)
    tensors = read_tensors(source)
    meta = _meta(tensors.metadata, source)
    _check_types(tensors, source)
    arrays = tensors.arrays
    starts = arrays["starts"]
    tokens = len(arrays["experts"])
    ordered = starts.size >= 1 and starts[0] == 0 and starts[-1] == tokens and bool((np.diff(starts) > 0).all())
    if not ordered or tokens > np.iinfo(np.int32).max:
        raise FileError(f"cannot read {source}: its sequences' starts do not go up from 0 to its {tokens:,} tokens")
    trace = RouterTrace(
        experts=arrays["experts"],
        sequence=np.repeat(np.arange(starts.size - 1, dtype=np.int32), np.diff(starts)),
        position=arrays["position"] if "position" in arrays else _counted(starts),
        domain=arrays["domain"],
        step=arrays["step"],
        meta=meta,
        weights=arrays.get("weights"),
        token_id=arrays.get("token_id"),
    )
    try:
        check(trace)
    except UserError as error:
        raise FileError(f"cannot read {source}: {error}") from error
    return trace


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the file's content, in hexadecimal."""
    try:
        with source_of(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def check(trace: RouterTrace) -> None:
    """Raises `UserError` where the arrays do not fit each other or the header."""
    meta, shape = trace.meta, trace.experts.shape
    if len(shape) != 3 or shape[1:] != (len(meta.model_layers), meta.top_k):
        raise UserError(f"choices {shape} are not [tokens, {len(meta.model_layers)} layers, {meta.top_k} choices]")
    if trace.experts.dtype != type_for(meta.experts):
        raise UserError(f"choices among {meta.experts} experts are of type {trace.experts.dtype}")
    by_token = {"sequence": trace.sequence, "position": trace.position, "token_id": trace.token_id}
    by_sequence = {"domain": trace.domain, "step": trace.step}
    for of, length, group in (("token", shape[0], by_token), ("sequence", trace.domain.size, by_sequence)):
        for name, array in group.items():
            if array is not None and (array.shape != (length,) or array.dtype != np.int32):
                raise UserError(f"{name} is not one 32-bit number a {of}")
    _check_sequences(trace)
    if trace.position.size and trace.position.min() < 0:
        raise UserError("a position is negative")
    if trace.domain.size and not (trace.domain.min() >= 0 and trace.domain.max() < len(meta.domains)):
        raise UserError(f"a sequence's domain is not among the {len(meta.domains)} of the header")
    if trace.step.size and trace.step.min() < -1:
        raise UserError("a training step is below -1")
    _check_choices(trace)


def _check_sequences(trace: RouterTrace) -> None:
    steps = np.diff(trace.sequence, prepend=-1)
    if trace.domain.size != int(trace.sequence[-1]) + 1 if trace.tokens else trace.domain.size:
        raise UserError(f"{trace.domain.size} sequences are described, and the tokens are of another number")
    if steps.size and not (steps[0] == 1 and steps.min() >= 0 and steps.max() <= 1):
        raise UserError("the tokens of a sequence do not stand together, or a sequence has none")


def _check_choices(trace: RouterTrace) -> None:
    """Choices are experts or none, weights are numbers; piece by piece, so that a mapped file is not copied."""
    flat = trace.experts.reshape(-1)
    for begin in range(0, flat.size, _CHUNK):
        piece = flat[begin : begin + _CHUNK]
        if ((piece >= trace.meta.experts) & (piece != trace.none)).any():
            raise UserError(f"a token chose an expert beyond the {trace.meta.experts} of the header")
    if trace.weights is None:
        return
    if trace.weights.shape != trace.experts.shape or trace.weights.dtype != np.float16:
        raise UserError("weights are not one 16-bit number a choice")
    flat_weights = trace.weights.reshape(-1)
    for begin in range(0, flat_weights.size, _CHUNK):
        if not np.isfinite(flat_weights[begin : begin + _CHUNK]).all():
            raise UserError("a weight is not a finite number")


def _counted(starts: NDArray[np.int64]) -> NDArray[np.int32]:
    """0, 1, 2, ... in every sequence [T]."""
    return (np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))).astype(np.int32)


def _meta(metadata: dict[str, str], source: Path) -> TraceMeta:
    version = metadata.get("moesim_trace")
    if version is None:
        raise FileError(f"{source} is a file of tensors, but not a moesim trace; `moesim trace import` may read it")
    if version != VERSION:
        raise FileError(f"{source} is a trace of format {shorten(version)}; this moesim reads format {VERSION}")
    try:
        return TraceMeta.model_validate_json(metadata.get("meta", ""))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise FileError(f"cannot read {source}: its header: {shorten(where)}: {shorten(first['msg'], 200)}") from error


def _check_types(tensors: Tensors, source: Path) -> None:
    missing = [name for name in _REQUIRED if name not in tensors.arrays]
    if missing:
        raise FileError(f"cannot read {source}: the trace has no {', '.join(missing)}")
    for name, kind in tensors.types.items():
        if kind not in _TYPES.get(name, ()):
            known = " or ".join(_TYPES.get(name, ())) or "nothing of that name"
            raise FileError(f"cannot read {source}: tensor {shorten(name)!r} is {kind}; the format has {known}")
    starts, experts = tensors.arrays["starts"], tensors.arrays["experts"]
    if starts.ndim != 1 or experts.ndim != 3:
        raise FileError(f"cannot read {source}: starts must have one axis and experts three")
    if len(experts) and not experts.size:
        raise FileError(f"cannot read {source}: its {len(experts):,} tokens have no layers or no choices")
