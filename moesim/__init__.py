"""moesim: a routing simulator and capacity planner for Mixture-of-Experts models.

    scenario = moesim.load("scenarios/deepseek-v3-2048-h800.yaml")
    result = moesim.simulate(scenario)      # discrete-event simulation
    quick = moesim.estimate(scenario)       # closed form, same columns
    result.summary["step_time"]             # Quantity(value, unit, low, high, basis, note)

Rooms are imported when a name is first used, so that `import moesim` and `moesim --help` are quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moesim.version import __version__ as __version__

if TYPE_CHECKING:
    from moesim.calibration.fit import calibrate
    from moesim.errors import InfeasibleError, InternalError, MoesimError, ScenarioError, UserError
    from moesim.planner.run import plan
    from moesim.provenance import Quantity, Source
    from moesim.rebalancing.run import rebalance
    from moesim.results.result import Result
    from moesim.roads import choose_dispatcher, compare_dispatchers, estimate, simulate
    from moesim.scenario.loading import load
    from moesim.scenario.scenario import Scenario
    from moesim.serving.compare import compare
    from moesim.serving.store import load as load_result
    from moesim.serving.store import save
    from moesim.sweeps.run import sweep
    from moesim.sweeps.sensitivity import sensitivity
    from moesim.validation.run import validate

_DOORS = {
    "InfeasibleError": "moesim.errors:InfeasibleError",
    "InternalError": "moesim.errors:InternalError",
    "MoesimError": "moesim.errors:MoesimError",
    "Quantity": "moesim.provenance:Quantity",
    "Result": "moesim.results.result:Result",
    "Scenario": "moesim.scenario.scenario:Scenario",
    "ScenarioError": "moesim.errors:ScenarioError",
    "Source": "moesim.provenance:Source",
    "UserError": "moesim.errors:UserError",
    "calibrate": "moesim.calibration.fit:calibrate",
    "choose_dispatcher": "moesim.roads:choose_dispatcher",
    "compare": "moesim.serving.compare:compare",
    "compare_dispatchers": "moesim.roads:compare_dispatchers",
    "estimate": "moesim.roads:estimate",
    "load": "moesim.scenario.loading:load",
    "load_result": "moesim.serving.store:load",
    "plan": "moesim.planner.run:plan",
    "rebalance": "moesim.rebalancing.run:rebalance",
    "save": "moesim.serving.store:save",
    "sensitivity": "moesim.sweeps.sensitivity:sensitivity",
    "simulate": "moesim.roads:simulate",
    "sweep": "moesim.sweeps.run:sweep",
    "validate": "moesim.validation.run:validate",
}

__all__ = [
    "InfeasibleError",
    "InternalError",
    "MoesimError",
    "Quantity",
    "Result",
    "Scenario",
    "ScenarioError",
    "Source",
    "UserError",
    "calibrate",
    "choose_dispatcher",
    "compare",
    "compare_dispatchers",
    "estimate",
    "load",
    "load_result",
    "plan",
    "rebalance",
    "save",
    "sensitivity",
    "simulate",
    "sweep",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module 'moesim' has no attribute {name!r}")
    module, attribute = _DOORS[name].split(":")
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_DOORS})
