"""The cross-field rules about experts, routers and loads: one small function a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from moesim.errors import Problem, UserError, nearest_hint
from moesim.routing.routers import ROUTERS
from moesim.routing.routers import router as make_router
from moesim.scenario.scenario import Scenario
from moesim.scenario.stated import Stated

Check = Callable[[Scenario], Iterator[Problem]]


def experts_fit_the_ranks(scenario: Scenario) -> Iterator[Problem]:
    """Expert parallelism needs experts to divide, and ranks that exist in one pipeline stage."""
    layout, model, gpus = scenario.parallelism, scenario.model, scenario.cluster.gpus
    where = "parallelism.expert"
    if not model.is_moe:
        if layout.expert > 1 or layout.expert_tensor > 1:
            yield Problem(where, f"{model.name} has no experts; allowed: 1 (also for expert_tensor)")
        return
    stage, split = gpus // layout.pipeline, layout.expert_tensor
    whole = gpus % (layout.pipeline * layout.tensor * layout.context) == 0  # if not, another rule says so
    held = scenario.expert_slots  # that redundant experts do not divide, another rule says
    dividing = [degree for degree in range(1, held + 1) if held % degree == 0]
    able = [degree for degree in dividing if whole and stage % (degree * split) == 0]
    nearest = min(able or dividing, key=lambda degree: abs(degree - layout.expert), default=1)
    if held % layout.expert and not scenario.placement.redundant_experts:
        yield Problem(where, f"{model.n_experts} experts do not divide over {layout.expert} ranks; nearest: {nearest}")
    elif whole and stage % (layout.expert * split):
        ranks = layout.expert * split
        reason = f"has only {stage} GPUs" if ranks > stage else f"of {stage} GPUs does not divide by them"
        yield Problem(
            where,
            f"expert {layout.expert} x expert_tensor {split} = {ranks} ranks, but a pipeline stage {reason} (data"
            f" {scenario.data_parallel} x context {layout.context} x tensor {layout.tensor}; {gpus} / pipeline"
            f" {layout.pipeline})" + (f"; nearest expert: {nearest}" if able else ""),
        )


def router_fits_the_experts(scenario: Stated) -> Iterator[Problem]:
    """top-k <= experts, groups divide the experts, and the allowed groups hold top-k."""
    model, router = scenario.model, scenario.model.router
    if model.moe_layers and not model.n_experts:
        yield Problem("model.n_experts", f"{model.moe_layers} MoE layers need experts; got 0")
    if not model.is_moe:
        return
    if not 1 <= model.top_k <= model.n_experts:
        yield Problem("model.top_k", f"must be from 1 to n_experts {model.n_experts}, got {model.top_k}")
        return
    if not model.d_ff_expert:
        yield Problem("model.d_ff_expert", "an MoE model needs the experts' hidden width")
    if router.rule not in ROUTERS:
        yield Problem("routing.router", f"unknown router {router.rule!r}{nearest_hint(router.rule, ROUTERS)}")
        return
    where = "model.router.groups"
    if model.n_experts % router.groups:
        yield Problem(where, f"{model.n_experts} experts do not divide into {router.groups} groups")
        return
    if router.top_groups > router.groups:
        yield Problem("model.router.top_groups", f"{router.top_groups} of {router.groups} groups cannot be kept")
        return
    try:
        make_router(router, model.n_experts, model.top_k)
    except UserError as error:
        yield Problem("model.router", str(error))


def load_fits_the_experts(scenario: Stated) -> Iterator[Problem]:
    """Newcomers and pinned experts are some of a layer's, not all."""
    load, experts = scenario.routing.load, scenario.model.n_experts
    if load.newcomers is not None and load.newcomers.experts >= experts:
        yield Problem("routing.load.newcomers.experts", f"must leave some of the {experts} experts, got all of them")
    if load.tenants is not None:
        pinned = load.tenants.count * load.tenants.experts
        if experts - pinned + load.tenants.experts < scenario.model.top_k or pinned >= experts:
            yield Problem(
                "routing.load.tenants",
                f"{load.tenants.count} tenants with {load.tenants.experts} experts each pin {pinned} of {experts};"
                f" shared and own ones together must hold top-{scenario.model.top_k}",
            )
    if scenario.model.router.rule == "soft-moe" and scenario.routing.capacity != "dropless":
        yield Problem("routing.capacity", "a soft mixture has slots instead of a capacity; say dropless")
    if load.fitted and scenario.model.router.rule == "routing-network":
        yield Problem(
            "routing.load", "a fitted law is of tokens, routing-network chooses by sequence: name a simple law"
        )
    recorded = "trace" if load.trace else "fitted" if load.fitted else None
    rule = scenario.model.router.rule
    if recorded == "trace" and scenario.model.is_moe and scenario.routing.router != "model-default":
        yield Problem("routing.router", f"a trace replays its own router's choices; drop it, or fit the trace ({rule})")


def offload_keeps_some(scenario: Scenario) -> Iterator[Problem]:
    """A GPU holds at most the experts that are its own."""
    offload, ranks = scenario.placement.offload, scenario.parallelism.expert
    if offload is None:
        return
    if not scenario.model.is_moe:
        yield Problem("placement.offload", f"{scenario.model.name} has no experts")
    elif offload.resident > scenario.model.n_experts // ranks:
        most = scenario.model.n_experts // ranks
        yield Problem("placement.offload.resident", f"{offload.resident} of the {most} experts that a rank has")
    if offload.prefetch != "none":
        why = "a training step fetches experts beside others that it computes; for decode and serving; allowed: none"
        yield Problem("placement.offload.prefetch", why)


def thinning_is_even(scenario: Scenario) -> Iterator[Problem]:
    """Drawn tokens stand for equally many; capacity counts every token."""
    drawn, tokens = scenario.simulation.sampled_tokens, scenario.tokens_per_rank * scenario.parallelism.expert_tensor
    if drawn is None:
        return
    where = "simulation.sampled_tokens"
    if tokens % drawn:
        yield Problem(where, f"{drawn} does not divide the {tokens} tokens that a rank routes in a microbatch")
    if scenario.routing.capacity != "dropless":
        yield Problem(where, "expert capacity counts every token; leave it out, or route dropless")
    if scenario.model.is_moe and scenario.router.evened:
        yield Problem(where, f"router {scenario.model.router.rule} balances the tokens it sees: it needs all of them")


CHECKS: tuple[Check, ...] = (
    experts_fit_the_ranks,
    router_fits_the_experts,
    load_fits_the_experts,
    offload_keeps_some,
    thinning_is_even,
)
