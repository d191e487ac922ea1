"""What exchanges take from compute on one pipeline rank, by when they really run beside each other. R ranks."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Exchanges:
    """When a pipeline rank's exchanges ran or will end, [R] each, oldest first; those long over are forgotten.

    An exchange holds its SMs from its begin on a rank to its end there, waiting for peers included.
    """

    def __init__(self) -> None:
        self.spans: deque[tuple[Floats, Floats]] = deque()

    def begins(self, begin: Floats) -> None:
        """An exchange whose end is not known yet."""
        self.spans.append((begin, np.full(len(begin), np.inf)))

    def ends(self, end: Floats) -> None:
        """The end of the exchange that began last."""
        self.spans[-1] = (self.spans[-1][0], end)

    def finished(self, begin: Floats, seconds: Floats | float, slowed: float) -> Floats:
        """When work begun at `begin` that takes `seconds` alone is done; it goes `slowed` times slower meanwhile.

        Asked once all exchanges that begin before it can be done are on the books.
        """
        spans, first = self.spans, float(np.minimum.reduce(begin))
        while spans and float(np.maximum.reduce(spans[0][1])) <= first:
            spans.popleft()
        now, left = begin, np.broadcast_to(seconds, begin.shape)
        for start, end in spans:
            alone = np.minimum(np.maximum(start - now, 0.0), left)
            now, left = now + alone, left - alone
            beside = np.minimum(np.maximum(end - np.maximum(now, start), 0.0), slowed * left)
            now, left = now + beside, left - beside / slowed
        done: Floats = now + left
        return done
