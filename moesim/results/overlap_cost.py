"""Whether what runs beside exchanges costs the step more than it hides, and the note that says so.

Both sides of the comparison are seconds that the mean rank's compute stream spends on microbatches. The step as it is
was observed: busy, or waiting for an exchange. Without any overlap every operation waits for the one before it: compute
at the rate of all SMs, then the busiest rank's exchange. That takes no second walk through the schedule.
"""

from __future__ import annotations

from moesim.results.observed import Observed
from moesim.results.relief import changed
from moesim.results.result import Road
from moesim.scenario.scenario import Scenario
from moesim.step.model import StepModel
from moesim.step.phases import Phases
from moesim.step.routed import RoutedWork
from moesim.units import show

COMPUTE = ("attention", "router", "experts", "shared", "dense", "embedding", "head")
WORTH_SAYING = 0.02
"""Share of the step below which the comparison is no news: it misses by half a percent, by three at most places."""


def overlap_note(model: StepModel, routed: RoutedWork | None, observed: Observed, road: Road) -> tuple[str, ...]:
    """A note where the step would be shorter with nothing beside exchanges; none where ranks are disturbed besides."""
    settings = model.scenario.simulation
    alone = not (settings.jitter or settings.stragglers or settings.network == "max-min")
    if routed is None or not model.hides or not (alone or road == "estimate"):
        return ()
    step = sum(observed.seconds) / len(observed.seconds)
    without = step_without_overlap(model, routed, observed)
    if without > (1.0 - WORTH_SAYING) * step:
        return ()
    switches = " and ".join(_switched_on(model.scenario))
    whose = "costs" if " and " not in switches else "cost"
    return (
        f"{switches} {whose} more than is hidden: about {show(without, 's')} a step without, {show(step, 's')} with:"
        f" {_why(model)}",
    )


def step_without_overlap(model: StepModel, routed: RoutedWork, observed: Observed) -> float:
    """Seconds of the step with nothing beside exchanges, about; the pipeline's bubble shrinks or grows with it."""
    step = sum(observed.seconds) / len(observed.seconds)
    waits = sum(observed.waited.get(kind, 0.0) for kind in ("dispatch", "combine"))
    spent = sum(observed.busy.get(kind, 0.0) for kind in COMPUTE) + waits
    uses = model.scenario.microbatches / model.scenario.parallelism.pipeline
    saved = spent - uses * _microbatch(model, routed)
    return step - saved / (1.0 - observed.waited.get("bubble", 0.0) / step)


def plain_model(scenario: Scenario) -> StepModel:
    """The step with nothing beside exchanges."""
    off = {"expert_communication": False, "two_batch": False, "shared_experts": False}
    overlap = scenario.overlap.model_copy(update={**off, "weight_gradients": "with-backward"})
    return StepModel(changed(scenario, {"overlap": overlap}))


def _microbatch(model: StepModel, routed: RoutedWork) -> float:
    """Seconds of a microbatch through all layers, forward and backward, one operation after the other."""
    plain, kinds = plain_model(model.scenario).prices, model.scenario.model.layer_kinds
    whole = 2 if model.recompute.everything else 1
    mtp = model.scenario.model.mtp_layers
    total = plain.even("head", kinds[-1]).total * (1 + mtp) + plain.even("embedding", kinds[0]).total
    for kind in (*kinds, *[kinds[-1]] * mtp):
        # The router's backward runs with the attention's.
        ahead = plain.even("router" if kind == "moe" else "dense", kind)
        total += _seconds(plain.even("attention", kind), whole)
        total += whole * ahead.forward if kind == "moe" else _seconds(ahead, whole)
    return float(total + _routed_seconds(model, routed, plain.even("experts", "moe")))


def _routed_seconds(model: StepModel, routed: RoutedWork, experts: Phases) -> float:
    """The same of the busiest ranks' experts and exchanges, mean over samples, summed over the layers passed."""
    forwards = 2 if model.recompute.everything or model.recompute.experts else 1
    places = [model.moe_index[layer] for layer in model.routed_passes]
    now = model.prices.even("experts", "moe")
    ways = [port.busiest.mean(axis=1)[places].sum() for port in (routed.dispatch, routed.combine)]
    ahead, back = (
        routed.seconds(slice(None), phase, False).max(axis=-1).mean(axis=1)[places].sum()
        for phase in ("forward", "backward")
    )
    back_share = (experts.backward + experts.weight) / (now.backward + now.weight)
    compute = forwards * ahead * experts.forward / now.forward + back * back_share
    return float(compute + (forwards + 1) * sum(ways))


def _seconds(phases: Phases, forwards: int) -> float:
    return phases.total + (forwards - 1) * phases.forward


def _switched_on(scenario: Scenario) -> list[str]:
    overlap = scenario.overlap
    names = [name for name in ("expert_communication", "two_batch") if getattr(overlap, name)]
    names += ["shared_experts"] * scenario.shared_experts_apart
    return [f"overlap.{name}" for name in (*names, *["weight_gradients"] * (overlap.weight_gradients == "delayed"))]


def _why(model: StepModel) -> str:
    """What the overlap costs, and what would cost less."""
    scenario, reasons = model.scenario, []
    held, available = model.mover.busy_multiprocessors, scenario.cluster.gpu.multiprocessors
    if scenario.overlap.interference == "reserved" and held:
        reasons.append(
            f"{held} of {available} SMs are kept from compute all step (overlap.interference: reserved; beside: only"
            " while an exchange runs, where the dispatcher's kernels give them back)"
        )
    plain = plain_model(scenario).prices
    if model.prices.issue_seconds("moe") > plain.issue_seconds("moe") and model.prices.host_factor("moe") > (
        1.0 + WORTH_SAYING
    ) * plain.host_factor("moe"):
        reasons.append("the host issues more kernels than it has time for (stack_options.cuda_graphs would relax it)")
    return "; ".join(reasons) or "compute beside an exchange is slowed by it, and there is little to hide"
