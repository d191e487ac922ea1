"""What the reader of a serving result should know beside its numbers, on either road."""

from __future__ import annotations

from collections.abc import Iterator

from moesim.iteration.stack import first_token_bias, stack_note
from moesim.randomness import Streams
from moesim.scenario.serving import ServingScenario
from moesim.serving.binding import limit
from moesim.serving.requests import draw_requests
from moesim.serving.simulation import Run
from moesim.serving.window import Worked

LIMIT = "what limits it"


def estimated(scenario: ServingScenario, binding: str) -> Iterator[str]:
    """Beside a steady state, which `binding` limits."""
    yield stack_note(scenario.stack, scenario.cluster.calibration)
    yield f"{LIMIT}: {binding}"
    yield from _beyond(scenario, _longest(scenario))
    yield from _drafting(scenario)
    yield from _in_step(scenario)


def simulated(scenario: ServingScenario, run: Run, worked: Worked) -> Iterator[str]:
    """Beside a run."""
    yield stack_note(scenario.stack, scenario.cluster.calibration)
    yield f"{LIMIT}: {limit(run, scenario, worked)}"
    window = worked.window
    if window.overloaded:
        yield (
            "requests come faster than they are served: the queue grows through the run, and latencies would be longer"
            " with more requests"
        )
    if not window.steady:
        yield f"rates: {window.note}"
    asked = scenario.workload.requests
    if scenario.workload.arrivals.kind == "trace" and run.requests.count < asked:
        yield f"the trace holds {run.requests.count:,} requests, fewer than workload.requests ({asked:,})"
    yield from _beyond(scenario, int(run.requests.input_tokens.max()))
    yield from _drafting(scenario)
    yield from _in_step(scenario)
    yield (
        "a request is let in when the KV cache has room for its prompt and all its output (no preemption); one engine's"
        " imbalance is drawn iteration by iteration from token-level routing samples"
    )


def beside(scenario: ServingScenario, name: str) -> str:
    """What a metric's own note has to add."""
    if name.startswith("time_to_first_token"):
        longer = 1.0 / (1.0 + first_token_bias())
        return f"; the engine's: with the server around it measured ones are {longer:.1f} times as long"
    untold = _unpriced(scenario) and name.startswith("time_per_output_token")
    return "; without the time of drafting tokens" if untold else ""


def _unpriced(scenario: ServingScenario) -> bool:
    engine = scenario.engine
    return bool(engine.drafted) and not scenario.model.mtp_layers and engine.draft_cost is None


def _drafting(scenario: ServingScenario) -> Iterator[str]:
    """What of speculative decoding is left out."""
    engine, name = scenario.engine, scenario.model.name
    if _unpriced(scenario):
        yield (
            f"drafted tokens: {name} has no multi-token-prediction layer, and the time of what drafts them is left out:"
            " state engine.draft_cost"
        )
    elif engine.drafted and not scenario.model.mtp_layers:
        yield (
            f"drafted tokens: each takes {engine.draft_cost:g} of a decode iteration; the memory of what drafts them"
            " and its time for prompts are left out"
        )


def _in_step(scenario: ServingScenario) -> Iterator[str]:
    """That the requests of a closed loop fall into step with each other."""
    if scenario.workload.kind == "serving" and scenario.workload.in_step:
        yield (
            "every request of the loop has equally many output tokens, so that they end, and are prefilled, many at a"
            " time: requests of unlike lengths, as in service, take up to twice as long where answers are short"
        )


def _longest(scenario: ServingScenario) -> int:
    """Tokens of the longest prompt, or what hardly any exceeds."""
    work = scenario.workload
    if work.input_tokens is not None:
        return int(work.input_tokens.longest())
    return int(draw_requests(work, Streams(scenario.simulation.seed)).input_tokens.max())


def _beyond(scenario: ServingScenario, longest: int) -> Iterator[str]:
    """That prompts are longer than the model is known for."""
    known, name = scenario.model.sequence_length, scenario.model.name
    if known is not None and longest > known:
        yield (
            f"warning: prompts of up to {longest:,} tokens, where {name} is known for sequences of {known:,}"
            " (model.sequence_length): priced all the same"
        )
