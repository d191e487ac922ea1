"""Quantities: SI numbers inside; text with a unit is parsed at the edge and printed back.

Bits and bytes, decimal (GB) and binary (GiB) prefixes are never mixed: `parse("80 GB", "B")` is 80e9 and
`parse("80 GiB", "B")` is 85899345920.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from moesim.errors import UnitError, shorten

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_SMALL = {"n": 1e-9, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "m": 1e-3}


def _table(symbols: dict[str, float], prefixes: dict[str, float]) -> dict[str, float]:
    return {prefix + symbol: scale * size for symbol, scale in symbols.items() for prefix, size in prefixes.items()}


_SI = {"": 1.0}  # text that is a plain number: YAML reads 80e9 as text
_DAY = 86400.0
_TIME = {**_table({"s": 1.0}, {"": 1.0, **_SMALL}), "min": 60.0, "h": 3600.0, "d": _DAY, "day": _DAY, "days": _DAY}
_BYTES = _table({"B": 1.0, "b": 0.125, "bit": 0.125}, {**_DECIMAL, **_BINARY})
_WORK = _table({"FLOP": 1.0, "FLOPs": 1.0}, _DECIMAL)
_CURRENCY = _table({"$": 1.0, "US$": 1.0, "USD": 1.0}, {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6})
_MONEY = {**_CURRENCY, "dollar": 1.0, "dollars": 1.0, "cent": 0.01, "cents": 0.01, "ct": 0.01}


def _rates(of: dict[str, float], per: dict[str, float]) -> dict[str, float]:
    """Units of money per something: "$/h", "cents/kWh"; beside them "$2" alone is per the key's own unit."""
    below = _table(per, of)
    return {f"{coin}/{unit}": scale / size for coin, scale in _MONEY.items() for unit, size in below.items()}


UNITS: dict[str, dict[str, float]] = {
    "B": {**_BYTES, **_SI},
    "B/s": {**{f"{unit}{per}": scale for unit, scale in _BYTES.items() for per in ("/s", "ps")}, **_SI},
    "s": {**_TIME, **_SI},
    "FLOP": {**_WORK, **_SI},
    "FLOP/s": {**{f"{unit}/s": scale for unit, scale in _WORK.items()}, **_table({"FLOPS": 1.0}, _DECIMAL), **_SI},
    "W": {**_table({"W": 1.0}, {**_DECIMAL, "m": 1e-3}), **_SI},
    "J": {**_SI, **_table({"J": 1.0}, _DECIMAL), **_table({"Wh": 3600.0}, _DECIMAL)},
    "token": {**_table({"token": 1.0, "tokens": 1.0, "": 1.0}, {**_DECIMAL, "B": 1e9}), "": 1.0},
    "$": {**_MONEY, **_SI},
    "$/h": {
        **_rates({"": 1.0, "GPU-": 1.0}, {"h": 1.0, "hr": 1.0, "hour": 1.0, "d": 24.0, "day": 24.0}),
        **_CURRENCY,
        **_SI,
    },
    "$/kWh": {**_rates({"": 1.0}, {"Wh": 1e-3, "kWh": 1.0, "MWh": 1e3, "GWh": 1e6}), **_CURRENCY, **_SI},
    "1": {"": 1.0, "%": 0.01},
}
_DIGITS = r"([-+]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_NUMBER = re.compile(rf"\s*{_DIGITS}\s*(\S*)\s*\Z")
_COIN_FIRST = re.compile(rf"\s*(?:US\$|USD|\$)\s*{_DIGITS}\s*([kKM]?)(/\S+)?\s*\Z")
_PER = re.compile(r"\s*/\s*|\s+per\s+")


