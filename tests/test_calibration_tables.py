"""Measurement files: other tools' formats by hand, units, and one clear message for each thing that is wrong."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from calibration_fixture import nccl_rows, saved, timed

from moesim.calibration.tables import Tables, read
from moesim.errors import UserError
from moesim.routing.expected import distinct_places

PUBLISHED = (
    "id,kind,system,gpu,num_gpus,num_nodes,op_or_model,variant,ep,dtype,bytes,tokens_per_rank,hidden,topk,num_experts,"
    "distribution,sms,metric,value,unit,source_loc"
)


def table(folder: Path, text: str, name: str = "table.csv") -> Tables:
    path = folder / name
    path.write_text(text)
    return read([path])


def only(tables: Tables) -> Any:
    assert len(tables.rows) == 1
    return tables.rows.iloc[0]


def test_nccl_table(tmp_path: Path) -> None:
    row = only(
        table(
            tmp_path,
            "system,num_gpus,num_nodes,op,dtype,size_bytes,time_us,busbw_GBps,lib,src_file\n"
            "h100_sxm,8,1,alltoall,half,1048576,15.91,57.6,2.29.2,a/b.parquet\n",
        )
    )
    assert (row.kind, row.collective, row.gpu, row.library) == ("all_to_all", "all-to-all", "h100-sxm", "nccl")
    assert (row.ranks, row.ranks_per_domain, row.bytes, row.software) == (8, 8, 1 << 20, "nccl 2.29.2")
    assert row.time == pytest.approx(15.91e-6)
    assert (row.source, row.file, row.row) == ("a/b.parquet", "table.csv", 1)


def test_serving_all_reduce_counts_elements_and_milliseconds(tmp_path: Path) -> None:
    found = table(
        tmp_path,
        "framework,version,device,op_name,kernel_source,allreduce_dtype,num_gpus,message_size,latency,system\n"
        "vLLM,0.14.0,NVIDIA A100-SXM4-80GB,all_reduce,vLLM_custom_graph,bfloat16,2,128,0.005,a100_sxm\n"
        "vLLM,0.14.0,NVIDIA A100-SXM4-80GB,all_reduce,vLLM_custom_eager,bfloat16,2,128,0.042,a100_sxm\n",
    ).rows
    assert list(found["bytes"]) == [256, 256]
    assert list(found["time"]) == pytest.approx([5e-6, 42e-6])
    assert list(found["library"]) == ["custom-all-reduce", "custom-all-reduce launched eagerly"]
    assert list(found["gpu"]) == ["a100-sxm-80g"] * 2


def test_deepep_normal_table_gives_two_rows_and_drops_duplicates(tmp_path: Path) -> None:
    head = (
        "system,version,device,node_num,hidden_size,num_token,num_topk,num_experts,dispatch_sms,dispatch_transmit_us,"
        "dispatch_notify_us,combine_sms,combine_transmit_us,combine_notify_us,src_file,gpus_per_node,ep_size,duplicate_of\n"
    )
    line = "h100_sxm,0.5.12,NVIDIA H100,2,7168,4096,8,256,24,900.5,51.0,20,1500.25,33.0,s,8,16,"
    found = table(tmp_path, head + line + "\n" + line + "first.parquet\n")
    rows = found.rows
    assert list(rows["direction"]) == ["dispatch", "combine"]
    assert list(rows["time"]) == pytest.approx([900.5e-6, 1500.25e-6])
    assert list(rows["notify"]) == pytest.approx([51e-6, 33e-6])
    assert list(rows["sms"]) == [24, 20]
    assert (rows["tokens"] == 4096).all()
    assert (rows["ranks"] == 16).all()
    assert (rows["ranks_per_domain"] == 8).all()
    assert (rows["dispatch"] == "fp8-block").all()
    assert (rows["combine"] == "bf16").all()
    assert found.files[0].left_out == {"marked as duplicates of other rows": 1}


def test_deepep_low_latency_table(tmp_path: Path) -> None:
    rows = table(
        tmp_path,
        "system,version,device,node_num,hidden_size,num_token,num_topk,num_experts,combine_avg_t_us,"
        "combine_bandwidth_gbps,dispatch_avg_t_us,dispatch_bandwidth_gbps,src_file,gpus_per_node,ep_size,duplicate_of\n"
        "h100_sxm,0.5.12,NVIDIA H100,4,4096,128,8,256,103.3,1.6,54.6,0.9,s,8,32,\n",
    ).rows
    assert dict(zip(rows["direction"], rows["time"], strict=True)) == pytest.approx(
        {"dispatch": 54.6e-6, "combine": 103.3e-6}
    )
    assert (rows["library"] == "deepep-low-latency").all()


def test_nvlink_all_to_all_table(tmp_path: Path) -> None:
    head = (
        "system,version,device,op_name,kernel_source,moe_dtype,num_tokens,hidden_size,topk,num_experts,moe_ep_size,"
        "distribution,time_us,src_file\n"
    )
    body = "".join(
        f"gb200,1.2,NVIDIA GB200,{op},{kernel},nvfp4,64,7168,8,256,16,balanced,{time},s\n"
        for op, kernel, time in (
            ("alltoall_prepare", "NVLinkTwoSided", 11),
            ("alltoall_combine", "NVLinkOneSided", 12),
            ("alltoall_combine_low_precision", "NVLinkTwoSided", 13),
        )
    )
    rows = table(tmp_path, head + body).rows
    assert list(rows["direction"]) == ["prepare", "combine", "combine"]
    assert list(rows["library"]) == ["two-sided-nvl", "one-sided-nvl", "two-sided-nvl"]
    assert list(rows["combine"]) == ["bf16", "bf16", "nvfp4"]
    assert (rows["gpu"] == "gb200-nvl72").all()
    assert (rows["load"] == "balanced").all()


def test_gemm_tables(tmp_path: Path) -> None:
    dense = only(
        table(
            tmp_path,
            "system,version,device,op_name,kernel_source,gemm_dtype,m,n,k,src_file,time_us\n"
            "h100_sxm,1.3,NVIDIA H100,gemm,torch_flow,fp8_block,64,4096,7168,s,13.5\n",
        )
    )
    assert (dense.kind, dense.m, dense.n, dense.k, dense["dtype"]) == ("gemm", 64, 4096, 7168, "fp8-block")
    assert dense.time == pytest.approx(13.5e-6)
    experts = only(
        table(
            tmp_path,
            "system,backend,ver,kernel_source,model,moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,"
            "moe_tp_size,moe_ep_size,distribution,time_us,src_file\n"
            "b200_sxm,trtllm,1.3,cutlass,M,bfloat16,512,4096,14336,2,8,1,4,power_law_1.01,99.5,s\n",
        )
    )
    assert (experts.kind, experts.tokens, experts.expert_parallel, experts.expert_tensor) == ("expert_gemm", 512, 4, 1)
    assert (experts["dtype"], experts.load, experts.software) == ("bf16", "power_law_1.01", "trtllm 1.3")
    wide = only(
        table(
            tmp_path,
            "system,version,device,op_name,kernel_source,moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,"
            "moe_tp_size,moe_ep_size,distribution,src_file,moe_kernel,dp_num_tokens,rank0_num_tokens,num_slots,"
            "simulation_mode,time_us\n"
            "h100_sxm,1.3,NVIDIA H100,wideep_moe_eplb,cutlass,fp8_block,4096,7168,2048,8,256,1,16,power_law_1.2_eplb,s,"
            "c,256,3556,288,accurate,930\n",
        )
    )
    assert (wide.tokens, wide.slots, wide.rank_tokens, wide.home_tokens) == (4096, 288, 3556, 256)


def test_a_gzipped_table_and_a_parquet_file_are_read_alike(tmp_path: Path) -> None:
    rows = timed(nccl_rows(ranks=(8,)), "nccl-domain", {})
    plain = read([saved(rows, tmp_path / "a.csv")]).rows
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    packed = read([tmp_path / "b.csv.gz"]).rows
    parquet = read([saved(rows, tmp_path / "c.parquet")]).rows
    for other in (packed, parquet):
        assert list(other["bytes"]) == list(plain["bytes"])
        assert list(other["time"]) == pytest.approx(list(plain["time"]), rel=1e-8)


def published(folder: Path, *lines: str) -> Tables:
    return table(folder, "\n".join([PUBLISHED, *lines]) + "\n")


def test_published_bandwidth_over_nvlink_counts_every_rank(tmp_path: Path) -> None:
    row = only(
        published(
            tmp_path,
            "x,ep_all2all,s,H800,8,1,dispatch,DeepEP V1 normal kernels,8,fp8,,4096,7168,8,256,"
            "random uniform with top-4 groups (group-limited),,bandwidth,153.0,GB/s,here",
        )
    )
    copies = distinct_places(8, 256, 8, 8, 4)
    assert 3.9 < copies < 4.0
    assert row.time == pytest.approx(4096 * copies * 7168 * (1 + 4 / 128) / 153e9)
    assert (row.gpu, row.library, row.groups, row.top_groups) == ("h800-sxm", "deepep-normal", 8, 4)


def test_published_bandwidth_over_nics_counts_the_own_domain(tmp_path: Path) -> None:
    row = only(
        published(
            tmp_path,
            "x,ep_all2all,s,H100,16,2,combine,HybridEP kernel_only; IB algorithm bandwidth,16,bf16,,4096,7168,8,128,"
            "random uniform router,16,bandwidth,62.95,GB/s,here",
        )
    )
    assert row.time == pytest.approx(4096 * distinct_places(2, 128, 8) * 7168 * 2 / 62.95e9)
    assert (row.library, row.ranks_per_domain) == ("hybrid-ep", 8)


def test_a_published_latency_goes_before_its_bandwidth(tmp_path: Path) -> None:
    what = "x,ep_all2all,s,H200,16,2,dispatch,UCCL-EP low-latency,16,fp8,,128,7168,8,256,,,"
    found = published(tmp_path, what + "bandwidth,36.0,GB/s,here", what + "latency,226.0,us,here")
    assert only(found).time == pytest.approx(226e-6)
    assert found.files[0].left_out == {"the same time in another unit": 1}


def test_published_ratios_are_over_one_nic_a_gpu(tmp_path: Path) -> None:
    head = "x,busbw_efficiency,s,unknown,32,4"
    rows = published(
        tmp_path,
        f"{head},all-to-all,4Node,,,16777216,,,,,,,busbw_ratio_of_nominal,0.67,fraction,here",
        f"{head},ring collectives (nic_ratio.csv),4Node,,,16777216,,,,,,,busbw_ratio_of_nominal,0.24,fraction,here",
    ).rows
    assert list(rows["time"]) == pytest.approx([16777216 * 24 / 32 / 50e9 / 0.67, 16777216 * 31 / 32 / 400e9 / 0.24])
    assert (rows["note"] == "GPU and NIC not stated: taken for H100 with 400 Gb/s").all()


def test_a_published_gemm_gives_its_time_once(tmp_path: Path) -> None:
    what = (
        "x,dense_gemm,s,H800,1,1,dense_gemm groups=1 M=64 N=2112 K=7168,DeepGEMM,,fp8 (1x128/128x128 scaled),,64,,,1,,,"
    )
    row = only(published(tmp_path, what + "tflops,206,TFLOP/s,here", what + "derived_time,9.41,us (derived),here"))
    assert (row.m, row.n, row.k, row["dtype"]) == (64, 2112, 7168, "fp8-block")
    assert row.time == pytest.approx(9.41e-6)


OWN = "kind,gpu,software,source,time,m,n,k,dtype\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("is empty",)),
        (OWN, ("no rows",)),
        (OWN.replace("gpu,", "") + "gemm,x,y,1e-5,1,2,3,bf16\n", ("'gpu'", "missing")),
        (OWN.replace(",dtype", "") + "gemm,h100-sxm,x,y,1e-5,1,2,3\n", ("'dtype'", "missing", "gemm")),
        (OWN + "gemm,h100-sxm,x,y,1e-5,1,2,3,bf16\ngemm,h100-sxm,x,y,,1,2,3,bf16\n", ("row 2", "'time'", "empty")),
        (OWN + "gemm,h100-sxm,x,y,-1e-5,1,2,3,bf16\n", ("row 1", "'time'", "-1e-05", "above 0")),
        (OWN + "gemm,h100-sxm,x,y,1e6,1,2,3,bf16\n", ("row 1", "'time'", "1e+06", "1,000 s")),
        (OWN + "gemm,h100-sxm,x,y,fast,1,2,3,bf16\n", ("row 1", "'time'", "fast", "a number in s")),
        (OWN + "gemm,h100-sxm,x,y,inf,1,2,3,bf16\n", ("row 1", "'time'", "inf")),
        (OWN + "gemm,h100-sxm,x,y,1e-5,1.5,2,3,bf16\n", ("row 1", "'m'", "1.5", "whole")),
        (OWN + "gemm,h100-sxm,x,y,1e-5,0,2,3,bf16\n", ("row 1", "'m'", "above 0")),
        (OWN + "gemn,h100-sxm,x,y,1e-5,1,2,3,bf16\n", ("row 1", "'kind'", "gemn", "nearest: gemm")),
        (OWN.replace("m,n,k", "m,n,n") + "gemm,h100-sxm,x,y,1e-5,1,2,3,bf16\n", ("'n'", "twice")),
        ("a,b\n1,2\n", ("no measurements", "nccl-tests table")),
        ("system,num_gpus,op,dtype,size_bytes,time_us,lib\nx,1,2,3,4,5,6\n", ("nearest: nccl-tests", "num_nodes")),
        ("kind,gpu,time,collective,ranks,bytes\ncollective,h100-sxm,1,gatherall,8,8\n", ("gatherall", "all-gather")),
    ],
)  # fmt: skip
def test_each_mistake_has_one_clear_line(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        table(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    assert "table.csv" in message
    for word in words:
        assert word in message


def test_bytes_that_are_no_table_are_refused(tmp_path: Path) -> None:
    for name, data, word in (
        ("a.csv.gz", b"not gzip", "gzip"),
        ("b.parquet", b"PAR1 not parquet", "Parquet"),
        ("c.csv", b"kind,gpu,time\n\xff\xfe,x,1\n", "UTF-8"),
        ("d.pkl", b"\x80\x04.", "ends in"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=word):
            read([tmp_path / name])
    with pytest.raises(UserError, match="no such file"):
        read([tmp_path / "absent.csv"])


def test_a_small_file_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesim.measurement.files.MAX_TEXT", 1 << 16)
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"kind,gpu,time\n" + b"0" * (1 << 21)))
    with pytest.raises(UserError, match="unpacks to more"):
        read([tmp_path / "bomb.csv.gz"])


def test_a_folder_is_read_whole_and_other_files_are_told(tmp_path: Path) -> None:
    saved(timed(nccl_rows(ranks=(8,)), "nccl-domain", {}), tmp_path / "a.csv")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "prices.csv").write_text("item,price\nx,1\n")
    found = read([tmp_path])
    assert [file.name for file in found.files] == ["a.csv"]
    assert {name for name, _ in found.skipped} == {"notes.txt", "prices.csv"}


def test_rows_of_a_gpu_without_a_datasheet_are_left_out_by_name(tmp_path: Path) -> None:
    rows = timed(nccl_rows(ranks=(8,)), "nccl-domain", {})
    rows.loc[:4, "gpu"] = "H1000"
    found = read([saved(rows, tmp_path / "a.csv")])
    (reason, count), = found.files[0].left_out.items()  # fmt: skip
    assert count == 5
    assert "H1000" in reason
    assert "h100-sxm" in reason
    assert set(found.rows["gpu"]) == {"h100-sxm"}


def test_other_spellings_of_an_own_table(tmp_path: Path) -> None:
    rows = timed(nccl_rows(ranks=(8,)), "nccl-domain", {}).assign(gpu="NVIDIA H100 80GB HBM3", library="NCCL 2.27.3")
    found = read([saved(rows, tmp_path / "a.csv")]).rows
    assert set(found["gpu"]) == {"h100-sxm"}
    assert set(found["library"]) == {"nccl"}


def test_indices_of_two_rows_from_one_line_stay_apart(tmp_path: Path) -> None:
    """A mistake in a table whose lines give two rows names the line."""
    text = (
        "system,version,device,node_num,hidden_size,num_token,num_topk,num_experts,combine_avg_t_us,dispatch_avg_t_us,"
        "src_file,gpus_per_node,ep_size,duplicate_of\n"
        "h100_sxm,1,d,1,4096,1,2,8,9.8,9.3,s,8,8,\nh100_sxm,1,d,1,4096,1,2,8,9.8,-1,s,8,8,\n"
    )
    with pytest.raises(UserError, match="row 2, column 'time'"):
        table(tmp_path, text)


def test_the_normalised_table_is_plain(tmp_path: Path) -> None:
    found = read([saved(timed(nccl_rows(ranks=(8,)), "nccl-domain", {}), tmp_path / "a.csv")])
    assert isinstance(found.rows.index, pd.RangeIndex)
    assert found.files[0].digest
    assert len(found.files[0].digest) == 64
