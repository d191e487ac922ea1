"""Other tools' recordings: each format from a file of its own making, recognised by content; a wrong one is refused."""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from base64 import b64encode
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from moesim.errors import FileError, MissingPackageError, UnknownNameError, UserError
from moesim.routing.routers import router
from moesim.specs.model import RouterSpec
from moesim.traces.counts import ExpertsUsed, RouterCounts
from moesim.traces.importers import IMPORTERS, read
from moesim.traces.importers import lines as line_files
from moesim.traces.store import load, save
from moesim.traces.trace import RouterTrace

SHARED = Path(__file__).parents[1].parent / "shared" / "traces"
T, L, E, K = 12, 3, 8, 2


def choices(tokens: int = T, layers: int = L, experts: int = E, top_k: int = K, seed: int = 0) -> NDArray[np.int64]:
    """Distinct experts a token [T, L, K]; the highest name occurs."""
    drawn = np.random.default_rng(seed).random((tokens, layers, experts)).argsort(axis=-1)[..., :top_k]
    drawn[0, 0] = np.arange(experts - top_k, experts)
    return drawn


def trace_of(path: Path, **options: Any) -> RouterTrace:
    found = read(path, **options)
    assert isinstance(found, RouterTrace)
    return found


def counts_of(path: Path, **options: Any) -> RouterCounts:
    found = read(path, **options)
    assert isinstance(found, RouterCounts)
    return found


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def vllm_rows(ids: NDArray[np.int64], request: str = "r0", **more: Any) -> list[dict[str, Any]]:
    """A request's rows, layer by layer, as an engine logs a prompt."""
    weights = np.round(np.linspace(0.9, 0.1, ids.shape[2]), 4).tolist()
    return [
        {
            "type": "route",
            "req_id": request,
            "token_idx": t,
            "layer": layer,
            "topk_ids": ids[t, layer].tolist(),
            "topk_weights": weights,
            **more,
        }
        for layer in range(ids.shape[1])
        for t in range(len(ids))
    ]


