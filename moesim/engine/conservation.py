"""Laws that hold in every run; a breach is our bug, never the user's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.step.draws import exact_copies
from moesim.step.model import StepModel
from moesim.step.routed import RoutedWork

if TYPE_CHECKING:
    from moesim.engine.streams import Device

Columns = dict[str, NDArray[Any]]
_TOLERANCE = 1e-9


def check_step(model: StepModel, devices: Sequence[Device], columns: Columns) -> None:
    """Every begun operation ended, streams never overlap themselves, every microbatch passed every chunk once."""
    for device in devices:
        for run in device.runs:
            if not all(event.processed for event in run.done):
                raise InternalError(f"pipeline rank {device.stage}: an operation of {run.slot} never ended")
    _streams_do_not_overlap(columns)
    _every_microbatch_everywhere(model, devices)


def check_routing(model: StepModel, routed: RoutedWork) -> None:
    """Token copies routed = computed + dropped, and the bytes that carry them arrive."""
    total = model.scenario.copies_per_group
    presented = routed.expert_routed.sum(axis=-1)
    if exact_copies(model) and not np.all(presented == total):
        raise InternalError(f"routing: {presented.min()}..{presented.max()} copies routed of {total} presented")
    rule = model.capacity_rule
    at_most = routed.expert_routed if rule is None or rule.overflow == "drop" else model.capacity_rows
    if np.any(routed.expert_kept > at_most):
        raise InternalError("routing: an expert computes more copies than were routed to it, or than it has room for")
    if np.any(routed.expert_kept.sum(axis=-1) > presented):
        raise InternalError("routing: more copies are computed than were routed")
    kept = routed.expert_kept if routed.slots is None else routed.slots.kept
    if routed.slots is not None and np.any(kept > model.capacity_rows) and not (rule is not None and rule.per_rank):
        raise InternalError("routing: a slot computes more copies than it has room for")
    if np.any(kept.sum(axis=-1) != routed.expert_kept.sum(axis=-1)):
        raise InternalError("routing: slots compute other copies than their experts")
    computed = model.computed_rows(kept).sum(axis=-1)
    if not np.allclose(routed.rows.sum(axis=-1), computed, rtol=1e-12):
        raise InternalError("experts: rows computed differ from the copies kept (and padding)")
    _bytes_arrive(routed)


def _bytes_arrive(routed: RoutedWork) -> None:
    """Bytes sent = bytes received on each tier, and together they bring every token to every rank that wants it."""
    for name, exchange in (("dispatch", routed.dispatch), ("combine", routed.combine)):
        for tier, sent, received in (
            ("scale-up", exchange.bytes_up, exchange.received_up),
            ("scale-out", exchange.bytes_out, exchange.received_out),
        ):
            if not np.allclose(sent.sum(axis=-1), received.sum(axis=-1), rtol=1e-9):
                raise InternalError(f"{name}: bytes sent over the {tier} tier differ from bytes received")
    brought = (routed.dispatch.received_up + routed.dispatch.received_out).sum(axis=-1)
    if np.any(brought < routed.needed * (1 - 1e-9)):
        raise InternalError("dispatch: fewer bytes arrive than tokens routed to other ranks")


def _streams_do_not_overlap(columns: Columns) -> None:
    for stage in np.unique(columns["stage"]):
        for stream in ("compute", "communication"):
            rows = (columns["stream"] == stream) & (columns["stage"] == stage)
            begin, end = columns["begin_mean"][rows], columns["end_mean"][rows]
            if np.any(begin[1:] < end[:-1] - _TOLERANCE * (1.0 + np.abs(end[:-1]))):
                raise InternalError(f"pipeline rank {stage}: its {stream} stream overlaps itself")


def _every_microbatch_everywhere(model: StepModel, devices: Sequence[Device]) -> None:
    expected = model.scenario.virtual_stages * model.scenario.microbatches
    for side in ("forward", "backward", "weight"):
        works = [getattr(run.slot, side) for device in devices for run in device.runs]
        found = [work for work in works if work is not None]
        if len(found) != expected or len(set(found)) != expected:
            raise InternalError(f"schedule: {len(set(found))} of {expected} {side} works were done")
