"""How sensitivities and sweeps read: how well shares are known, numbers with their units, names of any length."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sweep_fixture import SMALL

import moesim
from moesim.sweeps import charts, display
from moesim.sweeps.effects import Sensitivity
from moesim.sweeps.fields import unit_of, value_shown
from moesim.sweeps.sensitivity import MOST_SAMPLES, doubt
from moesim.sweeps.sensitivity_table import table
from moesim.sweeps.sobol import Index
from moesim.terminal import console

LONG = "x" * 100
OVER = {"cluster.gpu.memory_bandwidth": "+-30%", "cluster.gpu.bf16": "+-30%", "workload.global_batch": (64, 128, 256)}


@pytest.fixture(scope="module")
def sobol() -> Sensitivity:
    return moesim.sensitivity({**SMALL, "name": LONG}, OVER, method="sobol", samples=16, workers=0)


def rows(drawn: dict[str, Any]) -> list[dict[str, Any]]:
    """All data of a picture."""
    layers = [drawn, *drawn.get("layer", [])]
    inline = [row for layer in layers for row in layer.get("data", {}).get("values", [])]
    return [*inline, *(row for kept in drawn.get("datasets", {}).values() for row in kept)]


def test_it_says_how_well_the_shares_are_known(sobol: Sensitivity, capsys: pytest.CaptureFixture[str]) -> None:
    reaches = [index.reach for effect in sobol.effects for index in (effect.first, effect.total) if index]
    assert sobol.widest == max(reaches) > 0.05
    percent = f"±{100 * sobol.widest:.0f} %"
    assert sobol.notes[-1] == f"the shares are known to {percent} only (90 % confidence); 64 samples would halve that"
    console().print(table(sobol))
    said = " ".join(capsys.readouterr().out.split())
    assert f"90 % confidence, the widest {percent}, 16 samples" in said
    assert "-0" not in said


def test_more_samples_know_the_shares_better(sobol: Sensitivity) -> None:
    more = moesim.sensitivity({**SMALL, "name": LONG}, OVER, method="sobol", samples=128, workers=0)
    assert more.widest < 0.7 * sobol.widest
    assert moesim.sensitivity(SMALL, OVER, workers=0).widest == 0.0


def test_shares_that_are_known_need_no_note(sobol: Sensitivity) -> None:
    sure = tuple(replace(one, first=Index(0.3, 0.26, 0.34), total=Index(0.3, 0.29, 0.31)) for one in sobol.effects)
    assert not doubt(replace(sobol, effects=sure))
    assert doubt(replace(sobol, samples=MOST_SAMPLES))[0].endswith("(90 % confidence), and more cannot be asked")


def test_pictures_keep_their_width_and_say_the_numbers(sobol: Sensitivity) -> None:
    brief = {row["brief"] for row in rows(sobol.charts.sobol().to_dict())}
    first = sobol.effects[0].total
    assert first is not None
    assert f"{round(100 * first.value)} ±{100 * first.reach:.0f} %" in brief
    for chart in (sobol.charts.sobol(), sobol.charts.tornado()):
        assert len(chart.to_dict()["title"]["subtitle"]) < 130


def test_whole_numbers_keep_their_digits() -> None:
    found = moesim.sensitivity(SMALL, {"workload.sequence_length": (2048, 4096, 131072)}, workers=0)
    assert found.effects[0].input.shown(131072) == "131,072"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("cluster.nic_bandwidth", 5e10, "50 GB/s"),
        ("cluster.fabric.latency", 2.5e-6, "2.5 us"),
        ("routing.capacity.factor", 1.25, "1.25"),
        ("routing.load", "uniform", "uniform"),
        ("cluster.gpus", 2048, "2048"),
        ("instance", '{"gpus": 4, "expert": 4}', "gpus 4, expert 4"),
        ("instance", "{half", "{half"),
    ],
)
def test_values_read_with_their_units(field: str, value: Any, words: str) -> None:
    assert value_shown(field, value) == words


def test_a_sweep_says_the_units_of_its_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    over = {"cluster.nic_bandwidth": [2.5e10, 5e10], "cluster.gpus": [16]}
    found = moesim.sweep(SMALL, over, out=tmp_path, workers=0)
    schema = pq.read_schema(tmp_path / "sweep.parquet")
    assert [schema.field(name).metadata[b"unit"] for name in over] == [b"B/s", b""]
    assert unit_of("stack") == ""
    console().print(display.table(found))
    assert "25 GB/s" in capsys.readouterr().out
    drawn = json.dumps(charts.lines(found, "step_time", "cluster.nic_bandwidth").to_dict())
    assert "cluster.nic_bandwidth (B/s)" in drawn
    heat = json.dumps(charts.heat_map(found, "step_time", "cluster.nic_bandwidth", "cluster.gpus").to_dict())
    assert "50 GB/s" in heat
