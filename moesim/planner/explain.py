"""Why the winner wins, what the runner-up would need, and, where nothing is feasible, what stands against it."""

from __future__ import annotations

from math import ceil

from moesim.errors import shorten
from moesim.planner.figures import limits_of, objective_of
from moesim.planner.plan import ModelPlan, Relaxation, Row
from moesim.planner.reading import Question
from moesim.planner.sizes import least_held
from moesim.planner.wording import amount, band, beyond, cost_words, differences, relaxed_words
from moesim.results.table import shown_range
from moesim.specs.plan import Objective
from moesim.units import show

PARTS = 2
"""Parts of a step that a comparison names in either direction."""
LEVEL = 5e-4
"""Relative difference below which two candidates are told to be level."""
WORTH = 5e-3
"""Relative gain from which a weaker limit is worth a sentence."""
LIMIT_CODES = ("memory", "memory_headroom", "days", "dollars", "dropped_fraction", "power", "gpus")


def words(plan: ModelPlan, question: Question) -> tuple[str, ...]:
    """The answer in sentences."""
    told = Words(question)
    if plan.winner is None:
        return told.nothing(plan)
    found = [*told.overturned(plan), told.best(plan)]
    found += told.against(plan.winner, plan.rows[1]) if len(plan.rows) > 1 else []
    found += told.own(plan)
    found += [told.other_gpu(plan.winner, row) for row in plan.best_by_gpu if row is not plan.winner]
    found += [told.eased(one) for one in plan.relaxations if (one.objective_ratio or 0.0) < 1 - WORTH]
    return (*found, *told.crossed(plan.winner), *told.at_the_edge(plan.winner))


def label(row: Row) -> str:
    """A candidate in few words: "256 gb200-nvl72, TP 1, PP 4 x 4, EP 64, MB 1"."""
    return f"{hardware(row)}, {degrees(row)}"


def hardware(row: Row) -> str:
    """How many of which GPU."""
    return f"{row.scenario.cluster.gpus:,} {row.scenario.cluster.gpu.name}"


def degrees(row: Row) -> str:
    """The degrees of a layout; of those that are 1 only the common ones."""
    scenario, layout = row.scenario, row.scenario.parallelism
    chunks = f" x {scenario.chunks_per_rank}" if scenario.chunks_per_rank > 1 else ""
    said = [f"TP {layout.tensor}", f"PP {layout.pipeline}{chunks}"]
    said += [f"EP {layout.expert}"] if scenario.model.is_moe else []
    said += [f"ETP {layout.expert_tensor}"] if layout.expert_tensor > 1 else []
    said += [f"CP {layout.context}"] if layout.context > 1 else []
    return ", ".join([*said, f"MB {scenario.workload.micro_batch}"])


def settings(row: Row) -> str:
    """What a layout is run with: schedule, what is computed again, what hides, capacity, dispatcher."""
    scenario = row.scenario
    again = scenario.recompute if isinstance(scenario.recompute, str) else " + ".join(scenario.recompute)
    said = [scenario.schedule_kind, "no recompute" if again == "none" else f"recompute {again}"]
    if scenario.exchanges_tokens:
        said.append("exchanges hidden" if scenario.overlap.expert_communication else "exchanges exposed")
        said += [scenario.dispatcher.kind] if scenario.dispatcher.kind != "auto" else []
    capacity = scenario.routing.capacity
    return ", ".join([*said, *([] if capacity == "dropless" else [f"capacity factor {capacity.factor:g}"])])


