"""Real inputs of every kind: the shipped files, and small recordings of every tool whose files are imported."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import save

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = ROOT / "scenarios"
DATA = ROOT / "moesim" / "catalog" / "data"
T, L, E, K = 12, 3, 8, 2
CALIBRATION = {
    "interference": {"contention": 0.2},
    "network-deepep-normal": {"eta": 0.8, "source": {"basis": "fitted"}},
}


def shipped(folder: str) -> list[bytes]:
    """The YAML files of one folder of scenarios."""
    return [path.read_bytes() for path in sorted((SCENARIOS / folder).glob("*.yaml"))]


def inlined(folder: str) -> list[bytes]:
    """Sweeps or plans with the scenario that they name written into them."""
    found = []
    for path in sorted((SCENARIOS / folder).glob("*.yaml")):
        document = yaml.safe_load(path.read_bytes())
        if isinstance(document.get("scenario"), str):
            document["scenario"] = yaml.safe_load((path.parent / document["scenario"]).read_bytes())
        found.append(yaml.safe_dump(document, sort_keys=False).encode())
    return found


def cases() -> list[bytes]:
    """A few cases of every shipped case file, with its defaults."""
    found = []
    for path in sorted((DATA / "cases").glob("*.yaml")):
        items = yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)
        defaults = [item for item in items if set(item) == {"defaults"}][:1]
        rest = [item for item in items if set(item) != {"defaults"}]
        for place in (0, len(rest) // 2):
            found.append(yaml.safe_dump([*defaults, *rest[place : place + 2]], sort_keys=False).encode())
    return found


def catalog() -> list[bytes]:
    """One entry of every catalog file, below a line that names its kind."""
    found = []
    for path in sorted([*DATA.glob("*.yaml"), *DATA.glob("models/*.yaml"), *DATA.glob("calibrations/*.yaml")]):
        document = yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)
        kind = path.stem if path.parent == DATA else path.parent.name
        names = [name for name in document if name != "sources"]
        for name in (names[0], names[-1]):
            entry = {key: document[key] for key in ("sources", name) if key in document}
            found.append(f"# {kind}\n".encode() + yaml.safe_dump(entry, sort_keys=False).encode())
    small = {"mine": {"base": "olmoe-1b-7b", "n_experts": 32}}
    return [*found, b"# models\n" + yaml.safe_dump(small).encode()]


def calibrations() -> list[bytes]:
    """The shipped calibrations, an entry each: what a file of the user's own may say of them."""
    found = []
    for path in sorted(DATA.glob("calibrations/*.yaml")):
        document = yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)
        found += [yaml.safe_dump({name: entry}).encode() for name, entry in document.items() if name != "sources"]
    return sorted(found, key=len)[:28]


