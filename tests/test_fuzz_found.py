"""What fuzzing has found, one test each: inputs that once ended in a traceback, a long wait or a wrong answer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import moesim
from moesim import catalog
from moesim.calibration import tables
from moesim.errors import FileError, ScenarioError, UserError
from moesim.planner import run as planning
from moesim.routing.profile import RoutingProfile
from moesim.scenario.loading import load
from moesim.serving.trace_file import read_trace
from moesim.traces.importers import read
from moesim.traces.trace import RouterTrace
from moesim.validation.run import validate

DATA = Path(moesim.__file__).parent / "catalog" / "data"
SMALL: dict[str, Any] = {
    "name": "small",
    "model": "olmoe-1b-7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 8},
    "workload": {"global_batch": 64},
}
SERVING: dict[str, Any] = {
    "model": "mixtral-8x7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 8},
    "instance": {"gpus": 8, "tensor": 8},
    "workload": {
        "kind": "serving",
        "requests": 10,
        "input_tokens": 100,
        "output_tokens": 10,
        "arrivals": {"kind": "poisson", "rate": 1},
    },
}


class TestCalibrationOfOnesOwn:
    """A value that no law can take is refused where the scenario names the file, not when a law trips over it."""

    @pytest.mark.parametrize(
        ("entry", "content", "told"),
        [
            ("stacks", {"reference": "megatron"}, r"reference: megatron: not a name that this calibration has"),
            ("stacks", {"time_factor": {5: 1.0}}, r"time_factor: the key 5 is not text"),
            ("stacks", {"time_factor": {"mine": "slow"}}, r"time_factor\.mine: expected a finite number"),
            (
                "stacks",
                {"standard_error": {"time_factor.x": "much"}},
                r"standard_error\.time_factor\.x: expected",
            ),
            ("training-compute", {"own": {"h100-sxm": {"bf16": "good"}}}, r"own\.h100-sxm\.bf16: expected a mapping"),
            (
                "training-compute",
                {"own": {"h100-sxm": {"bf16": {"x": {"moe": {"rows": 1}}}}}},
                r"moe\.range: expected a",
            ),
            ("network-deepep-normal", {"source": []}, r"source: expected a mapping"),
            ("network-deepep-normal", {"source": {"basis": "guessed"}}, r"source\.basis: guessed"),
            ("network-deepep-normal", {"residual": {"range": {}}}, r"residual\.range: expected a finite number"),
            ("network-deepep-normal", {"eta": 10**400}, r"expected a finite number|longer than the 100 characters"),
            (
                "training-compute",
                {"attention_scores": {"hopper": 1e-300}},
                r"hopper: expected a number from 4\.45e-07 to",
            ),
            ("training-compute", {"host": {"exponent": 1e-9}}, r"exponent: expected a number from 0\.008 to"),
            ("network-deepep-normal", {"alpha_combine_rate": 0}, r"alpha_combine_rate: must be above 0"),
            ("network-collectives", {"ring": {"step": 0}}, r"ring\.step: must be above 0"),
            ("stacks", {"time_factor": {"mine": 0}}, r"time_factor\.mine: must be above 0"),
            ("training-compute", {"gemm_rule_limit": 0.0}, r"gemm_rule_limit: must be above 0"),
            ("training-compute", {"gemm_efficiency": {"hopper": None}}, r"hopper: expected a mapping"),
        ],
    )
    def test_a_value_that_no_law_takes(self, tmp_path: Path, entry: str, content: dict[str, Any], told: str) -> None:
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({entry: content}), encoding="utf-8")
        with pytest.raises(FileError, match=told):
            catalog.measured("own.yaml", tmp_path)

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            ({"valid": {"length": [1]}}, "expected a range, two numbers"),
            ({"valid": {"length": ["1", "9"]}}, "expected a range, two numbers"),
            ({"residual": 0.1}, "residual: expected a mapping"),
            ({"gpus": [{"base": "h100-sxm"}]}, r"gpus\[0\]: expected str"),
        ],
    )
    def test_a_set_of_another_shape(self, tmp_path: Path, wrong: dict[str, Any], told: str) -> None:
        shipped = catalog.raw("calibrations", "kernel-attention")["coefficients"]["hopper"]["bf16"]
        own = {"kernel-attention": {"coefficients": {"hopper": {"bf16": {**shipped, **wrong}}}}}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
        with pytest.raises(FileError, match=told):
            catalog.measured("own.yaml", tmp_path)

    def test_in_a_catalog_folder_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MOESIM_CATALOG", str(tmp_path))
        (tmp_path / "calibrations.yaml").write_text("training-compute: {gemm_efficiency: {hopper: }}\n")
        with pytest.raises(FileError, match=r"calibrations\.yaml: training-compute\.gemm_efficiency\.hopper: expected"):
            moesim.estimate(load(SMALL))  # type: ignore[call-overload]


def test_a_file_with_a_null_for_a_key(tmp_path: Path) -> None:
    """Every other key that is no text was refused; this one went through, and broke whatever sorts keys."""
    (tmp_path / "own.yaml").write_text("null: 1\nstacks: {}\n")
    with pytest.raises(FileError, match="the key None is not text"):
        catalog.measured("own.yaml", tmp_path)


def test_a_router_of_ones_own_without_a_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESIM_CATALOG", str(tmp_path))
    (tmp_path / "routers.yaml").write_text("mine: {renormalize: true}\n")
    with pytest.raises(ScenarioError, match=r"mine\.rule: is required"):
        catalog.raw("routers", "mine")
    (tmp_path / "routers.yaml").write_text("other: {rule: softmax-top-k, renormalise: true}\n")
    with pytest.raises(ScenarioError, match=r"other\.renormalise: .*nearest: renormalize"):
        catalog.raw("routers", "other")


@pytest.mark.parametrize("changes", [{"n_experts": 8_000_000}, {"n_experts": 1_000_000}])
def test_a_model_of_countless_experts_is_refused_at_once(changes: dict[str, Any]) -> None:
    """It once took gigabytes, and a quarter of a minute where it fitted."""
    with pytest.raises(ScenarioError, match="n_experts"):
        load({**SMALL, "model": {"base": "olmoe-1b-7b", **changes}})


def test_a_borrowed_load_is_worked_out_once() -> None:
    """The law that a large profile lends takes a second; each reading of the scenario, of which a sweep makes hundreds,
    once took it anew."""
    scenario = {**SERVING, "model": "gpt-oss-120b", "routing": {"load": "gpt-oss-like"}}
    load(scenario)
    begin = time.process_time()
    for _ in range(5):
        load(scenario)
    assert time.process_time() - begin < 1.0


class TestPlansOfServing:
    def test_a_search_that_is_no_mapping(self, tmp_path: Path) -> None:
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump({"scenario": SERVING, "search": ["cluster.gpu"]}))
        with pytest.raises(ScenarioError, match="search"):
            planning.plan(path)

    def test_limits_of_the_scenario_that_are_out_of_range(self, tmp_path: Path) -> None:
        late = {"time_to_first_token": "1111111111111150 ms"}
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump({**SERVING, "workload": {**SERVING["workload"], "limits": late}}))
        with pytest.raises(ScenarioError, match=r"workload\.limits\.time_to_first_token: must be above 0 and at most"):
            planning.plan(path)


class TestRecordings:
    def test_a_header_that_breaks_off(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.zeros((3, 2), np.int64))
        data = (tmp_path / "x.npy").read_bytes().replace(b"}", b" ")
        (tmp_path / "x.npy").write_bytes(data)
        with pytest.raises(FileError, match="header is not one that numpy writes"):
            read(tmp_path / "x.npy")

    def test_a_header_that_an_old_python_wrote(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.arange(24).reshape(6, 4))
        data = (tmp_path / "x.npy").read_bytes().replace(b"(6, 4), ", b"(6L, 4),")
        (tmp_path / "x.npy").write_bytes(data)
        assert isinstance(read(tmp_path / "x.npy"), RouterTrace)

    def test_requests_of_which_one_has_no_name(self, tmp_path: Path) -> None:
        rows = [
            {"req_id": name, "layer": layer, "topk_ids": [2 * layer, place + 4]}
            for place, name in enumerate(("a", "a", None))
            for layer in (0, 1)
        ]
        (tmp_path / "x").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = read(tmp_path / "x")
        assert isinstance(found, RouterTrace)
        assert found.sequences == 2

    def test_scores_with_a_signalling_nan(self, tmp_path: Path) -> None:
        scores = np.ones((2, 6, 4), np.float32)
        scores.view(np.uint32)[0, 0, 0] = 0x7F800001
        np.save(tmp_path / "x.npy", scores)
        with pytest.raises(FileError, match="not a finite number"):
            read(tmp_path / "x.npy", router={"rule": "softmax-top-k"}, top_k=2)


def test_a_damaged_parquet_file_does_not_end_the_process(tmp_path: Path) -> None:
    """Its schema says that no value may be absent, its statistics count the absent ones: pyarrow's accessor of such a
    column aborts, where its reader refuses."""
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"timestamp": [0.0, 1.0], "input_tokens": [1, 2], "output_tokens": [1, 2]}), path)
    data = path.read_bytes()
    optional, required = (b"\x25" + kind + b"\x18\x09timestamp" for kind in (b"\x02", b"\x00"))
    assert optional in data
    path.write_bytes(data.replace(optional, required))
    with pytest.raises(OSError, match="histogram"):
        pq.read_table(path)
    code = (
        "from moesim.serving.trace_file import read_trace; from pathlib import Path\n"
        f"try: read_trace(Path({str(path)!r}))\nexcept ValueError as error: print(type(error).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "FileError\n"), done.stderr


def test_a_fitted_profile_with_infinities(tmp_path: Path) -> None:
    data = bytearray(min((DATA / "fitted").glob("*.safetensors"), key=lambda path: path.stat().st_size).read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    place = json.loads(data[8:begin])["share"]["data_offsets"][0]
    data[begin + place : begin + place + 4] = b"\x00\x7c\x00\xfc"  # +inf, -inf
    (tmp_path / "x.safetensors").write_bytes(bytes(data))
    with pytest.raises(FileError, match="share holds a number that is not finite"):
        RoutingProfile.load(tmp_path / "x.safetensors")


class TestValidationCases:
    def rows(self, tmp_path: Path, case: dict[str, Any]) -> list[str]:
        (tmp_path / "cases.yaml").write_text(yaml.safe_dump([case]))
        return [row.reason for row in validate([tmp_path / "cases.yaml"]).cases]

    def test_a_gpu_that_is_a_list(self, tmp_path: Path) -> None:
        scenario = {**SMALL, "cluster": {"gpu": ["h100-sxm"], "gpus": 8}}
        (reason,) = self.rows(
            tmp_path, {"id": "a", "kind": "train_step", "scenario": scenario, "measured": {"step_time": 1}}
        )
        assert "cluster.gpu" in reason

    @pytest.mark.parametrize("name", ["{base: x}", "[1]", "7"])
    def test_a_gpu_whose_name_looks_like_data(self, tmp_path: Path, name: str) -> None:
        op = {"gpu": name, "m": 128, "n": 128, "k": 128, "dtype": "bf16"}
        (reason,) = self.rows(tmp_path, {"id": "a", "kind": "gemm", "op": op, "measured": {"time": 1e-4}})
        assert "unknown gpu" in reason

    def test_a_fabric_whose_name_looks_like_data(self, tmp_path: Path) -> None:
        op = {"gpu": "h100-sxm", "ranks": 16, "bytes": 1 << 20, "fabric": "{base: x}"}
        (reason,) = self.rows(tmp_path, {"id": "a", "kind": "all_to_all", "op": op, "measured": {"time": 1e-3}})
        assert "unknown fabric" in reason


@pytest.mark.parametrize("heading", ['timestamp",input_tokens,output_tokens', 'timestamp,"input_tokens,output_tokens'])
def test_a_heading_with_half_a_pair_of_quotes(heading: str, tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(f"{heading}\n0.1,10,20\n1.5,7,1\n", encoding="utf-8")
    with pytest.raises(FileError, match=r"requests\.csv"):
        read_trace(path)


class TestMeasurementTables:
    NCCL: ClassVar[dict[str, Any]] = {
        "system": "h100_sxm", "num_gpus": 16, "num_nodes": 2, "op": "all_gather", "dtype": "bf16",
        "size_bytes": 1 << 20, "time_us": 100.0, "lib": 2.27,
    }  # fmt: skip
    DEEPEP: ClassVar[dict[str, Any]] = {
        "system": "h100_sxm", "version": 1, "hidden_size": 7168, "num_token": 128, "num_topk": 8, "num_experts": 256,
        "ep_size": 16, "gpus_per_node": 8, "dispatch_avg_t_us": 100.0, "combine_avg_t_us": 200.0,
    }  # fmt: skip
    PUBLISHED: ClassVar[dict[str, Any]] = {
        "kind": "ep_all2all", "gpu": "h800-sxm", "num_gpus": 16, "num_nodes": 2, "op_or_model": "dispatch",
        "variant": "normal", "dtype": "fp8", "bytes": None, "tokens_per_rank": 4096, "hidden": 7168, "topk": 8,
        "num_experts": 256, "distribution": "uniform", "sms": 24, "metric": "bandwidth", "value": 43.0,
        "unit": "GB/s", "source_loc": "somewhere",
    }  # fmt: skip

    def read(self, tmp_path: Path, row: dict[str, Any]) -> tables.Tables:
        pd.DataFrame([row]).to_csv(tmp_path / "x.csv", index=False)
        return tables.read([tmp_path / "x.csv"])

    @pytest.mark.parametrize(
        ("row", "told"),
        [
            ({**NCCL, "time_us": "soon"}, "column 'time_us': soon; expected a number"),
            ({**NCCL, "num_nodes": "two"}, "column 'num_nodes': two; expected a number"),
            ({**NCCL, "num_nodes": 0}, "column 'ranks_per_domain'"),
            ({**DEEPEP, "combine_avg_t_us": "soon"}, "column 'combine_avg_t_us': soon; expected a number"),
            ({**PUBLISHED, "value": "fast"}, "column 'value': fast; expected a number"),
            ({"kind": "gemm", "gpu": "h100-sxm", "time": 1e-3, "m": "9" * 400, "n": 1, "k": 1}, "column 'm'"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_text_where_a_number_belongs(self, tmp_path: Path, row: dict[str, Any], told: str) -> None:
        with pytest.raises(UserError, match=told):
            self.read(tmp_path, row)

    def test_text_that_is_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "x.parquet"
        pd.DataFrame([{"kind": "gemm", "gpu": "h100-sxm-wrong", "time": 1e-3}]).to_parquet(path)
        path.write_bytes(path.read_bytes().replace(b"h100-sxm-wrong", b"h100-s\xf8m-wrong"))
        for reader in (tables.read, validate):
            with pytest.raises(FileError, match="no sound Parquet file"):
                reader([path])

    @pytest.mark.parametrize("library", [4, 0.5, None, True])
    def test_a_library_that_looks_like_a_number_is_left_as_a_name(self, tmp_path: Path, library: Any) -> None:
        row = {
            "kind": "all_to_all",
            "gpu": "h100-sxm",
            "time": 1e-3,
            "ranks": 8,
            "ranks_per_domain": 8,
            "bytes": 1 << 20,
        }
        found = self.read(tmp_path, {**row, "library": library})
        assert found.rows["library"].tolist() == ["nccl" if library is None else str(library)]

    def test_names_that_look_like_numbers_and_empty_ones(self, tmp_path: Path) -> None:
        found = self.read(tmp_path, {**self.NCCL, "dtype": 7, "lib": None})
        assert found.rows["dtype"].tolist() == ["7"]

    @pytest.mark.parametrize(
        "change",
        [
            *({"num_nodes": 0}, {"num_nodes": 3}, {"num_gpus": None}, {"num_gpus": 1e300}),
            *({"dtype": 0}, {"num_experts": 0}, {"num_experts": 1e12}, {"topk": 300}, {"value": 0}, {"hidden": None}),
        ],
        ids=str,
    )
    def test_a_published_row_that_cannot_be_counted_is_left_out_with_the_reason(
        self, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        rows = pd.DataFrame([self.PUBLISHED, {**self.PUBLISHED, **change, "variant": "other"}])
        rows.to_csv(tmp_path / "x.csv", index=False)
        found = tables.read([tmp_path / "x.csv"])
        assert len(found.rows) == 1
        assert sum(found.files[0].left_out.values()) == 1
