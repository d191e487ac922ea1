"""What exchanges take from compute on one pipeline rank, by when they really run beside each other. R ranks."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class _Span(NamedTuple):
    """When each rank [R] began an exchange and ended it, and when the last of them did."""

    begin: Floats
    last_begin: float
    end: Floats | float
    last_end: float


class Exchanges:
    """When a pipeline rank's exchanges ran or will end, oldest first; those long over are forgotten.

    An exchange holds its SMs from its begin on a rank to its end there, waiting for peers included.
    """

    def __init__(self) -> None:
        self.spans: deque[_Span] = deque()

    def begins(self, begin: Floats) -> None:
        """An exchange whose end is not known yet."""
        self.spans.append(_Span(begin, float(np.maximum.reduce(begin)), inf, inf))

    def ends(self, end: Floats) -> None:
        """The end of the exchange that began last."""
        self.spans[-1] = self.spans[-1]._replace(end=end, last_end=float(np.maximum.reduce(end)))

    def finished(self, begin: Floats, seconds: Floats | float, slowed: float) -> Floats:
        """When work begun at `begin` that takes `seconds` alone is done; it goes `slowed` times slower meanwhile.

        Asked once all exchanges that begin before it can be done are on the books.
        """
        spans, first = self.spans, float(np.minimum.reduce(begin))
        while spans and spans[0].last_end <= first:
            spans.popleft()
        now, left = begin, seconds
        for start, last_start, end, _ in spans:
            since = now
            if last_start > first:  # else it ran on every rank before
                alone = np.minimum(np.maximum(start - now, 0.0), left)
                now, left = now + alone, left - alone
                since = np.maximum(now, start)
            beside = np.minimum(np.maximum(end - since, 0.0), slowed * left)
            now, left = now + beside, left - beside / slowed
        done: Floats = now + left
        return done
