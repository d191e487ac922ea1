"""Requests through engines on one simpy clock: routing to engines, iterations, and KV caches on their way.

A process an engine. While nothing can join the batch its iterations are worked in one jump: their lengths are priced
together, and an arrival ends the jump after the iteration that it falls into. Times are those of the iterations' ends,
added up one by one, so that a jump and single steps give the same.

B iterations of a jump, R attention replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.errors import InfeasibleError
from moesim.serving.deployment import EnginePool
from moesim.serving.engine import Task
from moesim.serving.recorder import Log, Times, check_conservation
from moesim.serving.requests import Requests
from moesim.serving.server import Server

Floats = NDArray[np.float64]
Process = Generator[Any, Any, None]
Progress = Callable[[str, float], None]
RequestRouter = Literal["round-robin", "least-loaded"]
LONGEST_JUMP = 64


@dataclass(frozen=True)
class Run:
    """What a simulation saw."""

    requests: Requests
    times: Times
    logs: list[Log]


def simulate_requests(
    pools: Sequence[EnginePool],
    requests: Requests,
    router: RequestRouter = "least-loaded",
    progress: Progress | None = None,
    longest_jump: int = LONGEST_JUMP,
) -> Run:
    """Sends every request through one engine, or one of the first pool and then one of the second.

    Raises `InfeasibleError` where a request is longer than a KV cache.
    """
    check_room(pools, requests)
    env = simpy.Environment()
    deployment = _Deployment(env, pools, requests, router, progress, longest_jump)
    deployment.start()
    env.run()
    logs = [server.log for group in deployment.groups for server in group]
    check_conservation(requests, deployment.times, logs)
    return Run(requests, deployment.times, logs)


def check_room(pools: Sequence[EnginePool], requests: Requests) -> None:
    """Raises `InfeasibleError` where the longest request does not fit into one replica's KV cache."""
    for pool in pools:
        outputs = 1 if pool.phase == "prefill" else requests.output_tokens
        longest = int((requests.input_tokens + outputs - 1).max())
        if longest > pool.rules.kv_tokens:
            raise InfeasibleError(
                f"the longest request holds {longest:,} tokens; the KV cache of one attention replica of a"
                f" {pool.phase} instance has room for {pool.rules.kv_tokens:,}: use more GPUs a replica (tensor),"
                " a larger kv_cache_fraction, a smaller kv_format, or shorter requests"
            )


class _Deployment:
    """The engines, and what happens to a request between them."""

    def __init__(
        self,
        env: simpy.Environment,
        pools: Sequence[EnginePool],
        requests: Requests,
        router: RequestRouter,
        progress: Progress | None,
        longest_jump: int,
    ) -> None:  # fmt: skip
        self.env, self.requests, self.router, self.progress = env, requests, router, progress
        self.times, self.apart = Times(requests), len(pools) > 1
        self.groups = [
            [Server(self, pool, index, pool is pools[-1], longest_jump) for index in range(pool.count)]
            for pool in pools
        ]
        self.turn = [0] * len(pools)
        self.sent = self.done = 0

    def start(self) -> None:
        """Starts the engines and the arrivals."""
        for group in self.groups:
            for server in group:
                self.env.process(server.run())
        if self.requests.concurrency is None:
            self.env.process(self._arrivals())
            return
        for _ in range(min(self.requests.concurrency, self.requests.count)):
            self._send_next(0.0)

    def _arrivals(self) -> Process:
        for request, arrival in enumerate(self.requests.arrival.tolist()):
            if arrival > self.env.now:  # those of one moment come together
                yield self.env.timeout(arrival - self.env.now)
            self._submit(0, request, arrival)

    def _send_next(self, now: float) -> None:
        request, self.sent = self.sent, self.sent + 1
        self.times.arrival[request] = now
        self._submit(0, request, now)

    def _submit(self, at: int, request: int, now: float) -> Server:
        """Gives a request to an engine of pool `at`: in turn, or to the one with fewest tokens outstanding."""
        group = self.groups[at]
        if self.router == "round-robin":
            server = group[self.turn[at] % len(group)]
            self.turn[at] += 1
        else:
            server = min(group, key=lambda one: one.outstanding)
        server.submit(request, now)
        return server

    def prompt_done(self, server: Server, task: Task, now: float) -> None:
        """A prefill engine has a prompt complete: a decode engine is found, which fetches the KV cache."""
        self.times.prefilled[task.request] = now
        receiver = self._submit(1, task.request, now)
        receiver.sources[task.request] = (server, task)
        receiver.admit_arrived(now)

    def fetch(self, receiver: Server, task: Task, now: float) -> None:
        """Starts a KV cache on its way to where room is reserved for it, after those that its sender has to send."""
        self.env.process(self._transfer(receiver, task, now))

    def _transfer(self, receiver: Server, task: Task, now: float) -> Process:
        sender, sent = receiver.sources.pop(task.request)
        begin = max(now, sender.link_free[sent.replica])
        end = begin + sender.pool.transfer_seconds(task.prompt)
        sender.link_free[sent.replica] = end
        yield self.env.timeout(max(0.0, end - self.env.now))
        times = self.times
        times.transfer[task.request] = end - times.prefilled[task.request]
        times.first[task.request] = end
        sender.leave(sent, end)
        if task.outputs:
            receiver.join(task, end)
        else:
            receiver.leave(task, end)
            self.finish(task.request, end)

    def finish(self, request: int, now: float) -> None:
        """A request is over; in a closed loop the next one comes."""
        self.times.end[request] = now
        self.times.ended[request] += 1
        self.done += 1
        if self.progress is not None and self.done % 200 == 0:
            self.progress("simulating requests", self.done / self.requests.count)
        if self.requests.concurrency is not None and self.sent < self.requests.count:
            self._send_next(now)
