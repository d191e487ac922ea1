"""Everything observed, as flat rows; arrays over ranks are folded to first, last and mean in blocks.

B operations of a block, R ranks.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.step.operations import Operation
from moesim.step.schedules import Slot

Floats = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]
_BLOCK_VALUES = 1 << 20
_NUMBERS = ("stage", "chunk", "microbatch", "layer")
_WORDS = ("phase", "kind", "stream")
_TIMES = ("begin", "end", "begin_mean", "end_mean", "busy_mean")


class Recorder:
    """Rows of operations, and seconds that each pipeline rank's compute stream waited, by reason."""

    def __init__(self, ranks: int, step: int) -> None:
        self.step = step
        self.waited: dict[tuple[int, str], float] = defaultdict(float)
        self._numbers: list[tuple[int, int, int, int]] = []
        self._words: dict[tuple[str, str, str], int] = {}
        self._word: list[int] = []
        block = max(1, _BLOCK_VALUES // ranks)
        self._begin, self._end, self._busy = (np.empty((block, ranks)) for _ in range(3))
        self._filled = 0
        self._folded: list[Floats] = []

    @property
    def rows(self) -> int:
        """Operations noted so far."""
        return len(self._numbers)

    def operation(
        self, stage: int, slot: Slot, operation: Operation, begin: Floats, end: Floats, busy: Floats | float
    ) -> None:
        """Notes one operation of one pipeline rank."""
        work = getattr(slot, operation.side)
        words = (operation.phase, operation.kind, operation.stream)
        self._add((stage, work[0], work[1], operation.layer), words, begin, end, busy)

    def message(self, stage: int, slot: Slot, operation: Operation, begin: Floats, seconds: float) -> None:
        """Notes the message that carries a slot's output to the next pipeline rank."""
        work = getattr(slot, operation.side)
        words = (operation.side, "send", "point-to-point")
        self._add((stage, work[0], work[1], -1), words, begin, begin + seconds, seconds)

    def once(self, stage: int, kind: str, begin: Floats, seconds: float) -> None:
        """Notes work done once a step: parameter gathering, gradient reduction, optimizer."""
        self._add((stage, -1, -1, -1), ("step", kind, "data-parallel"), begin, begin + seconds, seconds)

    def waits(self, stage: int, reason: str, seconds: float) -> None:
        """Adds to the time that a pipeline rank's compute stream waited, mean over ranks."""
        self.waited[stage, reason] += seconds

    def columns(self) -> Columns:
        """All rows as columns, times folded over ranks; bytes, rows and basis are not known here."""
        if self._filled:
            self._fold()
        times = np.concatenate(self._folded, axis=1) if self._folded else np.empty((5, 0))
        found: Columns = {"step": np.full(self.rows, self.step, dtype=np.int32)}
        numbers = np.array(self._numbers, dtype=np.int32).reshape(self.rows, len(_NUMBERS))
        for place, name in enumerate(_NUMBERS):
            found[name] = numbers[:, place].copy()
        chosen = np.array(self._word, dtype=np.int64)
        for name, words in zip(_WORDS, zip(*self._words, strict=True), strict=True):
            found[name] = np.array(words)[chosen]
        return {**found, **dict(zip(_TIMES, times, strict=True))}

    def _add(
        self,
        numbers: tuple[int, int, int, int],
        words: tuple[str, str, str],
        begin: Floats,
        end: Floats,
        busy: Floats | float,
    ) -> None:
        self._numbers.append(numbers)
        self._word.append(self._words.setdefault(words, len(self._words)))
        row = self._filled
        self._begin[row], self._end[row], self._busy[row] = begin, end, busy
        self._filled += 1
        if self._filled == len(self._begin):
            self._fold()

    def _fold(self) -> None:
        rows = slice(0, self._filled)
        begin, end, busy = self._begin[rows], self._end[rows], self._busy[rows]
        self._folded.append(np.stack((begin.min(1), end.max(1), begin.mean(1), end.mean(1), busy.mean(1))))
        self._filled = 0
