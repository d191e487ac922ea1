"""Whether the fullest GPU's memory is enough: the verdict, the part that binds, and single changes that relax it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moesim.costs.memory import coefficients, verdict
from moesim.errors import InfeasibleError, MoesimError, Problem, ScenarioError
from moesim.results.relief import Relief, Reliefs, reliefs
from moesim.scenario.scenario import Scenario
from moesim.units import show


@dataclass(frozen=True)
class MemoryVerdict:
    """`verdict`: "fits", "tight" or "infeasible"; bytes `need` of `have`; the largest part, `binding`, and its bytes;
    `where`: the fullest GPU in words; `found`: what would relax it, where it does not fit and was asked for."""

    verdict: str
    need: float
    have: float
    binding: str
    part: float
    where: str
    found: Reliefs | None = None

    def sentence(self) -> str:
        """The verdict in words, with all that follows from it."""
        said = f"{self.where} needs {show(self.need, 'B')} of {show(self.have, 'B')}"
        if self.verdict == "fits":
            return f"fits in memory: {said}"
        most, limit = (f"{coefficients()[name]:.2f} x" for name in ("fits", "infeasible"))
        if self.verdict == "tight":
            opening = f"tight in memory: {said} (above {most}, not above {limit}: it may run out)"
        else:
            opening = f"does not fit in memory: {said} (limit {limit})"
        relaxed = f"; {_relaxed(self.found)}" if self.found is not None else ""
        return f"{opening}; binding: {self.binding}, {show(self.part, 'B')}{relaxed}"

    def refusal(self, name: str) -> str | None:
        """What the scenario `name` is refused with; None where it fits or is tight."""
        return f"{name}: {self.sentence()}" if self.verdict == "infeasible" else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain: dict[str, Any] = {"verdict": self.verdict, "need": self.need, "have": self.have}
        plain |= {"sentence": self.sentence(), "binding": self.binding, "binding_bytes": self.part, "where": self.where}
        found = self.found or Reliefs(0, (), (), None)
        listed = {"fits": found.fits, "tight": found.tight}
        plain["reliefs"] = [
            {"change": relief.change, "need": relief.need, "verdict": name}
            for name, some in listed.items()
            for relief in some
        ]
        return plain


def refused(where: str, error: MoesimError) -> dict[str, Any]:
    """Plain data for JSON of a scenario at `where` that comes to no verdict."""
    if isinstance(error, InfeasibleError):
        return {"infeasible": str(error)}
    problems = error.problems if isinstance(error, ScenarioError) else (Problem(where, str(error)),)
    return {"problems": [{"where": problem.where, "what": problem.what} for problem in problems]}


def judge(scenario: Scenario, parts: dict[str, float], fullest: int | None = None) -> MemoryVerdict:
    """The verdict on bytes by part of the fullest GPU.

    Looking for what would relax it takes about as long as an estimate, and is left out where the `fullest` pipeline
    rank is told.
    """
    need, have = sum(parts.values()), scenario.cluster.gpu.memory
    said, binding = verdict(need, have), max(parts, key=lambda name: parts[name])
    found = reliefs(scenario, parts) if said != "fits" and fullest is None else None
    stages, rank = scenario.parallelism.pipeline, found.rank if found is not None else fullest
    place = f" (pipeline rank {rank} of {stages})" if stages > 1 and rank is not None else ""
    return MemoryVerdict(said, need, have, binding, parts[binding], f"the fullest GPU{place}", found)


def _relaxed(found: Reliefs) -> str:
    """What would make it fit, in words."""
    if found.fits:
        return f"it would relax with {_listed(found.fits)}"
    if found.best is None:
        return "it would relax with GPUs of more memory; no other setting of this layout can change"
    if found.tight:
        return f"no single change makes it fit; it would be tight with {_listed(found.tight)}"
    best = f"{found.best.change} leaves {show(found.best.need, 'B')}"
    return f"no single change makes it fit: of those tried, {best}; it would relax with several at once, or more GPUs"


def _listed(changes: tuple[Relief, ...]) -> str:
    return " or ".join(f"{relief.change} (then {show(relief.need, 'B')})" for relief in changes)
