"""Screens all candidates of a question in blocks, and around the best ones where the budget did not hold them all.

C candidates, F columns, L limits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.planner.figures import Figures, Limit, best_first, binding, distance, excesses, limits_of, screened_figures
from moesim.planner.reading import Question
from moesim.planner.space import (
    COLUMNS,
    NOT_SCREENED,
    Rows,
    Space,
    axes_of_cluster,
    candidates,
    canonical,
    judge,
    placeable,
    within,
)
from moesim.screening import screen

Floats = NDArray[np.float64]
Progress = Callable[[str, float], None]
BLOCK = 1 << 16
PROMISING = 64
"""Best candidates whose neighbours are looked at."""
FEWEST_AT_ONCE, BUDGET_FOR_ONE_MORE = 4, 1000
"""How many of them in one round: the fewer, the sooner better ones lead; the more, the quicker a large budget goes."""


@dataclass(frozen=True)
class Sieve:
    """What screening says of candidates [C]: their rows [C, F], seconds of exposed communication and of the bubble,
    figures, and how far each limit is used [C, L]."""

    rows: Rows
    exposed: Floats
    bubble: Floats
    memory: Floats
    figures: Figures
    limits: tuple[Limit, ...]
    excess: Floats

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def bound(self) -> NDArray[np.int8]:
        """-1 where all limits are kept, else the limit that binds [C]."""
        return binding(self.excess)

    def joined(self, other: Sieve) -> Sieve:
        """Both, this one first."""
        figures = Figures(
            *(
                np.concatenate([getattr(self.figures, name), getattr(other.figures, name)])
                for name in Figures.__dataclass_fields__
            )
        )
        pairs = [
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("rows", "exposed", "bubble", "memory", "excess")
        ]
        return Sieve(pairs[0], pairs[1], pairs[2], pairs[3], figures, self.limits, pairs[4])


def sieve(question: Question, space: Space, progress: Progress | None) -> tuple[Sieve, dict[str, int]]:
    """All candidates of the space screened, with neighbours of the best as far as the budget goes; and the reasons of
    those that were not."""
    found = screened(question, space.rows, lambda done: progress and progress("screening", done))
    rejected = dict(space.rejected)
    left = min(question.spec.candidates - len(found), rejected.get(NOT_SCREENED, 0))
    around = _Around(question, found) if left > 0 else None
    while around is not None and left > 0:
        fresh = around.next(found)[:left]
        if not len(fresh):
            break
        found = found.joined(screened(question, fresh, None))
        left -= len(fresh)
        rejected[NOT_SCREENED] -= len(fresh)
        if progress is not None:
            progress("screening neighbours", 1.0 - left / max(1, question.spec.candidates - len(space.rows)))
    return found, {code: count for code, count in rejected.items() if count}


class _Around:
    """Candidates around the best, not yet screened: first those that differ in one column, then in two."""

    def __init__(self, question: Question, found: Sieve) -> None:
        self.question = question
        self.seen = {row.tobytes() for row in canonical(question, found.rows)}
        self.expanded: set[tuple[bytes, int]] = set()
        self.few = FEWEST_AT_ONCE + question.spec.candidates // BUDGET_FOR_ONE_MORE

    def next(self, found: Sieve) -> Rows:
        """The neighbours of the best few that have any left; none at the end."""
        best = _promising(self.question, found)
        for reach in (1, 2):
            for first in range(0, len(best), self.few):
                fresh = self._unseen(self._neighbours(best[first : first + self.few], reach))
                if len(fresh):
                    return fresh
        return best[:0]

    def _neighbours(self, rows: Rows, reach: int) -> Rows:
        """The legal candidates that differ from one of `rows`, not yet expanded so far, in `reach` columns."""
        found = [rows[:0]]
        for row in rows:
            if (row.tobytes(), reach) not in self.expanded:
                self.expanded.add((row.tobytes(), reach))
                found.append(self._steps(self._steps(row[None, :]) if reach == 2 else row[None, :]))
        around = np.unique(np.concatenate(found), axis=0)
        if len(around):
            around = around[within(self.question, around) & (judge(self.question, around) == 0)]
        if len(around):
            around = around[(canonical(self.question, around) == around).all(axis=1)]
        return around[placeable(self.question, around)]

    def _steps(self, rows: Rows) -> Rows:
        """The rows with one column changed, legal or not."""
        axes = axes_of_cluster(self.question, int(rows[0, COLUMNS.index("cluster")]))
        found = []
        for name, values in axes.items():
            changed = np.repeat(rows, len(values), axis=0)
            changed[:, COLUMNS.index(name)] = np.tile(values, len(rows))
            found.append(changed)
        return np.concatenate(found)

    def _unseen(self, rows: Rows) -> Rows:
        """The rows that have not been seen; from now on they are."""
        fresh = [place for place, row in enumerate(rows) if row.tobytes() not in self.seen]
        self.seen.update(rows[place].tobytes() for place in fresh)
        return rows[fresh]


def screened(question: Question, rows: Rows, heard: Callable[[float], object] | None) -> Sieve:
    """The rows screened block by block, so that what is known of a candidate beyond its figures is dropped at once."""
    columns: list[list[Floats]] = [[], [], [], [], []]
    for first in range(0, len(rows), BLOCK):
        part = rows[first : first + BLOCK]
        block = screen(question.base, question.choices, candidates(part), _share(heard, first, len(part), len(rows)))
        told = (
            block.step_seconds,
            block.exposed_communication_seconds,
            block.bubble_seconds,
            block.memory_bytes,
            block.dropped_fraction,
        )
        for column, values in zip(columns, told, strict=True):
            column.append(np.asarray(values, dtype=np.float64))
    steps, exposed, bubble, memory, dropped = (np.concatenate(column) if column else np.zeros(0) for column in columns)
    cluster = rows[:, COLUMNS.index("cluster")]
    figures, limits = screened_figures(question, cluster, steps, memory, dropped), limits_of(question)
    return Sieve(rows, exposed, bubble, memory, figures, limits, excesses(limits, figures))


def _share(heard: Callable[[float], object] | None, first: int, part: int, whole: int) -> Progress | None:
    """Tells the share of all rows from that of a block."""
    if heard is None:
        return None

    def tell(what: str, share: float) -> None:
        heard((first + share * part) / whole)

    return tell


def _promising(question: Question, found: Sieve) -> Rows:
    """The best candidates so far: those that keep all limits, then those that come nearest to it."""
    order = best_first(question.spec.objective, found.figures)
    return found.rows[order[np.argsort(distance(found.excess)[order], kind="stable")][:PROMISING]]
