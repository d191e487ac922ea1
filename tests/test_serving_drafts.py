"""Speculative decoding: what drafting costs, and what is said where nobody knows."""

from __future__ import annotations

import pytest
from serving_fixture import LLAMA

import moesim
from moesim.scenario.loading import load_serving
from moesim.serving.result import ServingResult

LOOP = ("workload.arrivals={kind: closed, concurrency: 16}", "workload.requests=60", "cluster.gpus=1")
TWO = "engine.speculative_tokens=2"
ROADS = (moesim.estimate, moesim.simulate)


def told(road: object, *settings: str) -> ServingResult:
    found = road(load_serving(LLAMA, [*LOOP, *settings]))  # type: ignore[operator]
    assert isinstance(found, ServingResult)
    return found


@pytest.mark.parametrize("road", ROADS)
def test_drafting_takes_its_share_of_an_iteration(road: object) -> None:
    """Three drafted tokens at a tenth of a decode iteration's kernels each: an iteration takes 0.3 of them longer."""
    decode, each = "workload.kind=decode", "time_per_output_token_mean"
    free, paid = (told(road, decode, TWO, "engine.drafted_tokens=3", f"engine.draft_cost={cost}") for cost in (0, 0.1))
    alone = told(road, decode).breakdown
    kernels = sum(alone.values()) - alone["host"]
    assert paid.breakdown["draft"] == pytest.approx(0.3 * kernels, rel=0.03)
    longer = 2 * (paid.summary[each].value - free.summary[each].value)  # two tokens an iteration
    assert longer == pytest.approx(paid.breakdown["draft"], rel=0.1)
    assert "draft" in paid.breakdown
    assert "draft" not in free.breakdown


@pytest.mark.parametrize("road", ROADS)
def test_drafts_that_nobody_prices_are_told(road: object) -> None:
    unpriced, priced, none = told(road, TWO), told(road, TWO, "engine.draft_cost=0.05"), told(road)
    note = "; without the time of drafting tokens"
    for name in ("time_per_output_token", "time_per_output_token_mean"):
        assert note in unpriced.summary[name].note
        assert note not in priced.summary[name].note
    assert any("state engine.draft_cost" in said for said in unpriced.notes)
    assert any("each takes 0.05 of a decode iteration" in said for said in priced.notes)
    assert not any("draft" in said for said in none.notes)


def test_a_model_that_drafts_by_itself_is_priced() -> None:
    own = load_serving(
        {**LLAMA, "model": "deepseek-v3", "instance": {"gpus": 16, "tensor": 16}},
        [
            *LOOP[:2],
            TWO,
            "cluster={gpu: h100-sxm, gpus: 16, fabric: rail-optimized-400g}",
            "precision.compute=fp8-block",
        ],
    )
    found = moesim.estimate(own)
    assert found.breakdown["draft"] > 0
    assert not any("drafted tokens" in said for said in found.notes)
