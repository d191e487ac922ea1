"""Why the winner wins, what the runner-up would need, and, where nothing is feasible, what stands against it."""

from __future__ import annotations

from math import ceil

from moesim.planner.defaults import DAY, least_held
from moesim.planner.figures import limits_of, objective_of
from moesim.planner.plan import ModelPlan, Relaxation, Row
from moesim.planner.reading import Question
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
_NAMES = {
    "cluster.gpu": "GPU",
    "cluster.gpus": "GPUs",
    "cluster.fabric": "fabric",
    "parallelism.tensor": "tensor",
    "parallelism.pipeline": "pipeline",
    "parallelism.virtual_pipeline": "chunks a pipeline rank",
    "parallelism.expert": "expert",
    "parallelism.expert_tensor": "expert_tensor",
    "parallelism.context": "context",
    "workload.micro_batch": "micro_batch",
    "recompute": "recompute",
    "schedule.kind": "schedule",
    "routing.capacity": "capacity",
    "dispatcher.kind": "dispatcher",
    "overlap.expert_communication": "hidden exchanges",
}


def words(plan: ModelPlan, question: Question) -> tuple[str, ...]:
    """The answer in sentences."""
    told = Words(question)
    if plan.winner is None:
        return told.nothing(plan)
    found = told.against(plan.winner, plan.rows[1]) if len(plan.rows) > 1 else []
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


def cost_words(question: Question, value: float) -> str:
    """A cost as the plan tells it."""
    return show(value, "$" if question.priced else "GPU-h")


def relaxed_words(one: Relaxation) -> str:
    """A weaker limit: "days 34.2 instead of 30"."""
    if one.limit == "memory_headroom":
        return f"memory_headroom {show(1 - one.needed, 'fraction')} instead of {show(1 - one.allowed, 'fraction')}"
    if one.limit == "days":
        return f"days {one.needed / DAY:.3g} instead of {one.allowed / DAY:.3g}"
    return f"{one.limit} {show(one.needed, one.unit)} instead of {show(one.allowed, one.unit)}"


class Words:
    """Sentences about one question's candidates."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.objective: Objective = question.spec.objective

    def value(self, row: Row) -> float:
        """What the objective compares, to be small."""
        return float(getattr(row.figures, objective_of(self.objective))[0])

    def less(self, share: float) -> str:
        """ "costs 3 % less"."""
        said = show(share, "fraction")
        return {"time": f"takes {said} less time", "fewest-gpus": f"needs {said} fewer GPUs"}.get(
            self.objective, f"costs {said} less"
        )

    def against(self, winner: Row, other: Row) -> list[str]:
        """Why the winner beats the runner-up, how they differ, and what the runner-up would need."""
        share = 1.0 - self.value(winner) / self.value(other)
        parts = self.parts(winner, other)
        if share < LEVEL:
            saved = 1.0 - float(winner.figures.cost[0] / other.figures.cost[0])
            more = f", and {show(saved, 'fraction')} less cost decides" if saved > LEVEL else ""
            found = [f"The winner and the runner-up ({label(other)}) are level{more}: {parts}."]
        else:
            found = [f"The winner {self.less(share)} than the runner-up ({label(other)}): {parts}."]
        differing = _differences(winner, other)
        return [*found, *([f"It differs in {differing}."] if differing else []), self.need(winner, other, share)]

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
        less = [f"{name} (−{_amount(-value, alike)})" for name, value in ranked[:PARTS] if -value > 1e-3 * steps[1]]
        more = [f"{name} (+{_amount(value, alike)})" for name, value in ranked[::-1][:PARTS] if value > 1e-3 * steps[1]]
        said = f"a step is {_amount(steps[0], alike)} against {_amount(steps[1], alike)}"
        said += f", less for {' and '.join(less)}" if less else ""
        return said + (f", more for {' and '.join(more)}" if more else "")

    def need(self, winner: Row, other: Row, share: float) -> str:
        """What the runner-up would need to win, and whether the difference is more than the steps' range."""
        step = winner.summary["step_time"]
        band = step.high / step.value - 1.0
        known = _band(1.0 - step.low / step.value, band)
        same_gpu = winner.scenario.cluster.gpu == other.scenario.cluster.gpu
        doubt = f" A step is known to {known}: try both." if same_gpu and share < band else ""
        if self.objective == "fewest-gpus":
            gpus = winner.scenario.cluster.gpus
            return f"The runner-up would win if it kept the limits on fewer than {gpus:,} GPUs.{doubt}"
        shorter = float(other.figures.step_seconds[0]) * (1.0 - share)
        return (
            f"The runner-up would win with a step below {show(shorter, 's')}, {show(share, 'fraction')} shorter.{doubt}"
        )

    def other_gpu(self, winner: Row, row: Row) -> str:
        """What the best on other GPUs, or another fabric, would need to win."""
        ratio = self.value(row) / self.value(winner)
        gpu, own = row.scenario.cluster.gpu.name, winner.scenario.cluster.gpu.name
        name = gpu if gpu != own else f"{gpu} on {row.scenario.cluster.fabric.name}"
        head = f"The best on {name} ({label(row)}) takes {ratio:.2f} x the"
        if self.objective == "time":
            return f"{head} time."
        if self.objective == "fewest-gpus":
            return f"{head} GPUs."
        price = row.scenario.prices.gpu_hour
        if price is not None:
            return f"{head} cost; it would win below ${price / ratio:.2f} a GPU-hour instead of ${price:.2f}."
        return f"{head} GPU-hours: it wins where its GPU-hour costs less than {1 / ratio:.2f} x one of {own}."

    def eased(self, one: Relaxation) -> str:
        """What a weaker limit would bring."""
        better = self.less(1 - (one.objective_ratio or 1.0))
        return f"With {relaxed_words(one)}, {label(one.row)} {better} than the winner."

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
        found += [f"It would relax with {relaxed_words(one)}: {label(one.row)}." for one in plan.relaxations]
        if not plan.relaxations:
            several = "No limit alone stands against any candidate: several have to give, or other GPUs be allowed."
            found += self.too_few(plan) or [several]
        return tuple(found)

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
        days, memory = row.summary["training_time"], float(row.figures.memory_share[0])
        span = f" ({shown_range(days)})" if shown_range(days) else ""
        cost = cost_words(self.question, float(row.figures.cost[0]))
        over = ", ".join(f"{key} by {show(ratio - 1, 'fraction')}" for key, ratio in row.over.items())
        said = f"{show(days.value, 's')}{span}, {cost}, {show(memory, 'fraction')} of memory"
        return f"The closest is {label(row)}: {said}; it breaks {over}."


def _band(low: float, high: float) -> str:
    """How far a range goes down and up, as shares of the value: "−17 % to +45 %", or "±20 %" where that is alike."""
    down, up = show(low, "fraction"), show(high, "fraction")
    return f"±{up}" if down == up else f"−{down} to +{up}"


def _amount(seconds: float, plain: bool) -> str:
    """Seconds, or GPU-seconds."""
    if plain:
        return show(seconds, "s")
    return f"{seconds:,.3g} GPU-s" if seconds < 1000 else f"{seconds:,.0f} GPU-s"


def _differences(winner: Row, other: Row) -> str:
    """The fields of the layout in which they differ."""
    one, two = winner.layout, other.layout
    names = [name for name in _NAMES if one[name] != two[name]]
    return ", ".join(f"{_NAMES[name]} {_said(one[name])} (there {_said(two[name])})" for name in names)


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " + ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else str(value)
