"""Measures of recorded routers against sums that can be done by hand, slow copies, and published numbers."""

from __future__ import annotations

import io
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import vl_convert
from numpy.typing import NDArray
from rich.console import Console

from moesim.errors import FileError
from moesim.results.trace_charts import TraceCharts
from moesim.results.trace_report import write_report
from moesim.results.trace_table import tables
from moesim.traces import measures
from moesim.traces.counts import RouterCounts
from moesim.traces.importers import read
from moesim.traces.inspect import inspect
from moesim.traces.inspection import Inspection
from moesim.traces.trace import RouterTrace, TraceMeta

SHARED = Path(__file__).parents[1].parent / "shared" / "traces" / "gpt-oss-20b.npz"
NONE = 255
PICTURES = ("load", "locality", "imbalance", "sources", "drops", "coactivation")


def random_choices(tokens: int, layers: int, experts: int, top_k: int, seed: int = 0) -> NDArray[np.uint8]:
    drawn = np.random.default_rng(seed).random((tokens, layers, experts)).argsort(axis=-1)
    return drawn[..., :top_k].astype(np.uint8)


def trace(
    lengths: tuple[int, ...] = (30, 50, 1, 19), experts: int = 12, top_k: int = 3, layers: int = 2
) -> RouterTrace:
    tokens = sum(lengths)
    return RouterTrace(
        experts=random_choices(tokens, layers, experts, top_k),
        sequence=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        position=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        domain=np.arange(len(lengths), dtype=np.int32) % 2,
        step=np.arange(len(lengths), dtype=np.int32) // 2 * 100,
        meta=TraceMeta(
            experts=experts,
            top_k=top_k,
            model_layers=tuple(range(3, 3 + layers)),
            domains=("code", "<prose>"),
            model="m",
        ),
    )


def sets(layer: NDArray[np.uint8], experts: int) -> list[set[int]]:
    return [{int(e) for e in row if e < experts} for row in layer]


@pytest.fixture(name="holes")
def choices_with_holes() -> NDArray[np.uint8]:
    """Choices among 70 experts (two words of bits), some of them none."""
    choices = random_choices(40, 3, 70, 4)
    choices[np.random.default_rng(1).random(choices.shape) < 0.2] = NONE
    return choices


STARTS = np.array([0, 9, 10, 25, 40])


def test_loads_count_choices_and_not_holes(holes: NDArray[np.uint8]) -> None:
    counted = measures.loads(holes, 70)
    for layer, expert in itertools.product(range(3), range(70)):
        assert counted[layer, expert] == (holes[:, layer] == expert).sum()
    group = np.arange(40) % 4
    parts = measures.grouped_loads(holes, group, 4, 70)
    np.testing.assert_array_equal(parts.sum(axis=0), counted)
    np.testing.assert_array_equal(parts[2], measures.loads(holes[group == 2], 70))


@pytest.mark.parametrize("lag", [1, 2, 7, 14])
def test_overlap_is_the_share_of_common_experts_within_sequences(holes: NDArray[np.uint8], lag: int) -> None:
    found = measures.overlap(holes, STARTS, lag, 70)
    sequence = measures.sequence_of(STARTS)
    for layer in range(3):
        chosen = sets(holes[:, layer], 70)
        pairs = [(t, t - lag) for t in range(lag, 40) if sequence[t] == sequence[t - lag]]
        common = sum(len(chosen[later] & chosen[earlier]) for later, earlier in pairs)
        assert found[layer] == pytest.approx(common / sum(len(chosen[later]) for later, _ in pairs))


def test_overlap_of_equal_tokens_is_one_and_absent_beyond_every_sequence() -> None:
    choices = np.tile(random_choices(1, 2, 8, 3), (10, 1, 1))
    np.testing.assert_allclose(measures.overlap_at_lags(choices, np.array([0, 10]), (1, 9), 8), 1.0)
    assert np.isnan(measures.overlap(choices, np.array([0, 5, 10]), 5, 8)).all()
    np.testing.assert_allclose(measures.first_choice_repeats(choices, np.array([0, 10]), 8), 1.0)
    assert np.isnan(measures.first_choice_repeats(choices, np.arange(11), 8)).all()


