"""Seconds as a function of imbalance: what a layer whose busiest rank has f times the mean makes of the whole step.

The closed form is asked a few times, all layers at one f: the busiest rank gets f times the mean rank's rows, the
others share the rest alike, and everything that waits for it (dispatch, experts, combine, and through the schedule
other pipeline ranks) follows. In between a straight line. A step whose layers differ takes the mean of its layers'
seconds: layers follow each other, so that each adds its own; exact where the seconds are straight in f. Against the
closed form of layers as they differ it is 0 to 4 % short of the step, most where pipeline ranks have unlike layers.

R ranks, S slots of a rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.closed_form.expected import expected_demand
from moesim.closed_form.run import observe
from moesim.closed_form.slots import Leg, evaluate
from moesim.errors import InternalError
from moesim.network.dispatchers import PortTimes
from moesim.step.model import StepModel
from moesim.step.offload import beside, fetched_on_average
from moesim.step.operations import EXCHANGES
from moesim.step.routed import PORT_ARRAYS, RoutedWork, even_work
from moesim.step.schedules import Slot, Work

Floats = NDArray[np.float64]
LEVELS = (1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)


@dataclass(frozen=True)
class Priced:
    """Seconds [N] at each of the imbalances `levels` [N], busiest rank over mean."""

    levels: Floats
    seconds: Floats

    def __call__(self, imbalance: Floats) -> Floats:
        """Seconds [...] at any imbalance [...], by straight lines, the last one drawn on."""
        if len(self.levels) == 1:
            return np.full(np.shape(imbalance), self.seconds[0])
        place = np.clip(np.searchsorted(self.levels, imbalance) - 1, 0, len(self.levels) - 2)
        slope = np.diff(self.seconds) / np.diff(self.levels)
        return np.asarray(self.seconds[place] + slope[place] * (imbalance - self.levels[place]))


def priced(seconds: Callable[[float], float], ranks: int, levels: Sequence[float] = LEVELS) -> Priced:
    """`seconds` asked at the levels that `ranks` ranks can reach: the busiest of R has at most R times the mean."""
    at = np.array([level for level in levels if level <= ranks])
    return Priced(at, np.array([seconds(float(level)) for level in at]))


def step_seconds(model: StepModel, slots: int | None = None) -> Priced:
    """Seconds of a training step; `slots` of a rank where some experts are held several times."""
    return priced(lambda level: observe(model, skewed_work(model, level, slots)).seconds[0], _ranks(model))


def forward_seconds(model: StepModel, slots: int | None = None) -> Priced:
    """Seconds of one microbatch's forward through all layers, which is what prefill does with its tokens."""
    return priced(lambda level: _forward(model, skewed_work(model, level, slots)), _ranks(model))


def skewed_work(model: StepModel, imbalance: float, slots: int | None = None) -> RoutedWork:
    """The work of a step whose busiest rank has so many times the mean in every layer, its experts all alike."""
    even = even_work(model)
    if even is None:
        raise InternalError("a model without experts has no imbalance")
    scenario, ranks = model.scenario, _ranks(model)
    held = slots or scenario.model.n_experts // ranks
    share = np.full(ranks, (ranks - imbalance) / max(1, ranks - 1))
    share[0] = imbalance
    routed = share * scenario.copies_per_group / ranks
    room = model.capacity_rows * scenario.model.n_experts / ranks
    kept = np.minimum(routed, room)
    rows = np.repeat((model.computed_rows(kept) if not model.padded else np.full(ranks, room))[:, None] / held, held, 1)
    demand = expected_demand(model, rows.sum(axis=-1)[None], np.ones((1, ranks)))
    times = model.mover.times(demand)
    shape = even.rows.shape

    def every(values: Floats) -> Floats:
        return np.broadcast_to(values.reshape(1, 1, -1), shape)

    def exchange(direction: str) -> PortTimes:
        port = getattr(times, direction)
        return PortTimes(float(port.latency), **{name: every(getattr(port, name)) for name in PORT_ARRAYS})

    seconds = beside(model, model.prices.experts(rows), fetched_on_average(model, -np.expm1(-rows)))
    forward, backward, weight = map(every, seconds)
    return replace(
        even,
        dispatch=exchange("dispatch"),
        combine=exchange("combine"),
        forward=forward,
        backward=backward,
        weight=weight,
        rows=every(rows.sum(axis=-1)),
    )


def link_share(model: StepModel) -> float:
    """Share of a step at even load for which the links that experts move over are taken by the step itself: those
    between domains where the group spans several, else those inside."""
    work, scenario = even_work(model), model.scenario
    if work is None:
        raise InternalError("a model without experts exchanges nothing")
    crosses = model.mover.network.domains > 1
    one = sum(float(np.maximum(*_tier(getattr(work, kind), crosses)).max(axis=-1).mean()) for kind in EXCHANGES)
    again = model.recompute.everything or model.recompute.experts
    uses = len(model.routed_passes) * scenario.microbatches / scenario.parallelism.pipeline
    gradients = max(once.wire for once in model.data_parallel if crosses == once.leaves_domain or not crosses)
    taken = uses * (2 + again) * one + gradients
    return min(1.0, taken / observe(model, work).seconds[0])


def _tier(port: PortTimes, crosses: bool) -> tuple[Floats, Floats]:
    return (port.out_send, port.out_receive) if crosses else (port.up_send, port.up_receive)


def _ranks(model: StepModel) -> int:
    return model.scenario.parallelism.expert


def _forward(model: StepModel, work: RoutedWork) -> float:
    """Seconds of the forward slots of all chunks, one after the other."""
    total = 0.0
    for chunk in model.chunks:
        operations = model.work(Slot(Work(chunk.index, 0), None, None)).operations
        total += evaluate(operations, [_leg(model, work, op.kind, op.layer, op.share) for op in operations]).seconds
    return total


def _leg(model: StepModel, work: RoutedWork, kind: str, layer: int, share: float) -> Leg:
    if kind in EXCHANGES:
        found = float(getattr(work, kind).busiest[0, 0])
    elif kind == "experts":
        found = float(work.forward[0, 0].max())
    else:
        found = model.prices.seconds(kind, layer, "forward", False)
    return Leg(found * share, found * share)
