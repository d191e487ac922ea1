"""One instance in its steady state: what the mean iteration holds, and what follows for requests.

In a closed loop the requests of the loop are those that decode, wait, or are prefilled (Little's law); open arrivals
fix the rate instead, and gather while iterations run (`moesim.serving.gathering`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from moesim.serving.engine_iterations import EngineIterations, MeanIteration, fixed_point
from moesim.serving.gathering import gathered, near, queue


@dataclass(frozen=True)
class SteadyState:
    """Means of a deployment; seconds, and rates of all its instances together.

    `binding`: what keeps it from doing more (or at all: then `feasible` is false and rates are the most it could do).
    `decoding`: requests that decode on one instance; `kv_use`: share of the KV cache; `parts`: seconds by part of the
    mean iteration of the instances that decode (or, in prefill alone, that prefill); `further_tokens` of a request
    after its first; `seat_wait`: what of the time to the first token is waiting for a seat and room in the KV cache.
    `batch`: requests that decode, or whose prompts an iteration computes, on one instance while it works; so `kv_use`.
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
    seat_wait: float = 0.0
    batch: float = 0.0

    @property
    def request_latency(self) -> float:
        """The first token, and all others."""
        further = self.time_per_output_token * self.further_tokens if self.further_tokens else 0.0
        return self.time_to_first_token + further


class SteadyEngine(EngineIterations):
    """One instance of a pool under its share of the demand."""

    def closed(self) -> SteadyState:
        """With the concurrency of the loop."""
        each = (self.demand.concurrency or 1) / self.pool.count
        if not self.decodes or not self.steps:
            return self._closed_prefill(each)
        inside = min(each, self.most)

        def decoding(guess: float) -> float:
            mean = self.mean(guess)
            first, rest = self._first(guess, mean, mean.tokens), self.steps * mean.seconds
            return min(inside * rest / (first + rest), self._fed(guess, mean))

        found = inside if self.in_waves else fixed_point(decoding, inside)
        mean = self.mean(found)
        rate = found / (self.steps * mean.seconds)
        first = each / rate - self.steps * mean.between + self._start(each)
        rate = each / (first + self.steps * mean.between)
        binding = self.seat_limit if each > self.most else "concurrency"
        return self._state(found, mean, rate, (max(first, 0.0), binding))

    def _start(self, each: float) -> float:
        """What the mean request waits because a loop's first requests come all at once: half the time that prefilling
        them takes, theirs alone."""
        if not self.prefills:
            return 0.0
        together = min(each, self.most)
        share = min(1.0, each * self.pool.count / self.scenario.workload.requests)
        return share * max(together - 1.0, 0.0) / 2 * self.prefill(self.together) / self.together

    def _first(self, decoding: float, mean: MeanIteration, tokens: float) -> float:
        """Seconds from a request's turn until its first token, where iterations with prompts have so many tokens."""
        if self.prefills:
            return self.prefill_seconds(decoding, tokens)
        # A prompt that stands in the cache gets its first token here; one that came from elsewhere brought it along.
        return mean.seconds if self.scenario.workload.kind == "decode" else 0.0

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
        falls = self._falls(found, mean)
        beside = 2.0 * near(each, self._burstiness, falls / 2)
        own = self._first(found, mean, self.demand.new * (1.0 + beside))
        seat = self._seat_wait(found, own + self.steps * mean.seconds)
        wait = self._budget_wait(found, mean) if self.prefills else 0.0
        state = self._state(found, mean, each, (falls / 2 + wait + seat + own, "arrivals"))
        return replace(state, seat_wait=seat)

    @property
    def _burstiness(self) -> float:
        """That of the arrivals at one instance: each has its share of a burst."""
        return 1.0 + (self.demand.burstiness - 1.0) / self.pool.count

    def _falls(self, decoding: float, mean: MeanIteration) -> float:
        """Seconds of the iteration that an arrival falls into: longer ones hold more arrivals."""
        alone, long = self.seconds(decoding, 0.0), mean.with_prompts
        without = 1.0 - mean.share if self.scenario.engine.chunked_prefill else 1.0
        return (without * alone**2 + mean.share * long**2) / mean.seconds

    def _budget_wait(self, decoding: float, mean: MeanIteration) -> float:
        """Seconds until a prompt finds room in the token budget."""
        if not mean.budget_use:
            return 0.0
        room = mean.tokens * mean.share / mean.budget_use
        prompts = max(room / self.demand.new, 1.0)
        each = self.seconds(decoding if self.scenario.engine.chunked_prefill else 0.0, room) / prompts
        return each * queue(mean.budget_use, prompts, (self._burstiness + self.demand.prompt_variation) / 2)

    def _seat_wait(self, decoding: float, seconds: float) -> float:
        """Seconds until a seat and room in the KV cache are free, which a request keeps for `seconds`."""
        use = min(decoding / self.most, 1.0 - 1e-6)
        return seconds / self.most * queue(use, self.most, (self._burstiness + self.demand.prompt_variation) / 2)

    def _fullest(self) -> float:
        """Requests that decode where the instance does most: all seats taken, or prompts take the token budget."""
        return fixed_point(lambda guess: min(self.most, self._fed(guess, self.mean(guess))), self.most)

    def _closed_prefill(self, each: float) -> SteadyState:
        inside = min(each, self.most, self.together)
        rate = inside / self.prefill(inside)
        mean = self.prefill_mean(inside, 1.0)
        return self._state(0.0, mean, rate, (each / rate, "concurrency"))

    def _open_prefill(self, each: float) -> SteadyState:
        """Prompts wait for the iteration that they fall into and then for their own; where more come than it takes, for
        others too. Of several instances an arrival finds one idle unless all are busy."""
        most = self.together
        share = self.prefill(most) / most
        if each * share >= 1.0:
            told = f"rate: prefill lets an instance do {1 / share:.3g} requests/s, {each:.3g} come"
            return replace(self._state(0.0, self.prefill_mean(most, 1.0), 1 / share, (inf, told)), feasible=False)
        found = gathered(self.prefill, each, self._burstiness, most, self.demand.prompt_variation)
        waits = found.busy**self.pool.count
        own = waits * self.prefill(1.0 + found.beside) + (1.0 - waits) * self.prefill(1.0)
        variation = (self._burstiness + self.demand.prompt_variation) / 2
        first = waits * found.falls / 2 * (1.0 - 1.0 / most) + own
        # Not all that wait are taken by the next iteration: several together may be more than it holds, and one alone.
        beyond = (found.together / most) ** 2 * queue(each * share, most * self.pool.count, variation)
        beyond += self.large_share * queue(each * share, float(self.pool.count * self.replicas), variation)
        first += share / self.pool.count * beyond
        mean = self.prefill_mean(found.together, each * share)
        return self._state(0.0, mean, each, (first, "arrivals"))

    def _state(self, decoding: float, mean: MeanIteration, rate: float, first: tuple[float, str]) -> SteadyState:
        """The metrics of an instance that finishes `rate` requests a second, times the instances."""
        demand, count, prompts = self.demand, self.pool.count, self.prompts(mean)
        batch = self.at_work(decoding + prompts) if decoding + prompts else 0.0
        held = decoding * (demand.prompt + demand.output / 2) + prompts * (demand.cached + demand.new / 2)
        held *= batch / (decoding + prompts) if batch else 0.0
        each_token = mean.between / self.scenario.engine.speculative_tokens if self.steps and self.decodes else 0.0
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
            batch=batch,
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
