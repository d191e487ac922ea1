"""Stacked bars of steps: parts add up to each step, stand in one order, and are to one scale."""

from __future__ import annotations

from typing import Any

import pytest

import moesim
from moesim import shipped
from moesim.results.step_stack_chart import step_stack


def bars(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the parts."""
    (rows,) = [found for found in data(spec) if "part" in found[0]]
    return rows


def data(spec: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return [
        spec["datasets"][layer["data"]["name"]] if "name" in layer["data"] else layer["data"]["values"]
        for layer in spec["layer"]
    ]


def test_parts_stand_upon_each_other_and_end_at_the_step() -> None:
    steps = {"now": {"attention": 2.0, "experts": 5.0, "router": 1.0}, "before": {"experts": 1.0, "optimizer": 3.0}}
    rows = bars(step_stack(steps).to_dict())
    now = [row for row in rows if row["step"] == "now"]
    assert [row["part"] for row in now] == ["experts", "attention", "router", "optimizer"]
    assert [(row["begin"], row["end"]) for row in now] == [(0, 5), (5, 7), (7, 8), (8, 8)]
    before = {row["part"]: (row["begin"], row["end"]) for row in rows if row["step"] == "before"}
    assert before == {"experts": (0, 1), "attention": (1, 1), "router": (1, 1), "optimizer": (1, 4)}
    assert now[1]["label"] == "2 s  ·  25 %"


def test_a_shipped_step_reads_its_own_time() -> None:
    result = moesim.estimate(moesim.load(shipped.scenarios()["olmoe-8-h100"]))
    spec = step_stack({"now": result.breakdown}).to_dict()
    (ends,) = [rows for rows in data(spec) if "part" not in rows[0]]
    assert ends[0]["end"] == pytest.approx(result.summary["step_time"].value, rel=1e-6)
    assert max(row["end"] for row in bars(spec)) == pytest.approx(ends[0]["end"], rel=1e-6)
