"""One instance in its steady state: what the mean iteration holds, and what follows for requests.

D requests decode, each for s iterations; so D / s prompts are done an iteration, which brings D / s x new prompt tokens
into the mean one. Prompts come at random: a share of iterations 1 - exp(-D / s) has any, at least as many as fill no
more than the token budget. In a closed loop the requests of the loop are those that decode, wait, or are prefilled
(Little's law); open arrivals fix the rate instead, and the waiting for prefill is Kingman's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, exp, inf

import numpy as np

from moesim.iteration.law import Batch, IterationLaw
from moesim.scenario.serving import Pool, ServingScenario
from moesim.serving.demand import Demand

_ROUNDS, _CLOSE = 60, 1e-4


@dataclass(frozen=True)
class SteadyState:
    """Means of a deployment; seconds, and rates of all its instances together.

    `binding`: what keeps it from doing more (or at all: then `feasible` is false and rates are the most it could do).
    `decoding`: requests that decode on one instance; `kv_use`: share of the KV cache; `parts`: seconds by part of the
    mean iteration of the instances that decode (or, in prefill alone, that prefill); `further_tokens` of a request
    after its first.
    """

    feasible: bool
    binding: str
    time_to_first_token: float
    time_per_output_token: float
    requests_per_second: float
    output_tokens_per_second: float
    input_tokens_per_second: float
    decoding: float
    kv_use: float
    parts: dict[str, float]
    further_tokens: float = 0.0

    @property
    def request_latency(self) -> float:
        """The first token, and all others."""
        further = self.time_per_output_token * self.further_tokens if self.further_tokens else 0.0
        return self.time_to_first_token + further


@dataclass(frozen=True)
class MeanIteration:
    """The mean iteration with D decoding requests: its seconds, the seconds of one with prompts, and the share of what
    the token budget lets it do. A `share` of iterations has `tokens` of prompts."""

    seconds: float
    with_prompts: float
    budget_use: float
    share: float = 0.0
    tokens: float = 0.0


class SteadyEngine:
    """One instance of a pool under its share of the demand."""

    def __init__(self, scenario: ServingScenario, pool: Pool, demand: Demand, law: IterationLaw) -> None:
        self.scenario, self.pool, self.demand, self.law = scenario, pool, demand, law
        self.replicas = pool.instance.replicas
        self.prefills, self.decodes = pool.phase != "decode", pool.phase != "prefill"
        self.steps = max(demand.output - 1.0, 0.0) / scenario.engine.speculative_tokens

    @cached_property
    def seats(self) -> dict[str, float]:
        """Most requests that the instance works on at once, by what limits them."""
        each = self.demand.prompt + (self.demand.output if self.decodes else 0.0)
        return {
            "the KV cache": self.law.kv_capacity_tokens / each,
            "engine.max_requests": float(self.scenario.engine.max_requests * self.replicas),
        }

    @cached_property
    def most(self) -> float:
        """Most requests at once."""
        return min(self.seats.values())

    @property
    def seat_limit(self) -> str:
        """What limits them."""
        return min(self.seats, key=lambda name: self.seats[name])

    def refusal(self) -> str | None:
        """Why the instance cannot work at all; None where it can."""
        gpu, law = self.scenario.cluster.gpu, self.law
        if law.kv_capacity_tokens <= 0:
            need = sum(law.memory_parts.values())
            part = max(law.memory_parts, key=lambda name: law.memory_parts[name])
            return (
                f"memory: weights and buffers need {need / 1e9:.1f} GB of {gpu.memory / 1e9:.1f} GB x"
                f" {self.scenario.engine.kv_cache_fraction:g}; the largest part is {part}"
            )
        return None if self.most >= 1.0 else f"memory: the KV cache holds {self.most:.2f} of a request"

    def mean(self, decoding: float) -> MeanIteration:
        """The mean iteration with so many decoding requests."""
        engine, demand = self.scenario.engine, self.demand
        room = max(float(engine.token_budget * self.replicas), 1.0)
        if engine.chunked_prefill:
            room = max(room - decoding * (1 + engine.drafted), 1.0)
        prompts = decoding / self.steps if self.prefills and self.steps else 0.0
        tokens = prompts * demand.new
        any_prompt = max(1.0 - exp(-prompts), tokens / room) if prompts else 0.0
        share = min(1.0, any_prompt)
        alone = self.seconds(decoding, 0.0)
        if not share:
            return MeanIteration(alone, alone, 0.0)
        at_once = min(tokens / share, room)
        if engine.chunked_prefill:
            both = self.seconds(decoding, at_once)
            return MeanIteration((1 - share) * alone + share * both, both, tokens / room, share, at_once)
        own = self.seconds(0.0, at_once)
        return MeanIteration(alone + share * own, own, tokens / room, share, at_once)

    def seconds(self, decoding: float, tokens: float) -> float:
        """Seconds of one iteration of so many decoding requests and new prompt tokens."""
        return float(self.law.seconds(self.batch(decoding, tokens))[0])

    def batch(self, decoding: float, tokens: float) -> Batch:
        """That iteration: decoding requests are half way through their outputs. A prompt is one replica's, so that the
        busiest has at least one, or the part of it that its token budget holds."""
        demand, replicas = self.demand, self.replicas
        context = demand.prompt + demand.output / 2
        each = demand.cached + demand.new / 2
        one = min(demand.new, float(self.scenario.engine.token_budget), tokens)
        most = max(tokens / replicas, one)

        def of(tokens: float, decoding: float, busiest: Batch | None = None) -> Batch:
            parts = (np.array([value]) for value in (tokens, tokens * each, decoding, decoding * context))
            new, pairs, requests, held = parts
            return Batch(new, pairs, requests, held, busiest)

        return of(tokens, decoding, of(most, decoding / replicas) if replicas > 1 else None)

    def prefill_seconds(self, decoding: float, mean: MeanIteration) -> float:
        """Seconds from a prompt's turn until its first token."""
        engine = self.scenario.engine
        room = float(engine.token_budget)
        if engine.chunked_prefill:
            room = max(room - decoding / self.replicas * (1 + engine.drafted), 1.0)
        chunks = max(1, ceil(self.demand.new / room - 1e-9))
        return chunks * max(mean.with_prompts, self.seconds(decoding, min(self.demand.new, room)))

    def closed(self) -> SteadyState:
        """With the concurrency of the loop."""
        each = (self.demand.concurrency or 1) / self.pool.count
        if not self.decodes or not self.steps:
            return self._closed_prefill(each)
        inside = min(each, self.most)

        def decoding(guess: float) -> float:
            mean = self.mean(guess)
            first, rest = self._first(guess, mean), self.steps * mean.seconds
            return min(inside * rest / (first + rest), self._fed(guess, mean))

        found = fixed_point(decoding, inside)
        mean = self.mean(found)
        rate = found / (self.steps * mean.seconds)
        first = each / rate - self.steps * mean.seconds + self._start(each)
        rate = each / (first + self.steps * mean.seconds)
        binding = self.seat_limit if each > self.most else "concurrency"
        return self._state(found, mean, rate, (max(first, 0.0), binding))

    def _start(self, each: float) -> float:
        """What the mean request waits because a loop's first requests come all at once: half the time that prefilling
        them takes, theirs alone."""
        if not self.prefills:
            return 0.0
        together = min(each, self.most)
        share = min(1.0, each * self.pool.count / self.scenario.workload.requests)
        return share * max(together - 1.0, 0.0) / 2 * self._batch_prefill()[1]

    def _first(self, decoding: float, mean: MeanIteration) -> float:
        return self.prefill_seconds(decoding, mean) if self.prefills else 0.0

    def _fed(self, decoding: float, mean: MeanIteration) -> float:
        """Requests that decode where prompts take the whole token budget: no more can be kept going."""
        return decoding / mean.budget_use if mean.budget_use > 1.0 else inf

    def open(self, rate: float) -> SteadyState:
        """At `rate` requests a second to all instances; not feasible where requests would pile up."""
        each = rate / self.pool.count
        if not self.decodes or not self.steps:
            return self._open_prefill(each)
        full = self._fullest()
        most = full / (self.steps * self.mean(full).seconds)
        if each >= most:
            limit = "engine.token_budget (prefill)" if full < self.most else self.seat_limit
            told = f"rate: {limit} lets an instance do {most:.3g} requests/s, {each:.3g} come"
            return replace(self._state(full, self.mean(full), most, (inf, told)), feasible=False)
        found = fixed_point(lambda guess: each * self.steps * self.mean(min(guess, full)).seconds, min(1.0, full))
        mean = self.mean(found)
        service = self._first(found, mean)
        wait = self._waiting(mean.budget_use, mean.with_prompts) if self.prefills else 0.0
        return self._state(found, mean, each, (mean.seconds / 2 + wait + service, "arrivals"))

    def _fullest(self) -> float:
        """Requests that decode where the instance does most: all seats taken, or prompts take the token budget."""
        return fixed_point(lambda guess: min(self.most, self._fed(guess, self.mean(guess))), self.most)

    def _waiting(self, use: float, service: float) -> float:
        """Kingman: waiting for prefill at utilisation `use`."""
        return (self.demand.burstiness + self.demand.prompt_variation) / 2 * use / max(1.0 - use, 1e-9) * service

    def _batch_prefill(self) -> tuple[float, float]:
        """Seconds that a prompt occupies the instance for: alone, and among as many as the token budget holds."""
        demand, budget = self.demand, float(self.scenario.engine.token_budget * self.replicas)
        alone = self._in_chunks(demand.new)
        together = max(1.0, budget // demand.new)
        return alone, min(alone, self._in_chunks(together * demand.new) / together)

    def _prefill_mean(self, alone: float, use: float) -> MeanIteration:
        """The iteration of one prompt, or of its first part."""
        budget = float(self.scenario.engine.token_budget * self.replicas)
        return MeanIteration(alone, alone, use, 1.0, min(self.demand.new, budget))

    def _in_chunks(self, tokens: float) -> float:
        budget = float(self.scenario.engine.token_budget * self.replicas)
        whole, rest = divmod(tokens, budget)
        return whole * self.seconds(0.0, budget) + (self.seconds(0.0, rest) if rest else 0.0)

    def _closed_prefill(self, each: float) -> SteadyState:
        alone, share = self._batch_prefill()
        together = alone / share
        rate = min(each, self.most) / max(alone, share * min(each, self.most, max(together, 1.0)))
        rate = min(rate, 1.0 / share)
        mean = self._prefill_mean(alone, 1.0)
        return self._state(0.0, mean, rate, (each / rate, "concurrency"))

    def _open_prefill(self, each: float) -> SteadyState:
        alone, share = self._batch_prefill()
        use = each * share
        mean = self._prefill_mean(alone, use)
        if use >= 1.0:
            told = f"rate: prefill lets an instance do {1 / share:.3g} requests/s, {each:.3g} come"
            return replace(self._state(0.0, mean, 1 / share, (inf, told)), feasible=False)
        return self._state(0.0, mean, each, (alone + self._waiting(use, share), "arrivals"))

    def _state(self, decoding: float, mean: MeanIteration, rate: float, first: tuple[float, str]) -> SteadyState:
        """The metrics of an instance that finishes `rate` requests a second, times the instances."""
        demand, count = self.demand, self.pool.count
        held = decoding * (demand.prompt + demand.output / 2)
        each_token = mean.seconds / self.scenario.engine.speculative_tokens if self.steps and self.decodes else 0.0
        return SteadyState(
            feasible=True,
            binding=first[1],
            time_to_first_token=first[0],
            time_per_output_token=each_token,
            requests_per_second=rate * count,
            output_tokens_per_second=rate * count * (demand.output if self.decodes else 1.0),
            input_tokens_per_second=rate * count * demand.prompt,
            decoding=decoding,
            kv_use=min(1.0, held / max(self.law.kv_capacity_tokens, 1)),
            parts=self._parts(decoding, mean),
            further_tokens=max(demand.output - 1.0, 0.0) if self.decodes else 0.0,
        )

    def _parts(self, decoding: float, mean: MeanIteration) -> dict[str, float]:
        """Seconds by part of the mean iteration."""
        batches = ((1.0 - mean.share, decoding, 0.0), (mean.share, decoding, mean.tokens))
        if not self.scenario.engine.chunked_prefill:
            batches = ((1.0, decoding, 0.0), (mean.share, 0.0, mean.tokens))
        found: dict[str, float] = {}
        for weight, decoders, tokens in batches:
            for name, value in self.law.parts(self.batch(decoders, tokens)).items() if weight else ():
                found[name] = found.get(name, 0.0) + weight * float(value[0])
        return found


def fixed_point(law: Callable[[float], float], start: float) -> float:
    """x = law(x), by halving steps: laws here rise or fall, and a damped walk settles on both."""
    found = start
    for _ in range(_ROUNDS):
        wanted = law(found)
        if not np.isfinite(wanted) or wanted > 1e12:
            return inf
        if abs(wanted - found) <= _CLOSE * max(found, 1e-12):
            return float(wanted)
        found = 0.5 * (found + wanted)
    return float(found)
