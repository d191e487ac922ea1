"""Money and energy of a run: GPU-hours, dollars by the user's prices, joules by the GPU's power rating."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.specs.workload import PricesSpec


def gpu_hours(gpus: int, seconds: float) -> float:
    """GPU-hours of `gpus` GPUs held for `seconds`."""
    return gpus * seconds / 3600.0


@dataclass(frozen=True)
class Draw:
    """Watts of one GPU at the meter, with what the prices count beside it: in steps, and while it stands still.

    `contains` says what they hold and what not.
    """

    running: float
    idle: float
    contains: str


def draw(rating: float, prices: PricesSpec, *, stands_still: bool) -> Draw:
    """What a GPU of `rating` watts draws; `stands_still`: whether the run ever waits."""
    host, factor = prices.host_power or 0.0, prices.power_usage_effectiveness or 1.0
    share = f" in steps and {100 * prices.idle_power_share:g} % of it (assumed) while they stand still"
    said = [f"GPUs at their rating of {rating:g} W{share if stands_still else ''}"]
    said.append(f"{host:g} W of host and switches each" if host else "no hosts and switches (prices.host_power)")
    said.append(
        f"cooling by a power usage effectiveness of {factor:g}"
        if prices.power_usage_effectiveness is not None
        else "no cooling (prices.power_usage_effectiveness)"
    )
    idle = prices.idle_power_share * rating
    return Draw((rating + host) * factor, (idle + host) * factor, "; ".join(said))


def energy_joules(drawn: Draw, running_seconds: float, idle_seconds: float) -> float:
    """Joules of GPUs that run steps and stand still for so many GPU-seconds."""
    return drawn.running * running_seconds + drawn.idle * idle_seconds


def dollars(hours: float, gpu_hour: float | None, joules: float | None, kilowatt_hour: float | None) -> float | None:
    """Rent of the GPUs and price of their energy; None where no price is known."""
    if gpu_hour is None and (kilowatt_hour is None or joules is None):
        return None
    rent = hours * gpu_hour if gpu_hour is not None else 0.0
    power = joules / 3.6e6 * kilowatt_hour if joules is not None and kilowatt_hour is not None else 0.0
    return rent + power