class TestVllmLogger:
    def test_requests_become_sequences(self, tmp_path: Path) -> None:
        one, two = choices(5), choices(7, seed=1)
        meta = {"type": "meta", "model_id": "qwen", "num_experts": 8}
        rows = [meta, *vllm_rows(one, "a"), *vllm_rows(two, "b")]
        trace = trace_of(write_lines(tmp_path / "moe_routes.jsonl", rows))
        np.testing.assert_array_equal(trace.experts, np.concatenate([one, two]))
        np.testing.assert_array_equal(trace.starts, [0, 5, 12])
        assert (trace.meta.experts, trace.meta.model, trace.meta.software) == (8, "qwen", "vLLM")
        assert trace.weights is not None
        np.testing.assert_allclose(trace.weights[3, 1], [0.9, 0.1], atol=1e-3)

    def test_requests_may_alternate(self, tmp_path: Path) -> None:
        one, two = vllm_rows(choices(5), "a"), vllm_rows(choices(5, seed=1), "b")
        mixed = [row for pair in zip(one, two, strict=True) for row in pair]
        trace = trace_of(write_lines(tmp_path / "x", mixed))
        np.testing.assert_array_equal(trace.experts[:5], choices(5))
        np.testing.assert_array_equal(trace.experts[5:], choices(5, seed=1))

    def test_warm_up_rows_go_wherever_they_are_and_are_counted(self, tmp_path: Path) -> None:
        warm = np.tile(choices(1, seed=7), (6, 1, 1))
        real = choices(9)
        both = np.concatenate([warm[:4], real[:5], warm[4:], real[5:]])
        trace = trace_of(write_lines(tmp_path / "x", vllm_rows(both)))
        np.testing.assert_array_equal(trace.experts, real)
        assert f"without {6 * L} warm-up rows equal to the first (40% of all)" in trace.meta.note

    def test_a_file_without_warm_up_loses_nothing(self, tmp_path: Path) -> None:
        trace = trace_of(write_lines(tmp_path / "x", vllm_rows(choices())))
        assert trace.tokens == T
        assert "warm-up" not in trace.meta.note

    def test_an_equal_token_with_other_weights_is_no_warm_up(self, tmp_path: Path) -> None:
        ids = np.concatenate([np.tile(choices(1, seed=7), (3, 1, 1)), choices(4)])
        rows = vllm_rows(ids)
        for row in rows:
            if row["token_idx"] == 2:
                row["topk_weights"] = [0.6, 0.4]
        assert trace_of(write_lines(tmp_path / "x", rows)).tokens == 5

    def test_a_file_that_is_all_warm_up_is_refused(self, tmp_path: Path) -> None:
        rows = vllm_rows(np.tile(choices(1), (4, 1, 1)))
        with pytest.raises(FileError, match="all of its rows are alike"):
            read(write_lines(tmp_path / "x", rows))

    def test_a_cut_file_is_refused(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "x", vllm_rows(choices()))
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(FileError, match="lines 36 to 36"):
            read(path)
        write_lines(path, vllm_rows(choices())[:-1])
        with pytest.raises(FileError, match="request 'r0' has not the same tokens in every layer"):
            read(path)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"topk_ids": [0, 70000]}, "names expert 70,000; a trace holds|names expert 70000"),
            ({"topk_ids": [3, 3]}, "twice"),
            ({"topk_ids": ["3", "4"]}, "lines 1 to"),
            ({"topk_ids": [1 << 40, 2]}, "lines 1 to"),
            ({"topk_ids": [None, 2]}, "lacks its list, or a number in it"),
            ({"layer": None}, "has no layer"),
            ({"layer": -2}, "a layer is negative"),
            ({"topk_weights": [0.5]}, "one weight for each choice"),
            ({"topk_ids": list(range(600))}, "600 choices"),
        ],
    )
    def test_a_wrong_row_is_refused(self, tmp_path: Path, row: dict[str, Any], message: str) -> None:
        rows = vllm_rows(choices())
        rows[3] |= row
        with pytest.raises(FileError, match=message):
            read(write_lines(tmp_path / "x", rows))

    def test_an_expert_beyond_the_stated_number_is_refused(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "x", vllm_rows(choices()))
        with pytest.raises(FileError, match="names expert 7, and there are 6"):
            read(path, experts=6)
        assert trace_of(path, experts=64).meta.experts == 64

    def test_a_file_of_countless_layers_is_refused_and_takes_no_memory(self, tmp_path: Path) -> None:
        rows = [{"req_id": f"r{n}", "layer": n, "topk_ids": [1, 2]} for n in range(3000)]
        with pytest.raises(FileError, match="most of its 3,000 layers have no rows"):
            read(write_lines(tmp_path / "x", rows))

    def test_pieces_of_a_file_are_joined(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_lines(tmp_path / "x", vllm_rows(choices(40), "a") + vllm_rows(choices(40, seed=1), "b"))
        whole = trace_of(path)
        monkeypatch.setattr(line_files, "PIECE", 500)
        assert len(list(line_files.pieces(path))) > 10
        pieced = trace_of(path)
        np.testing.assert_array_equal(pieced.experts, whole.experts)
        np.testing.assert_array_equal(pieced.starts, whole.starts)
        monkeypatch.setattr(line_files, "MAX_LINE", 50)
        path.write_text("{" + " " * 2000 + "}")
        with pytest.raises(FileError, match="a line is longer"):
            list(line_files.pieces(path))


def encoded(ids: NDArray[np.int64]) -> str:
    return b64encode(ids.astype("<i4").tobytes()).decode()


class TestRoutedExperts:
    def test_sglang_responses(self, tmp_path: Path) -> None:
        one, two = choices(5), choices(7, seed=1)
        padded = np.full((5, L + 1, K), -1)
        padded[:, 1:] = one
        other = np.full((7, L + 1, K), -1)
        other[:, 1:] = two
        other[6] = -1
        rows = [{"text": "x", "meta_info": {"routed_experts": encoded(ids)}} for ids in (padded, other)]
        path = write_lines(tmp_path / "x", [*rows, {"text": "refused", "meta_info": {}}])
        trace = trace_of(path, layers=L + 1, top_k=K)
        np.testing.assert_array_equal(trace.experts, np.concatenate([one, two[:6]]))
        assert trace.meta.model_layers == (1, 2, 3)
        assert trace.meta.software == "SGLang"
        for text in ("dense layers 0", "1 token that", "1 lines that have no"):
            assert text in trace.meta.note

    def test_without_a_shape_the_options_are_asked_for(self, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "x", [{"meta_info": {"routed_experts": encoded(choices())}}])
        with pytest.raises(FileError, match="give the options layers and top_k"):
            read(path)
        with pytest.raises(FileError, match="are not of the shape"):
            read(path, layers=5, top_k=K)

    def test_vllm_zeros_are_dense_layers_and_tokens_not_computed(self, tmp_path: Path) -> None:
        ids = np.zeros((T, L + 2, K), np.int64)
        ids[:, [1, 2, 4]] = choices()
        ids[5] = 0
        row = {"routed_experts": encoded(ids), "shape": list(ids.shape), "domain": "code"}
        trace = trace_of(write_lines(tmp_path / "x", [row, row | {"domain": "prose"}]))
        kept = np.delete(choices(), 5, axis=0)
        np.testing.assert_array_equal(trace.experts, np.concatenate([kept, kept]))
        assert trace.meta.model_layers == (1, 2, 4)
        assert trace.meta.domains == ("code", "prose")
        np.testing.assert_array_equal(trace.domain, [0, 1])
        assert "dense layers 0, 3" in trace.meta.note
        assert "2 tokens that have no choice" in trace.meta.note

    def test_one_choice_of_zeros_is_ambiguous_until_told(self, tmp_path: Path) -> None:
        ids = choices(top_k=1)
        ids[:, 1] = 0
        path = write_lines(tmp_path / "x", [{"routed_experts": ids.tolist()}])
        with pytest.raises(FileError, match=r"layer 1 has expert 0 for every token.*dense_layers"):
            read(path)
        assert trace_of(path, dense_layers=(1,)).meta.model_layers == (0, 2)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"routed_experts": "@@"}, "not base64"),
            ({"routed_experts": "AAAA"}, "they were cut"),
            ({"routed_experts": [[[1, 2]], [[1]]]}, "differ in length"),
            ({"routed_experts": [[[1.5, 2.0]]]}, "not whole numbers"),
            ({"routed_experts": [[[1, 1 << 40]]]}, "out of range"),
            ({"routed_experts": encoded(choices()), "shape": [1 << 40, 1 << 40, 1]}, "are not of the shape"),
            ({"routed_experts": encoded(choices()), "shape": [-T, -L, K]}, "are not of the shape"),
            ({"routed_experts": choices(layers=2).tolist()}, "differ in layers"),
            ({"routed_experts": choices().tolist(), "domain": 3}, "domain is not text"),
        ],
    )
    def test_a_wrong_request_is_refused(self, tmp_path: Path, row: dict[str, Any], message: str) -> None:
        path = write_lines(tmp_path / "x", [{"routed_experts": choices().tolist()}, row])
        with pytest.raises(FileError, match=message):
            read(path)


def megatron_rows(ids: NDArray[np.int64], step: int, rank: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "stage": "pre_dispatch",
            "block": "decoder",
            "layer": layer + 1,
            "rank": rank,
            "num_tokens": len(ids),
            "topk": K,
            "top_indices": np.sort(ids[:, layer], axis=1).tolist(),
            **more,
        }
        for layer in range(ids.shape[1])
    ]


