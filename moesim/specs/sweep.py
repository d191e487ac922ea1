"""A sweep: one scenario, fields that vary, seeds, and which road answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from moesim.columns import SERVING, SUMMARY
from moesim.errors import UnitError, nearest_hint, shorten
from moesim.specs.base import Spec
from moesim.units import UNITS, parse

MOST_POINTS = 1_000_000
"""Points of one sweep, seeds included: a hundred times what a desk asks, and its table still fits in memory."""
SEED_FIELDS = ("simulation.seed", "routing.seed")
"""What the seeds of a sweep set."""

Seed = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
Sampled = Literal["random", "latin_hypercube"]

_MOST = 1e100
"""Beyond this no field of a scenario has a meaning, and the width of a range could overflow."""


class Range(Spec):
    """A range to draw from: whole numbers where both ends are whole, else real ones; text with a unit becomes SI.

    `log` draws evenly over the logarithm.
    """

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="before")
    @classmethod
    def _in_si(cls, value: Any) -> Any:
        ends = [value.get(name) for name in ("low", "high")] if isinstance(value, dict) else []
        if not any(isinstance(end, str) for end in ends):
            return value
        return {**value, **dict(zip(("low", "high"), _common_si(ends), strict=True))}

    @model_validator(mode="after")
    def _has_extent(self) -> Range:
        if max(abs(self.low), abs(self.high)) > _MOST:
            raise ValueError(f"low and high must lie within +-{_MOST:g}")
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 on a logarithmic scale, got {self.low}")
        return self


class SweepSpec(Spec):
    """What a sweep file says; `scenario` is a path (from the file's folder) or a scenario's own keys.

    The points are every combination of `grid`, those of `list`, or `points` many drawn at `random` or by
    `latin_hypercube`, where a field has a `Range` or a list of choices; `draw_seed` belongs to the drawing. Each point
    is answered under each of `seeds` (a count, or the seeds), which set `simulation.seed` and `routing.seed`.
    """

    question: str = ""
    scenario: str | dict[str, JsonValue]
    road: Literal["estimate", "simulate"] = "estimate"
    grid: dict[str, tuple[JsonValue, ...]] | None = None
    list: tuple[dict[str, JsonValue], ...] | None = None
    random: dict[str, Range | tuple[JsonValue, ...]] | None = None
    latin_hypercube: dict[str, Range | tuple[JsonValue, ...]] | None = None
    points: int | None = Field(strict=True, default=None, ge=1, le=MOST_POINTS)
    draw_seed: Seed = 0
    seeds: Annotated[int, Field(strict=True, ge=1, le=MOST_POINTS)] | tuple[Seed, ...] | None = None
    metrics: tuple[str, ...] = ()

    @field_validator("grid", "random", "latin_hypercube")
    @classmethod
    def _choices_are_there(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        for field, choices in (value or {}).items():
            if isinstance(choices, tuple) and not choices:
                raise ValueError(f"{shorten(field)} lists no value")
        return value

    @field_validator("seeds")
    @classmethod
    def _seeds_are_there(cls, value: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
            raise ValueError("expected a count, or a list of seeds that are all different")
        return value

    @field_validator("metrics")
    @classmethod
    def _metrics_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in SUMMARY and name not in SERVING:
                raise ValueError(f"unknown metric {shorten(name)!r}{nearest_hint(name, {**SUMMARY, **SERVING})}")
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _points_are_said_once(self) -> SweepSpec:
        ways = ("grid", "list", "random", "latin_hypercube")
        said = [way for way in ways if getattr(self, way) is not None]
        if len(said) > 1:
            raise ValueError(f"gives {' and '.join(said)}; a sweep has one of {', '.join(ways)}")
        if not said and self.seeds is None:
            raise ValueError(f"nothing varies; give seeds, or one of {', '.join(ways)}")
        if (self.points is not None) != (self.sampled is not None):
            raise ValueError("points belongs to random and latin_hypercube, which both need it")
        doubly = sorted(set(self.fields) & set(SEED_FIELDS)) if self.seeds is not None else []
        if doubly:
            raise ValueError(f"{doubly[0]} is set by seeds already; vary one of the two")
        for field in self.fields:
            _check_path(field)
        count = self.count
        if not 0 < count <= MOST_POINTS:
            raise ValueError(f"{count:,} points; a sweep has 1 to {MOST_POINTS:,}")
        return self

    @property
    def sampled(self) -> Sampled | None:
        """How points are drawn; None where they are listed."""
        if self.random is not None:
            return "random"
        return "latin_hypercube" if self.latin_hypercube is not None else None

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that vary, in the order written."""
        if self.list is not None:
            return tuple(dict.fromkeys(field for point in self.list for field in point))
        return tuple(self.grid or self.random or self.latin_hypercube or ())

    @property
    def seed_list(self) -> tuple[int | None, ...]:
        """The seeds of every point; (None,) leaves the scenario's own."""
        if self.seeds is None:
            return (None,)
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def count(self) -> int:
        """Points, seeds included."""
        found = len(self.list) if self.list is not None else self.points or 1
        for choices in (self.grid or {}).values():
            found *= len(choices)
        return found * len(self.seed_list)


def _check_path(field: str) -> None:
    keys = field.split(".")
    if not all(key and key == key.strip() for key in keys) or len(keys) > 12:
        raise ValueError(f"{shorten(field)!r} is not a field of the form a.b")


def _common_si(ends: list[Any]) -> list[float]:
    """SI values of two ends, of which at least one is text, in the one dimension that both can have."""
    found = set()
    for dimension in UNITS:
        try:
            found.add(tuple(parse(end, dimension) for end in ends))
        except UnitError:
            continue
    if len(found) != 1:
        told = " to ".join(shorten(end) for end in ends)
        raise ValueError(
            f"{told} {'may mean several things' if found else 'is no range of one unit'}; write SI numbers"
        )
    return list(found.pop())
