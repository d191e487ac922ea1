"""What a road found out about one step: the raw material of every metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moesim.results.reliability import RunTime


@dataclass(frozen=True)
class EvenStep:
    """The same step at perfectly balanced routing: its length, and the seconds of it that a pipeline rank waits for
    others, mean over pipeline ranks."""

    seconds: float
    bubble: float


@dataclass(frozen=True)
class Observed:
    """What a road found out about one step; seconds are means over GPUs.

    `seconds`: length of each step; `busy`: seconds that the compute or communication stream works by kind of
    operation; `waited`: seconds that the compute stream waits by reason ("dispatch", "combine", "bubble",
    "tensor-parallel", "data-parallel", "optimizer"); `even`: the counterfactual of a model with experts; `drawn`:
    routing was drawn sample by sample, not expected; `run`: the whole run where the scenario states failures.
    """

    seconds: tuple[float, ...]
    busy: Mapping[str, float]
    waited: Mapping[str, float]
    even: EvenStep | None = None
    drawn: bool = False
    run: RunTime | None = None
