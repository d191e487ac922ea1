"""Quantities: SI inside, text with a unit at the edge, nothing absurd accepted."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import UnitError
from moesim.units import UNITS, parse, show


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("400 Gb/s", "B/s", 50e9),
        ("50 GB/s", "B/s", 50e9),
        ("80 GB", "B", 80e9),
        ("80 GiB", "B", 85899345920),
        ("3 us", "s", 3e-6),
        ("3 µs", "s", 3e-6),
        ("989 TFLOP/s", "FLOP/s", 989e12),
        ("14.8T", "token", 14.8e12),
        ("600B", "token", 600e9),
        ("1,024", "token", 1024),
        ("$2.5/h", "$/h", 2.5),
        ("2.5 $/h", "$/h", 2.5),
        ("$48/day", "$/h", 2.0),
        ("USD 2/h", "$/h", 2.0),
        ("US$2 per GPU-hour", "$/h", 2.0),
        ("250 cents / h", "$/h", 2.5),
        ("0.5k$/h", "$/h", 500.0),
        ("$0.5k/h", "$/h", 500.0),
        ("$2", "$/h", 2.0),
        ("10 cents/kWh", "$/kWh", 0.1),
        ("100 $/MWh", "$/kWh", 0.1),
        ("$1e-1/kWh", "$/kWh", 0.1),
        ("$5M", "$", 5e6),
        ("5 M$", "$", 5e6),
        ("$2 $/h", "$/h", None),
        ("$2/kWh", "$/h", None),
        ("2/h", "$/h", None),
        ("$", "$/h", None),
        ("$2 W", "$/h", None),
        ("$400 Gb/s", "B/s", None),
        (2.5, "$/h", 2.5),
        ("700 W", "W", 700),
        ("1e-6 s", "s", 1e-6),
    ],
)
def test_examples(text: object, dimension: str, value: float | None) -> None:
    if value is None:
        with pytest.raises(UnitError):
            parse(text, dimension)
    else:
        assert parse(text, dimension) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("80 GB", "unit of B"),
        ("fast", "expected a quantity"),
        ("", "expected a quantity"),
        ("nan", "expected a quantity"),
        ("1e999 GB/s", "finite"),
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        (10**400, "too large"),
        (True, "expected a quantity"),
        (None, "expected a quantity"),
        ([1], "expected a quantity"),
        ("9" * 200, "expected a quantity"),
    ],
)
def test_mistakes_say_what_was_expected(text: object, word: str) -> None:
    with pytest.raises(UnitError, match=word):
        parse(text, "B/s")


@given(
    st.floats(min_value=1e-6, max_value=1e6, allow_nan=False),
    st.sampled_from([(dimension, unit) for dimension, table in UNITS.items() for unit in table]),
)
def test_units_scale_exactly(number: float, pair: tuple[str, str]) -> None:
    dimension, unit = pair
    assert parse(f"{number!r} {unit}", dimension) == pytest.approx(number * UNITS[dimension][unit], rel=1e-12)


@given(st.floats(min_value=1e-9, max_value=1e17), st.sampled_from(["s", "B", "B/s", "FLOP/s", "W"]))
def test_shown_values_read_back(value: float, dimension: str) -> None:
    text = show(value, dimension)
    assert parse(text, dimension) == pytest.approx(value, rel=6e-3)


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(UnitError):
        assert math.isfinite(parse(text, "B"))
