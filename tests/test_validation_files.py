"""Case files and error statistics: what is read, what is refused, what is counted; numbers worked out by hand."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from moesim.errors import FileError, UserError
from moesim.validation import cases
from moesim.validation.run import validate
from moesim.validation.statistics import ranks, spearman, statistics

GEMM = "{gpu: h100-sxm, m: 64, n: 128, k: 256, dtype: bf16}"
CASE = f"- {{id: a, kind: gemm, op: {GEMM}, measured: {{time: 1.0e-5}}}}\n"


def file(folder: Path, text: str, name: str = "cases.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str, name: str = "cases.yaml") -> list[cases.Case]:
    return cases.read([file(folder, text, name)])


def test_yaml_json_and_json_lines_say_the_same(tmp_path: Path) -> None:
    plain = {
        "id": "a",
        "kind": "gemm",
        "op": {"gpu": "h100-sxm", "m": 64, "n": 128, "k": 256},
        "measured": {"time": 1e-5},
    }
    block = "- id: a\n  kind: gemm\n  op: {gpu: h100-sxm, m: 64, n: 128, k: 256}\n  measured:\n    time: 10 us\n"
    texts = {
        "lines.yaml": "# one a line\n- " + json.dumps(plain) + "\n",
        "block.yaml": block,
        "dashed.yaml": "---\n" + block,
        "indented.yaml": "  " + block.replace("\n", "\n  ").rstrip() + "\n",
        "flow.yaml": "[{id: a, kind: gemm, op: {gpu: h100-sxm, m: 64, n: 128, k: 256},\n measured: {time: 1e-5}}]",
        "whole.json": json.dumps([plain], indent=1),
        "named.yaml": "cases:\n" + block,
        "named.json": json.dumps({"cases": [plain]}),
    }
    for name, text in texts.items():
        (case,) = read(tmp_path, text, name)
        assert (case.id, case.kind, case.problem) == ("a", "gemm", ""), name
        assert case.measured == {"time": pytest.approx(1e-5)}, name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty, expected a list of cases"),
        ("# nothing\n", "is empty"),
        ("a: 1\n", "expected a list of cases, got a mapping"),
        ("42\n", "expected a list of cases"),
        ('{"a": 1}', "expected a list of cases, got a mapping"),
        ("- id: [\n", "line 2"),
        ("# one\n- a: 1\n- b: {a: 1\n", "line 4"),
        ('- {"id": 1, "id": 2}\n', "'id' is given twice"),
        ("- " + "[" * 60 + "]" * 60 + "\n", "nested deeper"),
        ('["' + "[" * 5, "line 1"),
        ("- {id: !!python/object:os.system x}\n", "tag"),
    ],
)
def test_what_holds_no_list_is_refused_in_a_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(FileError, match=r"cases\.yaml") as error:
        read(tmp_path, text)
    assert told in str(error.value)
    assert len(str(error.value)) < 400


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        cases.read([tmp_path / "absent.yaml"])
    with pytest.raises(FileError, match="folder"):
        cases.read([tmp_path])
    path = tmp_path / "large.yaml"
    path.write_bytes(b"- " + b"x" * (65 << 20))
    with pytest.raises(FileError, match="64 MiB"):
        cases.read([path])
    path.write_bytes(b"- \xff\xfe\n")
    with pytest.raises(FileError, match="UTF-8"):
        cases.read([path])


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("- 12\n", "expected a mapping of keys, got 12"),
        ("- null\n", "expected a mapping"),
        (f"- {{id: a, kind: gem, op: {GEMM}, measured: {{time: 1}}}}\n", "kind: gem is not known; nearest: gemm"),
        (f"- {{id: a, op: {GEMM}, measured: {{time: 1}}}}\n", "kind: None is not known"),
        (f"- {{id: a, kind: gemm, op: {GEMM}}}\n", "measured: is required"),
        (f"- {{id: a, kind: gemm, op: {GEMM}, measured: 3}}\n", "measured: expected a mapping"),
        (f"- {{id: a, kind: gemm, op: {GEMM}, mesured: {{time: 1}}}}\n", "mesured: unknown key; nearest: measured"),
        ("- {id: a, kind: gemm, measured: {time: 1}}\n", "op: is required"),
        ("- {id: a, kind: train_step, measured: {step_time: 1}}\n", "scenario: is required"),
        ("- {id: a, kind: gemm, op: [1], measured: {time: 1}}\n", "op: expected a mapping"),
        ("- {id: a, kind: gemm, op: {gpu: h100-sxm, m: 1, n: 1}, measured: {time: 1}}\n", "op.k: is required"),
        (CASE.replace("dtype: bf16", "dtyp: bf16"), "op.dtyp: unknown key; nearest: dtype"),
        (CASE.replace("m: 64", "m: 0"), "op.m: must be at least 1, got 0"),
        (CASE.replace("m: 64", "m: many"), "op.m: expected a whole number, got many"),
        (CASE.replace("m: 64", "m: 1.5"), "op.m: expected a whole number"),
        (CASE.replace("m: 64", "m: 1.0e99"), "op.m: must be at most"),
        (CASE.replace("m: 64", "m: .nan"), "op.m: expected a whole number"),
        (CASE.replace("measured", "tolerance: wide, measured"), "tolerance: expected a quantity"),
        (CASE.replace("measured", "tolerance: -1, measured"), "tolerance: must be above 0"),
    ],
)
def test_a_case_that_is_wrong_stays_with_its_reason(tmp_path: Path, item: str, reason: str) -> None:
    """It is a row without a prediction, and the cases around it go on."""
    found = validate([file(tmp_path, item.replace("id: a", "id: wrong") + CASE)])
    wrong, right = found.cases
    assert wrong.predicted is None
    assert reason in wrong.reason
    assert right.id == "a"
    assert right.predicted is not None
    assert found.as_dict()["unpredicted"] == 1


@pytest.mark.parametrize("value", ["0", "-1.0", ".nan", ".inf", "fast", "'3 GB'", "true", "null", "[1]", "''"])
def test_a_measured_value_of_no_use_is_a_row_with_a_reason(tmp_path: Path, value: str) -> None:
    (row,) = validate([file(tmp_path, CASE.replace("1.0e-5", value))]).cases
    assert (row.metric, row.measured, row.predicted) == ("time", None, None)
    assert row.reason.startswith("measured.time: ")


def test_text_numbers_are_read() -> None:
    """YAML reads 68e-6 as text; units are welcome."""
    for text, seconds in (("68e-6", 68e-6), ("68 us", 68e-6), ("1,500 us", 1.5e-3), (68e-6, 68e-6)):
        case = cases.one({"id": "a", "kind": "serving", "measured": {"time": text}}, "here")
        assert case.measured == {"time": pytest.approx(seconds)}
    curve = cases.one(
        {"id": "a", "kind": "serving", "measured": {"dropped_token_fraction": {1.25: 0, "2": "3 %"}}}, "here"
    )
    assert curve.measured == {"dropped_token_fraction[1.25]": 0.0, "dropped_token_fraction[2]": pytest.approx(0.03)}


def test_an_id_that_stands_twice(tmp_path: Path) -> None:
    first, second = file(tmp_path, CASE, "one.yaml"), file(tmp_path, CASE, "two.yaml")
    one, two = validate([first, second]).cases
    assert one.predicted is not None
    assert two.predicted is None
    assert two.reason == "the id is given twice: it stands at one.yaml, item 1 already"


def test_a_case_without_an_id_is_called_by_its_place(tmp_path: Path) -> None:
    (case,) = read(tmp_path, CASE.replace("id: a, ", ""))
    assert case.id == "cases.yaml, item 1"


def test_keys_in_other_words() -> None:
    op = {
        "gpu": "h100", "num_tokens": "64", "hidden_size": 128, "inter-size": 64.0, "topk": 2, "num_experts": 8,
        "moe_ep_size": 2, "moe_tp_size": 1, "moe_dtype": "bfloat16", "distribution": "balanced", "backend": "x",
    }  # fmt: skip
    case = cases.one({"id": "a", "kind": "moe-gemm", "op": op, "measured": {"time": 1}}, "here")
    assert not case.problem
    assert case.op.model_dump(exclude_defaults=True) == {
        "gpu": "h100", "tokens": 64, "hidden": 128, "inter": 64, "top_k": 2, "experts": 8, "expert_parallel": 2,
        "dtype": "bfloat16",
    }  # fmt: skip
    twice = cases.one({"id": "a", "kind": "expert_gemm", "op": {**op, "tokens": 1}, "measured": {"time": 1}}, "here")
    assert "tokens is given twice" in twice.problem


def test_defaults_of_a_file(tmp_path: Path) -> None:
    text = (
        "- defaults: {source: {title: T, date: D}, tolerance: {gemm: 0.5, routing: 0.1}, known: {routing: because}}\n"
        + CASE.replace("measured", "source: {where: W}, measured")
        + CASE.replace("id: a", "id: b").replace("measured", "tolerance: {time: 2}, measured")
        + "- defaults: {}\n"
        + CASE.replace("id: a", "id: c")
    )
    a, b, c = read(tmp_path, text)
    assert (a.tolerance, a.known, a.source) == ({"": 0.5}, "", {"title": "T", "date": "D", "where": "W"})
    assert b.tolerance == {"time": 2.0}
    assert (c.tolerance, c.source) == ({}, None)


@pytest.mark.parametrize(
    ("defaults", "told"),
    [
        ("{tolerence: 1}", "nearest: tolerance"),
        ("[1]", "expected a mapping"),
        ("{limits: 3}", "expected {KIND"),
        ("{limits: {gem: {n: 1}}}", "nearest: gemm"),
        ("{limits: {gemm: {median: 1}}}", "nearest: median_ape"),
        ("{limits: {gemm: {n: many}}}", "expected a number"),
    ],
)
def test_wrong_defaults_are_the_files_fault(tmp_path: Path, defaults: str, told: str) -> None:
    with pytest.raises(UserError, match="item 1") as error:
        read(tmp_path, f"- defaults: {defaults}\n" + CASE)
    assert told in str(error.value)


def test_a_long_file_is_read_in_parts_and_quickly(tmp_path: Path) -> None:
    """Longer than any other YAML file may be; a mistake far down is told with its line."""
    many = "".join(
        f"- id: c{i}\n  kind: gemm\n  op: {{gpu: h100-sxm, m: {i + 1}, n: 256, k: 256, dtype: bf16}}\n"
        f"  measured: {{time: 1.0e-5}}\n"
        for i in range(7_000)
    )
    path = file(tmp_path, many)
    begin = time.perf_counter()
    found = cases.read([path])
    assert time.perf_counter() - begin < 20.0
    assert [case.id for case in found[::6_999]] == ["c0", "c6999"]
    assert not any(case.problem for case in found)
    with pytest.raises(FileError, match="line 28003"):
        read(tmp_path, many + "- id: x\n  kind: [\n")


def test_anchors_tie_a_file_together(tmp_path: Path) -> None:
    text = f"- {{id: a, kind: gemm, op: &op {GEMM}, measured: {{time: 1.0e-5}}}}\n"
    text += "- {id: b, kind: gemm, op: *op, measured: {time: 2.0e-5}}\n"
    assert [case.op.m for case in read(tmp_path, text)] == [64, 64]


def test_statistics_by_hand() -> None:
    """Errors +10 %, -10 %, +10 %, 0; log bias of 1.1 x 0.9 x 1.1 x 1 to the fourth root."""
    found = statistics([1.0, 2.0, 4.0, 3.0], [1.1, 1.8, 4.4, 3.0])
    assert found["n"] == 4
    assert found["median_ape"] == pytest.approx(0.1)
    assert found["mean_ape"] == pytest.approx(0.075)
    assert found["p90_ape"] == pytest.approx(0.1)
    assert found["bias"] == pytest.approx((1.1 * 0.9 * 1.1) ** 0.25 - 1)
    assert found["rank_correlation"] == pytest.approx(1.0)
    factors = statistics([1.0, 1.0], [2.0, 0.5])
    assert factors["bias"] == pytest.approx(0.0)
    assert factors["mean_ape"] == pytest.approx(0.75)
    assert statistics([], []) == {
        "n": 0,
        **dict.fromkeys(("median_ape", "mean_ape", "p90_ape", "bias", "rank_correlation")),
    }
    assert statistics([0.0, 2.0], [1.0, 2.0])["n"] == 1


def test_rank_correlation_by_hand() -> None:
    """1 - 6 sum d^2 / n (n^2 - 1) without ties: d = 1, 1, 0 of 3 is 1/2; equal values share their mean rank."""
    assert spearman([1, 2, 3], [20, 10, 30]) == pytest.approx(0.5)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert ranks([5.0, 1.0, 5.0, 7.0]).tolist() == [1.5, 0.0, 1.5, 3.0]
    assert spearman([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5.0))
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_a_broken_tolerance_is_broken(tmp_path: Path) -> None:
    """Stated 10 %, off by far more; the same with a reason is a known failure, and a wide one holds."""
    text = (
        CASE.replace("measured: {time: 1.0e-5}", "tolerance: 0.1, measured: {time: 9}")
        + CASE.replace("id: a", "id: b").replace("measured: {time: 1.0e-5}", "tolerance: 10, measured: {time: 9}")
        + CASE.replace("id: a", "id: c").replace(
            "measured: {time: 1.0e-5}", "known: odd, tolerance: 0.1, measured: {time: 9}"
        )
        + CASE.replace("id: a", "id: d").replace("measured: {time: 1.0e-5}", "measured: {time: 9}")
    )
    found = validate([file(tmp_path, text)])
    assert [row.broken for row in found.cases] == [True, False, True, False]
    assert found.broken == ("a: time: off by -100.0 %, stated tolerance 10 %",)
    assert found.known_failures == ("c: time: off by -100.0 %, stated tolerance 10 % (known: odd)",)


def test_limits_on_all_cases_of_a_file(tmp_path: Path) -> None:
    """The median of an error of nearly 1 is over 0.5; known failures do not count, and too few are too few."""
    off = "measured: {time: 9}"
    text = (
        "- defaults: {limits: {gemm: {median_ape: 0.5, n: 2, p90_ape: 1.5}}}\n"
        + CASE.replace("measured: {time: 1.0e-5}", off)
        + CASE.replace("id: a", "id: b").replace("measured: {time: 1.0e-5}", f"known: odd, {off}")
    )
    found = validate([file(tmp_path, text)])
    assert [(limit["statistic"], limit["broken"]) for limit in found.limits] == [
        ("median_ape", True),
        ("n", True),
        ("p90_ape", False),
    ]
    assert found.broken[1] == "cases.yaml: gemm: n is 1, stated limit 2"


def test_nothing_to_validate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no cases"):
        validate([])
    with pytest.raises(UserError, match="no cases"):
        validate([file(tmp_path, "[]")])
    with pytest.raises(UserError, match="absent"):
        validate([file(tmp_path, CASE)], calibration="absent.yaml")
