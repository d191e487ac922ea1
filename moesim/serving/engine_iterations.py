"""What the iterations of one instance hold and take: the mean one among decoding requests, and those of prompts alone.

D requests decode, each for s iterations; so D / s prompts are done an iteration, which brings D / s x new prompt tokens
into the mean one. Prompts come at random: iterations with any are fewer and hold more. Where all requests of a loop
have as many output tokens they end together and are prefilled together, in as few iterations as the token budget
allows. A prompt is one replica's, so the busiest replica has more than its share, and the others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import exp, inf

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc

from moesim.iteration.law import Batch, IterationLaw
from moesim.scenario.serving import Pool, ServingScenario
from moesim.serving.demand import Demand

Floats = NDArray[np.float64]
_ROUNDS, _CLOSE, _POINTS = 60, 1e-4, 12
_STEEP, _ENDLESS = 0.9, 1e12


@dataclass(frozen=True)
class MeanIteration:
    """The mean iteration with D decoding requests: its seconds, the seconds of one with prompts, and the share of what
    the token budget lets it do. A `share` of iterations has `tokens` of prompts. `between`: seconds from one iteration
    in which a request decodes to the next, in the mean."""

    seconds: float
    with_prompts: float
    budget_use: float
    between: float
    share: float = 0.0
    tokens: float = 0.0


class EngineIterations:
    """Iterations of one instance of a pool."""

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
    def in_waves(self) -> bool:
        """Whether all requests are prefilled before any of them decodes: prompts go first, and come together."""
        return self.demand.in_step and not self.scenario.engine.chunked_prefill

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
        else:  # a whole prompt is taken however long it is
            room = max(room, demand.new * self.replicas)
        prompts = decoding / self.steps if self.prefills and self.steps else 0.0
        alone = self.seconds(decoding, 0.0)
        if not prompts:
            return MeanIteration(alone, alone, 0.0, alone)
        tokens = prompts * demand.new
        beside = decoding if engine.chunked_prefill else 0.0
        share = least = min(1.0, tokens / room)
        if self.in_waves:
            share = max(tokens / room, 1.0 / self.steps)
        elif demand.in_step:
            share = max(least, min(1.0, 1.0 / self.steps))
        elif least < 1.0:
            share = self._share(prompts, least, alone, lambda at_once: self.seconds(beside, min(at_once, room)))
        at_once = min(tokens / share, room)
        long = self.seconds(beside, at_once)
        mean = alone + share * (long - alone if engine.chunked_prefill else long)
        # A wave is prefilled in so many iterations, after the mean request's own (n - 1) / 2 of them; then all decode.
        wave = share * self.steps
        between = alone + (mean - alone) * (wave - 1.0) / (2.0 * wave) if self.in_waves else mean
        return MeanIteration(mean, long, tokens / room, between, share, at_once)

    def _share(self, prompts: float, least: float, alone: float, long: Callable[[float], float]) -> float:
        """Share of iterations that have prompts, where the mean one has so many. One that has is longer, so more gather
        for the next: the share of a chain of two states."""
        chunked = self.scenario.engine.chunked_prefill

        def found(share: float) -> float:
            after = long(prompts * self.demand.new / share) + (0.0 if chunked else alone)
            rate = prompts / ((1 - share) * alone + share * after)
            of_short, of_long = 1.0 - exp(-rate * alone), 1.0 - exp(-rate * after)
            return min(1.0, max(of_short / (1.0 - of_long + of_short), least))

        return fixed_point(found, max(1.0 - exp(-prompts), least))

    def prompts(self, mean: MeanIteration) -> float:
        """Requests whose prompts an iteration computes, mean over the iterations' time; in one that the token budget
        cuts short each replica has a part of one more."""
        if not mean.share:
            return 0.0
        new, budget = self.demand.new, float(self.scenario.engine.token_budget)
        cut = min(mean.budget_use, 1.0) * self.replicas if mean.tokens > 0.999 * budget * self.replicas else 0.0
        whole = max(mean.tokens / min(new, budget), mean.tokens / new + cut, 1.0)
        return mean.share * mean.with_prompts / mean.seconds * whole

    def at_work(self, together: float) -> float:
        """Requests in an instance while it works, of their mean over all time: random arrivals, each to an instance
        that has none where there is one. A loop's are always there; prefill alone knows iterations that work."""
        count, loop = self.pool.count, self.demand.concurrency
        if not self.decodes:
            return max(together, 1.0)
        if loop is not None:
            return max(min(together, loop / count), 1.0)
        return together * count / float(gammainc(np.arange(1, count + 1), together * count).sum())

    def seconds(self, decoding: float, tokens: float) -> float:
        """Seconds of one iteration of so many decoding requests and new prompt tokens."""
        return float(self.law.seconds(self.batch(decoding, tokens))[0])

    def batch(self, decoding: float, tokens: float) -> Batch:
        """That iteration: decoding requests are half way through their outputs."""
        demand = self.demand
        context = demand.prompt + demand.output / 2
        each = demand.cached + demand.new * (1.0 + demand.prompt_variation) / 2

        def of(tokens: float, pairs: float, decoding: float, busiest: Batch | None = None) -> Batch:
            new, compared, requests, held = (
                np.array([value]) for value in (tokens, pairs, decoding, decoding * context)
            )
            return Batch(new, compared, requests, held, busiest)

        if self.replicas == 1:
            return of(tokens, tokens * each, decoding)
        most, pairs = self._busiest(tokens, each)
        return of(tokens, tokens * each, decoding, of(most, pairs, decoding / self.replicas))

    def _busiest(self, tokens: float, each: float) -> tuple[float, float]:
        """Prompt tokens of the busiest replica, and their pairs: a prompt is one replica's. Few prompts have a replica
        each, so it has the largest; many are spread by what replicas hold, whose loads lie within about a prompt."""
        demand, even = self.demand, tokens / self.replicas
        if not tokens:
            return 0.0, 0.0
        engine, prompts = self.scenario.engine, tokens / demand.new
        largest = demand.largest(min(max(prompts, 1.0), float(self.replicas)))
        budget = float(engine.token_budget) if engine.chunked_prefill else max(float(engine.token_budget), largest)
        one = min(largest, budget, tokens)
        spread = even + (1 - 1 / self.replicas) * demand.new * (1 + demand.prompt_variation) / 2
        if prompts > self.replicas and spread > one:
            most = max(even, min(spread, budget))
            return most, most * each
        most = max(even, one)
        return most, most * max(each, demand.cached + largest / 2)

    def prefill_seconds(self, decoding: float, tokens: float) -> float:
        """Seconds from a prompt's turn until its first token, in iterations of so many prompt tokens, or of its own."""
        engine, demand = self.scenario.engine, self.demand
        room = float(engine.token_budget)
        if engine.chunked_prefill:
            room = max(room - decoding / self.replicas * (1 + engine.drafted), 1.0)
        chunks = float(np.ceil(demand.new * demand.sizes / room - 1e-9).mean()) if engine.chunked_prefill else 1.0
        at_once = min(max(tokens, demand.new / chunks), max(room * self.replicas, demand.new / chunks))
        return chunks * self.seconds(decoding if engine.chunked_prefill else 0.0, at_once)

    @cached_property
    def together(self) -> float:
        """Prompts that the token budget takes at once, or, of prompts larger than it, one a replica."""
        budget = float(self.scenario.engine.token_budget)
        return self.replicas * max(budget / self.demand.new, 1.0)

    @cached_property
    def large_share(self) -> float:
        """Share of the prompts' second moment that those have which fill more than an iteration alone, while several of
        the mean fit into one: what comes behind waits for all of such a prompt."""
        sizes, budget = self.demand.sizes, self.scenario.engine.token_budget / self.demand.new
        if budget <= 1.0:
            return 0.0
        return float(np.square(sizes[sizes > budget]).sum() / np.square(sizes).sum())

    @cached_property
    def _of_prompts(self) -> tuple[Floats, Floats]:
        """Numbers of prompts that are prefilled together [G], and the seconds until they are done."""
        counts = np.geomspace(1.0, max(self.together, 1.0), _POINTS) if self.together > 1.0 else np.ones(1)
        chunked, budget = self.scenario.engine.chunked_prefill, float(self.scenario.engine.token_budget)
        sizes = self.demand.new * self.demand.sizes
        chunks = float(np.ceil(sizes / budget - 1e-9).mean()) if chunked else 1.0
        return counts, chunks * np.array([self.seconds(0.0, count * self.demand.new / chunks) for count in counts])

    def prefill(self, prompts: float) -> float:
        """Seconds until so many prompts are done, by themselves."""
        return float(np.interp(prompts, *self._of_prompts))

    def prefill_mean(self, prompts: float, use: float) -> MeanIteration:
        """The iteration of so many prompts, or of their first parts."""
        tokens = min(prompts * self.demand.new, float(self.scenario.engine.token_budget * self.replicas))
        seconds = self.seconds(0.0, tokens)
        return MeanIteration(seconds, seconds, use, seconds, 1.0, tokens)


def fixed_point(law: Callable[[float], float], start: float) -> float:
    """x = law(x) > 0, by secants; half a step where two points tell no slope below 1. Infinite where it runs away."""
    last, found = start, law(start)
    if not np.isfinite(found) or found > _ENDLESS:
        return inf
    wanted, of_last = found, found
    found = 0.5 * (last + found)
    for _ in range(_ROUNDS):
        wanted = law(found)
        if not np.isfinite(wanted) or wanted > _ENDLESS:
            return inf
        if abs(wanted - found) <= _CLOSE * max(found, 1e-12):
            return float(wanted)
        slope = (wanted - of_last) / (found - last) if found != last else 1.0
        step = (wanted - found) / (1.0 - slope) if slope < _STEEP else 0.5 * (wanted - found)
        last, of_last, found = found, wanted, max(found + step, 0.5 * min(found, wanted))
    return float(found)