class Words:
    """Sentences about one question's candidates."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.objective: Objective = question.spec.objective

    def value(self, row: Row) -> float:
        """What the objective compares, to be small."""
        return float(getattr(row.figures, objective_of(self.objective))[0])

    def best(self, plan: ModelPlan) -> str:
        """The winner in one sentence."""
        row = plan.rows[0]
        which = {"time": "quickest", "fewest-gpus": "smallest", "tokens-per-dollar": "one of most tokens per dollar"}
        run = "" if plan.whole_run else " for a billion tokens"
        return f"The {which.get(self.objective, 'cheapest')} is {label(row)}: {self.figures(row)}{run}{self.by(row)}."

    def figures(self, row: Row) -> str:
        """Time, cost and memory: "17.6 d (14.6–25.5), 54 k GPU-h, 79.1 % of memory"."""
        days, memory = row.summary["training_time"], float(row.figures.memory_share[0])
        span = f" ({shown_range(days)})" if shown_range(days) else ""
        cost = cost_words(self.question, float(row.figures.cost[0]))
        return f"{show(days.value, 's')}{span}, {cost}, {show(memory, 'fraction')} of memory"

    def less(self, share: float) -> str:
        """ "costs 3 % less"."""
        said = show(share, "fraction")
        return {"time": f"takes {said} less time", "fewest-gpus": f"needs {said} fewer GPUs"}.get(
            self.objective, f"costs {said} less"
        )

    def against(self, winner: Row, other: Row) -> list[str]:
        """Why the winner beats the runner-up, how they differ, and what the runner-up would need."""
        share = 1.0 - self.value(winner) / self.value(other)
        if share < -LEVEL:  # the winner was simulated and the runner-up was not
            better = self.less(1.0 - self.value(other) / self.value(winner))
            return [f"The runner-up ({label(other)}) {better} by the closed form; simulate more to know (--simulate)."]
        parts = self.parts(winner, other)
        if share < LEVEL:
            saved = 1.0 - float(winner.figures.cost[0] / other.figures.cost[0])
            more = f", and {show(saved, 'fraction')} less cost decides" if saved > LEVEL else ""
            found = [f"The winner and the runner-up ({self.named(other)}) are level{more}: {parts}."]
        else:
            found = [f"The winner {self.less(share)} than the runner-up ({self.named(other)}): {parts}."]
        differing = differences(winner, other)
        return [*found, *([f"They differ: {differing}."] if differing else []), self.need(winner, other, share)]

    def parts(self, winner: Row, other: Row) -> str:
        """Which parts of the winner's step are smaller, which larger; GPU-seconds where the GPUs differ in number."""
        alike = winner.scenario.cluster.gpus == other.scenario.cluster.gpus
        own, theirs = (1.0, 1.0) if alike else (float(winner.figures.gpus[0]), float(other.figures.gpus[0]))
        names = dict.fromkeys([*winner.breakdown, *other.breakdown])
        change = {
            name: winner.breakdown.get(name, 0.0) * own - other.breakdown.get(name, 0.0) * theirs for name in names
        }
        steps = float(winner.figures.step_seconds[0]) * own, float(other.figures.step_seconds[0]) * theirs
        ranked = sorted(change.items(), key=lambda item: item[1])
        less = [f"{name} (−{amount(-value, alike)})" for name, value in ranked[:PARTS] if -value > 1e-3 * steps[1]]
        more = [f"{name} (+{amount(value, alike)})" for name, value in ranked[::-1][:PARTS] if value > 1e-3 * steps[1]]
        said = f"a step takes {amount(steps[0], alike)} against {amount(steps[1], alike)}"
        said += f", with less {' and '.join(less)}" if less else ""
        return said + (f"{' and' if less else ', with'} more {' and '.join(more)}" if more else "")

    def need(self, winner: Row, other: Row, share: float) -> str:
        """What the runner-up would need to win, and whether the difference is more than the steps' range."""
        step = winner.summary["step_time"]
        over = step.high / step.value - 1.0
        known = band(1.0 - step.low / step.value, over)
        same_gpu = winner.scenario.cluster.gpu == other.scenario.cluster.gpu
        doubt = f" Step times carry a range of {known}: measure both." if same_gpu and share < over else ""
        if self.objective == "fewest-gpus":
            gpus = winner.scenario.cluster.gpus
            return f"The runner-up would win if it kept the limits on fewer than {gpus:,} GPUs.{doubt}"
        if share < LEVEL:
            return f"Either will do.{doubt}"
        shorter = float(other.figures.step_seconds[0]) * (1.0 - share)
        return (
            f"The runner-up would win with a step below {show(shorter, 's')}, {show(share, 'fraction')} shorter.{doubt}"
        )

    def other_gpu(self, winner: Row, row: Row) -> str:
        """What the best on other GPUs, or another fabric, would need to win."""
        ratio = self.value(row) / self.value(winner)
        gpu, own = row.scenario.cluster.gpu.name, winner.scenario.cluster.gpu.name
        name = gpu if gpu != own else f"{gpu} on {row.scenario.cluster.fabric.name}"
        head = f"The best on {name} ({self.named(row)}) takes {ratio:.2f} x the"
        if self.objective == "time":
            return f"{head} time."
        if self.objective == "fewest-gpus":
            return f"{head} GPUs."
        price = row.scenario.prices.gpu_hour
        if price is not None:
            return f"{head} cost; it would win below ${price / ratio:.2f} a GPU-hour instead of ${price:.2f}."
        return f"{head} GPU-hours; it would win where an hour of it costs less than {1 / ratio:.2f} x one of {own}."

    def eased(self, one: Relaxation) -> str:
        """What a weaker limit would bring."""
        better = self.less(1 - (one.objective_ratio or 1.0))
        return f"With {self.weaker(one.limit, one.row)}, {label(one.row)} {better} than the winner."

    def nothing(self, plan: ModelPlan) -> tuple[str, ...]:
        """What stands against every candidate, and what would relax it."""
        codes = [code for code in plan.rejected if code in LIMIT_CODES]
        head = "No candidate keeps all limits"
        if codes:
            bound = f"{plan.rejected[codes[0]]:,} of {plan.screened:,} screened"
            head += f"; binding for most of them ({bound}): {codes[0]} ({plan.meanings[codes[0]]})"
        found = [f"{head}."]
        if plan.closest is not None:
            found.append(self.closest(plan.closest))
        found += [*self.overturned(plan), *self.own(plan)]
        found += [self.relaxed(plan, one) for one in plan.relaxations]
        if not plan.relaxations:
            found += self.too_few(plan) or [self.several(plan.closest)]
        return tuple(found)

    def several(self, closest: Row | None) -> str:
        """That one weaker limit is not enough, and which ones together would admit the closest."""
        head = "No limit alone stands against any candidate: several have to give, or other GPUs be allowed."
        if closest is None:
            return head
        needs = " and ".join(self.weaker(key, closest) for key in closest.over)
        return f"{head} The closest needs {needs}."

    def relaxed(self, plan: ModelPlan, one: Relaxation) -> str:
        """Which weaker limit would admit a candidate."""
        which = " by the closest" if one.row is plan.closest else f": {self.named(one.row)}"
        return f"It would relax with {self.weaker(one.limit, one.row)}{which}."

    def weaker(self, key: str, row: Row) -> str:
        """What a limit would have to be for a row that breaks it."""
        limit = next(limit for limit in limits_of(self.question) if limit.key == key)
        return relaxed_words(limit, row.over[key])

    def named(self, row: Row) -> str:
        """A row's label, and that it was not simulated, where others are."""
        return f"{label(row)}{self.by(row)}"

    def by(self, row: Row) -> str:
        """That a row was not simulated, where others are."""
        return ", by the closed form" if self.question.spec.simulate and row.road == "estimate" else ""

    def overturned(self, plan: ModelPlan) -> list[str]:
        """That no simulated layout keeps the limits which the closed form found kept, and what the nearest needs."""
        count = len(plan.overturned) + len(plan.failed)
        if not count or any(row.road == "simulate" for row in plan.rows):
            return []
        found = []
        if plan.overturned:
            found.append(f"None of the {count} best layouts by the closed form keeps all limits when simulated.")
            near = plan.overturned[0]
            needs = " and ".join(self.weaker(key, near) for key in near.over)
            found.append(f"The nearest of them, {label(near)}, would need {needs}.")
        if plan.failed:
            which = f"{len(plan.failed)} of the {count} best layouts by the closed form"
            found.append(f"{which} could not be simulated: {shorten(plan.failed[0], 240)}.")
        if plan.rows:
            found.append("The winner told here keeps all limits by the closed form alone: simulate more (--simulate).")
        return [" ".join(found)]

    def own(self, plan: ModelPlan) -> list[str]:
        """Where the scenario's own layout stands among the candidates, and how far behind the winner."""
        if plan.own is None:
            return []
        row, winner = plan.own.row, plan.winner
        place = f"rank {plan.own.rank:,} of {plan.own.of:,} by {self.objective}"
        head = f"Your layout ({label(row)})"
        if winner is row or (winner is not None and winner.scenario == row.scenario):
            return [f"{head} is the winner: {place}."]
        behind = "" if winner is None else f", {self.more(self.value(row) / self.value(winner))} than the winner"
        if row.over:
            needs = " and ".join(self.weaker(key, row) for key in row.over)
            return [f"{head} does not keep the limits: it would need {needs}; with that, {place}{behind}."]
        return [f"{head}: {place}{behind}{self.by(row)}."]

    def more(self, ratio: float) -> str:
        """ "costs 12 % more", or less."""
        share, word = show(abs(ratio - 1.0), "fraction"), "more" if ratio >= 1.0 else "less"
        words = {"time": f"it takes {share} {word} time", "fewest-gpus": f"it needs {share} {word} GPUs"}
        return words.get(self.objective, f"it costs {share} {word}")

    def too_few(self, plan: ModelPlan) -> list[str]:
        """How many GPUs of each kind hold the model, where even the closest candidate has too few."""
        if plan.closest is None or "memory_headroom" not in plan.closest.over:
            return []
        share = next(limit.allowed for limit in limits_of(self.question) if limit.key == "memory_headroom")
        needed: dict[str, tuple[int, int]] = {}
        for cluster in self.question.choices.clusters:
            least = ceil(least_held(plan.base.model_copy(update={"cluster": cluster}), share))
            most = max(cluster.gpus, needed.get(cluster.gpu.name, (0, 0))[1])
            needed[cluster.gpu.name] = least, most
        if any(least <= most for least, most in needed.values()):
            return []
        said = " or ".join(f"{least:,} {name} instead of {most:,}" for name, (least, most) in needed.items())
        return [f"The states of {plan.model} alone (parameters, gradients, optimizer) need at least {said}."]

    def crossed(self, winner: Row) -> list[str]:
        """The limits of time and cost that the winner keeps at its value and not over its whole range."""
        summary = winner.summary
        ranges = {"days": summary["training_time"], "dollars": summary.get("cost")}
        found = []
        for limit in limits_of(self.question):
            known = ranges.get(limit.key)
            if known is not None and known.high > limit.allowed:
                allowed, reach = show(limit.allowed, limit.unit), show(known.high, limit.unit)
                found.append(f"The winner keeps {allowed} at its value; its 90 % range reaches {reach}.")
        return found

    def at_the_edge(self, winner: Row) -> list[str]:
        """That the winner has the fewest or the most GPUs tried, of those that the limits allow."""
        cluster, limits = winner.scenario.cluster, self.question.limits
        alike = [c.gpus for c in self.question.choices.clusters if (c.gpu, c.fabric) == (cluster.gpu, cluster.fabric)]
        more = cluster.gpus + cluster.gpus_per_domain
        drawn = more * (cluster.gpu.power or 0.0)
        full = more > (limits.gpus or more) or drawn > (drawn if limits.power is None else limits.power)
        if min(alike) == max(alike) or min(alike) < cluster.gpus < max(alike) or (full and cluster.gpus == max(alike)):
            return []
        which, rest = ("fewest", "fewer") if cluster.gpus == min(alike) else ("most", "more")
        return [f"{cluster.gpus:,} {cluster.gpu.name} are the {which} that were tried; {rest} may do better (--gpus)."]

    def closest(self, row: Row) -> str:
        """The candidate that comes nearest to all limits."""
        over = " and ".join(f"{key} ({beyond(ratio)})" for key, ratio in row.over.items())
        return f"The closest is {label(row)}: {self.figures(row)}; it breaks {over}."
