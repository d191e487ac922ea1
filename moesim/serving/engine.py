"""One engine's books: who waits, who is in the batch, what each holds of the KV cache; no clock, no prices.

R attention replicas, each with a KV cache and a share of the batch of its own; all work on one iteration together.
Admission is by reservation: the first request of the queue enters when a replica has a seat and KV room for its prompt
and all its output, so that no request is ever thrown out and computed again (TensorRT-LLM's guaranteed-no-evict; an
engine that preempts instead, as vLLM does, holds a larger batch where the KV cache is what limits it).
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InternalError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rules:
    """What an engine is told; tokens, requests and KV room are those of one attention replica.

    `tokens_per_step`: output tokens that a decoding request gains in an iteration; `positions`: what it computes there.
    """

    replicas: int
    token_budget: int
    max_requests: int
    kv_tokens: int
    chunked_prefill: bool = True
    tokens_per_step: float = 1.0
    positions: int = 1


@dataclass(slots=True)
class Task:
    """One request inside an engine: `prompt` tokens in all, `left` of them to compute; `outputs` tokens to decode here,
    `room` tokens of KV cache reserved."""

    request: int
    prompt: int
    left: int
    outputs: int
    room: int
    replica: int = -1
    growth: float = 0.0
    joined: int = 0


@dataclass(frozen=True)
class Chunk:
    """New prompt tokens of one task in one iteration; `before`: tokens of its context that were there."""

    task: Task
    tokens: int
    before: int


@dataclass
class Iteration:
    """What one iteration computes, by replica [R]; `decodes`: whether decoding requests take part."""

    chunks: list[Chunk]
    tokens: Floats
    context: Floats
    decodes: bool


@dataclass
class Engine:
    """The state of one engine."""

    rules: Rules
    waiting: deque[Task] = field(default_factory=deque)
    step: int = 0

    def __post_init__(self) -> None:
        R = self.rules.replicas
        self.prompts: list[deque[Task]] = [deque() for _ in range(R)]
        self.pending: set[int] = set()  # replicas that have prompts to compute
        self.ending: list[tuple[int, int, Task]] = []  # decoding tasks by their last step
        self.reserved = np.zeros(R, np.int64)
        self.seats = np.zeros(R, np.int64)
        self.left = np.zeros(R, np.int64)  # prompt tokens to compute
        self.decoders = np.zeros(R, np.int64)
        self.context = np.zeros(R)
        self.growth = np.zeros(R)
        self.computed = 0  # prompt tokens in the cache whose request does not decode here yet, or never will
        self.decoding = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.decoding and not self.pending

    @property
    def tokens_held(self) -> float:
        """Tokens in the KV cache, over all replicas."""
        return float(self.context.sum()) + self.computed

    def admit(self) -> list[Task]:
        """Lets in the head of the queue again and again, each to the replica that has room with fewest prompt tokens to
        compute, of these with least reserved: all replicas wait for the one that computes longest."""
        admitted: list[Task] = []
        while self.waiting:
            task = self.waiting[0]
            fits = (self.reserved + task.room <= self.rules.kv_tokens) & (self.seats < self.rules.max_requests)
            if not fits.any():
                break
            task.replica = int(np.lexsort((self.reserved, self.left, ~fits))[0])
            self.reserved[task.replica] += task.room
            self.left[task.replica] += task.left
            self.seats[task.replica] += 1
            admitted.append(self.waiting.popleft())
        return admitted

    def prefill(self, task: Task) -> None:
        """Puts an admitted task in line for its prompt."""
        self.prompts[task.replica].append(task)
        self.pending.add(task.replica)
        self.computed += task.prompt - task.left

    def decode(self, task: Task) -> None:
        """Lets a task whose prompt is in the cache join the decoding ones, from the next iteration on."""
        steps = -int(-task.outputs // self.rules.tokens_per_step)
        task.growth, task.joined = task.outputs / steps, self.step
        r = task.replica
        self.decoders[r] += 1
        self.decoding += 1
        self.context[r] += task.prompt
        self.growth[r] += task.growth
        heapq.heappush(self.ending, (self.step + steps, task.request, task))

    def next_iteration(self) -> Iteration:
        """The next iteration: with chunked prefill decoding requests first and prompts in what the token budget leaves;
        without it whole prompts alone where there are any, as many as the budget takes and at least one a replica."""
        rules = self.rules
        tokens, context = np.zeros(rules.replicas), np.zeros(rules.replicas)
        chunks: list[Chunk] = []
        for r in sorted(self.pending):
            budget = rules.token_budget
            if rules.chunked_prefill:
                budget -= int(self.decoders[r]) * rules.positions
            for task in self.prompts[r]:
                take = min(task.left, budget) if rules.chunked_prefill else task.left
                if take <= 0 or (take > budget and tokens[r]):
                    break
                before = task.prompt - task.left
                chunks.append(Chunk(task, take, before))
                tokens[r] += take
                context[r] += take * (before + take / 2)
                budget -= take
        decodes = bool(self.decoding) and (rules.chunked_prefill or not chunks)
        return Iteration(chunks, tokens, context, decodes)

    def steps_to_end(self) -> int:
        """Decode steps until the first decoding task ends."""
        return self.ending[0][0] - self.step

    def finish_prompts(self, iteration: Iteration) -> list[Task]:
        """Books an iteration's prompt tokens; returns the tasks whose prompt is complete."""
        done: list[Task] = []
        for chunk in iteration.chunks:
            task = chunk.task
            task.left -= chunk.tokens
            self.left[task.replica] -= chunk.tokens
            self.computed += chunk.tokens
            if task.left == 0:
                if self.prompts[task.replica].popleft() is not task:
                    raise InternalError("prompts of a replica are computed in their order")
                if not self.prompts[task.replica]:
                    self.pending.discard(task.replica)
                done.append(task)
        return done

    def advance(self, steps: int) -> list[Task]:
        """Takes `steps` decode steps; returns the tasks that end with the last of them."""
        self.step += steps
        self.context += self.growth * steps
        done: list[Task] = []
        while self.ending and self.ending[0][0] <= self.step:
            last, _, task = heapq.heappop(self.ending)
            if last < self.step:
                raise InternalError("a jump went past the end of a request")
            r = task.replica
            self.decoders[r] -= 1
            self.decoding -= 1
            self.growth[r] -= task.growth
            self.context[r] -= task.prompt + task.outputs
            if not self.decoders[r]:  # nothing is left of what sums of fractions leave
                self.context[r] = self.growth[r] = 0.0
            done.append(task)
        return done

    def settle(self, task: Task) -> None:
        """Forgets that a complete prompt of a task that decodes here, or is over, was counted by itself."""
        self.computed -= task.prompt

    def release(self, task: Task) -> None:
        """Gives back the seat and the KV room of a task that leaves."""
        self.reserved[task.replica] -= task.room
        self.seats[task.replica] -= 1
