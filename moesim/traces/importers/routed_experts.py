"""Routed experts that SGLang and vLLM return with a request: JSON lines, one request a line.

The choices are base64 of int32, or nested lists, [tokens, layers, K]. SGLang marks a layer without experts by -1; vLLM
leaves zeros there, and for tokens that it did not compute: several choices a token tell them from expert 0, one cannot.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import FileError, shorten
from moesim.traces.importers.base import Importer, ImportOptions, Source
from moesim.traces.importers.build import Draft, build
from moesim.traces.importers.lines import json_rows
from moesim.traces.importers.sglang import array_of_lists
from moesim.traces.trace import RouterTrace

_KEY = "routed_experts"


def _found(row: dict[str, Any]) -> tuple[Any, Any]:
    """The routed experts of a response, and their shape where the row says it; None where absent."""
    inner = row.get("meta_info")
    for place in (row, inner if isinstance(inner, dict) else {}):
        if _KEY in place:
            return place[_KEY], place.get("shape", row.get("shape"))
    return None, None


def _sglang_recognises(source: Source) -> bool:
    inner = source.row.get("meta_info")
    return isinstance(inner, dict) and _KEY in inner


def _vllm_recognises(source: Source) -> bool:
    return _KEY in source.row


def _read(source: Source, options: ImportOptions, zeros_are_none: bool, software: str) -> RouterTrace:
    blocks, domain, empty = [], [], 0
    domains: dict[str, int] = {options.domain: 0}
    for number, row in enumerate(json_rows(source.path), 1):
        where = f"{source.path}, line {number:,}"
        value, shape = _found(row)
        if value is None:
            empty += 1
            continue
        blocks.append(_choices(value, shape, options, where))
        name = row.get("domain", options.domain)
        if not isinstance(name, str):
            raise FileError(f"cannot read {where}: its domain is not text")
        domain.append(domains.setdefault(name, len(domains)))
    if not blocks:
        raise FileError(f"cannot read {source.path}: no line of it has {_KEY}")
    if len({block.shape[1:] for block in blocks}) > 1:
        raise FileError(f"cannot read {source.path}: its requests differ in layers or choices a token")
    used = sorted(set(domain))
    draft = Draft(
        path=source.path,
        choices=np.concatenate(blocks),
        lengths=np.array([len(block) for block in blocks]),
        domains=[list(domains)[index] for index in used],
        domain=np.searchsorted(used, domain),
        zeros_are_none=zeros_are_none,
        software=software,
        notes=[f"without {empty} lines that have no {_KEY}"] if empty else [],
    )
    return build(draft, options)


def _choices(value: Any, shape: Any, options: ImportOptions, where: str) -> NDArray[np.int32]:
    """The choices of one request [T, L, K]."""
    if isinstance(value, str):
        flat = _decoded(value, where)
        return flat.reshape(_shape(flat.size, shape, options, where))
    array = array_of_lists(value, f"{where}, {_KEY}")
    if array.ndim != 3:
        raise FileError(f"cannot read {where}: its {_KEY} are not whole numbers [tokens, layers, choices]")
    if np.abs(array).max(initial=0) > np.iinfo(np.int32).max:
        raise FileError(f"cannot read {where}: an expert's name is out of range")
    return array.astype(np.int32)


def _decoded(text: str, where: str) -> NDArray[np.int32]:
    try:
        data = b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FileError(f"cannot read {where}: its {_KEY} are not base64: {error}") from error
    if len(data) % 4:
        raise FileError(f"cannot read {where}: its {_KEY} are not 32-bit numbers: they were cut")
    return np.frombuffer(data, "<i4").astype(np.int32, copy=False)


def _shape(size: int, shape: Any, options: ImportOptions, where: str) -> tuple[int, int, int]:
    if shape is None:
        if options.layers is None or options.top_k is None:
            raise FileError(f"cannot read {where}: its shape is not in the file; give the options layers and top_k")
        shape = [size // (options.layers * options.top_k), options.layers, options.top_k]
    sound = isinstance(shape, list) and len(shape) == 3 and all(type(axis) is int and axis > 0 for axis in shape)
    if not sound or shape[0] * shape[1] * shape[2] != size:
        raise FileError(
            f"cannot read {where}: {size:,} numbers are not of the shape [tokens, layers, choices] {shorten(shape)}"
        )
    return shape[0], shape[1], shape[2]


SGLANG_ROUTED = Importer(
    "sglang-routed-experts",
    "SGLang responses with return_routed_experts (JSON lines: meta_info.routed_experts)",
    _sglang_recognises,
    lambda source, options: _read(source, options, False, "SGLang"),
)
VLLM_ROUTED = Importer(
    "vllm-routed-experts",
    "vLLM routed experts by request (JSON lines: routed_experts, shape)",
    _vllm_recognises,
    lambda source, options: _read(source, options, True, "vLLM"),
)
