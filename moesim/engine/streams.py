"""One pipeline rank of an expert-parallel group on simpy: a compute stream and a communication stream.

An operation is one simpy event; its payload is the array [R] of the times at which each rank of the group ends it.
A local operation ends when its rank has worked; a dispatch or combine ends on rank r when r's own sends are out and
everything meant for r has arrived, which waits for the slowest begin in the group: that is how a slow rank delays
its peers. The simpy clock stands at the last rank's end. Ties are simpy's: time, priority, insertion number; streams
are inserted by pipeline rank, compute before communication.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.engine.beside import Exchanges
from moesim.engine.contention import SharedPorts, reduction_wire, shares_ports
from moesim.engine.durations import Durations
from moesim.engine.recorder import Recorder
from moesim.errors import InternalError
from moesim.step.operations import Operation
from moesim.step.schedules import Slot

Floats = NDArray[np.float64]
Process = Generator[Any, Any, None]
Delays = Generator[Any, Any, tuple[Floats, Floats]]
STREAMS = ("compute", "communication")


class Done(simpy.Event):
    """An operation's end, for all who wait for it."""

    def happens(self, times: Floats) -> None:
        """Puts it on the clock for when the last rank ends: `times` [R]."""
        self._ok, self._value = True, times
        self.env.schedule(self, delay=max(0.0, float(np.maximum.reduce(times)) - self.env.now))


@dataclass(frozen=True)
class SlotRun:
    """One slot of one pipeline rank: operations, their events, and by side the events of its inputs and outputs, the
    seconds that an input is on its way, and whether an output is sent. `slowed`: how many times as long each operation
    takes while an exchange runs; None where none runs beside any."""

    slot: Slot
    operations: tuple[Operation, ...]
    positions: dict[str, list[int]]
    done: list[Done]
    entry: dict[str, simpy.Event | None]
    exit: dict[str, simpy.Event | None]
    hops: dict[str, float]
    sends: dict[str, bool]
    slowed: list[float] | None = None

    def last(self, stream: str) -> int | None:
        """Position of the slot's last operation on a stream, if any."""
        return self.positions[stream][-1] if self.positions[stream] else None

    def output(self, side: str) -> Floats | None:
        """When each rank [R] has the slot's output on a side; None while an operation that makes it runs."""
        made = [event for event, operation in zip(self.done, self.operations, strict=True) if _makes(operation, side)]
        if not all(event.processed for event in made):
            return None
        output: Floats = np.maximum.reduce([ended(event) for event in made])
        return output


def _makes(operation: Operation, side: str) -> bool:
    return operation.exit and operation.side == side


def ended(event: simpy.Event) -> Floats:
    """When each rank [R] ended the operation whose event has happened."""
    times = event.value
    if not isinstance(times, np.ndarray):
        raise InternalError(f"an operation ended without saying when: {event}")
    return times


def mean(values: Floats) -> float:
    """Mean over ranks; several times quicker than the method on arrays this small."""
    return float(np.add.reduce(values)) / len(values)


