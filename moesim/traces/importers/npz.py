"""Choices in numpy's .npz: key `experts` [tokens, layers, K], with a JSON of the sequences beside it, or their starts.

Optional keys: `starts` [S+1] or `lengths` [S], `domain` and `step` [S], `token_id` [T], `weights` [T, L, K]. The JSON
(the same name, .json) lists {start, tokens, dataset or domain}.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import FileError, shorten
from moesim.inputs import source_of
from moesim.traces.importers.arrays import read_npz, zip_names
from moesim.traces.importers.base import Importer, ImportOptions, Source
from moesim.traces.importers.build import Draft, build, even_lengths, not_read
from moesim.traces.importers.json_text import parse_json
from moesim.traces.importers.sglang import whole_numbers
from moesim.traces.trace import RouterTrace

_MAX_JSON = 64 << 20
_KEYS = ("experts", "starts", "lengths", "domain", "step", "token_id", "weights")


def _recognises(source: Source) -> bool:
    if source.kind == "json":
        return source.path.with_suffix(".npz").is_file() and _is_list_of_sequences(source.value)
    return source.kind == "npz"


def _is_list_of_sequences(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and {"start", "tokens"} <= set(value[0])
    )


def _read(source: Source, options: ImportOptions) -> RouterTrace:
    if source.path.suffix not in (".npz", ".json"):
        raise FileError(f"cannot read {source.path} as npz: name the .npz, or the .json beside it")
    path = source.path.with_suffix(".npz")
    keys, arrays = [name.removesuffix(".npy") for name in zip_names(path)], read_npz(path, _KEYS)
    if "experts" not in arrays:
        raise FileError(f"cannot read {path}: it has no key experts, only {shorten(', '.join(keys))}")
    choices = arrays["experts"]
    if choices.ndim != 3 or choices.dtype.kind not in "iu":
        raise FileError(
            f"cannot read {path}: experts is {choices.dtype} {choices.shape}, not [tokens, layers, choices]"
        )
    notes = not_read("key", keys, _KEYS)
    lengths, domain, domains = _sequences(path, arrays, len(choices), options, notes)
    _check_sizes(path, arrays, choices.shape, len(lengths))
    draft = Draft(
        path=path,
        choices=choices,
        lengths=lengths,
        domain=domain,
        domains=domains,
        weights=arrays.get("weights"),
        token_id=arrays.get("token_id"),
        step=arrays.get("step"),
        notes=notes,
    )
    return build(draft, options)


def _sequences(
    path: Path, arrays: dict[str, NDArray[Any]], tokens: int, options: ImportOptions, notes: list[str]
) -> tuple[NDArray[np.int64], NDArray[Any] | None, list[str] | None]:
    """Lengths, and each sequence's domain and the domains' names where they are known."""
    beside = path.with_suffix(".json")
    if beside.is_file():
        return _listed(beside, tokens, options)
    if "starts" in arrays:
        starts = whole_numbers(arrays["starts"], 1, f"starts of {path}")
        lengths = np.diff(starts)
        whole = starts.size > 1 and starts[0] == 0 and starts[-1] == tokens
    elif "lengths" in arrays:
        lengths = whole_numbers(arrays["lengths"], 1, f"lengths of {path}")
        whole = int(lengths.sum()) == tokens
    else:
        return even_lengths(tokens, options, path, notes), None, None
    if not whole or lengths.min() < 1:
        raise FileError(f"cannot read {path}: its sequences do not cover its {tokens:,} tokens")
    return lengths, *_numbered(path, arrays.get("domain"), len(lengths))


def _numbered(path: Path, domain: NDArray[Any] | None, sequences: int) -> tuple[NDArray[Any] | None, list[str] | None]:
    if domain is None:
        return None, None
    numbers = whole_numbers(domain, 1, f"domain of {path}")
    if numbers.size != sequences:
        raise FileError(f"cannot read {path}: domain is not one number a sequence")
    names, index = np.unique(numbers, return_inverse=True)
    return index, [str(name) for name in names]


def _listed(
    beside: Path, tokens: int, options: ImportOptions
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    try:
        rows = parse_json(source_of(beside, _MAX_JSON).read_bytes(), str(beside))
    except OSError as error:
        raise FileError(f"cannot read {beside}: {error.strerror or error}") from error
    if not _is_list_of_sequences(rows) or not all(isinstance(row, dict) for row in rows):
        raise FileError(f"cannot read {beside}: it is not a list of sequences with start and tokens")
    names = [row.get("domain", row.get("dataset", options.domain)) for row in rows]
    bounds = [(row.get("start"), row.get("tokens")) for row in rows]
    if not all(type(number) is int for pair in bounds for number in pair) or not all(
        type(name) is str for name in names
    ):
        raise FileError(
            f"cannot read {beside}: a sequence's start or tokens is not a whole number, or its domain no text"
        )
    if not all(0 <= number <= tokens for pair in bounds for number in pair):
        raise FileError(f"cannot read {beside}: a sequence lies outside the {tokens:,} tokens")
    starts, lengths = np.array(bounds, np.int64).T
    if starts[0] != 0 or lengths.min() < 1 or (starts[:-1] + lengths[:-1] != starts[1:]).any():
        raise FileError(f"cannot read {beside}: its sequences do not follow each other from 0")
    if starts[-1] + lengths[-1] != tokens:
        raise FileError(f"cannot read {beside}: its sequences have {starts[-1] + lengths[-1]:,} tokens, not {tokens:,}")
    domains = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return lengths, np.array([domains[name] for name in names]), list(domains)


def _check_sizes(path: Path, arrays: dict[str, NDArray[Any]], shape: tuple[int, ...], sequences: int) -> None:
    expected = {"weights": shape, "token_id": shape[:1], "step": (sequences,)}
    for name, wanted in expected.items():
        if name in arrays and arrays[name].shape != wanted:
            raise FileError(f"cannot read {path}: {name} is {arrays[name].shape}, not {wanted}")
        if name in ("token_id", "step") and name in arrays and arrays[name].dtype.kind not in "iu":
            raise FileError(f"cannot read {path}: {name} is {arrays[name].dtype}, not whole numbers")


NPZ = Importer(
    "npz",
    "numpy .npz with experts [tokens, layers, choices], and its sequences in a .json beside it",
    _recognises,
    _read,
)
