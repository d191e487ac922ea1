"""From the choices that a tool recorded to a trace: dense layers and unrecorded tokens out, everything checked.

T tokens, L layers, K choices, S sequences. Choices come as whole numbers, negative where a token has no expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import FileError, UserError, shorten
from moesim.traces.importers.base import ImportOptions, model_places
from moesim.traces.trace import RouterTrace, TraceMeta, type_for

_CHUNK = 1 << 16


@dataclass
class Draft:
    """What an importer found. `choices` [T, L, K]; `lengths` [S] of the sequences; `weights` [T, L, K], `token_id` and
    `position` [T], `domain` and `step` [S] where the file has them; `layers`: the model's layer of each recorded one.
    `zeros_are_none`: the tool fills what it did not record with zeros. `notes` say what was left out."""

    path: Path
    choices: NDArray[Any]
    lengths: NDArray[np.int64]
    router: str = ""
    ordered: bool = True
    experts: int | None = None
    layers: Sequence[int] | None = None
    domains: Sequence[str] | None = None
    weights: NDArray[Any] | None = None
    token_id: NDArray[Any] | None = None
    position: NDArray[Any] | None = None
    domain: NDArray[Any] | None = None
    step: NDArray[Any] | None = None
    zeros_are_none: bool = False
    software: str = ""
    notes: list[str] = field(default_factory=list)


def build(draft: Draft, options: ImportOptions) -> RouterTrace:
    """The trace of a draft; raises `FileError` where its choices cannot be those of one router."""
    if draft.choices.ndim != 3 or 0 in draft.choices.shape:
        raise FileError(
            f"cannot read {draft.path}: it holds no choices (tokens, layers, choices: {draft.choices.shape})"
        )
    layers = _recorded_layers(draft, options)
    recorded = _recorded_tokens(draft, layers)
    sequence = np.repeat(np.arange(len(draft.lengths)), draft.lengths)[recorded]
    whole = len(layers) == draft.choices.shape[1] and recorded.all()
    choices = draft.choices if whole else draft.choices[np.ix_(recorded, np.asarray(layers))]
    choices = choices[:, :, : _top_k(choices)]
    experts = _experts(draft, options, choices)
    kept, numbers = np.unique(sequence, return_inverse=True)
    position = _counted(numbers) if draft.position is None else np.asarray(draft.position)[recorded]
    weights = (
        None if draft.weights is None else draft.weights[np.ix_(recorded, np.asarray(layers))][:, :, : choices.shape[2]]
    )
    return RouterTrace(
        experts=_compact(choices, experts, draft.path),
        sequence=numbers.astype(np.int32),
        position=_int32(position, "position", draft.path),
        domain=_of_sequence(draft.domain, kept, 0, draft.path),
        step=_of_sequence(draft.step, kept, -1, draft.path),
        meta=_meta(draft, options, experts, _model_layers(draft, options, layers), choices.shape[2]),
        weights=None if weights is None else _weights(weights, draft.path),
        token_id=None if draft.token_id is None else _int32(draft.token_id[recorded], "token id", draft.path),
    )


def even_lengths(tokens: int, options: ImportOptions, path: Path, notes: list[str]) -> NDArray[np.int64]:
    """Lengths of sequences where the file has no boundaries: the option's, or one sequence of everything."""
    length = options.sequence_length
    if length is None:
        notes.append("the file has no sequence boundaries: read as one sequence (option sequence_length cuts it)")
        return np.array([tokens], np.int64)
    if tokens % length:
        raise FileError(f"cannot read {path}: its {tokens:,} tokens are not sequences of {length:,}")
    return np.full(tokens // length, length, np.int64)


def count_noun(number: int, noun: str) -> str:
    """ "1 row", "2 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def not_read(kind: str, names: Iterable[str], known: Sequence[str]) -> list[str]:
    """The note on names of a file that its format does not know (its "column" or "key"); none where it knows all."""
    strange = [name for name in names if name and name not in known]
    if not strange:
        return []
    return [
        f"not read: the {kind}{'' if len(strange) == 1 else 's'} {shorten(', '.join(strange))}, unknown in this "
        f"format (known: {', '.join(known)})"
    ]


def _recorded_layers(draft: Draft, options: ImportOptions) -> list[int]:
    """Layers with experts: not those that the user or the recording says are dense."""
    choices, layers = draft.choices, []
    lowest = int(choices.min(initial=0))
    if lowest < -1:
        raise FileError(f"cannot read {draft.path}: expert {lowest}; only -1 stands for no expert")
    names = list(draft.layers) if draft.layers is not None else list(range(choices.shape[1]))
    dense = []
    for index, name in enumerate(names):
        column = choices[:, index]
        empty = column.max() < 0 or (draft.zeros_are_none and column.max() <= 0)
        if empty and choices.shape[2] == 1 and column.max() == 0 and name not in options.dense_layers:
            raise FileError(
                f"cannot read {draft.path}: layer {name} has expert 0 for every token: with one choice a token that is "
                f"a dense layer, or expert 0; say which layers are dense with the option dense_layers"
            )
        if empty or name in options.dense_layers:
            dense.append(name)
        else:
            layers.append(index)
    if not layers:
        raise FileError(f"cannot read {draft.path}: no layer of it has a choice")
    if dense:
        draft.notes.append(f"without the dense layers {', '.join(map(str, dense))}")
    return layers


def _recorded_tokens(draft: Draft, layers: list[int]) -> NDArray[np.bool_]:
    """Tokens with a choice in some layer [T]; the others are padding, or were not recorded."""
    choices = draft.choices
    recorded = np.zeros(len(choices), np.bool_)
    for begin in range(0, len(choices), _CHUNK):
        piece = choices[begin : begin + _CHUNK][:, layers]
        filled = (piece > 0) if draft.zeros_are_none and choices.shape[2] > 1 else (piece >= 0)
        recorded[begin : begin + _CHUNK] = filled.any(axis=(1, 2))
    missing = int((~recorded).sum())
    if missing:
        draft.notes.append(f"without {count_noun(missing, 'token')} that have no choice (padding or not recorded)")
    return recorded


def _top_k(choices: NDArray[Any]) -> int:
    """Choices a token has at most: slots that every token leaves empty, at the end, do not count."""
    used = np.flatnonzero((choices >= 0).any(axis=(0, 1)))
    return int(used[-1]) + 1 if used.size else 1


def _experts(draft: Draft, options: ImportOptions, choices: NDArray[Any]) -> int:
    highest = int(choices.max())
    known = options.experts or draft.experts
    if known is None:
        draft.notes.append("the number of experts is the highest name seen, plus one")
        known = highest + 1
    if highest >= known:
        raise FileError(f"cannot read {draft.path}: it names expert {highest}, and there are {known} (from 0)")
    if known > 65534:
        raise FileError(f"cannot read {draft.path}: it names expert {highest:,}; a trace holds up to 65,534")
    return known


def _compact(choices: NDArray[Any], experts: int, path: Path) -> NDArray[np.unsignedinteger]:
    """Choices in the smallest type; raises where a token has one expert twice."""
    kind = type_for(experts)
    compact = np.empty(choices.shape, kind)
    none = np.iinfo(kind).max
    for begin in range(0, len(choices), _CHUNK):
        piece = choices[begin : begin + _CHUNK]
        if piece.dtype.kind == "i":
            compact[begin : begin + _CHUNK] = np.where(piece < 0, none, piece)
        else:
            compact[begin : begin + _CHUNK] = piece
        _refuse_repeats(compact[begin : begin + _CHUNK], none, begin, path)
    return compact


def _refuse_repeats(piece: NDArray[np.unsignedinteger], none: int, begin: int, path: Path) -> None:
    columns = np.ascontiguousarray(piece.transpose(2, 0, 1))
    for second in range(1, len(columns)):
        for first in range(second):
            twice = (columns[first] == columns[second]) & (columns[first] != none)
            if twice.any():
                token, layer = (int(found[0]) for found in np.nonzero(twice))
                raise FileError(
                    f"cannot read {path}: token {begin + token} chose expert {columns[first][token, layer]} twice in "
                    f"recorded layer {layer}: not a router's choices, or not of this shape (layers, top_k)"
                )


def _weights(weights: NDArray[Any], path: Path) -> NDArray[np.float16]:
    if not np.isfinite(weights).all() or np.abs(weights).max(initial=0.0) > np.finfo(np.float16).max:
        raise FileError(f"cannot read {path}: a weight is not a finite number of ordinary size")
    return weights.astype(np.float16)


def _counted(sequence: NDArray[np.integer]) -> NDArray[np.int64]:
    starts = np.flatnonzero(np.diff(sequence, prepend=-1))
    lengths = np.diff(starts, append=sequence.size)
    return np.arange(sequence.size) - np.repeat(starts, lengths)


def _of_sequence(values: NDArray[Any] | None, kept: NDArray[np.integer], absent: int, path: Path) -> NDArray[np.int32]:
    found = np.full(kept.size, absent, np.int32) if values is None else np.asarray(values)[kept]
    return _int32(found, "domain or step", path)


def _int32(values: NDArray[Any], what: str, path: Path) -> NDArray[np.int32]:
    if values.size and (int(values.min()) < -1 or int(values.max()) > np.iinfo(np.int32).max):
        raise FileError(f"cannot read {path}: a {what} is out of range")
    return values.astype(np.int32)


def _model_layers(draft: Draft, options: ImportOptions, layers: list[int]) -> tuple[int, ...]:
    """The model's layer of each recorded one."""
    if options.model_layers is None:
        named = layers if draft.layers is None else [draft.layers[index] for index in layers]
        return model_places(named, draft.path)
    if len(options.model_layers) != len(layers):
        raise UserError(f"option model_layers names {len(options.model_layers)} layers; {draft.path} has {len(layers)}")
    return options.model_layers


def _meta(draft: Draft, options: ImportOptions, experts: int, layers: tuple[int, ...], top_k: int) -> TraceMeta:
    if options.top_k is not None and options.top_k != top_k:
        raise UserError(f"option top_k is {options.top_k}; the tokens of {draft.path} have up to {top_k} choices")
    return TraceMeta(
        experts=experts,
        top_k=top_k,
        model_layers=layers,
        domains=tuple(draft.domains) if draft.domains is not None else (options.domain,),
        ordered=draft.ordered,
        model=options.model,
        router=draft.router,
        source=options.source,
        licence=options.licence,
        device=options.device,
        software=draft.software,
        note="; ".join(draft.notes),
    )
