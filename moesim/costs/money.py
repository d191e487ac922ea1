"""Money and energy of a run: GPU-hours, dollars by the user's prices, joules at the GPU's power rating."""

from __future__ import annotations


def gpu_hours(gpus: int, seconds: float) -> float:
    """GPU-hours of `gpus` GPUs held for `seconds`."""
    return gpus * seconds / 3600.0


def energy_joules(gpus: int, seconds: float, watts: float) -> float:
    """Joules of `gpus` GPUs at `watts` each for `seconds`: the GPUs alone, without hosts, switches and cooling."""
    return gpus * seconds * watts


def dollars(hours: float, gpu_hour: float | None, joules: float | None, kilowatt_hour: float | None) -> float | None:
    """Rent of the GPUs and price of their energy; None where no price is known."""
    if gpu_hour is None and (kilowatt_hour is None or joules is None):
        return None
    rent = hours * gpu_hour if gpu_hour is not None else 0.0
    power = joules / 3.6e6 * kilowatt_hour if joules is not None and kilowatt_hour is not None else 0.0
    return rent + power