def test_first_choices_repeat_only_within_sequences() -> None:
    first = np.array([1, 1, 2, 2, 2, NONE, NONE], np.uint8)[:, None, None]
    found = measures.first_choice_repeats(first, np.array([0, 3, 7]), 4)
    # Pairs: 1-1 yes, 1-2 no | 2-2 yes; a token without expert repeats nothing and does not count.
    assert found[0] == pytest.approx(2 / 3)


def test_distinct_places(holes: NDArray[np.uint8]) -> None:
    place = np.random.default_rng(2).integers(0, 9, 70)
    found = measures.distinct_places(holes, place, 9)
    for layer in range(3):
        mean = np.mean([len({place[e] for e in chosen}) for chosen in sets(holes[:, layer], 70)])
        assert found[layer] == pytest.approx(mean)


def test_coactivation_is_the_correlation_of_indicators(holes: NDArray[np.uint8]) -> None:
    phi = measures.coactivation(holes, 70)
    for layer in range(3):
        member = np.array([[expert in chosen for expert in range(70)] for chosen in sets(holes[:, layer], 70)], float)
        used = np.flatnonzero(member.std(axis=0) > 0)
        expected = np.corrcoef(member[:, used].T)
        np.fill_diagonal(expected, 0.0)
        np.testing.assert_allclose(phi[layer][np.ix_(used, used)], expected, atol=1e-12)
    low, high, strongest = measures.strongest_pairs(phi[0], 5)
    assert (low < high).all()
    assert strongest[0] == phi[0].max()
    assert (np.diff(strongest) <= 0).all()


def test_transitions_of_a_copied_layer_tell_everything_and_of_a_random_one_nothing() -> None:
    first = random_choices(20_000, 1, 4, 1)
    copied = np.concatenate([first, first, random_choices(20_000, 1, 4, 1, seed=1)], axis=1)
    guess, mode, bits = measures.best_guess(measures.first_choice_transitions(copied, 4))
    assert guess[0] == 1.0
    assert bits[0] == pytest.approx(2.0, abs=1e-3)
    assert mode == pytest.approx(0.25, abs=0.01)
    # An independent table's information is about (E-1)^2 / (2 T ln 2) bits: 3e-4 here.
    assert 0.0 <= bits[1] < 2e-3


