"""One serving scenario under every dispatcher that its engines could run, by the steady state.

An engine runs one library in both phases, or that library's kernels for throughput in prefill and for low latency in
decode; engines apart may each have their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moesim.errors import InfeasibleError, UserError
from moesim.iteration.exchange import BY_PHASE, Exchange, Work
from moesim.network.dispatchers import DISPATCHERS
from moesim.scenario.serving import ServingScenario
from moesim.serving.demand import demand_of
from moesim.serving.headline import RATES, headline
from moesim.serving.result import ServingResult
from moesim.serving.run import estimate_serving

METRICS = (
    "time_to_first_token",
    "time_per_output_token",
    "output_tokens_per_second_per_gpu",
    "input_tokens_per_second",
    "communication_fraction",
)
Names = dict[Work, str]
"""A dispatcher for each phase that has exchanges."""
Exchanges = dict[Work, Exchange]


@dataclass(frozen=True)
class ServingDispatchers:
    """One choice of dispatchers: the answer with them, or why there is none; `notes`: what they are not meant for."""

    names: Names
    result: ServingResult | None
    refusal: str | None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The dispatchers for reading, that of prefill first."""
        return " / ".join(dict.fromkeys(self.names.values()))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        summary = {} if self.result is None else self.result.summary
        return {
            **{phase: self.names.get(phase) for phase in BY_PHASE},
            "refusal": self.refusal,
            "notes": list(self.notes),
            "summary": {name: summary[name].as_dict() for name in METRICS if name in summary},
            "parts": {} if self.result is None else dict(self.result.breakdown),
        }


@dataclass(frozen=True)
class DispatchersCompared:
    """All choices, the best by `metric` first and those without an answer last; what `auto` takes, and at what load."""

    metric: str
    rows: tuple[ServingDispatchers, ...]
    chosen: Names
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        head = {"metric": self.metric, "chosen": dict(self.chosen), "reason": self.reason}
        return {**head, "dispatchers": [row.as_dict() for row in self.rows]}


def compare_serving_dispatchers(scenario: ServingScenario) -> DispatchersCompared:
    """The steady state of `scenario` under every choice of dispatchers.

    Raises `UserError` where no engine exchanges tokens, `InfeasibleError` where it has no steady state with `auto`.
    """
    exchanges = _exchanges(scenario)
    if not exchanges:
        raise UserError(
            f"{scenario.name}: there is nothing to dispatch: no engine spreads experts (instance.expert) over attention"
            " replicas with tokens of their own; its experts are summed over tensor-parallel ranks"
        )
    auto = estimate_serving(_with(scenario, dict.fromkeys(exchanges, "auto")))
    tokens = {phase: _tokens(scenario, phase, exchange, auto) for phase, exchange in exchanges.items()}
    chosen = {phase: _auto(exchange, phase, tokens[phase]) for phase, exchange in exchanges.items()}
    rows = [_row(scenario, names, exchanges, tokens) for names in _choices(exchanges, chosen)]
    if scenario.disaggregated is not None and len(exchanges) == 2:
        best = _best_apart(rows)
        rows += [_row(scenario, best, exchanges, tokens)] if best not in [row.names for row in rows] else []
    metric = headline(scenario)
    rows.sort(key=lambda row: (_order(row, metric), _order(row, "time_to_first_token")))
    told = [f"{name} in {phase}, at {_count(tokens[phase])} tokens a rank" for phase, name in chosen.items()]
    return DispatchersCompared(metric, tuple(rows), chosen, "; ".join(told))


def _exchanges(scenario: ServingScenario) -> Exchanges:
    """What moves tokens in each phase; a phase without exchanges is absent."""
    found: Exchanges = {}
    for phase in BY_PHASE:
        for pool in scenario.pools:
            exchange = Exchange(scenario, pool.instance)
            if pool.phase in (phase, "mixed") and exchange.exchanges:
                found[phase] = exchange
    return found


def _with(scenario: ServingScenario, names: Names) -> ServingScenario:
    spec = scenario.dispatcher.model_copy(update={str(phase): name for phase, name in names.items()})
    return scenario.model_copy(update={"dispatcher": spec})


def _tokens(scenario: ServingScenario, phase: Work, exchange: Exchange, auto: ServingResult) -> float:
    """Tokens a rank of a prompt, or of the mean iteration's decoding requests."""
    instance, engine = exchange.instance, scenario.engine
    if phase == "prefill":
        return min(demand_of(scenario).new, float(engine.token_budget)) / instance.tensor
    decoding = auto.summary["batch_requests"].value if "batch_requests" in auto.summary else 1.0
    return decoding * (1 + engine.drafted) / instance.replicas / instance.tensor


def _count(tokens: float) -> str:
    return f"{tokens:,.0f}" if tokens >= 10 else f"{tokens:.1f}"


def _auto(exchange: Exchange, phase: Work, tokens: float) -> str:
    """What `auto` takes, whatever the scenario names."""
    scenario = _with(exchange.scenario, {phase: "auto"})
    return Exchange(scenario, exchange.instance).dispatcher(phase, tokens).name


def _choices(exchanges: Exchanges, chosen: Names) -> list[Names]:
    """One library for all phases; kernels by phase; and what `auto` takes."""
    found = [dict.fromkeys(exchanges, name) for name in DISPATCHERS]
    for names in ({phase: BY_PHASE[phase] for phase in exchanges}, chosen):
        found += [names] if names not in found else []
    return found


def _row(
    scenario: ServingScenario, names: Names, exchanges: Exchanges, tokens: dict[Work, float]
) -> ServingDispatchers:
    refusals, notes = [], []
    for phase, name in names.items():
        law, exchange = DISPATCHERS[name], exchanges[phase]
        refusals.append(law.runs_on(exchange.experts_network))
        unfit = law.unfit(exchange.demand(tokens[phase]), exchange.experts_network)
        notes += [f"{phase}: {unfit}"] if unfit else []
    refused = next(filter(None, refusals), None)
    if refused is not None:
        return ServingDispatchers(names, None, refused)
    try:
        return ServingDispatchers(names, estimate_serving(_with(scenario, names)), None, tuple(notes))
    except InfeasibleError as error:
        return ServingDispatchers(names, None, str(error).removeprefix(f"{scenario.name}: "), tuple(notes))


def _best_apart(rows: list[ServingDispatchers]) -> Names:
    """The dispatcher with the earliest first token for prompts, that of the quickest further ones for output."""
    able = [row for row in rows if row.result is not None]
    by_phase: dict[Work, str] = {"prefill": "time_to_first_token", "decode": "time_per_output_token"}
    return {phase: min(able, key=lambda row: _order(row, metric)).names[phase] for phase, metric in by_phase.items()}


def _order(row: ServingDispatchers, metric: str) -> float:
    """Less is better."""
    if row.result is None or metric not in row.result.summary:
        return float("inf")
    value = row.result.summary[metric].value
    return -value if metric in RATES else value