class Device:
    """One pipeline rank of the simulated group; `runs` are its slots in schedule order."""

    def __init__(self, env: simpy.Environment, stage: int, durations: Durations, recorder: Recorder) -> None:
        self.env, self.stage, self.durations, self.recorder = env, stage, durations, recorder
        self.runs: list[SlotRun] = []
        self.free = {stream: np.zeros(durations.ranks) for stream in STREAMS}
        self.communicating_since = np.zeros(durations.ranks)
        self.late: dict[int, Floats] = {}
        self.gradients: SharedPorts | None = None
        self.exchanges = Exchanges()

    def start(self) -> None:
        """Puts both streams on the clock."""
        for stream in STREAMS:
            self.env.process(self._stream(stream))

    def _stream(self, stream: str) -> Process:
        """Every slot's operations on one stream, in issue order; a slot begins when the one before it has ended."""
        before: SlotRun | None = None
        for run in self.runs:
            if before is not None:
                yield from self._slot_ends(before, stream)
            self._waits(run, stream)
            if stream == "compute" and run is self._last_backward:
                self._reduce_gradients()
            for position in run.positions[stream]:
                yield from self._operation(run, position, stream)
            before = run
        if before is not None:
            yield from self._slot_ends(before, stream)

    @cached_property
    def _last_backward(self) -> SlotRun | None:
        """The slot with which the gradient reduction begins where it shares links with exchanges."""
        if not shares_ports(self.durations.model, self.stage):
            return None
        return next((run for run in reversed(self.runs) if run.slot.backward is not None), None)

    def _reduce_gradients(self) -> None:
        """Puts the gradients on the wire."""
        self.gradients = SharedPorts(self.env, reduction_wire(self.durations.model, self.stage))

    def _shared_exchange(self, ports: SharedPorts, run: SlotRun, operation: Operation) -> Delays:
        """Runs an exchange beside the gradients; how much later each rank's sends and receives end [R]."""
        leaves = self.durations.model.data_parallel[self.stage].leaves_domain
        asked, began = self.durations.wire(run.slot, operation, leaves), self.env.now
        ends = yield ports.exchange(asked)
        return ports.delays(asked, began, ends)

    def _waits(self, run: SlotRun, stream: str) -> None:
        """A slot begins when what sharding repeats for it is done, and its neighbours' messages are taken."""
        model = self.durations.model
        waits = {"data-parallel": model.shard_wait(self.stage, run.slot), "bubble": model.message_wait(run.slot)}
        for reason, wait in waits.items():
            if wait:
                self.free[stream] = self.free[stream] + wait
                if stream == "compute":
                    self.recorder.waits(self.stage, reason, wait)

    def _slot_ends(self, run: SlotRun, stream: str) -> Process:
        """Waits for the other stream's last operation of the slot just left."""
        other = STREAMS[stream == "compute"]
        last = run.last(other)
        if last is None:
            return
        event = run.done[last]
        if not event.processed:
            yield event
        free = np.maximum(self.free[stream], ended(event))
        if stream == "compute":
            self.recorder.waits(self.stage, run.operations[last].kind, mean(free - self.free[stream]))
        self.free[stream] = free

    def _operation(self, run: SlotRun, position: int, stream: str) -> Process:
        """Waits for what one operation needs, then lets it take its time on every rank."""
        operation = run.operations[position]
        begin = self.free[stream]
        events = [run.done[before] for before in operation.after]
        for event in events:
            if not event.processed:
                yield event
            if event.value is not begin:  # the stream's own last operation says nothing new
                begin = np.maximum(begin, ended(event))
        arrival = run.entry[operation.side] if operation.entry else None
        if arrival is not None:
            if not arrival.processed:
                yield arrival
            arrived = ended(arrival) + run.hops[operation.side]
            if stream == "communication":
                self.late[position] = np.maximum(arrived - begin, 0.0)
            begin = np.maximum(begin, arrived)
        begin = self.durations.together(operation, begin)
        if run.slowed is not None and stream == "compute" and run.slowed[position] > 1.0:
            yield from self._slowed(run, position, begin)
        else:
            yield from self._undisturbed(run, position, begin)
        leaving = run.exit[operation.side] if operation.exit else None
        output = run.output(operation.side) if leaving is not None else None
        if leaving is not None and output is not None:
            leaving.succeed(output)
            if run.sends[operation.side]:
                self.recorder.message(self.stage, run.slot, operation, output, self.durations.hop)

    def _undisturbed(self, run: SlotRun, position: int, begin: Floats) -> Process:
        """An operation whose end is known when it begins, or an exchange beside gradients."""
        operation, late = run.operations[position], None
        exchanges = operation.stream == "communication"
        if exchanges and run.slowed is not None:
            self.exchanges.begins(begin)
        if exchanges and self.gradients is not None and self.gradients.busy:
            late = yield from self._shared_exchange(self.gradients, run, operation)
        end, busy = self.durations.run(run.slot, operation, begin, late)
        if exchanges and run.slowed is not None:
            self.exchanges.ends(end)
        self._account(run, operation, begin)
        self.recorder.operation(self.stage, run.slot, operation, begin, end, busy)
        self.free[operation.stream] = end
        run.done[position].happens(end)
        yield run.done[position]

    def _slowed(self, run: SlotRun, position: int, begin: Floats) -> Process:
        """Compute that ends the later, the more of its time an exchange runs.

        It is looked at when it must be over, for by then all exchanges that ran beside it have begun. Where ranks drift
        apart, one that follows another still under way on the slowest rank is missed until that is over.
        """
        operation, slowed = run.operations[position], run.slowed[position] if run.slowed else 1.0
        end, alone = self.durations.run(run.slot, operation, begin)
        latest = float(np.maximum.reduce(begin + slowed * alone))
        self._account(run, operation, begin)
        yield self.env.timeout(max(0.0, latest - self.env.now))
        end = self.exchanges.finished(begin, alone, slowed)
        self.recorder.operation(self.stage, run.slot, operation, begin, end, end - begin)
        self.free[operation.stream] = end
        run.done[position].happens(end)
        yield run.done[position]

    def _account(self, run: SlotRun, operation: Operation, begin: Floats) -> None:
        """Splits the compute stream's idle time before an operation into exposed communication and pipeline wait.

        An exchange whose input came late from another pipeline rank is waited for that much longer: that is the
        pipeline's, though without it the exchange would have been over, or hidden.
        """
        free = self.free[operation.stream]
        if operation.stream == "communication":
            self.communicating_since = np.where(begin > free, begin, self.communicating_since)
            return
        if begin is free:
            return
        gap = begin - free
        waited = run.operations[operation.after[0]] if operation.after else operation
        if waited.stream == "communication":
            if waited.entry:
                exposed = np.maximum(gap - self.late.pop(operation.after[0], 0.0), 0.0)
            else:
                exposed = np.minimum(np.maximum(begin - np.maximum(free, self.communicating_since), 0.0), gap)
            self.recorder.waits(self.stage, waited.kind, mean(exposed))
            gap = gap - exposed
        alone = operation.entry or waited.stream == "communication"
        self.recorder.waits(self.stage, "bubble" if alone else "tensor-parallel", mean(gap))