class TestMegatron:
    def test_all_ranks_of_a_folder(self, tmp_path: Path) -> None:
        parts = [choices(6, seed=seed) for seed in range(4)]
        for rank in (0, 1):
            rows = [row for step in (0, 1) for row in megatron_rows(parts[2 * rank + step], 10 * step, rank)]
            rows.insert(2, megatron_rows(choices(6), 0, rank, block="mtp", mtp_idx=0)[0])
            write_lines(tmp_path / f"router_trace_rank{rank}.jsonl", rows)
        trace = trace_of(tmp_path)
        np.testing.assert_array_equal(trace.experts, np.sort(np.concatenate(parts), axis=2))
        np.testing.assert_array_equal(trace.step, [0, 10, 0, 10])
        assert trace.meta.model_layers == (1, 2, 3)
        assert not trace.meta.ordered
        assert "2 records of other blocks" in trace.meta.note
        assert trace_of(tmp_path, ranks=(1,)).tokens == 12
        assert trace_of(tmp_path / "router_trace_rank1.jsonl").tokens == 12

    def test_several_microbatches_a_step(self, tmp_path: Path) -> None:
        parts = [choices(6), choices(6, seed=1)]
        rows = [row for part in parts for row in megatron_rows(part, 5)]
        trace = trace_of(write_lines(tmp_path / "x", rows))
        np.testing.assert_array_equal(trace.starts, [0, 6, 12])
        np.testing.assert_array_equal(trace.experts, np.sort(np.concatenate(parts), axis=2))

    def test_a_step_that_lacks_a_layer_is_left_out_and_counted(self, tmp_path: Path) -> None:
        rows = [*megatron_rows(choices(6), 0), *megatron_rows(choices(6, seed=1), 1)[:-1]]
        trace = trace_of(write_lines(tmp_path / "x", rows))
        np.testing.assert_array_equal(trace.step, [0])
        assert "2 records of microbatches that lack a layer" in trace.meta.note

    def test_sequences_of_a_microbatch_alternate(self, tmp_path: Path) -> None:
        ids = choices(6)
        path = write_lines(tmp_path / "x", megatron_rows(ids, 0))
        trace = trace_of(path, sequence_length=3)
        np.testing.assert_array_equal(trace.starts, [0, 3, 6])
        np.testing.assert_array_equal(trace.experts, np.sort(ids[[0, 2, 4, 1, 3, 5]], axis=2))
        with pytest.raises(FileError, match="not sequences of 4 tokens"):
            read(path, sequence_length=4)

    def test_pipeline_stages_are_not_mixed(self, tmp_path: Path) -> None:
        write_lines(tmp_path / "router_trace_rank0.jsonl", megatron_rows(choices(), 0))
        later = [row | {"layer": row["layer"] + L} for row in megatron_rows(choices(), 0, 1)]
        write_lines(tmp_path / "router_trace_rank1.jsonl", later)
        with pytest.raises(FileError, match=r"pipeline stages.*option ranks"):
            read(tmp_path)
        assert trace_of(tmp_path, ranks=(1,)).meta.model_layers == (4, 5, 6)
        with pytest.raises(FileError, match="of the ranks asked for"):
            read(tmp_path, ranks=(9,))

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"top_indices": [[1, 2]] * 5}, "no tokens were recorded in all"),
            ({"layer": -1}, "out of range"),
            ({"step": -1}, "out of range"),
            ({"top_indices": None}, "no top_indices"),
            ({"top_indices": [[1, None]] * T}, "lacks its list"),
            ({"top_indices": [[1, 1]] * T}, "twice"),
        ],
    )
    def test_a_wrong_record_is_refused(self, tmp_path: Path, row: dict[str, Any], message: str) -> None:
        rows = megatron_rows(choices(), 0)
        rows[1] |= row
        with pytest.raises(FileError, match=message):
            read(write_lines(tmp_path / "x", rows))


class TestTensorRT:
    def folder(
        self, path: Path, layers: tuple[int, ...] = (3, 4), steps: tuple[int, ...] = (50, 51)
    ) -> NDArray[np.int64]:
        """Counts of two ranks in files; returns their sum [N, L, E]."""
        rng = np.random.default_rng(0)
        (path / "meta_info.json").write_text('{"num_experts": 8, "num_experts_per_token": 2}')
        counts = rng.integers(0, 50, (2, len(steps), len(layers), E))
        for rank in range(2):
            tensors = {
                f"{step}_{layer}": counts[rank, i, j] for i, step in enumerate(steps) for j, layer in enumerate(layers)
            }
            save_file(tensors, path / f"rank{rank}.safetensors")
        return counts.sum(axis=0)

    def test_ranks_are_summed(self, tmp_path: Path) -> None:
        expected = self.folder(tmp_path)
        save_file({"50_3": np.zeros((8, 8))}, tmp_path / "cooccurrence_rank0.safetensors")
        found = counts_of(tmp_path)
        np.testing.assert_array_equal(found.counts, expected)
        np.testing.assert_array_equal(found.step, [50, 51])
        assert (found.meta.model_layers, found.meta.top_k, found.meta.experts) == ((3, 4), 2, 8)
        np.testing.assert_allclose(found.tokens, expected.sum(axis=2) / 2)
        assert counts_of(tmp_path, ranks=(0,)).total.sum() < expected.sum()

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"50_3": np.zeros(7, np.int64)}, "is not 8 counts"),
            ({"50_3": np.full(8, -1)}, "is not 8 counts"),
            ({"50_3": np.zeros(8)}, "is not 8 counts"),
            ({"late": np.zeros(8, np.int64)}, "not named by iteration and layer"),
            ({"52_9": np.zeros(8, np.int64)}, "lacks a layer"),
        ],
    )
    def test_a_wrong_tensor_is_refused(self, tmp_path: Path, tensors: dict[str, NDArray[Any]], message: str) -> None:
        self.folder(tmp_path)
        save_file(tensors, tmp_path / "rank2.safetensors")
        with pytest.raises(FileError, match=message):
            read(tmp_path)

    @pytest.mark.parametrize("meta", ["{}", "[1]", "{", '{"num_experts": -1, "num_experts_per_token": 2}'])
    def test_a_wrong_description_is_refused(self, tmp_path: Path, meta: str) -> None:
        self.folder(tmp_path)
        (tmp_path / "meta_info.json").write_text(meta)
        with pytest.raises(FileError, match=r"meta_info\.json"):
            read(tmp_path)


