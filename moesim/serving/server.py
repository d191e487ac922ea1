"""One engine on the simpy clock: iterations one after the other, or many that are alike in one jump.

B iterations of a jump, R attention replicas.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.errors import InternalError
from moesim.iteration.batch import Batch
from moesim.iteration.offload import Missing
from moesim.serving.deployment import EnginePool
from moesim.serving.engine import Engine, Iteration, Task
from moesim.serving.imbalance import Draws
from moesim.serving.pricing import decode_iterations, expert_tokens, one_iteration
from moesim.serving.recorder import Log, Times
from moesim.serving.requests import Requests

Floats = NDArray[np.float64]
Process = Generator[Any, Any, None]


class Surroundings(Protocol):
    """What an engine knows of the deployment; `apart`: prompts and outputs have engines of their own."""

    env: simpy.Environment
    requests: Requests
    times: Times
    apart: bool

    def prompt_done(self, server: Server, task: Task, now: float) -> None:
        """A prefill engine has a prompt complete."""
        ...

    def fetch(self, receiver: Server, task: Task, now: float) -> None:
        """Room is reserved for a KV cache that is elsewhere."""
        ...

    def finish(self, request: int, now: float) -> None:
        """A request is over."""
        ...


class Server:
    """One engine on the clock."""

    def __init__(self, deployment: Surroundings, pool: EnginePool, index: int, last: bool, longest_jump: int) -> None:
        self.deployment, self.pool, self.index, self.last = deployment, pool, index, last
        self.engine = Engine(pool.rules)
        self.draws: Draws = pool.draws(index)
        self.fetches = pool.fetches(index)
        self.log = Log(f"{pool.phase}{index}", pool.phase, pool.rules.kv_tokens * pool.rules.replicas)
        self.outstanding = 0
        self.sources: dict[int, tuple[Server, Task]] = {}
        self.link_free = [0.0] * pool.rules.replicas
        self.arrived: list[Task] = []  # admitted, with their KV cache here, for the next iteration
        self.fresh: list[Task] = []  # joined without a first token: their first iteration gives it
        self.clock, self.count = 0.0, 0
        self.bell: simpy.Event | None = None
        self.rang = 0.0
        self.longest_jump, self.jump = longest_jump, 1

    def submit(self, request: int, now: float) -> None:
        """Puts a request into the queue."""
        requests, phase = self.deployment.requests, self.pool.phase
        prompt, asked = int(requests.input_tokens[request]), int(requests.output_tokens[request])
        fetched = phase == "decode" and self.deployment.apart
        outputs = 0 if phase == "prefill" else asked if phase == "decode" and not fetched else asked - 1
        left = 0 if phase == "decode" else prompt - int(requests.cached[request])
        task = Task(request, prompt, left, outputs, prompt + max(outputs, 0))
        blocked = bool(self.engine.waiting)
        self.engine.waiting.append(task)
        self.outstanding += prompt + asked
        times = self.deployment.times
        place = times.decode_instance if phase == "decode" else times.prefill_instance
        place[request] = self.index
        if phase == "mixed":
            times.decode_instance[request] = self.index
        if not blocked and not fetched:
            self.ring(now)

    def ring(self, now: float) -> None:
        """Tells the engine that something could join its batch."""
        if self.bell is not None and not self.bell.triggered:
            self.rang = now
            self.bell.succeed()

    def admit_arrived(self, now: float) -> None:
        """Reserves room for requests whose KV cache is elsewhere, and has them fetched."""
        for task in self.engine.admit():
            self.deployment.fetch(self, task, now)

    def join(self, task: Task, now: float) -> None:
        """A request's KV cache is here."""
        self.arrived.append(task)
        self.ring(now)

    def leave(self, task: Task, now: float) -> None:
        """A request leaves this engine with its KV cache."""
        if not self.last:
            self.engine.settle(task)
        self.engine.release(task)
        requests = self.deployment.requests
        self.outstanding -= int(requests.input_tokens[task.request] + requests.output_tokens[task.request])
        self._after_release(now)

    def _after_release(self, now: float) -> None:
        if self.pool.phase == "decode" and self.deployment.apart:
            self.admit_arrived(now)
        elif self.engine.waiting:
            self.ring(now)

    def run(self) -> Process:
        """Iterations for ever; sleeps while there is nothing to compute."""
        env = self.deployment.env
        while True:
            self._let_in()
            if self.engine.idle:
                self.bell = env.event()
                yield self.bell
                self.bell = None
                self.clock = max(self.clock, self.rang)
                continue
            iteration = self.engine.next_iteration()
            if iteration.chunks:
                yield from self._with_prompts(iteration)
            else:
                yield from self._decode()

    def _let_in(self) -> None:
        """Whoever has room joins."""
        engine, begin = self.engine, self.deployment.times.begin
        if self.pool.phase == "decode" and self.deployment.apart:
            for task in self.arrived:
                engine.decode(task)
            self.arrived.clear()
            return
        for task in engine.admit():
            begin[task.request] = self.clock
            if task.left:
                engine.prefill(task)
            else:
                engine.decode(task)
                self.fresh.append(task)

    def _with_prompts(self, iteration: Iteration) -> Process:
        """One iteration that computes prompt tokens."""
        engine, rules = self.engine, self.pool.rules
        decoders = engine.decoders * int(iteration.decodes)
        context = engine.context * float(iteration.decodes)
        batch = one_iteration(iteration.tokens, iteration.context, decoders, context)
        peaks = self.draws.peaks(expert_tokens(batch, rules.positions), self.count, True)
        seconds = float(self._seconds(batch, peaks.rank, True)[0][0])
        begin, self.clock, self.count = self.clock, self.clock + seconds, self.count + 1
        prompts = float(iteration.tokens.sum())
        grown = float(engine.growth.sum()) if iteration.decodes else 0.0
        together = len(iteration.chunks) + engine.decoding  # those that prompts hold up are in the batch too
        held = (engine.tokens_held, int(engine.reserved.sum()), len(engine.waiting))
        prompts_at = np.bincount([chunk.task.replica for chunk in iteration.chunks], minlength=rules.replicas)
        share = _peak(engine.decoders + prompts_at)
        yield self.deployment.env.timeout(max(0.0, self.clock - self.deployment.env.now))
        done = engine.finish_prompts(iteration)
        ended = engine.advance(1) if iteration.decodes else []
        self.log.add(
            begin, self.clock, 1, prompts, grown + len(done), together, held[2], held[0] + prompts / 2, held[1],
            float(peaks.rank[0]), float(peaks.rank[0]), float(peaks.expert[0]), share,
            float(iteration.context.sum()), float(decoders.sum()), float(batch.decode_context[0]),
        )  # fmt: skip
        for task in done:
            self._prompt_done(task)
        for task in ended:
            self._ended(task)

    def _prompt_done(self, task: Task) -> None:
        """A prompt is complete, and with it the first token."""
        deployment = self.deployment
        if not self.last:
            deployment.prompt_done(self, task, self.clock)
            return
        deployment.times.prefilled[task.request] = deployment.times.first[task.request] = self.clock
        self.engine.settle(task)
        if task.outputs:
            self.engine.decode(task)
        else:
            self._ended(task)

    def _ended(self, task: Task) -> None:
        self.leave(task, self.clock)
        self.deployment.finish(task.request, self.clock)

    def _decode(self) -> Process:
        """Decode iterations, as many as nothing changes in, or until an arrival."""
        engine, env = self.engine, self.deployment.env
        B = min(engine.steps_to_end(), self.longest_jump, 2 * self.jump + 2)
        steps = np.arange(B, dtype=np.float64)
        batch = decode_iterations(engine.decoders, engine.context, engine.growth, steps)
        peaks = self.draws.peaks(expert_tokens(batch, self.pool.rules.positions), self.count, False)
        seconds, missing = self._seconds(batch, peaks.rank, False)
        ends = np.cumsum(np.concatenate([[self.clock], seconds]))[1:]
        self.bell = env.event()
        yield env.timeout(max(0.0, ends[-1] - env.now)) | self.bell
        rang, self.bell = self.bell.triggered, None
        made = B
        if rang and self.rang < ends[-1]:
            made = 1 + int(np.searchsorted(ends, self.rang, side="left"))
            yield env.timeout(max(0.0, ends[made - 1] - env.now))
        self.jump = made
        if missing is not None:
            self.log.wanted += float(missing.wanted[:made].sum())
            self.log.fetched += float(missing.missing[:made].sum())
        self._advance(made, ends, peaks.rank[:made], peaks.expert[:made])

    def _seconds(self, batch: Batch, peaks: Floats, prompts: bool) -> tuple[Floats, Missing | None]:
        """Length of iterations from this one on, and what they fetch from host memory."""
        if self.fetches is None:
            return self.pool.law.seconds(batch, peaks), None
        missing = self.fetches.at(expert_tokens(batch, self.pool.rules.positions), self.count, prompts)
        return self.pool.law.seconds(batch, peaks, missing), missing

    def _advance(self, made: int, ends: Floats, rank_peak: Floats, expert_peak: Floats) -> None:
        """Books `made` decode iterations that ended at `ends`."""
        engine, times = self.engine, self.deployment.times
        if self.fresh:
            for task in self.fresh:
                times.prefilled[task.request] = times.begin[task.request]
                times.first[task.request] = ends[0]
            self.fresh.clear()
        grown, held = float(engine.growth.sum()), engine.tokens_held
        begin, self.clock = self.clock, float(ends[made - 1])
        self.count += made
        self.log.add(
            begin, self.clock, made, 0.0, grown * made, engine.decoding, len(engine.waiting),
            held + grown * made / 2, int(engine.reserved.sum()),
            float(rank_peak.mean()), float(rank_peak.max()), float(expert_peak.mean()), _peak(engine.decoders),
            0.0, engine.decoding, float(engine.context.sum()) + grown * (made - 1) / 2,
        )  # fmt: skip
        for task in engine.advance(made):
            self._ended(task)


def _peak(values: NDArray[np.int64]) -> float:
    """max / mean; 1 where there is nothing."""
    total = int(values.sum())
    if total < 0:
        raise InternalError("an engine counts fewer than no requests")
    return float(values.max()) * len(values) / total if total else 1.0