def huggingface() -> list[bytes]:
    """Configurations as the hub has them, of a dense model and of two with experts."""
    common = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16, "vocab_size": 50304}
    mixtral = {
        "model_type": "mixtral",
        "intermediate_size": 1024,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    deepseek = {
        "model_type": "deepseek_v3",
        "intermediate_size": 4096,
        "moe_intermediate_size": 512,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "n_group": 8,
        "topk_group": 4,
    }
    dense = {"model_type": "llama", "intermediate_size": 8192, "tie_word_embeddings": False}
    olmoe = {"model_type": "olmoe", "intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8}
    return [json.dumps({**common, **more}).encode() for more in (mixtral, deepseek, dense, olmoe)]


def measurements() -> list[bytes]:
    """Measurement tables: our own columns, and other tools' as far as the shared folder is there."""
    own = (
        b"kind,gpu,time,bytes,ranks,ranks_per_domain,library,dtype\n"
        b"all_to_all,h100-sxm,0.0012,1048576,16,8,nccl,bf16\nall_to_all,h100-sxm,0.0031,4194304,16,8,nccl,bf16\n"
    )
    gemm = b"kind,gpu,time,m,n,k,dtype\ngemm,h100-sxm,0.0002,4096,4096,4096,bf16\ngemm,h100-sxm,0.0005,8192,64,64,fp8\n"
    found = [own, gemm]
    for path in sorted((ROOT.parent / "shared" / "measurements").glob("*.csv")):
        found.append(b"\n".join(path.read_bytes().split(b"\n", 9)[:9]) + b"\n")
    for table in (own, gemm):
        lines = table.decode().strip().split("\n")
        columns = dict(
            zip(lines[0].split(","), zip(*[line.split(",") for line in lines[1:]], strict=True), strict=True)
        )
        found.append(_parquet({name: [_number(text) for text in column] for name, column in columns.items()}))
    return found


def requests() -> list[bytes]:
    """Traces of requests in each form that is read."""
    columns = {"timestamp": [0.0, 0.5, 1.25], "input_tokens": [100, 2000, 7], "output_tokens": [5, 60, 1]}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    dated = "timestamp,input_tokens,output_tokens\n2024-05-10 00:00:00.1,10,20\n2024-05-10 00:00:01.5,7,1\n"
    plain = "timestamp,input_tokens,output_tokens\n0.5,100,5\n0.25,2000,60\n"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    return [dated.encode(), plain.encode(), lines.encode(), _parquet(columns)]


def recordings() -> list[bytes]:
    """A small recording of every importer, below a line with its options."""
    ids = np.random.default_rng(0).random((T, L, E)).argsort(axis=-1)[..., :K]
    scores = np.random.default_rng(1).normal(size=(L, T, E)).astype(np.float32)
    counts = np.arange(2 * E, dtype=np.int64).reshape(2, E)
    coded = b64encode(ids.astype("<i4").tobytes()).decode()
    cells = [(t, f'{layer},"{ids[t, layer][0]} {ids[t, layer][1]}"') for t in range(4) for layer in range(L)]
    found: list[tuple[str, bytes]] = [
        ("", _lines({"type": "route", "req_id": "r", "token_idx": t, "layer": layer, "topk_ids": ids[t, layer].tolist(),
                     "topk_weights": [0.5, 0.25]} for layer in range(L) for t in range(T))),
        ("layers=3;top_k=2", _lines([{"meta_info": {"routed_experts": coded}}])),
        ("", _lines([{"routed_experts": ids.tolist(), "domain": "code"}, {"routed_experts": ids.tolist()}])),
        ("sequence_length=3", _lines({"step": step, "block": "decoder", "layer": layer + 1, "rank": 0, "topk": K,
                                      "top_indices": ids[:, layer].tolist()} for step in (0, 1) for layer in range(L))),
        ("top_k=2", json.dumps({"olmoe/expert_counts/c4": counts.tolist()}).encode()),
        ("top_k=2", json.dumps({"logical_count": counts.tolist()}).encode()),
        ("", _lines([{"forward_mode": "decode", "batch_size": 2, "seq_lens_sum": 66, "expert_activation": 3.5,
                      "latency": 0.1}, {"forward_mode": "prefill", "processed_tokens": 60, "expert_activation": 6}])),
        ("top_k=2;router={rule: softmax-top-k}", save({"logits": scores})),
        ("top_k=2;router={rule: sigmoid-top-k}", save({f"layer.{n}": layer for n, layer in enumerate(scores)})),
        ("top_k=2;router={rule: softmax-top-k}", _npy(scores)),
        ("sequence_length=6", _npy(ids[..., 0])),
        ("", _npz(experts=ids.astype(np.uint8), starts=np.array([0, 5, 12]), token_id=np.arange(T))),
        ("experts=8", _npz(experts=ids, lengths=np.array([4, 8]), weights=np.full((T, L, K), 0.5))),
        ("", "".join(["layer,experts,token,sequence\n", *(f"{row},{t},a\n" for t, row in cells)]).encode()),
        ("", "".join(f"{row}\n" for _, row in cells).encode()),
        ("", own_trace()),
    ]  # fmt: skip
    return [f"{options}\n".encode() + data for options, data in found]


def own_trace() -> bytes:
    """The smallest trace of the project's own format."""
    meta = {"experts": E, "top_k": K, "model_layers": list(range(L)), "domains": ["all"]}
    ids = np.random.default_rng(0).random((T, L, E)).argsort(axis=-1)[..., :K].astype(np.uint8)
    arrays = {
        "starts": np.array([0, 5, T]),
        "domain": np.zeros(2, np.int32),
        "step": np.full(2, -1, np.int32),
        "experts": ids,
    }
    return bytes(save(arrays, {"moesim_trace": "1", "meta": json.dumps(meta)}))


def fitted() -> list[bytes]:
    """The smallest shipped profiles."""
    return sorted((path.read_bytes() for path in (DATA / "fitted").glob("*.safetensors")), key=len)[:2]


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _written(write: Callable[[io.BytesIO], Any]) -> bytes:
    out = io.BytesIO()
    write(out)
    return out.getvalue()


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    return _written(lambda out: np.save(out, array))


def _npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    return _written(lambda out: np.savez(out, **arrays))


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    return _written(lambda out: pq.write_table(pa.table(columns), out))


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
