"""The zero-bubble schedules: weight gradients apart from input gradients, put off into what would be bubble.

P pipeline ranks, M microbatches; Tf, Tb, Tw seconds of a rank's forward, input gradients and weight gradients.

ZB-H1 is 1F1B whose rank s puts off s weight gradients to its end: the warm-up and the peak memory of 1F1B, and of the
bubble (P - 1)(Tf + Tb - Tw) is left where M >= P and Tw <= Tf, Tb (Qi et al. 2023, "Zero Bubble Pipeline Parallelism",
section 2.1 and table 2).

ZB-V gives rank d the chunks d and 2P - 1 - d, so that a microbatch goes down the ranks and up again and its backward
begins where its forward did: the peak memory of 1F1B, and no rank idles between its first and its last slot where
M >= 2P - 1 and Tf = Tb = Tw (the same; Qi et al. 2024, "Pipeline Parallelism with Controllable Memory", table 1).
A step that all ranks begin and end together is longer by the last rank's late start, (P - 1) Tf / 2; where
Tf <= Tb, Tb / 2 <= Tw <= Tb it is (P - 1) Tb / 2.

Paired (expert-communication overlap): a backward runs beside the forward that comes next and its weight gradients
after both, which keeps one microbatch more in flight. In the V both are of different halves, so that they come from
the same neighbour and neither waits for the other. In ZB-H1 they come from opposite neighbours, which takes the
warm-up of two microbatches a rank that it saves: there only a pipeline of one rank can be paired.
"""

from __future__ import annotations

Work = tuple[int, int]
Row = tuple[Work | None, Work | None, Work | None]


def zero_bubble_h1(stage: int, stages: int, microbatches: int, paired: bool) -> tuple[Row, ...]:
    """(forward, backward, weight) of every slot of a pipeline rank under ZB-H1."""
    rank = _Rank(stage)
    warm_up = min(stages - 1 - stage, microbatches)
    rank.forward(0, warm_up)
    for number in range(microbatches):
        if warm_up + number < microbatches:
            rank.forward(0)
        rank.backward(0)
        if number >= stage:
            rank.weights(0)
    rank.weights_owed(0)
    return tuple(_paired(rank.rows) if paired else rank.rows)


def zero_bubble_v(stage: int, stages: int, microbatches: int, paired: bool) -> tuple[Row, ...]:
    """(forward, backward, weight) of every slot of a pipeline rank under ZB-V; half 0 goes down the V, half 1 up.

    Fewer than 2P - 1 microbatches pass as the first ones of so many.
    """
    rank, below, many = _Rank(stage, 2 * stages - 1 - stage), stages - stage, max(microbatches, 2 * stages - 1)
    rank.forward(0, 2 * below - 1)
    for _ in range(stage):
        rank.forward(1)
        rank.forward(0)
    for _ in range(below):
        rank.forward(1)
        rank.whole_backward(1)
    for number in range(many - stages):
        if 2 * stages - 1 - stage + number < many:
            rank.forward(0)
        rank.whole_backward(0)
        rank.forward(1)
        rank.whole_backward(1)
    for _ in range(stage):
        rank.backward(0)
        rank.backward(1)
    for _ in range(below):
        rank.backward(0)
        rank.weights(0)
    rank.weights_owed(1)
    rank.weights_owed(0)
    rows = [row for row in rank.rows if all(work is None or work[1] < microbatches for work in row)]
    return tuple(_paired(rows) if paired else rows)


class _Rank:
    """One pipeline rank writing down its slots; each of its chunks works through the microbatches in order."""

    def __init__(self, *chunks: int) -> None:
        self.chunks = chunks
        self.rows: list[Row] = []
        self.forwards, self.backwards, self.weighed = ([0] * len(chunks) for _ in range(3))

    def forward(self, half: int, times: int = 1) -> None:
        """The next forwards of a chunk."""
        for _ in range(times):
            self.rows.append(((self.chunks[half], self.forwards[half]), None, None))
            self.forwards[half] += 1

    def backward(self, half: int) -> None:
        """The next input gradients of a chunk."""
        self.rows.append((None, (self.chunks[half], self.backwards[half]), None))
        self.backwards[half] += 1

    def weights(self, half: int) -> None:
        """The oldest weight gradients that a chunk owes."""
        self.rows.append((None, None, (self.chunks[half], self.weighed[half])))
        self.weighed[half] += 1

    def whole_backward(self, half: int) -> None:
        """Input gradients, sent on before the oldest weight gradients follow."""
        self.backward(half)
        self.weights(half)

    def weights_owed(self, half: int) -> None:
        """All weight gradients that a chunk owes."""
        while self.weighed[half] < self.backwards[half]:
            self.weights(half)


def _paired(rows: list[Row]) -> list[Row]:
    """Each backward together with the forward that comes next, weight gradients between them aside.

    On a rank with two chunks a backward and the forward of its own chunk stay apart.
    """
    several = len({work[0] for row in rows for work in row if work is not None}) > 1
    found: list[Row] = []
    alone: int | None = None
    for row in rows:
        ahead, back, _ = row
        if back is not None:
            alone = len(found)
        if ahead is not None:
            waits = found[alone][1] if alone is not None else None
            if alone is not None and waits is not None and not (several and waits[0] == ahead[0]):
                found[alone] = (ahead, waits, None)
                alone = None
                continue
            alone = None
        found.append(row)
    return found
