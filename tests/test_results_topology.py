"""Link use and its drawn topology, and the themes that pages put charts in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moesim
from moesim import roads
from moesim.results import chart_theme
from moesim.results.link_use import LinkUse
from moesim.results.topology_chart import MOST_RANKS, shown_ranks, topology_chart

SCENARIOS = Path(__file__).parents[1] / "scenarios"


def use_of(name: str, *overrides: str) -> LinkUse:
    return roads.link_use(moesim.load(SCENARIOS / f"{name}.yaml", overrides))


def invented(ranks: int, size: int, busiest: int = 0) -> LinkUse:
    """Ranks in domains of `size`, one of which has busier links."""
    share = np.full(ranks, 0.2)
    share[busiest] = 0.9
    place = np.arange(ranks)
    return LinkUse(1e-3, "nccl-all-to-all", "nvlink", "fat-tree", place // size, place, *[share] * 4, share, share)


def test_one_domain_uses_its_scale_up_links_alone() -> None:
    use = use_of("olmoe-8-h100")
    assert (use.scale_up, use.scale_out) == ("nvlink", "")
    assert set(use.domain) == {0}
    assert (use.up_send > 0).all()
    assert (use.out_send == 0).all()
    assert max(use.up_send.max(), use.up_receive.max()) <= 1.0


def test_no_link_is_taken_longer_than_the_dispatch_lasts_and_bytes_take_their_time() -> None:
    scenario = moesim.load(SCENARIOS / "deepseek-v3-2048-h800.yaml", ["dispatcher={kind: nccl-all-to-all}"])
    use = roads.link_use(scenario)
    shares = np.stack([use.up_send, use.up_receive, use.out_send, use.out_receive])
    assert (shares >= 0).all()
    assert (shares <= 1 + 1e-9).all()
    # A NIC of 50 GB/s for each GPU: its bytes over its rate are the time for which it is taken.
    nic = scenario.cluster.gpu.nic_bandwidth
    assert nic is not None
    assert use.out_send * use.seconds == pytest.approx(use.bytes_out / nic, rel=1e-6)


def test_a_slower_nic_is_busier() -> None:
    quick, slow = (use_of("deepseek-v3-2048-h800", *more) for more in ((), ("cluster.nic_bandwidth=200 Gb/s",)))
    assert slow.seconds > quick.seconds
    assert slow.bytes_out == pytest.approx(quick.bytes_out)


@pytest.mark.parametrize("override", ["parallelism.expert=1"])
def test_without_exchanges_there_are_no_links_to_look_at(override: str) -> None:
    with pytest.raises(moesim.UserError, match="no links to look at"):
        use_of("olmoe-8-h100", override)


def test_the_table_has_a_row_a_rank() -> None:
    frame = use_of("olmoe-8-h100").frame()
    assert list(frame["rank"]) == list(range(8))
    assert (frame["scale_up_sending"] <= 1).all()


@pytest.mark.parametrize(("ranks", "size", "busiest"), [(8, 8, 3), (64, 8, 9), (1024, 8, 777), (1024, 512, 1000)])
def test_whole_domains_are_drawn_and_the_busiest_link_among_them(ranks: int, size: int, busiest: int) -> None:
    use = invented(ranks, size, busiest)
    chosen = shown_ranks(use)
    assert len(chosen) <= MOST_RANKS
    assert busiest in chosen
    assert len(set(chosen)) == len(chosen)
    if size <= MOST_RANKS:
        counts = np.bincount(use.domain[chosen])
        assert set(counts[counts > 0]) == {size}


def test_every_drawn_gpu_has_its_links_in_both_ways() -> None:
    spec = topology_chart(invented(16, 8)).to_dict()
    rows = _rows(spec, 0)
    assert len(rows) == 16 * 4
    assert {row["link"] for row in rows} == {
        f"{tier}, {way}" for tier in ("NIC", "scale-up") for way in ("sending", "receiving")
    }
    assert max(row["use"] for row in rows) == pytest.approx(90.0)
    assert "fabric: fat-tree" in str(spec)
    assert spec["title"]["subtitle"].startswith("nccl-all-to-all, 1 ms")


def test_a_single_domain_is_drawn_without_a_fabric() -> None:
    spec = topology_chart(use_of("olmoe-8-h100")).to_dict()
    assert "fabric" not in str(spec)
    assert len(_rows(spec, 0)) == 8 * 2


def _rows(spec: dict[str, Any], layer: int) -> list[dict[str, Any]]:
    data = spec["layer"][layer].get("data") or spec["data"]
    return data["values"] if "values" in data else spec["datasets"][data["name"]]


@pytest.fixture(scope="module")
def result() -> moesim.Result:
    quick = ["simulation.microbatch_samples=1", "workload.global_batch=64"]
    return moesim.simulate(moesim.load(SCENARIOS / "olmoe-8-h100.yaml", quick))


@pytest.mark.parametrize("kind", ["breakdown", "memory", "expert_load", "traffic", "timeline"])
def test_a_dark_page_gets_text_that_reads_and_the_same_data(result: moesim.Result, kind: str) -> None:
    spec = getattr(result.charts, kind)().to_dict()
    before = repr(spec)
    drawn = chart_theme.themed(spec, True)
    assert repr(spec) == before, "the specification is shared and stays as it is"
    assert drawn["background"] == "transparent"
    assert drawn["config"]["title"]["color"] == chart_theme.DARK["ink"]
    assert drawn.get("datasets") == spec.get("datasets")
    outside = repr({key: value for key, value in drawn.items() if key not in ("datasets", "config")})
    assert "#333333" not in outside
    assert "'black'" not in outside
    light = chart_theme.themed(spec, False)
    assert light["config"]["title"]["color"] == chart_theme.LIGHT["ink"]


def test_the_inks_reach_a_contrast_of_seven_to_one_and_quiet_text_of_four() -> None:
    for colours in (chart_theme.LIGHT, chart_theme.DARK):
        assert _contrast(colours["ink"], colours["page"]) > 7
        assert _contrast(colours["quiet"], colours["page"]) > 4.5


def _contrast(one: str, other: str) -> float:
    """The ratio of luminances that WCAG 2.2 defines."""
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_pictures_side_by_side_become_pictures_of_their_own(result: moesim.Result) -> None:
    whole = result.charts.expert_load().to_dict()
    cells, peaks = chart_theme.pictures(whole)
    assert (cells["title"]["text"], peaks["title"]["text"]) == ("Load of experts by layer", "Imbalance")
    assert cells["data"] == whole["data"]
    pipeline, operations = chart_theme.pictures(result.charts.timeline().to_dict())
    for picture, name in ((pipeline, "pipeline_zoom"), (operations, "operations_zoom")):
        (zoom,) = picture["params"]
        assert zoom["name"] == name
        assert "views" not in zoom
    alone = result.charts.breakdown().to_dict()
    assert chart_theme.pictures(alone) == [alone]


def test_legends_take_as_many_columns_as_there_is_room_for(result: moesim.Result) -> None:
    drawn = chart_theme.themed(result.charts.memory().to_dict(), False)
    assert "min(3, floor(width" in repr(drawn["layer"])
