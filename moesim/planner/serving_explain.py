"""Why the winner of a plan of serving wins, what the runner-up would need, and what stands against where none does."""

from __future__ import annotations

from math import ceil

import numpy as np

from moesim.errors import shorten
from moesim.planner.serving_figures import Limit, objective_of
from moesim.planner.serving_plan import Relaxation, Row, ServingModelPlan
from moesim.planner.wording import _above as above
from moesim.planner.wording import beyond
from moesim.results.table import shown_range
from moesim.units import show

LEVEL = 5e-4
"""Relative difference below which two deployments are told to be level."""
PARTS = 2
"""Parts of an iteration that a comparison names in either direction."""
_BEST = {"cost": "cheapest", "fewest-gpus": "smallest", "throughput": "one of most tokens/s/GPU", "latency": "quickest"}
_LESS = {"cost": "costs {} less", "fewest-gpus": "needs {} fewer GPUs", "throughput": "does {} more tokens/s/GPU",
         "latency": "answers in {} less time"}  # fmt: skip


def words(plan: ServingModelPlan, limits: tuple[Limit, ...]) -> tuple[str, ...]:
    """The answer in sentences."""
    told = Words(plan, {limit.key: limit for limit in limits})
    if plan.winner is None:
        return told.nothing()
    found = [*told.overturned(), told.best(plan.winner)]
    found += told.against(plan.winner, plan.rows[1]) if len(plan.rows) > 1 else []
    found += told.own()
    found += [told.other(row) for row in plan.best_by_gpu if row is not plan.winner]
    found += [told.eased(one) for one in plan.relaxations]
    return (*found, *told.crossed(plan.winner), *told.at_the_edge(plan.winner))


def hardware(row: Row) -> str:
    """How many of which GPU."""
    return f"{row.scenario.cluster.gpus:,} {row.scenario.cluster.gpu.name}"


def degrees(row: Row) -> str:
    """The engines: "2 x 16 GPUs TP 2 EP 16", or those of prefill and of decode."""
    pools = row.scenario.pools
    said = []
    for pool in pools:
        layout = pool.instance
        parts = [f"{pool.count} x {layout.gpus} GPUs", f"TP {layout.tensor}"]
        parts += [f"PP {layout.pipeline}"] if layout.pipeline > 1 else []
        parts += [f"EP {layout.expert}"] if row.scenario.model.is_moe else []
        parts += [f"ETP {layout.expert_split}"] if layout.expert_split > 1 and row.scenario.model.is_moe else []
        parts += [f"DP {layout.replicas}"] if layout.replicas > 1 else []
        said.append(f"{pool.phase} {' '.join(parts)}" if len(pools) > 1 else " ".join(parts))
    return " + ".join(said)


def label(row: Row) -> str:
    """A deployment in few words."""
    return f"{hardware(row)}, {degrees(row)}"


def settings(row: Row) -> str:
    """What the engines are run with."""
    scenario = row.scenario
    said = [f"token budget {scenario.engine.token_budget:,}"]
    copies = scenario.placement.redundant_experts
    said += [f"{copies} redundant experts ({scenario.placement.strategy})"] if copies else []
    said += ["two-batch overlap"] if scenario.engine.two_batch_overlap else []
    named = [one for one in (scenario.dispatcher.prefill, scenario.dispatcher.decode) if one != "auto"]
    return ", ".join([*said, *dict.fromkeys(named)])


def cost_words(row: Row, priced: bool) -> str:
    """What a million output tokens cost."""
    return f"{show(float(row.figures.cost[0]), '$' if priced else 'GPU-h')} a million output tokens"


