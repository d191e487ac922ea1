"""SGLang's expert distribution recorder, mode per_token: choices by forward pass, put together into sequences.

The recorder writes no request names: a prefill's tokens from position 0 begin a sequence, and a token at position p of
a decode (or of a later piece of a prompt) continues a sequence that has p tokens, in the order of the batch, which
SGLang keeps. T tokens, L layers, K choices, P physical experts.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import FileError
from moesim.traces.importers.base import Importer, ImportOptions, Source
from moesim.traces.importers.build import Draft, build, count_noun
from moesim.traces.importers.sglang import logical_map, recordings, records_of, sample, whole_numbers
from moesim.traces.trace import RouterTrace

_IDS = "topk_ids_of_layer"
_DECODE = 2


@dataclass
class _Sequences:
    """Sequences as they grow: `lengths` of the open ones by number, and those that the last decode continued."""

    count: int = 0
    lengths: dict[int, int] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    unmatched: int = 0

    def prefill(self, position: int, tokens: int) -> int:
        """The sequence that a piece of a prompt belongs to."""
        own = None if position == 0 else next((s for s, n in self.lengths.items() if n == position), None)
        if own is None:
            self.unmatched += position > 0
            own, self.count = self.count, self.count + 1
        self.lengths[own] = position + tokens
        return own

    def decode(self, positions: list[int]) -> list[int]:
        """The sequence of each token of a decode; running ones that it does not continue are finished."""
        waiting: dict[int, list[int]] = defaultdict(list)
        for sequence, length in reversed(list(self.lengths.items())):
            waiting[length].append(sequence)
        found = [waiting[p].pop() if waiting[p] else self._unknown() for p in positions]
        for sequence in self.running - set(found):
            del self.lengths[sequence]
        self.lengths.update((s, p + 1) for s, p in zip(found, positions, strict=True))
        self.running = set(found)
        return found

    def _unknown(self) -> int:
        self.unmatched += 1
        self.count += 1
        return self.count - 1


def _recognises(source: Source) -> bool:
    records = records_of(sample(source))
    return bool(records) and _IDS in records[0]


def _read(source: Source, options: ImportOptions) -> RouterTrace:
    parts, notes, sequences, unmatched = [], [], 0, 0
    for content in recordings(source, options):
        place = logical_map(content, source.path)
        grown = _Sequences()
        for record in sorted(records_of(content), key=_number):
            part = _pass(record, place, grown, sequences, source.path)
            parts += [part] if part is not None else []
        sequences, unmatched = sequences + grown.count, unmatched + grown.unmatched
    if not parts:
        raise FileError(f"cannot read {source.path}: no forward pass of it has tokens")
    if len({part.choices.shape[1:] for part in parts}) > 1:
        raise FileError(f"cannot read {source.path}: its forward passes differ in layers or choices")
    notes.append("sequences put together from positions")
    if unmatched:
        notes.append(f"{count_noun(unmatched, 'token')} or piece continued no recorded sequence (cached prefix)")
    sequence = np.concatenate([part.sequence for part in parts])
    order = np.argsort(sequence, kind="stable")
    draft = Draft(
        path=source.path,
        choices=np.concatenate([part.choices for part in parts])[order],
        lengths=np.bincount(sequence, minlength=sequences),
        position=np.concatenate([part.position for part in parts])[order],
        token_id=np.concatenate([part.token_id for part in parts])[order],
        experts=max(part.experts for part in parts),
        software="SGLang",
        notes=notes,
    )
    return build(draft, options)


def _number(record: dict[str, Any]) -> int:
    """The pass's number, in the order of time."""
    number = record.get("forward_pass_id")
    return number if type(number) is int else 0


@dataclass(frozen=True)
class _Pass:
    choices: NDArray[np.int64]
    sequence: NDArray[np.int64]
    position: NDArray[np.int64]
    token_id: NDArray[np.int64]
    experts: int


def _pass(record: dict[str, Any], place: NDArray[np.int64], grown: _Sequences, first: int, path: Path) -> _Pass | None:
    missing = [name for name in (_IDS, "positions", "input_ids", "forward_mode") if name not in record]
    if missing:
        raise FileError(f"cannot read {path}: a record has no {', '.join(missing)}")
    physical = whole_numbers(record[_IDS], 3, f"{_IDS} of {path}")
    tokens = physical.shape[1]
    if tokens == 0:
        return None
    position = whole_numbers(record["positions"], 1, f"positions of {path}")
    token_id = whole_numbers(record["input_ids"], 1, f"input_ids of {path}")
    if position.size != tokens or token_id.size != tokens or position.min() < 0:
        raise FileError(
            f"cannot read {path}: {position.size} positions, {token_id.size} ids and {tokens} tokens in a pass"
        )
    if physical.shape[0] != place.shape[0] or physical.max() >= place.shape[1]:
        raise FileError(f"cannot read {path}: choices {physical.shape} do not fit its map of experts {place.shape}")
    logical = np.take_along_axis(place[:, None, :], np.maximum(physical, 0), axis=2)
    # The recorder's buffer begins as zeros, not as -1: no token has expert 0 in every slot.
    unset = (physical == 0).all(axis=(1, 2), keepdims=True) & (physical.shape[2] > 1)
    choices = np.where((physical < 0) | unset, -1, logical).transpose(1, 0, 2)
    sequence = _sequence(record, position, grown, path)
    return _Pass(choices, sequence + first, position, token_id, int(place.max()) + 1)


def _sequence(record: dict[str, Any], position: NDArray[np.int64], grown: _Sequences, path: Path) -> NDArray[np.int64]:
    """The sequence of each token of a pass [T]."""
    if record["forward_mode"] == _DECODE:
        return np.array(grown.decode(position.tolist()), np.int64)
    pieces = whole_numbers(record.get("extend_seq_lens"), 1, f"extend_seq_lens of {path}")
    if pieces.sum() != position.size or pieces.min(initial=1) < 1:
        raise FileError(f"cannot read {path}: extend_seq_lens do not add up to the {position.size} tokens of a pass")
    begins = np.cumsum(pieces) - pieces
    own = [grown.prefill(int(position[at]), int(size)) for at, size in zip(begins, pieces, strict=True)]
    return np.repeat(np.array(own, np.int64), pieces)


SGLANG_PER_TOKEN = Importer(
    "sglang-per-token",
    "SGLang expert distribution, mode per_token: one .pt, or a folder with one a rank",
    _recognises,
    _read,
)
