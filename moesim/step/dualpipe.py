"""The DualPipe schedule: microbatches enter at both ends of the pipeline (DeepSeek-V3 report, section 3.2.1).

Each pipeline rank holds two chunks, its own and its mirror image's. The order of each rank follows the published
algorithm's eight phases; where a rank is r places from the nearer end (half rank) of P:
forwards to fill; forwards of both directions; input-gradient backward, weights, forward; the steady state of
forward-backward pairs; and their mirror images to drain.
"""

from __future__ import annotations

from collections import deque
from itertools import count

Work = tuple[int, int]
Row = tuple[Work | None, Work | None, Work | None]


def dualpipe(stages: int, microbatches: int) -> tuple[tuple[Row, ...], ...]:
    """(forward, backward, weight) of every slot of every pipeline rank; `stages` and `microbatches` are even."""
    return tuple(_Rank(stage, stages, microbatches).slots() for stage in range(stages))


class _Rank:
    """One pipeline rank writing down its slots. Direction 0 enters at the nearer end, 1 at the farther."""

    def __init__(self, stage: int, stages: int, microbatches: int) -> None:
        self.stage, self.stages, self.half_batch = stage, stages, microbatches // 2
        self.second_half = stage >= stages // 2
        self.rows: list[Row] = []
        self.next_forward = (count(), count())
        self.next_backward = (count(), count())
        self.owed: deque[Work] = deque()

    def work(self, direction: int, number: int) -> Work:
        """(chunk, microbatch) of the n-th microbatch of a direction at this rank."""
        from_far_end = direction == 1
        enters_first = from_far_end == self.second_half
        chunk = self.stage if enters_first else self.stages - 1 - self.stage
        return chunk, number if enters_first else self.half_batch + number

    def forward(self, direction: int) -> None:
        """A forward alone."""
        self.rows.append((self.work(direction, next(self.next_forward[direction])), None, None))

    def backward(self, direction: int, defer: bool = False) -> None:
        """A backward alone; `defer` leaves its weight gradients for later."""
        work = self.work(direction, next(self.next_backward[direction]))
        if defer:
            self.owed.append(work)
        self.rows.append((None, work, None if defer else work))

    def weights(self) -> None:
        """The oldest weight gradients owed."""
        self.rows.append((None, None, self.owed.popleft()))

    def pair(self, direction: int) -> None:
        """A forward of `direction` beside a backward of the other."""
        ahead = self.work(direction, next(self.next_forward[direction]))
        back = self.work(1 - direction, next(self.next_backward[1 - direction]))
        self.rows.append((ahead, back, back))

    def slots(self) -> tuple[Row, ...]:
        """The eight phases in order."""
        near = min(self.stage, self.stages - 1 - self.stage)
        inward = self.stages // 2 - near - 1
        for _ in range(2 * inward):
            self.forward(0)
        for _ in range(near + 1):
            self.forward(0)
            self.forward(1)
        for _ in range(inward):
            self.backward(1, defer=True)
            self.weights()
            self.forward(1)
        self._steady(self.half_batch - self.stages + near + 1, apart=inward == 0)
        for _ in range(inward):
            self.backward(1)
            self.pair(1)
        self._drain(near, inward)
        return tuple(self.rows)

    def _steady(self, rounds: int, apart: bool) -> None:
        """Pairs of both directions; the middle ranks begin with their first forward and backward apart."""
        for index in range(rounds):
            if apart and index == 0:
                self.forward(0)
                self.backward(1)
            else:
                self.pair(0)
            self.pair(1)

    def _drain(self, near: int, inward: int) -> None:
        defer = False
        for index in range(near + 1):
            defer = defer or (index == (near + 1) // 2 and near % 2 == 1)
            self.backward(1, defer)
            defer = defer or (index == (near + 1) // 2 and near % 2 == 0)
            self.backward(0, defer)
        for _ in range(inward):
            if self.owed:
                self.weights()
            self.backward(0, defer=True)
        while self.owed:
            self.weights()
