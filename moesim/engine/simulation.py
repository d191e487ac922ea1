"""Runs simulated steps: devices, slots and events on one simpy clock, then once-a-step work, then conservation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.core import EmptySchedule

from moesim.engine.conservation import check_step
from moesim.engine.durations import Durations
from moesim.engine.recorder import Recorder
from moesim.engine.streams import STREAMS, Device, Done, SlotRun
from moesim.garbage import uncollected
from moesim.randomness import Streams
from moesim.step.model import StepModel
from moesim.step.operations import Operation
from moesim.step.routed import RoutedWork
from moesim.step.schedules import Key, inputs, stays

Floats = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]
Report = Callable[[float], None]


@dataclass(frozen=True)
class SimulatedStep:
    """One step: its length, and for each reason the seconds that a pipeline rank's compute stream waited (mean over
    ranks of the group and over pipeline ranks); `columns` are its operations."""

    seconds: float
    waited: dict[str, float]
    columns: Columns
    events: int


def simulate_step(
    model: StepModel, routed: RoutedWork | None, step: int, streams: Streams, report: Report | None = None
) -> SimulatedStep:
    """Simulates one optimizer step of one expert-parallel group through all pipeline ranks."""
    env = simpy.Environment()
    durations = Durations(model, routed, step, streams)
    recorder = Recorder(durations.ranks, step)
    devices = [Device(env, stage, durations, recorder) for stage in range(len(model.order))]
    _plan(env, model, devices)
    for device in devices:
        _gather_parameters(model, device)
        device.start()
    with uncollected():
        _run(env, recorder, sum(len(run.operations) for device in devices for run in device.runs), report)
    done = _finish(model, devices, recorder)
    check_step(model, devices, done.columns)
    _add_loads(durations, done.columns)
    return done


def _plan(env: simpy.Environment, model: StepModel, devices: list[Device]) -> None:
    """Gives every device its slots, with one event an operation and one for each output that a neighbour waits for."""
    last_chunk = model.scenario.virtual_stages - 1
    events: defaultdict[Key, simpy.Event] = defaultdict(env.event)
    positions: dict[int, dict[str, list[int]]] = {}
    for device, slots in zip(devices, model.order, strict=True):
        own = stays(slots, last_chunk)
        for slot in slots:
            operations, _, slowed = model.work(slot)
            entry = dict.fromkeys(("forward", "backward", "weight"))
            needs = inputs(slot, last_chunk)
            entry.update({key[0]: events[key] for key in needs})
            hops = {key[0]: 0.0 if key in own else device.durations.hop for key in needs}
            leaving: dict[str, simpy.Event | None] = {"weight": None}
            sends = {"weight": False}
            for side, end in (("forward", last_chunk), ("backward", 0)):
                work = getattr(slot, side)
                leaving[side] = events[side, work.chunk, work.microbatch] if work is not None else None
                sends[side] = work is not None and work.chunk != end and (side, *work) not in own
            if id(operations) not in positions:  # slots of the same chunks share their operations
                positions[id(operations)] = _positions(operations)
            places = positions[id(operations)]
            done = [Done(env) for _ in operations]
            device.runs.append(SlotRun(slot, operations, places, done, entry, leaving, hops, sends, slowed))


def _positions(operations: tuple[Operation, ...]) -> dict[str, list[int]]:
    """Where each stream's operations stand."""
    return {name: [at for at, operation in enumerate(operations) if operation.stream == name] for name in STREAMS}


def _gather_parameters(model: StepModel, device: Device) -> None:
    """A rank's first forward begins when as much of the parameter gathering is over as compute cannot hide."""
    once = model.data_parallel[device.stage]
    wait = model.gather_wait(device.stage)
    device.recorder.waits(device.stage, "data-parallel", wait)
    device.recorder.once(device.stage, "parameter gathering", device.free["compute"], once.gather)
    for stream in STREAMS:
        device.free[stream] = device.free[stream] + wait


def _run(env: simpy.Environment, recorder: Recorder, total: int, report: Report | None) -> None:
    """Runs to the end, telling now and then what share of the operations is done."""
    if report is None:
        env.run()
        return
    stride, step = max(1, total // 50), env.step
    told = 0
    with suppress(EmptySchedule):
        while True:
            for _ in range(stride):  # an operation takes an event or more: looked at often enough
                step()
            if recorder.rows >= told + stride:
                told = recorder.rows
                report(told / total)


def _finish(model: StepModel, devices: list[Device], recorder: Recorder) -> SimulatedStep:
    """Gradient reduction and update after each rank's last slot; the step ends with the last pipeline rank.

    Ranks of the group that are ready early wait for the slowest at the gradient reduction.
    """
    ends = []
    for device in devices:
        once = model.data_parallel[device.stage]
        if device.gradients is not None:
            device.gradients.network.check()
        late = device.gradients.delay if device.gradients else 0.0
        reduction = model.reduce_wait(device.stage, late)
        free = device.free["compute"]
        last = float(free.max())
        recorder.waits(device.stage, "data-parallel", reduction + last - float(free.mean()))
        recorder.waits(device.stage, "optimizer", once.optimizer)
        recorder.once(device.stage, "gradient reduction", free + reduction - once.reduce - late, once.reduce + late)
        recorder.once(device.stage, "optimizer", free + reduction, once.optimizer)
        ends.append(last + reduction + once.optimizer)
    seconds = max(ends)
    for device, end in zip(devices, ends, strict=True):
        recorder.waits(device.stage, "bubble", seconds - end)
    waited: defaultdict[str, float] = defaultdict(float)
    for (_, reason), value in recorder.waited.items():
        waited[reason] += value / len(devices)
    return SimulatedStep(seconds, dict(waited), recorder.columns(), recorder.rows)


def _add_loads(durations: Durations, columns: Columns) -> None:
    """Bytes, rows and basis of every operation, from the routing sample that its microbatch used."""
    count = len(columns["layer"])
    columns.update(bytes_up=np.zeros(count), bytes_out=np.zeros(count), rows=np.zeros(count))
    kinds, basis = columns["kind"], np.full(count, durations.model.prices.rates.basis, dtype="<U9")
    exchanged = np.isin(kinds, ("dispatch", "combine"))
    basis[exchanged | (kinds == "send")] = durations.model.mover.even.basis
    columns["basis"] = basis
    routed = durations.routed
    if routed is None:
        return
    parts = durations.model.scenario.microbatch_parts
    moe_place = np.full(durations.model.scenario.model.layers + 1, -1)
    for moe_layer, position in durations.model.moe_index.items():
        moe_place[moe_layer] = position
    for name in ("dispatch", "combine", "experts"):
        rows = np.flatnonzero(kinds == name)
        layer = moe_place[columns["layer"][rows]]
        sample = durations.sample_of[layer, columns["microbatch"][rows]]
        if name == "experts":
            # A part's rows, but for weight gradients alone in their slot, which are those of the whole microbatch.
            whole = (columns["phase"][rows] == "weight") & (not durations.model.aside.weights)
            columns["rows"][rows] = routed.rows.sum(axis=-1)[layer, sample] / np.where(whole, 1, parts)
            continue
        exchange = getattr(routed, name)
        columns["bytes_up"][rows] = exchange.bytes_up.sum(axis=-1)[layer, sample] / parts
        columns["bytes_out"][rows] = exchange.bytes_out.sum(axis=-1)[layer, sample] / parts