class TestLogits:
    SPEC = RouterSpec(rule="softmax-top-k")

    def scores(self) -> NDArray[np.float32]:
        return np.random.default_rng(0).normal(size=(L, T, E)).astype(np.float32)

    def expected(self, scores: NDArray[Any]) -> NDArray[np.int64]:
        rule = router(self.SPEC, E, K)
        return np.stack([rule.choose(layer.astype(np.float64)).experts for layer in scores], axis=1)

    def test_npy_of_three_or_four_axes(self, tmp_path: Path) -> None:
        scores = self.scores()
        for shape in ((L, T, E), (L, 3, 4, E)):
            np.save(tmp_path / "x.npy", scores.reshape(shape))
            trace = trace_of(tmp_path / "x.npy", router=self.SPEC, top_k=K, sequence_length=4)
            np.testing.assert_array_equal(trace.experts, self.expected(scores))
            np.testing.assert_array_equal(trace.starts, [0, 4, 8, 12])
            assert trace.meta.router == "softmax-top-k"
            assert trace.weights is not None
            np.testing.assert_allclose(trace.weights.sum(axis=2), 1.0, atol=2e-3)

    def test_safetensors_of_one_tensor_or_one_a_layer(self, tmp_path: Path) -> None:
        scores = self.scores()
        save_file({"logits": scores}, tmp_path / "one.safetensors")
        save_file({f"layer.{9 + i}": layer.copy() for i, layer in enumerate(scores)}, tmp_path / "many.safetensors")
        for name in ("one", "many"):
            trace = trace_of(tmp_path / f"{name}.safetensors", router=self.SPEC, top_k=K)
            np.testing.assert_array_equal(trace.experts, self.expected(scores))
            assert "no sequence boundaries" in trace.meta.note

    def test_bfloat16_is_read(self, tmp_path: Path) -> None:
        scores = self.scores()
        coarse = (scores.view(np.uint32) >> 16 << 16).view(np.float32)
        data = (scores.view(np.uint32) >> 16).astype("<u2").tobytes()
        header = json.dumps({"logits": {"dtype": "BF16", "shape": [L, T, E], "data_offsets": [0, len(data)]}}).encode()
        (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + data)
        trace = trace_of(tmp_path / "x", router=self.SPEC, top_k=K)
        np.testing.assert_array_equal(trace.experts, self.expected(coarse))

    def test_a_bias_steers_the_choice(self, tmp_path: Path) -> None:
        bias = np.zeros((L, E), np.float32)
        bias[:, 5] = 100.0
        save_file({"logits": self.scores(), "bias": bias}, tmp_path / "x")
        spec = RouterSpec(rule="sigmoid-top-k", bias=True)
        assert (trace_of(tmp_path / "x", router=spec, top_k=K).experts == 5).any(axis=2).all()

    def test_what_is_missing_or_wrong_is_said(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npy"
        np.save(path, self.scores())
        with pytest.raises(UserError, match="give the option router"):
            read(path, top_k=K)
        with pytest.raises(UserError, match="give the option top_k"):
            read(path, router=self.SPEC)
        bad = self.scores()
        bad[1, 2, 3] = np.nan
        np.save(path, bad)
        with pytest.raises(FileError, match="not a finite number"):
            read(path, router=self.SPEC, top_k=K)
        save_file({"a0": self.scores()[0], "a1": self.scores()[1, :5].copy()}, tmp_path / "y")
        with pytest.raises(FileError, match="not of one shape"):
            read(tmp_path / "y", router=self.SPEC, top_k=K)
        save_file({"a": np.zeros((L, T, E), np.int64)}, tmp_path / "y")
        with pytest.raises(FileError, match="not scores"):
            read(tmp_path / "y", router=self.SPEC, top_k=K)


class TestCounts:
    def write(self, path: Path, **more: Any) -> Path:
        table = {
            "olmoe/expert_counts/c4": [[4, 6, 10], [8, 8, 4]],
            "olmoe/expert_counts/github": [[1, 1, 18], [2, 9, 9]],
            "olmoe/expert_counts_top1/c4": [[2, 3, 5], [4, 4, 2]],
            **more,
        }
        path.write_text(json.dumps(table))
        return path

    def test_domains_and_choices_a_token(self, tmp_path: Path) -> None:
        found = counts_of(self.write(tmp_path / "x.json"), model_layers=(0, 7))
        np.testing.assert_array_equal(found.counts[1], [[1, 1, 18], [2, 9, 9]])
        assert (found.meta.domains, found.meta.top_k, found.meta.model_layers) == (("c4", "github"), 2, (0, 7))

    def test_one_of_several_models_is_chosen(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "x.json", **{"mistral/expert_counts/c4": [[5, 5]]})
        with pytest.raises(UserError, match="option part"):
            read(path)
        with pytest.raises(UserError, match="give the option top_k"):
            read(path, part="mistral")
        assert counts_of(path, part="mistral", top_k=1).meta.experts == 2

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"olmoe/expert_counts/arxiv": [[1, 2, 3]]}, "differ in layers"),
            ({"olmoe/expert_counts/arxiv": [[1, 2], [3]]}, "differ in length"),
            ({"olmoe/expert_counts/arxiv": [[1, 2, -3], [1, 2, 3]]}, "count below 0"),
            ({"olmoe/expert_counts/arxiv": [[0.5, 2, 3], [1, 2, 3]]}, "not whole numbers"),
        ],
    )
    def test_a_wrong_table_is_refused(self, tmp_path: Path, more: dict[str, Any], message: str) -> None:
        with pytest.raises(FileError, match=message):
            read(self.write(tmp_path / "x.json", **more))

    def test_a_pickle_of_counters_is_refused_with_the_way_out(self, tmp_path: Path) -> None:
        (tmp_path / "x.pkl").write_bytes(pickle.dumps([Counter([1, 2])]))
        for name in (None, "olmoe-counts"):
            with pytest.raises(FileError, match=r"is a pickle.*write JSON"):
                read(tmp_path / "x.pkl", format=name)

    @pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder with recorded counts is absent")
    def test_the_real_counts(self) -> None:
        found = counts_of(SHARED / "olmoe-mixtral-counts.json", part="olmoe", model_layers=(0, 7, 15))
        assert (found.meta.top_k, found.meta.experts, found.counts.shape) == (8, 64, (6, 3, 64))

    def test_experts_used_by_pass(self, tmp_path: Path) -> None:
        rows = [
            {
                "forward_pass_id": 1,
                "forward_mode": "prefill",
                "latency": 0.1,
                "seq_lens_sum": 64,
                "processed_tokens": 60,
                "batch_size": 2,
                "expert_activation": 6.5,
            },
            {
                "forward_pass_id": 2,
                "forward_mode": "decode",
                "seq_lens_sum": 66,
                "batch_size": 2,
                "expert_activation": 3,
            },
            {"forward_pass_id": 3, "forward_mode": "idle"},
        ]
        found = read(write_lines(tmp_path / "x", rows))
        assert isinstance(found, ExpertsUsed)
        np.testing.assert_array_equal(found.used, [6.5, 3])
        np.testing.assert_array_equal(found.tokens, [60, 2])
        np.testing.assert_array_equal(found.prefill, [True, False])
        assert np.isnan(found.seconds[1])
        assert "1 lines" in found.note

    @pytest.mark.parametrize("value", ["NaN", '"x"', "-1", "true", "1e400"])
    def test_a_wrong_number_of_experts_used_is_refused(self, tmp_path: Path, value: str) -> None:
        (tmp_path / "x").write_text(f'{{"forward_mode": "decode", "batch_size": 1, "expert_activation": {value}}}\n')
        with pytest.raises(FileError, match="expert_activation is not a number"):
            read(tmp_path / "x")

    def test_an_expert_location_of_sglang(self, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text(json.dumps({"logical_count": [[0, 0, 0], [1, 2, 3]]}))
        with pytest.raises(UserError, match="give the option top_k"):
            read(tmp_path / "x.json")
        found = counts_of(tmp_path / "x.json", top_k=2)
        np.testing.assert_array_equal(found.counts, [[[1, 2, 3]]])
        assert found.meta.model_layers == (1,)
        (tmp_path / "x.json").write_text(json.dumps({"logical_count": [[1, 2], [3]]}))
        with pytest.raises(FileError, match="differ in length"):
            read(tmp_path / "x.json", top_k=2)


class TestArrays:
    def test_exflow(self, tmp_path: Path) -> None:
        ids = choices(top_k=1)[:, :, 0]
        np.save(tmp_path / "trace.npy", ids)
        trace = trace_of(tmp_path / "trace.npy", sequence_length=6, domain="prose")
        np.testing.assert_array_equal(trace.experts[:, :, 0], ids)
        assert (trace.meta.top_k, trace.sequences, trace.meta.domains) == (1, 2, ("prose",))
        with pytest.raises(FileError, match="are not sequences of 5"):
            read(tmp_path / "trace.npy", sequence_length=5)

    def npz(self, path: Path, **arrays: Any) -> Path:
        np.savez_compressed(path, **({"experts": choices().astype(np.uint8)} | arrays))
        return path

    def test_npz_with_its_sequences_beside_it(self, tmp_path: Path) -> None:
        path = self.npz(tmp_path / "x.npz")
        rows = [{"dataset": "b", "category": "?", "start": 0, "tokens": 5}, {"dataset": "a", "start": 5, "tokens": 7}]
        (tmp_path / "x.json").write_text(json.dumps(rows))
        for name in ("x.npz", "x.json"):
            trace = trace_of(tmp_path / name)
            np.testing.assert_array_equal(trace.experts, choices())
            np.testing.assert_array_equal(trace.starts, [0, 5, 12])
            assert trace.meta.domains == ("b", "a")
        for wrong, message in (
            ([rows[0]], "have 5 tokens, not 12"),
            ([rows[0], rows[1] | {"start": 6}], "do not follow each other"),
            ([rows[0] | {"tokens": "5"}, rows[1]], "not a whole number"),
            ({"start": 1}, "not a list of sequences"),
        ):
            (tmp_path / "x.json").write_text(json.dumps(wrong))
            with pytest.raises(FileError, match=message):
                read(path)

    def test_npz_with_its_sequences_inside(self, tmp_path: Path) -> None:
        more = {
            "starts": [0, 5, 12],
            "domain": [3, 1],
            "step": [100, 200],
            "token_id": np.arange(T),
            "weights": np.full((T, L, K), 0.5),
        }
        trace = trace_of(self.npz(tmp_path / "x.npz", **more))
        np.testing.assert_array_equal(trace.step, [100, 200])
        assert trace.meta.domains == ("1", "3")
        np.testing.assert_array_equal(trace.domain, [1, 0])
        assert trace.token_id is not None
        assert trace_of(self.npz(tmp_path / "y.npz", lengths=[4, 8])).sequences == 2

    def test_a_key_of_an_npz_that_is_not_read_is_noted(self, tmp_path: Path) -> None:
        assert "not read" not in trace_of(self.npz(tmp_path / "x.npz", lengths=[4, 8])).meta.note
        note = trace_of(self.npz(tmp_path / "x.npz", sequence="text", lenghts=[4, 8])).meta.note
        assert "not read: the keys sequence, lenghts, unknown in this format (known: experts, starts, lengths," in note

    def test_layers_beyond_any_model_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="names layer 10,001; a model has at most 10,000"):
            read(self.npz(tmp_path / "x.npz", experts=np.ones((1, 10_002, 1), np.uint8)))
        with pytest.raises(UserError, match="import option model_layers"):
            read(self.npz(tmp_path / "x.npz"), model_layers=(0, 1, 1 << 31))

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"starts": [0, 5]}, "do not cover"),
            ({"lengths": [5, 0, 7]}, "do not cover"),
            ({"experts": np.zeros((3, 2))}, "not \\[tokens, layers, choices\\]"),
            ({"experts": np.zeros((0, 2, 2), np.uint8)}, "holds no choices"),
            ({"experts": np.full((4, 2, 2), 70000) + np.arange(2)}, "a trace holds up to"),
            ({"weights": np.zeros((T, L))}, "weights is"),
            ({"weights": np.full((T, L, K), np.nan)}, "not a finite number"),
            ({"token_id": np.zeros(T)}, "not whole numbers"),
            ({"token_id": np.full(T, 1 << 40)}, "a token id is out of range"),
            ({"experts": np.array([[None]])}, "holds object, not numbers"),
        ],
    )
    def test_wrong_arrays_are_refused(self, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
        with pytest.raises(FileError, match=message):
            read(self.npz(tmp_path / "x.npz", **arrays))

    def test_a_zip_bomb_is_refused_before_it_is_read(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("experts.npy", bytes(100 << 20))
        with pytest.raises(FileError, match="would grow to"):
            read(tmp_path / "x.npz")

    def test_a_huge_declared_array_is_refused(self, tmp_path: Path) -> None:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 24, 4)})
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("experts.npy", head.getvalue() + b"1234")
        with pytest.raises(FileError, match=r"declares .* bytes and holds 4"):
            read(tmp_path / "x.npz")
        (tmp_path / "x.npy").write_bytes(head.getvalue())
        with pytest.raises(FileError, match=r"declares .* bytes of numbers and holds 0"):
            read(tmp_path / "x.npy")

    def test_a_damaged_archive_is_refused(self, tmp_path: Path) -> None:
        data = self.npz(tmp_path / "x.npz").read_bytes()
        (tmp_path / "x.npz").write_bytes(data[:-30])
        with pytest.raises(FileError, match="damaged"):
            read(tmp_path / "x.npz")
        spoilt = bytearray(data)
        spoilt[len(data) // 3] ^= 0xFF
        (tmp_path / "x.npz").write_bytes(bytes(spoilt))
        with pytest.raises(FileError):
            read(tmp_path / "x.npz")

    @pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder with recorded traces is absent")
    def test_the_real_trace(self, tmp_path: Path) -> None:
        trace = trace_of(SHARED / "gpt-oss-20b.npz", model="gpt-oss-20b", experts=32)
        assert (trace.tokens, trace.layers, trace.sequences, trace.meta.top_k) == (107_968, 24, 351, 4)
        save(trace, tmp_path / "a.safetensors")
        again = trace_of(tmp_path / "a.safetensors")
        np.testing.assert_array_equal(again.experts, np.load(SHARED / "gpt-oss-20b.npz")["experts"])


class TestCsv:
    def test_columns_in_any_order(self, tmp_path: Path) -> None:
        ids = choices()
        rows = [
            f'{layer},"{" ".join(map(str, ids[t, layer]))}",{t},{"a" if t < 5 else "b"}\n'
            for t in range(T)
            for layer in range(L)
        ]
        (tmp_path / "x.csv").write_text("layer,experts,token,sequence\n" + "".join(rows))
        trace = trace_of(tmp_path / "x.csv")
        np.testing.assert_array_equal(trace.experts, ids)
        np.testing.assert_array_equal(trace.starts, [0, 5, 12])

    def test_rows_of_llama_cpp(self, tmp_path: Path) -> None:
        ids = choices(layers=2)
        rows = [f'{layer + 4},"{ids[t, layer][0]} {ids[t, layer][1]}"\n' for t in range(T) for layer in range(2)]
        (tmp_path / "x").write_text("".join(rows))
        trace = trace_of(tmp_path / "x")
        np.testing.assert_array_equal(trace.experts, ids)
        assert trace.meta.model_layers == (4, 5)
        assert "read as one" in trace.meta.note

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("layer,experts\n0,1 2\n", "no column token"),
            ("token,layer,experts\n0,0,1 x\n", "not names separated by spaces"),
            ("token,layer,experts\n0,0\n", "Expected 3 columns"),
            ("token,layer,experts\n0,-1,1 2\n", "a layer is negative"),
            ("token,layer,experts\n0,zero,1 2\n", "conversion error"),
            ("token,layer,experts\n0,0,\n", "lacks a value"),
            ("token,layer,experts\n0,0,1 2\n0,1,1 2\n1,0,2 3\n", "not the same tokens in every layer"),
            ("token,layer,experts", "column names and no rows"),
            ("token,layer,experts\r\n\n", "column names and no rows"),
            ("token,layer,experts\n0,2147483647,1 2\n", "names layer 2,147,483,647; a model has at most 10,000"),
        ],
    )
    def test_a_wrong_file_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "x.csv").write_text(text)
        with pytest.raises(FileError, match=message):
            read(tmp_path / "x.csv")

    def test_text_of_the_file_is_told_in_short(self, tmp_path: Path) -> None:
        long, path = "x" * 300_000, tmp_path / "x.csv"
        heading = "token,layer,experts,sequence\n"
        for text in (
            f"{heading}0,0,1 {long},a\n",
            f"{heading}0,{long},1 2,a\n",
            f"{heading}0,0,1 2,{long}\n0,1,1 2,{long}\n1,1,1 2,{long}\n",
            f"layer,experts,{long[:30_000]}\n0,1 2,0\n",
        ):
            path.write_text(text)
            with pytest.raises(FileError, match=r"x\.csv") as caught:
                read(path)
            assert len(str(caught.value)) < len(str(path)) + 300
        (tmp_path / "y").write_text(json.dumps({f"{name}{long}/expert_counts/c4": [[1]] for name in "ab"}))
        with pytest.raises(UserError, match="option part") as told:
            read(tmp_path / "y", format="olmoe-counts")
        assert len(str(told.value)) < len(str(path)) + 500

    def test_lines_that_end_as_on_an_old_macintosh(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_bytes(b"token,layer,experts\r0,0,1 2\r1,0,2 3\r")
        with pytest.raises(FileError, match=r"x\.csv") as told:
            read(tmp_path / "x.csv", format="csv")
        assert "no rows" not in str(told.value)

    def test_a_column_that_is_not_read_is_noted(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_text("token,layer,experts,sequenze,\n0,0,1 2,a,\n1,0,2 3,b,\n")
        note = trace_of(tmp_path / "x.csv").meta.note
        assert "not read: the column sequenze, unknown in this format (known: token, layer, experts, sequence)" in note


class TestMark:
    """Windows puts a mark before UTF-8: a file with it says what it says without."""

    def same(self, path: Path, **options: Any) -> None:
        plain = read(path, **options)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        marked = read(path, **options)
        assert type(plain) is type(marked)
        held = [getattr(plain, name) for name in ("experts", "counts", "used") if hasattr(plain, name)]
        again = [getattr(marked, name) for name in ("experts", "counts", "used") if hasattr(marked, name)]
        assert len(held) == 1
        np.testing.assert_array_equal(held[0], again[0])
        assert getattr(plain, "meta", None) == getattr(marked, "meta", None)

    @pytest.mark.parametrize("text", ["token,layer,experts\n0,0,1 2\n1,0,0 3\n", '4,"1 2"\n4,"0 3"\n'])
    def test_csv(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "x.csv").write_text(text)
        self.same(tmp_path / "x.csv")

    @pytest.mark.parametrize(
        "rows",
        [
            vllm_rows(choices()),
            [{"type": "meta", "num_experts": 8}, *vllm_rows(choices())],
            megatron_rows(choices(), 0),
            [{"routed_experts": choices().tolist()}],
            [{"routed_experts": choices().tolist()}] * 2,
            [{"meta_info": {"routed_experts": choices().tolist()}}],
            [{"forward_mode": "decode", "batch_size": 1, "expert_activation": 3}],
        ],
    )
    def test_json_lines(self, tmp_path: Path, rows: list[Any]) -> None:
        self.same(write_lines(tmp_path / "x.jsonl", rows))

    @pytest.mark.parametrize("value", [{"m/expert_counts/c4": [[1, 2]]}, {"logical_count": [[1, 2]]}])
    @pytest.mark.parametrize("indent", [None, 1])
    def test_json(self, tmp_path: Path, value: Any, indent: int | None) -> None:
        (tmp_path / "x.json").write_text(json.dumps(value, indent=indent))
        self.same(tmp_path / "x.json", top_k=1)

    def test_the_sequences_beside_an_npz(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", experts=choices())
        (tmp_path / "x.json").write_text(json.dumps([{"start": 0, "tokens": T, "domain": "a"}]))
        self.same(tmp_path / "x.json")

    def test_a_mark_alone_is_an_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbf\r\n")
        with pytest.raises(FileError, match="it is empty"):
            read(tmp_path / "x.csv")


class TestDoor:
    def test_own_traces_pass_through(self, tmp_path: Path) -> None:
        np.save(tmp_path / "trace.npy", choices(top_k=1)[:, :, 0])
        save(trace_of(tmp_path / "trace.npy"), tmp_path / "a")
        np.testing.assert_array_equal(trace_of(tmp_path / "a").experts, load(tmp_path / "a").experts)

    def test_unknown_content_is_refused_with_the_known_formats(self, tmp_path: Path) -> None:
        samples = {"a.json": b'{"x": 1}', "b.csv": b"1;2;3\n", "c.bin": b"\x01\x00\x02", "d.npy": b""}
        array = io.BytesIO()
        np.save(array, np.zeros((2, 2)))
        samples["d.npy"] = array.getvalue()
        for name, content in samples.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(FileError) as caught:
                read(tmp_path / name)
            assert all(known in str(caught.value) for known in IMPORTERS)
            assert "\n" not in str(caught.value)
        with pytest.raises(FileError, match="nearest: csv"):
            read(tmp_path / "b.csv")

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="it is empty"):
            read(tmp_path)
        (tmp_path / "x.txt").write_text("x")
        with pytest.raises(FileError, match="nearest: tensorrt-llm"):
            read(tmp_path)

    def test_empty_absent_and_misnamed(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"  \n")
        for name in (None, "csv", "vllm-jsonl"):
            with pytest.raises(FileError, match="it is empty"):
                read(tmp_path / "x", format=name)
        with pytest.raises(FileError, match="no such file"):
            read(tmp_path / "y")
        with pytest.raises(UnknownNameError, match="nearest: vllm-jsonl"):
            read(tmp_path / "x", format="vllm-json")

    def test_options_are_checked(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", choices(top_k=1)[:, :, 0])
        with pytest.raises(UserError, match="unknown import option 'sequence_len'; nearest: sequence_length"):
            read(tmp_path / "x.npy", sequence_len=3)
        with pytest.raises(UserError, match="import option experts"):
            read(tmp_path / "x.npy", experts=0)
        with pytest.raises(UserError, match="option model_layers names 2 layers"):
            read(tmp_path / "x.npy", model_layers=(0, 1))
        with pytest.raises(UserError, match="option top_k is 2"):
            read(tmp_path / "x.npy", top_k=2)

    @pytest.mark.parametrize("name", sorted(set(IMPORTERS)))
    def test_no_importer_reads_what_is_not_its_own(self, tmp_path: Path, name: str) -> None:
        for content in (
            b'{"x": [1, 2]}\n',
            b"[" * 5000,
            b"a,b\n1,2\n",
            b"\x93NUMPY\x01\x00",
            b"PK\x03\x04junk",
            bytes(50),
        ):
            (tmp_path / "x").write_bytes(content)
            with pytest.raises(UserError):
                read(tmp_path / "x", format=name, top_k=1, layers=1, router=RouterSpec())


def test_torch_files_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps({}, protocol=2))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'moesim\[trace\]'"):
        read(tmp_path / "x.pt")


class Fires:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


class TestTorch:
    @pytest.fixture(autouse=True)
    def _torch(self) -> None:
        self.torch = pytest.importorskip("torch", reason="torch is not installed (extra trace)")

    def save(self, content: Any, path: Path) -> Path:
        self.torch.save(content, path)
        return path

    def tensor(self, values: Any) -> Any:
        return self.torch.as_tensor(np.asarray(values, np.int32))

    def test_stat(self, tmp_path: Path) -> None:
        counts = np.zeros((4, 3, 5), np.int32)
        counts[:2, 1:] = np.random.default_rng(0).integers(1, 9, (2, 2, 5))
        content = {"rank": 0, "logical_count": self.tensor(counts), "average_utilization_rate_over_window": None}
        found = counts_of(self.save(content, tmp_path / "x.pt"), top_k=2)
        np.testing.assert_array_equal(found.counts, counts[:2, 1:])
        assert found.meta.model_layers == (1, 2)
        assert "2 empty rows" in found.meta.note
        assert "dense layers 0" in found.meta.note

    def test_per_pass_sums_ranks_and_copies_of_an_expert(self, tmp_path: Path) -> None:
        place = [[0, 1, 2, 0], [2, 1, 0, 1]]
        for rank in (0, 1):
            records = [
                {
                    "forward_pass_id": step,
                    "rank": rank,
                    "gatherer_key": "primary",
                    "global_physical_count": self.tensor([[1, 2, 3, 4 + rank], [5, 6, 7, 8 + step]]),
                }
                for step in (7, 8)
            ]
            self.save(
                {"records": records, "last_physical_to_logical_map": self.tensor(place)}, tmp_path / f"r_1.0_{rank}.pt"
            )
        found = counts_of(tmp_path, top_k=1)
        np.testing.assert_array_equal(found.step, [7, 8])
        np.testing.assert_array_equal(found.counts[0], [[5 + 6, 4, 6], [14, 12 + 15 * 2, 10]])
        assert counts_of(tmp_path, top_k=1, ranks=(0,)).counts[0, 0].tolist() == [5, 2, 3]

    def per_token(self, path: Path) -> NDArray[np.int64]:
        """Two prompts of 3 and 2 tokens, two decodes of both, one of the second: physical choices in layers 1 and 2 of
        3; returns the logical choices of the two sequences [9, 2, 2], 5 tokens and 5 tokens... of 10."""
        place = np.array([[0, 1, 2, 3, 0], [3, 2, 1, 0, 1], [0, 1, 2, 3, 3]])
        physical = np.random.default_rng(3).random((10, 3, 4)).argsort(axis=-1)[..., :2]
        passes = [
            ([0, 1, 2, 0, 1], [3, 2], 1),
            ([3, 2], None, 2),
            ([4, 3], None, 2),
            ([4], None, 2),
        ]
        records, at = [], 0
        for number, (positions, pieces, mode) in enumerate(passes):
            ids = np.full((3, len(positions), 8), -1)
            ids[1:, :, :2] = physical[at : at + len(positions), 1:].transpose(1, 0, 2)
            records.append(
                {
                    "forward_pass_id": number,
                    "rank": 0,
                    "input_ids": list(range(at, at + len(positions))),
                    "positions": positions,
                    "extend_seq_lens": pieces,
                    "forward_mode": mode,
                    "topk_ids_of_layer": self.tensor(ids),
                    "misc_objects": [],
                }
            )
            at += len(positions)
        self.save({"records": records[::-1], "last_physical_to_logical_map": self.tensor(place)}, path)
        logical = np.stack([place[layer][physical[:, layer]] for layer in (1, 2)], axis=1)
        return logical[[0, 1, 2, 5, 7, 3, 4, 6, 8, 9]]

    def test_per_token_puts_sequences_together(self, tmp_path: Path) -> None:
        expected = self.per_token(tmp_path / "x_0.pt")
        trace = trace_of(tmp_path / "x_0.pt")
        np.testing.assert_array_equal(trace.experts, expected)
        np.testing.assert_array_equal(trace.starts, [0, 5, 10])
        np.testing.assert_array_equal(trace.position, [0, 1, 2, 3, 4] * 2)
        assert trace.token_id is not None
        np.testing.assert_array_equal(trace.token_id, [0, 1, 2, 5, 7, 3, 4, 6, 8, 9])
        assert (trace.meta.model_layers, trace.meta.top_k, trace.meta.experts) == ((1, 2), 2, 4)

    def test_per_token_of_two_ranks(self, tmp_path: Path) -> None:
        for rank in (0, 1):
            expected = self.per_token(tmp_path / f"x_{rank}.pt")
        trace = trace_of(tmp_path)
        np.testing.assert_array_equal(trace.experts, np.concatenate([expected, expected]))
        assert trace.sequences == 4

    def test_layers_of_zeros_are_dense_too(self, tmp_path: Path) -> None:
        expected = self.per_token(tmp_path / "x_0.pt")
        content = self.torch.load(tmp_path / "x_0.pt", weights_only=True)
        for record in content["records"]:
            record["topk_ids_of_layer"][0] = 0
        trace = trace_of(self.save(content, tmp_path / "x_0.pt"))
        np.testing.assert_array_equal(trace.experts, expected)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"positions": [0]}, "1 positions, 5 ids and 5 tokens"),
            ({"extend_seq_lens": [3, 3]}, "do not add up"),
            ({"topk_ids_of_layer": [[[9, 9]] * 5] * 3}, "do not fit its map"),
            ({"topk_ids_of_layer": [[[1, 2]] * 5] * 2}, "do not fit its map"),
        ],
    )
    def test_a_wrong_pass_is_refused(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        self.per_token(tmp_path / "x_0.pt")
        content = self.torch.load(tmp_path / "x_0.pt", weights_only=True)
        content["records"][-1] |= change
        with pytest.raises(FileError, match=message):
            read(self.save(content, tmp_path / "x_0.pt"))

    def test_replay(self, tmp_path: Path) -> None:
        ids = choices()
        path = self.save([self.tensor(ids[:, layer]) for layer in range(L)], tmp_path / "x.pt")
        trace = trace_of(path, sequence_length=4)
        np.testing.assert_array_equal(trace.experts, ids)
        assert trace.sequences == 3
        with pytest.raises(FileError, match="differ in tokens"):
            read(self.save([self.tensor(ids[:, 0]), self.tensor(ids[1:, 1])], path))

    def test_code_in_a_torch_file_does_not_run(self, tmp_path: Path) -> None:
        path = self.save({"logical_count": Fires(tmp_path / "fired")}, tmp_path / "x.pt")
        with pytest.raises(FileError, match="could run code"):
            read(path)
        assert not (tmp_path / "fired").exists()

    def test_a_tensor_larger_than_its_storage_is_refused(self, tmp_path: Path) -> None:
        huge = self.torch.zeros(1, dtype=self.torch.int32).expand(1 << 30, 1000, 1000)
        with pytest.raises(FileError, match="repeats what is stored"):
            read(self.save({"logical_count": huge}, tmp_path / "x.pt"))

    def test_a_damaged_or_other_torch_file_is_refused(self, tmp_path: Path) -> None:
        path = self.save({"x": self.tensor([1])}, tmp_path / "x.pt")
        with pytest.raises(FileError, match="torch file with other content"):
            read(path)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(FileError, match="damaged"):
            read(path)
        path.write_bytes(b"\x80\x02}q\x00.")
        with pytest.raises(FileError):
            read(path)
