"""The small arrays behind pictures and tables, against plain loops over the same rows."""

from __future__ import annotations

import numpy as np
import pytest
from results_fixture import Shape, simulated

from moesim.results import views


def test_expert_load_is_what_a_loop_over_rows_finds() -> None:
    routing = simulated(Shape(layers=4, experts=16, ranks=4, samples=3)).routing_columns
    load = views.expert_load(routing)
    rows = list(
        zip(*(routing[name].tolist() for name in ("layer", "sample", "expert", "rank", "kept", "tokens")), strict=True)
    )
    for position, layer in enumerate(load.layers):
        tokens = [[t for la, s, _, _, _, t in rows if (la, s) == (layer, sample)] for sample in range(3)]
        expected = np.mean([max(counts) / np.mean(counts) for counts in tokens])
        assert load.expert_peak[position] == pytest.approx(expected)
        kept = [
            [sum(k for la, s, _, r, k, _ in rows if (la, s, r) == (layer, c, rank)) for rank in range(4)]
            for c in range(3)
        ]
        assert load.rank_peak[position] == pytest.approx(np.mean([max(counts) / np.mean(counts) for counts in kept]))
    assert load.load.mean(axis=1) == pytest.approx(np.ones(4))
    assert load.rank.tolist() == [expert // 4 for expert in range(16)]


def test_copies_of_an_expert_on_two_ranks_are_one_expert() -> None:
    routing = {
        "layer": np.zeros(3, np.int32),
        "sample": np.zeros(3, np.int32),
        "expert": np.array([0, 0, 1], np.int32),
        "rank": np.array([0, 1, 1], np.int32),
        "tokens": np.array([10, 20, 30]),
        "kept": np.array([10, 20, 30]),
    }
    load = views.expert_load(routing)
    assert load.load.tolist() == [[1.0, 1.0]]
    assert load.rank_peak[0] == pytest.approx(50 / 30)
    assert load.rank is None
    assert views.rank_boundaries(load.rank) == []


def test_a_layer_without_tokens_is_even_and_idle() -> None:
    routing = simulated(Shape(layers=2, stages=2)).routing_columns
    empty = {**routing, "tokens": np.where(routing["layer"] == 0, 0, routing["tokens"]), "kept": routing["kept"] * 0}
    load = views.expert_load(empty)
    assert load.expert_peak[0] == 1.0
    assert load.idle.tolist() == [1.0, 0.0]
    assert np.isfinite(load.load).all()


def test_rank_boundaries_only_where_lines_can_be_read() -> None:
    assert views.rank_boundaries(np.array([0, 0, 1, 1, 2, 2])) == [2, 4]
    assert views.rank_boundaries(np.array([0, 1, 0, 1])) == []
    assert views.rank_boundaries(np.arange(64)) == []
    assert views.rank_boundaries(np.zeros(8, np.int64)) == []


@pytest.mark.parametrize("size", [1, 7, 64, 65, 130, 200])
def test_block_mean_keeps_the_total(size: int) -> None:
    matrix = np.random.default_rng(size).uniform(size=(size, size))
    width, mean = views.block_mean(matrix, 64)
    assert mean.shape[0] == -(-size // width) <= 64
    sides = np.array([len(matrix[start : start + width]) for start in range(0, size, width)])
    assert (mean * np.outer(sides, sides)).sum() == pytest.approx(matrix.sum())
    assert mean[-1, 0] == pytest.approx(matrix[(mean.shape[0] - 1) * width :, :width].mean())


def test_rank_totals_conserve_what_is_sent() -> None:
    traffic = np.random.default_rng(1).uniform(size=(130, 130))
    totals = views.rank_totals(traffic)
    sizes = np.diff(np.append([row.first for row in totals], 130))
    assert len(totals) <= 64
    own, sent, received = (
        sum(getattr(row, name) * size for row, size in zip(totals, sizes, strict=True))
        for name in ("own", "sent", "received")
    )
    assert own == pytest.approx(np.trace(traffic))
    assert (sent, received) == pytest.approx((traffic.sum() - np.trace(traffic),) * 2)


def test_the_whole_step_has_one_bar_a_microbatch_and_phase() -> None:
    columns = simulated(Shape(stages=4, microbatches=16)).operation_columns
    runs = views.whole_step(columns, 10_000)
    assert len(runs.stage) == 4 * 16 * 2
    assert set(runs.phase) == {"forward", "backward"}
    one = (runs.stage == 2) & (runs.microbatch == 5) & (np.array(runs.phase) == "backward")
    rows = (columns["stage"] == 2) & (columns["microbatch"] == 5) & (columns["phase"] == "backward")
    assert runs.begin[one] == columns["begin_mean"][rows].min()
    assert runs.end[one] == columns["end_mean"][rows].max()
    assert not views.overlapping(runs)


def test_recomputed_operations_belong_to_the_backward() -> None:
    columns = simulated().operation_columns
    again = {**columns, "phase": np.where(columns["kind"] == "experts", "recompute", columns["phase"])}
    assert set(views.whole_step(again, 10_000).phase) == {"forward", "backward"}


def test_forward_beside_backward_is_seen() -> None:
    columns = simulated().operation_columns
    shifted = columns["begin_mean"] - np.where(columns["phase"] == "backward", 0.03, 0.0)
    assert views.overlapping(views.whole_step({**columns, "begin_mean": shifted}, 10_000))


def test_too_many_bars_leave_out_stages_then_the_end() -> None:
    columns = simulated(Shape(stages=8, microbatches=32)).operation_columns
    runs = views.whole_step(columns, 300)
    assert len(runs.stage) <= 300
    assert {0, 7} <= set(runs.stage.tolist())
    few = views.whole_step(columns, 50)
    assert len(few.stage) == 50
    assert few.begin.max() < runs.begin.max()


def test_the_middle_window_is_the_middle() -> None:
    columns = simulated(Shape(stages=8)).operation_columns
    window = views.middle_window(columns, 4, 200)
    assert len(window["begin"]) == 200
    assert len(np.unique(window["stage"])) <= 4
    shown = np.isin(columns["stage"], np.unique(window["stage"]))
    begins = np.sort(columns["begin_mean"][shown])
    first = (len(begins) - 200) // 2
    assert window["begin_mean"].tolist() == begins[first : first + 200].tolist()


def test_totals_by_kind_are_the_operations() -> None:
    columns = simulated().operation_columns
    rows = views.by_kind(columns)
    assert sum(row.operations for row in rows) == len(columns["kind"])
    spent = (columns["end_mean"] - columns["begin_mean"]).sum() / 4
    assert sum(row.seconds for row in rows) == pytest.approx(spent)
    assert sum(row.bytes_out for row in rows) == pytest.approx(columns["bytes_out"].sum())
    assert [row.seconds for row in rows] == sorted((row.seconds for row in rows), reverse=True)


@pytest.mark.parametrize("dtype", [object, np.str_])
def test_text_columns_of_either_kind_give_the_same_categories(dtype: type) -> None:
    names, code = views.categories(np.array(["b", "a", "b"], dtype=dtype))
    assert (names, code.tolist()) == (["a", "b"], [1, 0, 1])