def parse(value: object, dimension: str) -> float:
    """SI value of a number or of text such as "400 Gb/s", "80 GiB", "3 us"; plain numbers are SI already.

    Raises `UnitError` where the text does not parse, has another dimension's unit, or is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UnitError(f"expected a quantity in {dimension}, got {shorten(value)}")
    if isinstance(value, (int, float)):
        try:
            number = float(value)
        except OverflowError as error:
            raise UnitError(f"expected a quantity in {dimension}, got an integer too large to use") from error
    else:
        number = _parse_text(value, dimension)
    if not math.isfinite(number):
        raise UnitError(f"expected a finite quantity in {dimension}, got {shorten(value)}")
    return number


def _parse_text(text: str, dimension: str) -> float:
    known = UNITS[dimension]
    if len(text) > 80:
        raise UnitError(f"expected a quantity in {dimension}, got {shorten(text, 40)!r}")
    match = _NUMBER.match(_coin_last(text) if dimension.startswith("$") else text)
    if match is None:
        raise UnitError(f"expected a quantity such as {_example(dimension)!r}, got {shorten(text)!r}")
    unit = match[2]
    if unit not in known:
        other = next((name for name, table in UNITS.items() if unit in table), None)
        why = f"{unit!r} is a unit of {other}" if other and unit else f"{unit!r} is not a unit of {dimension}"
        raise UnitError(f"expected a quantity such as {_example(dimension)!r}, got {shorten(text)!r}: {why}")
    return float(match[1].replace("_", "").replace(",", "")) * known[unit]


def _coin_last(text: str) -> str:
    """Money with its unit behind the number: "$2/h" and "USD 2 per h" are "2 $/h"."""
    text = _PER.sub("/", text)
    match = _COIN_FIRST.match(text)
    return text if match is None else f"{match[1]} {match[2]}${match[3] or ''}"


def _example(dimension: str) -> str:
    examples = {"B": "80 GB", "B/s": "400 Gb/s", "s": "3 us", "FLOP/s": "989 TFLOP/s", "W": "700 W", "token": "1T"}
    examples |= {"$/h": "2 $/h", "$/kWh": "0.08 $/kWh"}
    return examples.get(dimension, f"1 {dimension}")


_SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((86400.0, "d"), (3600.0, "h"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")),
    "B": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "B/s": ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1.0, "B/s")),
    "FLOP/s": ((1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1.0, "FLOP/s")),
    "FLOP": ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1.0, "FLOP")),
    "J": ((3.6e12, "MWh"), (3.6e9, "MWh"), (3.6e6, "kWh"), (1.0, "J")),
    "W": ((1e6, "MW"), (1e3, "kW"), (1.0, "W")),
    "GPU-h": ((1e6, "M GPU-h"), (1e3, "k GPU-h"), (1.0, "GPU-h")),
    "$": ((1e6, "M$"), (1e3, "k$"), (1.0, "$")),
    "parameter": ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1.0, "")),
    "token/s": ((1e6, "M tokens/s"), (1.0, "tokens/s")),
}


def show(value: float, unit: str) -> str:
    """`value` (SI) for reading: `show(0.0123, "s")` is "12.3 ms"; fractions are shown in percent."""
    if value != value:
        return "n/a"
    if unit == "fraction":
        return f"{100 * value:.3g} %"
    if unit not in _SCALES:
        return f"{value:,.4g} {unit}".rstrip() if abs(value) < 1e5 else f"{value:,.0f} {unit}".rstrip()
    size, symbol = scale(value, unit)
    return f"{_digits(value / size)} {symbol}".rstrip()


def scale(value: float, unit: str) -> tuple[float, str]:
    """Size in SI, and symbol, of the unit that suits a value; the SI unit itself where there is no other."""
    scales = _SCALES.get(unit, ((1.0, unit),))
    size, symbol = next((pair for pair in scales if abs(value) >= pair[0]), scales[-1])
    return (3.6e9 if unit == "J" and symbol == "MWh" else size), symbol


def _digits(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def _quantity(dimension: str, low: float, high: float, *, zero: bool = False) -> Any:
    """A pydantic field type: text or number in, SI float out, from low to high (above 0 where low is 0, unless `zero`
    is allowed)."""

    def read(value: object) -> float:
        number = parse(value, dimension)
        if not low <= number <= high or (number == 0 and not zero):
            least = f"at least {low:g}" if low or zero else "above 0"
            raise UnitError(f"must be {least} and at most {high:g} {dimension}, got {shorten(value)}")
        return number

    return Annotated[float, BeforeValidator(read)]


# Sanity bounds: a thousand times beyond anything built, on either side.
Bytes = _quantity("B", 1e6, 1e18)
BytesPerSecond = _quantity("B/s", 1e5, 1e16)
Seconds = _quantity("s", 0.0, 1e9)
Pause = _quantity("s", 0.0, 1e9, zero=True)
Lifetime = _quantity("s", 1.0, 1e13)
FlopPerSecond = _quantity("FLOP/s", 1e9, 1e21)
Watts = _quantity("W", 1e-2, 1e10)
Tokens = _quantity("token", 0.0, 1e18)
DollarsPerHour = _quantity("$/h", 0.0, 1e5)
DollarsPerKilowattHour = _quantity("$/kWh", 0.0, 1e3)