def test_imbalance_in_all_conventions_by_hand() -> None:
    counts = np.array([[4.0, 2.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(measures.max_over_mean(counts), [2.0, 1.0, 1.0])
    np.testing.assert_allclose(measures.mean_over_max(counts), [0.5, 1.0, 1.0])
    np.testing.assert_allclose(measures.idle_fraction(counts), [0.0, 0.0, 1.0])
    np.testing.assert_array_equal(measures.rank_loads(counts, 2), [[6, 2], [4, 4], [0, 0]])
    np.testing.assert_array_equal(measures.rank_loads(counts[:2], np.array([1, 0, 0, 1])), [[3, 5], [4, 4]])
    np.testing.assert_array_equal(measures.contiguous(5, 2), [0, 0, 0, 1, 1])
    np.testing.assert_allclose(measures.variation(counts[:2]), [np.std([4, 2, 1, 1]) / 2, 0.0])
    np.testing.assert_allclose(measures.entropy(counts), [1.75 / 2, 1.0, 0.0])


def test_zipf_slope_of_a_power_law_is_its_exponent() -> None:
    ranks = np.arange(1.0, 65.0)
    law = np.stack([1e6 * ranks**-slope for slope in (0.3, 1.0, 1.7)])
    np.testing.assert_allclose(measures.zipf_slope(np.random.default_rng(0).permuted(law, axis=1)), [0.3, 1.0, 1.7])
    assert measures.zipf_slope(np.array([5, 0, 0])) == 0.0


def test_drops_by_hand() -> None:
    counts = np.array([6, 2, 0, 0])
    # 4 tokens of 2 choices over 4 experts: a fair share of 2 copies at factor 1.
    np.testing.assert_allclose(measures.drop_fraction(counts, [0.5, 1.0, 2.0, 3.0], 2, 4), [6 / 8, 4 / 8, 2 / 8, 0.0])
    several = measures.drop_fraction(np.stack([counts, 2 * counts]), [1.0], 2, [4, 8])
    np.testing.assert_allclose(several, [[0.5], [0.5]])


@pytest.mark.parametrize(
    ("sequences", "batch", "samples"), [(10, 1, 99), (10, 1, 4), (10, 3, 7), (10, 10, 5), (3, 4, 5)]
)
def test_batches_hold_no_sequence_twice(sequences: int, batch: int, samples: int) -> None:
    drawn = measures.draw_batches(sequences, batch, samples, np.random.default_rng(0))
    assert drawn.shape[1] == batch
    assert all(len(set(row)) == batch for row in drawn.tolist())
    assert len(drawn) == (0 if batch > sequences else min(samples, sequences) if batch == 1 else samples)
    if len(drawn) * batch >= sequences >= batch and batch == 1:
        np.testing.assert_array_equal(np.sort(drawn.ravel()), np.arange(sequences))


def test_batch_loads_are_the_sums_of_their_sequences(holes: NDArray[np.uint8]) -> None:
    batches = np.array([[0, 2], [3, 2]])
    found = measures.batch_loads(holes, STARTS, 70, batches)
    for row, batch in zip(found, batches, strict=True):
        tokens = np.concatenate([holes[STARTS[s] : STARTS[s + 1]] for s in batch])
        np.testing.assert_array_equal(row, measures.loads(tokens, 70))


def test_batch_imbalance_over_experts_and_ranks() -> None:
    choices = random_choices(60, 2, 8, 2)
    starts = np.array([0, 20, 40, 60])
    over_experts = measures.batch_imbalance(choices, starts, 8, 1)
    assert over_experts.shape == (3, 2)
    assert over_experts[1, 0] == measures.max_over_mean(measures.loads(choices[20:40], 8))[0]
    over_ranks = measures.batch_imbalance(choices, starts, 8, 1, ranks=4)
    np.testing.assert_array_equal(over_ranks, measures.batch_imbalance(choices, starts, 8, 1, np.arange(8) // 2))
    assert (over_ranks <= over_experts + 1e-12).all()


def test_random_tokens_have_the_popularity_of_all() -> None:
    choices = random_choices(50, 2, 6, 2)
    drawn = measures.random_token_loads(choices, 6, 5000, 4, np.random.default_rng(0))
    assert (drawn.sum(axis=2) == 10_000).all()
    share, expected = drawn.mean(axis=0) / 5000, measures.loads(choices, 6) / 50
    assert np.abs(share - expected).max() < 4 * math.sqrt(0.25 / 20_000)


def test_an_inspection_is_complete_and_always_the_same() -> None:
    found = inspect(trace())
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert text == json.dumps(inspect(trace()).as_dict(), allow_nan=False)
    assert found.locality is not None
    assert found.locality.lags == (1, 2, 4, 8, 16, 32)
    assert {(row.sequences, row.ranks) for row in found.imbalance} == {(b, r) for b in (1, 4) for r in (0, 2, 4, 8)}
    assert found.domains.names == ("code", "<prose>")
    assert found.steps.names == ("0", "100")
    assert found.domains.copies.sum() == found.load.copies.sum() == 100 * 3 * 2
    assert all(np.isfinite(row[2]) for row in found.rows())


def test_the_sources_add_up_to_the_excess_and_the_conventions_agree() -> None:
    found = inspect(trace())
    for source in found.sources:
        excess = next(r.excess for r in found.imbalance if (r.sequences, r.ranks) == (source.sequences, 0))
        assert source.popularity + source.sequence + source.sampling == pytest.approx(excess)
    for row in found.imbalance:
        assert row.excess == pytest.approx(row.max_over_mean - 1)
        assert 1 / row.max_over_mean <= row.mean_over_max + 1e-12
        assert row.max_over_mean <= row.p95 * 1.5


def test_destinations_of_random_experts_are_the_uniform_ones() -> None:
    lengths = (4000, 4000)
    for place in inspect(trace(lengths, experts=16, top_k=4)).destinations:
        assert place.mean == pytest.approx(place.uniform, rel=0.01)


def test_small_and_odd_traces_are_looked_at() -> None:
    single = inspect(trace((1,), layers=1))
    assert single.locality is not None
    assert single.locality.lags == ()
    unordered = trace()
    unordered = replace(unordered, meta=unordered.meta.model_copy(update={"ordered": False}))
    found = inspect(unordered)
    assert found.as_dict()["locality"]["repeats"] == [None, None]
    assert np.isnan(found.load.first_max_over_mean).all()
    assert not any("first choice" in row[1] for row in found.rows())
    one = inspect(trace((5, 5), experts=2, top_k=1))
    assert [row.ranks for row in one.imbalance] == [0]


def test_counts_alone_show_what_they_can() -> None:
    counts = np.arange(24).reshape(2, 3, 4).astype(np.int64)
    meta = TraceMeta(experts=4, top_k=2, model_layers=(0, 7, 15), domains=("a", "b"))
    recorded = RouterCounts(counts, np.arange(2, dtype=np.int32), np.full(2, -1, np.int32), meta)
    found = inspect(recorded)
    np.testing.assert_array_equal(found.load.copies, counts.sum(axis=0))
    assert found.locality is None
    assert found.sequences == 0
    assert found.domains.names == ("a", "b")
    json.dumps(found.as_dict(), allow_nan=False)
    for name in PICTURES:
        assert vl_convert.vegalite_to_svg(getattr(TraceCharts(found), name)().to_dict()).startswith("<svg")


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_draw_and_say_their_units(name: str) -> None:
    for found in (inspect(trace()), inspect(trace((40, 60), experts=200, top_k=4, layers=3))):
        spec = getattr(TraceCharts(found), name)().to_dict()
        assert vl_convert.vegalite_to_svg(spec).startswith("<svg")
        text = json.dumps(spec)
        assert spec["title"]["text"]
        assert "tooltip" in text
        assert sum(len(values) for values in spec["datasets"].values()) <= 20_000


def test_tables_hold_the_numbers_and_take_no_markup_from_names() -> None:
    found = inspect(trace())
    found = replace(found, domains=replace(found.domains, names=("[bold]code[/bold]", "prose")))
    screen = Console(file=io.StringIO(), width=100, color_system=None)
    for table in tables(found):
        screen.print(table)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]code[/bold]" in text
    ratio = next(row.max_over_mean for row in found.imbalance if (row.sequences, row.ranks) == (4, 8))
    assert f"{ratio:.3g}" in text
    assert "100 tokens, 4 sequences, 2 layers, 12 experts, 3 a token" in text


def test_the_page_is_whole_and_no_name_of_the_users_runs(tmp_path: Path) -> None:
    found = inspect(trace())
    found = replace(found, meta=found.meta.model_copy(update={"model": "<script>alert(1)</script>"}))
    write_report(found, tmp_path / "a.html")
    write_report(found, tmp_path / "b.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "b.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "<prose>" not in page
    assert "&lt;prose&gt;" in page
    assert all(f'id="{name}-data"' in page for name in PICTURES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]
    with pytest.raises(FileError, match="nowhere"):
        write_report(found, tmp_path / "nowhere" / "a.html")


@pytest.fixture(name="real", scope="module")
def recorded_model() -> tuple[RouterTrace, Inspection]:
    """The recorded model, every second of the sequences that the published numbers were measured on."""
    if not SHARED.is_file():
        pytest.skip("the shared folder with recorded traces is absent")
    recorded = read(SHARED, experts=32)
    assert isinstance(recorded, RouterTrace)
    return recorded, inspect(recorded)


def test_the_published_load_of_a_real_model(real: tuple[RouterTrace, Inspection]) -> None:
    load = real[1].load
    assert np.median(load.max_over_mean) == pytest.approx(2.52, rel=0.05)
    assert np.median(load.first_max_over_mean) == pytest.approx(3.76, rel=0.05)
    assert np.median(load.variation) == pytest.approx(0.70, rel=0.05)
    assert np.median(load.entropy) == pytest.approx(0.92, rel=0.01)
    assert np.median(load.zipf_slope) == pytest.approx(1.02, rel=0.05)
    assert load.min_over_mean.min() == pytest.approx(0.002, abs=0.001)


def test_the_published_locality_of_a_real_model(real: tuple[RouterTrace, Inspection]) -> None:
    locality = real[1].locality
    assert locality is not None
    published = {1: 0.437, 2: 0.382, 4: 0.364, 8: 0.351, 16: 0.341, 64: 0.331, 256: 0.309}
    found = dict(zip(locality.lags, locality.overlap.mean(axis=1), strict=True))
    for lag, value in published.items():
        assert found[lag] == pytest.approx(value, rel=0.01)
    assert locality.overlap[0, [0, 23]] == pytest.approx([0.193, 0.550], rel=0.02)
    assert locality.repeats.mean() == pytest.approx(0.244, rel=0.01)
    assert locality.repeats[[0, 7, 15, 23]] == pytest.approx([0.071, 0.172, 0.231, 0.356], rel=0.05)
    assert locality.independent.mean() == pytest.approx(0.190, rel=0.03)
    assert locality.repeats_independent.mean() == pytest.approx(0.069, rel=0.03)


def test_the_published_imbalance_and_drops_of_a_real_model(real: tuple[RouterTrace, Inspection]) -> None:
    recorded, found = real
    starts = recorded.starts
    whole = np.flatnonzero(np.diff(starts) == 511)[:, None]
    ratio = measures.max_over_mean(measures.batch_loads(recorded.experts, starts, 32, whole))
    assert ratio.mean() == pytest.approx(5.03, rel=0.03)
    assert np.percentile(ratio, 95) == pytest.approx(7.2, rel=0.03)
    random = measures.random_token_loads(recorded.experts, 32, 1024, 50, np.random.default_rng(0))
    assert measures.max_over_mean(random).mean() == pytest.approx(2.64, rel=0.05)
    dropped = dict(zip(found.drops[-1].factors, found.drops[-1].dropped, strict=True))
    for factor, share in {1.0: 0.298, 1.25: 0.196, 1.5: 0.123, 2.0: 0.040, 3.0: 0.004}.items():
        assert dropped[factor] == pytest.approx(share, abs=0.01)


def test_the_published_pairs_and_places_of_a_real_model(real: tuple[RouterTrace, Inspection]) -> None:
    together, places = real[1].coactivation, {place.ranks: place for place in real[1].destinations}
    assert together is not None
    assert np.median(together.strongest[:, 0]) == pytest.approx(0.63, abs=0.01)
    off_diagonal = together.phi[:, ~np.eye(32, dtype=bool)]
    assert np.median(np.abs(off_diagonal)) == pytest.approx(0.054, rel=0.03)
    assert together.next_guess.mean() == pytest.approx(0.41, abs=0.01)
    assert together.next_mode.mean() == pytest.approx(0.135, abs=0.005)
    assert together.next_bits.mean() == pytest.approx(1.47, rel=0.02)
    for ranks, (mean, uniform) in {2: (1.949, 1.899), 4: (3.021, 2.818), 8: (3.583, 3.445), 16: (3.854, 3.806)}.items():
        assert places[ranks].mean == pytest.approx(mean, rel=0.002)
        assert places[ranks].uniform == pytest.approx(uniform, rel=0.002)


def test_the_published_shift_of_domains_of_a_real_model(real: tuple[RouterTrace, Inspection]) -> None:
    domains = real[1].domains
    shift = dict(zip(domains.names, domains.shift, strict=True))
    assert all(0.20 < shift[name] < 0.27 for name in ("gpqa_diamond", "gpqa_main", "gpqa_extended"))
    assert all(0.04 < shift[name] < 0.2 for name in shift if name.startswith("mmlu"))
    assert shift["sorry_bench_base"] == pytest.approx(0.24, abs=0.01)
    assert domains.max_over_mean[domains.names.index("sorry_bench_base")] == pytest.approx(4.6, rel=0.03)
