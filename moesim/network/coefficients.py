"""The network's coefficients, read from the catalog's calibrations `network-*`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from moesim import catalog
from moesim.provenance import Basis


@dataclass(frozen=True)
class Law:
    """One calibration entry: `value(...)` walks to a number; `assumed(...)` reads one that no measurement fixes.

    `band` is the relative range that 90 % of the fitted rows lie in, `band_elsewhere` the one outside `valid`.
    """

    name: str
    basis: Basis
    band: float
    band_elsewhere: float
    valid: dict[str, Any]
    data: dict[str, Any]

    def value(self, *path: str) -> float:
        """The number at `path`."""
        found: Any = self.data
        for key in path:
            found = found[key]
        return float(found)

    def assumed(self, name: str) -> float:
        """A number of this entry that is assumed, with its reason beside it in the data."""
        return float(self.data["assumed"][name]["value"])

    def names(self, *path: str) -> tuple[str, ...]:
        """The list of names at `path`."""
        found: Any = self.data
        for key in path:
            found = found[key]
        return tuple(found)


def law(name: str, measured: str | None = None) -> Law:
    """The calibration `network-NAME`; what the user's own calibration file `measured` says of it goes first."""
    data: dict[str, Any] = catalog.calibration(f"network-{name}", measured)
    band = float(data["residual"].get("range", data["residual"]["p90"]))
    elsewhere = float(data["residual_elsewhere"]["p90"]) if "residual_elsewhere" in data else band
    basis = cast("Basis", data["source"]["basis"])
    return Law(name, basis, band, elsewhere, data.get("valid", {}), data)