class Words:
    """Sentences about one model's deployments."""

    def __init__(self, plan: ServingModelPlan, limits: dict[str, Limit]) -> None:
        self.plan, self.limits = plan, limits
        self.objective = plan.question.spec.objective

    def value(self, row: Row) -> float:
        """What the objective compares, to be small."""
        return float(objective_of(self.objective, row.figures)[0])

    def share(self, better: Row, other: Row) -> float:
        """How much better one is than another, as a share."""
        first, then = self.value(better), self.value(other)
        return first / then - 1.0 if self.objective == "throughput" else 1.0 - first / then

    def figures(self, row: Row) -> str:
        """Latencies, throughput and cost."""
        said = []
        for name, short in (("time_to_first_token", "first token"), ("time_per_output_token", "per output token")):
            if name in row.summary:
                span = shown_range(row.summary[name])
                said.append(f"{show(row.summary[name].value, 's')} {short}{f' ({span})' if span else ''}")
        said.append(f"{float(row.figures.per_gpu[0]):,.4g} output tokens/s/GPU")
        return ", ".join([*said, cost_words(row, self.plan.question.priced)])

    def by(self, row: Row) -> str:
        """That a row was not simulated, where others are."""
        return ", by the closed form" if self.plan.question.spec.simulate and row.road == "estimate" else ""

    def best(self, row: Row) -> str:
        """The winner in one sentence."""
        own = f"The {_BEST[self.objective]} is {label(row)} ({settings(row)}): {self.figures(row)}{self.by(row)}."
        tight = self.tight(row)
        return f"{own} {tight}" if tight else own

    def tight(self, row: Row) -> str:
        """The limit that the row comes nearest to."""
        timed = [limit for limit in self.limits.values() if limit.unit == "s"]
        if not timed:
            return ""
        nearest = max(timed, key=lambda limit: float(limit.excess(row.figures)[0]))
        used = float(nearest.excess(row.figures)[0])
        return f"Of its latency limits it uses most of {nearest.key}: {show(used, 'fraction')}."

    def against(self, winner: Row, other: Row) -> list[str]:
        """Why the winner beats the runner-up, how they differ, and what the runner-up would need."""
        share = self.share(winner, other)
        head = f"the runner-up ({label(other)}, {settings(other)}{self.by(other)})"
        parts = self.parts(winner, other)
        if abs(share) < LEVEL:
            least = "it keeps farther from the latency limits" if self.tight(winner) else "it answers sooner"
            least = least if winner.road == other.road else f"by the closed form, which judged both, {least}"
            found = [f"The winner and {head} are level; the winner stands first because {least}: {parts}."]
            return [*found, "Either will do: measure both."]
        if share < 0:  # the winner was simulated and the runner-up was not
            return [f"By the closed form {head} {self.less(self.share(other, winner))}; simulate more (--simulate)."]
        return [f"The winner {self.less(share)} than {head}: {parts}.", self.need(winner, other)]

    def less(self, share: float) -> str:
        """ "costs 3 % less"."""
        return _LESS[self.objective].format(show(share, "fraction"))

    def need(self, winner: Row, other: Row) -> str:
        """What the runner-up would need to win."""
        ratio = abs(self.value(other) / self.value(winner))
        price = other.scenario.prices.gpu_hour
        if self.objective == "throughput":
            return f"The runner-up would win with {show(1 / ratio - 1, 'fraction')} more tokens/s/GPU."
        if self.objective == "latency":
            return f"The runner-up would win with requests below {show(self.value(winner), 's')}."
        fewer = f"if it kept the limits on fewer than {ceil(float(other.figures.gpus[0]) / ratio):,} GPUs"
        if self.objective == "fewest-gpus" or price is None:
            return f"The runner-up would win {fewer}."
        return f"The runner-up would win below ${price / ratio:.2f} a GPU-hour instead of ${price:.2f}, or {fewer}."

    def parts(self, winner: Row, other: Row) -> str:
        """Latencies of both, and which parts of an iteration are smaller, which larger."""
        said = []
        for name, short in (("time_to_first_token", "first token"), ("time_per_output_token", "per output token")):
            mean = f"{name}_mean"  # which both roads tell
            if mean in winner.summary and mean in other.summary:
                pair = (show(row.summary[mean].value, "s") for row in (winner, other))
                said.append(f"mean {short} {' against '.join(pair)}")
        alike = winner.road == other.road and len(winner.scenario.pools) == len(other.scenario.pools)
        names = dict.fromkeys([*winner.breakdown, *other.breakdown] if alike else [])
        change = {name: winner.breakdown.get(name, 0.0) - other.breakdown.get(name, 0.0) for name in names}
        ranked = sorted(change.items(), key=lambda item: item[1])
        less = [f"{name} (−{show(-value, 's')})" for name, value in ranked[:PARTS] if value < -1e-5]
        more = [f"{name} (+{show(value, 's')})" for name, value in ranked[::-1][:PARTS] if value > 1e-5]
        said += [f"an iteration has less {' and '.join(less)}"] if less else []
        said += [f"{'' if less else 'an iteration has '}more {' and '.join(more)}"] if more else []
        return ", ".join(said)

    def other(self, row: Row) -> str:
        """What the best on other GPUs, or of the other kind of deployment, would need to win."""
        winner = self.plan.rows[0]
        ratio = abs(self.value(row) / self.value(winner))
        same = row.scenario.cluster.gpu.name == winner.scenario.cluster.gpu.name
        which = "with prompts and outputs apart" if row.layout["disaggregated"] else "with one kind of engine"
        head = f"The best {which if same else 'on ' + row.scenario.cluster.gpu.name} ({label(row)}{self.by(row)})"
        what = {"fewest-gpus": "GPUs", "throughput": "tokens/s/GPU", "latency": "request latency"}
        price = row.scenario.prices.gpu_hour
        if self.objective in what or same:
            return f"{head} has {ratio:.3g} x the {what.get(self.objective, 'cost')}."
        if price is not None:
            return f"{head} costs {ratio:.3g} x as much; it would win below ${price / ratio:.2f} a GPU-hour."
        return f"{head} takes {ratio:.3g} x the GPU-hours; it would win where an hour of it costs {1 / ratio:.2f} x."

    def eased(self, one: Relaxation) -> str:
        """What a weaker limit would bring."""
        gain = self.share(one.row, self.plan.rows[0])
        better = f"{self.less(gain)} than the winner{self.by(one.row)}"
        return f"With {self.weaker(one.limit, one.row)}, {label(one.row)} {better}."

    def weaker(self, key: str, row: Row) -> str:
        """A weaker limit, never told weaker than it has to be by its digits."""
        limit, ratio = self.limits[key], row.over[key]
        needed = ratio * limit.allowed
        demand = self.plan.question.base.workload.arrivals
        if not np.isfinite(needed):
            return f"another {key}"
        if key == "rate":
            rate = demand.rate or 0.0
            return f"a rate below {rate / above(ratio):,.3g} requests/s instead of {rate:,.4g}"
        if key == "memory" and needed <= 1.0:
            free, asked = (show(1 - share, "fraction") for share in (above(needed), limit.allowed))
            return f"memory_headroom {free} instead of {asked}"
        if key == "memory":
            return f"{above(ratio):.3g} x the memory that is given to the engine"
        if key == "goodput_fraction":
            least, asked = (show(1 - missed, "fraction") for missed in (above(needed), limit.allowed))
            return f"goodput_fraction {least} instead of {asked}"
        if key == "gpus":
            return f"gpus {round(needed):,} instead of {round(limit.allowed):,} (of the sizes tried)"
        return f"{key} {show(above(needed), limit.unit)} instead of {show(limit.allowed, limit.unit)}"

    def own(self) -> list[str]:
        """Where the scenario's own deployment stands."""
        row, winner = self.plan.own, self.plan.winner
        if row is None:
            return []
        head = f"Your deployment ({label(row)}): {self.figures(row)}{self.by(row)}"
        if row.over:
            return [f"{head}; it does not keep the limits: it would need {self.needs(row)}."]
        if winner is None:
            return [f"{head}."]
        share = self.share(winner, row)
        return [f"{head}; " + ("level with the winner." if abs(share) < LEVEL else f"the winner {self.less(share)}.")]

    def needs(self, row: Row) -> str:
        """All limits that a row breaks, as they would have to be."""
        return " and ".join(self.weaker(key, row) for key in row.over)

    def overturned(self) -> list[str]:
        """That no simulated deployment keeps the limits, as the closed form had it, and what the nearest needs."""
        plan = self.plan
        count = len(plan.overturned) + len(plan.failed)
        if not count or any(row.road == "simulate" for row in plan.rows):
            return []
        found = [f"None of the {count} simulated deployments keeps all limits, as the closed form had it."]
        if plan.overturned:
            near = plan.overturned[0]
            found.append(f"The nearest of them, {label(near)}, would need {self.needs(near)}.")
        found += [f"Not simulated: {shorten(plan.failed[0])}."] if plan.failed else []
        found += ["The winner told here keeps all limits by the closed form alone."] if plan.rows else []
        return [" ".join(found)]

    def nothing(self) -> tuple[str, ...]:
        """What stands against every candidate, and what would relax it."""
        plan = self.plan
        codes = [code for code in plan.rejected if code in self.limits]
        head = "No deployment keeps all limits"
        if codes:
            bound = f"{plan.rejected[codes[0]]:,} of {plan.judged:,} judged"
            head += f"; binding for most of them ({bound}): {codes[0]} ({plan.meanings[codes[0]]})"
        found = [f"{head}."]
        if plan.closest is not None:
            row = plan.closest
            over = " and ".join(f"{key} ({beyond(ratio)})" for key, ratio in row.over.items())
            found.append(f"The closest is {label(row)}: {self.figures(row)}; it breaks {over}.")
        found += [*self.overturned(), *self.own()]
        for one in plan.relaxations:
            found.append(f"It would relax with {self.weaker(one.limit, one.row)}: {label(one.row)}{self.by(one.row)}.")
        if not plan.relaxations:
            found.append(
                "No limit alone stands against any deployment: several have to give, or other GPUs be allowed."
            )
        return tuple(found)

    def crossed(self, winner: Row) -> list[str]:
        """The latency limits that the winner keeps at its value and not over its whole range."""
        found = []
        for limit in self.limits.values():
            known = winner.summary.get(limit.key)
            if limit.unit == "s" and known is not None and known.high > limit.allowed:
                found.append(
                    f"The winner keeps {limit.key} {show(limit.allowed, 's')} at its value; its 90 % range reaches"
                    f" {show(known.high, 's')}."
                )
        return found

    def at_the_edge(self, winner: Row) -> list[str]:
        """That the winner has the fewest or the most GPUs tried."""
        own, gpus = winner.scenario.cluster.gpu, winner.scenario.cluster.gpus
        counts = [count for one in self.plan.question.hardware for count in one.counts if one.cluster.gpu == own]
        if len(set(counts)) < 2 or min(counts) < gpus < max(counts):
            return []
        which, rest = ("fewest", "fewer") if gpus == min(counts) else ("most", "more")
        return [f"{gpus:,} {winner.scenario.cluster.gpu.name} are the {which} that were tried; {rest} may do (--gpus)."]
