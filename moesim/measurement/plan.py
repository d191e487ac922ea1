"""What a timing run times, in order: presets of cases, the most telling ones first.

A case is described with the words of a measurement table's columns (`columns`). Cases of a lower tier come first, and
inside a tier the kinds take turns, so that a run that ends early still has some of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from moesim.errors import UnknownNameError

Words = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One operation to time: its kind and its `op`, in the words of the measurement table."""

    kind: str
    op: Words = field(default_factory=dict)
    tier: int = 0

    @property
    def label(self) -> str:
        """The case in one line; also the name of its random stream."""
        words = [f"{name.replace('_', '-')} {value}" for name, value in self.op.items()]
        return " ".join([self.kind, *words])


PRESETS = {"small": 40.0, "gpu": 480.0}
"""The presets of `cases`, with the seconds that a run of each may take unless it is told otherwise."""

KINDS = ("gemm", "expert_gemm", "attention", "memory_bound", "launch")
"""Kinds of cases that one device times."""

# Weight shapes (n, k) of public models, each with the tier of its rows; then plain squares.
_WEIGHTS = (
    (4096, 4096, 0),
    (14336, 4096, 0),
    (4096, 14336, 0),
    (7168, 2048, 0),
    (4096, 7168, 0),
    (18432, 7168, 1),
    (7168, 18432, 1),
    (2112, 7168, 1),
    (24576, 1536, 1),
    (7168, 16384, 1),
    (6144, 2048, 1),
    (2048, 768, 1),
    (1536, 2048, 1),
    (1024, 1024, 1),
    (3072, 1024, 2),
    (129280, 7168, 2),
    (10240, 8192, 2),
    (8192, 28672, 2),
)
_TOKENS = ((1, 1), (16, 0), (64, 1), (256, 0), (1024, 0), (2048, 2), (4096, 0), (8192, 2), (16384, 1))
_SQUARES = ((256, 2), (512, 1), (1024, 0), (2048, 1), (4096, 0), (8192, 0), (16384, 2))

# Expert layers: hidden, inter, top_k, experts, expert-parallel sizes, tier.
_LAYERS = (
    (4096, 14336, 2, 8, (1, 8), 0),
    (7168, 2048, 8, 256, (8, 32), 0),
    (2048, 768, 8, 128, (1, 8), 0),
    (2880, 2880, 4, 128, (4,), 1),
    (2048, 1024, 8, 64, (1,), 1),
    (1024, 512, 8, 64, (1,), 1),
    (768, 1024, 2, 16, (1,), 1),
    (768, 3072, 1, 8, (1,), 2),
    (7168, 2048, 8, 256, (1, 64), 2),
)
_LAYER_TOKENS = ((16, 1), (128, 1), (1024, 0), (4096, 1), (8192, 0), (32768, 1))
_LOADS = (("balanced", 0), ("power_law_1.2", 0), ("uniform", 1), ("power_law_1.01", 2))

# Attention: heads, kv_heads, head_dim, value_dim, tier.
_HEADS = ((32, 8, 128, 128, 0), (128, 128, 192, 128, 0), (64, 8, 64, 64, 1), (16, 16, 64, 64, 1), (40, 8, 128, 128, 2))
_LENGTHS = ((512, 1), (1024, 1), (2048, 0), (4096, 0), (8192, 1), (16384, 2), (32768, 2))
_ATTENTION_TOKENS = 8192
"""Queries of a timed attention, in as many sequences as it takes; one sequence where that is longer."""


def cases(preset: str, kinds: Iterable[str] = ()) -> list[Case]:
    """The cases of a preset in the order in which they are timed; only those of `kinds` where any is named."""
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    for kind in (wanted := tuple(kinds)):
        if kind not in KINDS:
            raise UnknownNameError("kind of measurement", kind, KINDS)
    made = {case.label: case for case in reversed(_small() if preset == "small" else _gpu())}
    return _in_turns([case for case in reversed(made.values()) if not wanted or case.kind in wanted])


def _in_turns(made: list[Case]) -> list[Case]:
    """Tier by tier; in a tier the kinds spread evenly over its length, each in its own order, first its first."""
    places: list[tuple[int, float, int, Case]] = []
    for tier in sorted({case.tier for case in made}):
        here = [case for case in made if case.tier == tier]
        for kind in dict.fromkeys(case.kind for case in here):
            own = [case for case in here if case.kind == kind]
            places += [(tier, at / len(own), number, case) for number, (at, case) in enumerate(enumerate(own))]
    return [place[3] for place in sorted(places, key=lambda place: place[:3])]


def _gpu() -> list[Case]:
    return [*_launches(), *_gemms(), *_experts(), *_attention(), *_copies(), *_passes(), *_routing_passes()]


def _launches() -> list[Case]:
    return [Case("launch", {"what": "stream"}), Case("launch", {"what": "graph"})]


def _gemms() -> list[Case]:
    found = []
    for dtype, later in (("bf16", 0), ("fp8", 0), ("fp8-block", 1), ("fp16", 2)):
        shapes = [(m, n, k, max(at, too)) for n, k, at in _WEIGHTS for m, too in _TOKENS]
        shapes += [(size, size, size, at) for size, at in _SQUARES]
        found += [_gemm(m, n, k, dtype, min(at + later, 2 + later // 2)) for m, n, k, at in shapes]
    return found


def _gemm(m: int, n: int, k: int, dtype: str, tier: int = 0) -> Case:
    return Case("gemm", {"m": m, "n": n, "k": k, "dtype": dtype}, tier)


def _experts() -> list[Case]:
    found = []
    for dtype, later in (("bf16", 0), ("fp8", 1)):
        for hidden, inter, top_k, experts, parallel, at in _LAYERS:
            for load, too in _LOADS:
                for tokens, also in _LAYER_TOKENS:
                    tier = min(max(at, too, also) + later, 3)
                    sizes = (tokens, hidden, inter, top_k, experts)
                    found += [_layer(sizes, ranks, load, dtype, tier) for ranks in parallel]
    return found


def _layer(sizes: tuple[int, int, int, int, int], ranks: int, load: str, dtype: str, tier: int = 0) -> Case:
    names = ("tokens", "hidden", "inter", "top_k", "experts")
    op: Words = dict(zip(names, sizes, strict=True))
    return Case("expert_gemm", op | {"expert_parallel": ranks, "expert_tensor": 1, "dtype": dtype, "load": load}, tier)


def _attention() -> list[Case]:
    found = []
    for direction in ("forward", "backward"):
        for heads, kv_heads, head_dim, value_dim, at in _HEADS:
            widths = (heads, kv_heads, head_dim, value_dim)
            for length, too in _LENGTHS:
                tokens = max(_ATTENTION_TOKENS, length)
                found.append(_heads(tokens, length, widths, direction, max(at, too)))
            found.append(_heads(8192, 4096, widths, direction, 2, causal=False))
        found.append(_heads(4096, 4096, (32, 8, 128, 128), direction, 1))
        found.append(_heads(65536, 4096, (32, 8, 128, 128), direction, 2))
    # Decoding: one query a sequence against all its keys.
    decoding = [(batch, length) for batch in (16, 64, 256) for length in (1024, 8192)]
    return found + [_heads(batch, length, (32, 8, 128, 128), "forward", 2, causal=False) for batch, length in decoding]


def _heads(
    tokens: int, length: int, widths: tuple[int, int, int, int], direction: str, tier: int, causal: bool = True
) -> Case:
    names = ("heads", "kv_heads", "head_dim", "value_dim")
    op: Words = {"tokens": tokens, "length": length, **dict(zip(names, widths, strict=True))}
    return Case("attention", op | {"causal": causal, "direction": direction, "dtype": "bf16"}, tier)


def _copies() -> list[Case]:
    """Copies by size, from 4 KiB to 2 GiB on the device and to 512 MiB over the host's link."""
    found = [_pass("copy", "bf16", 1 << power, tier=power % 4 // 2) for power in range(11, 31)]
    for what in ("host-to-device", "device-to-host"):
        found += [_pass(what, "bf16", 1 << power, tier=power % 4 // 2) for power in range(13, 29, 2)]
    return found


def _pass(what: str, dtype: str, elements: int, tier: int = 0, **details: int) -> Case:
    return Case("memory_bound", {"what": what, "elements": elements, "dtype": dtype, **details}, tier)


def _passes() -> list[Case]:
    found = [_pass("cast", dtype, 1 << power, tier) for dtype, tier in (("fp8", 0), ("fp32", 1)) for power in _POWERS]
    found += [_pass("activation", "bf16", 1 << power) for power in _POWERS]
    for hidden, at in ((7168, 0), (2048, 0), (4096, 1), (1024, 2)):
        for tokens, too in ((64, 2), (1024, 1), (8192, 0), (65536, 1)):
            found.append(_pass("norm", "bf16", tokens * hidden, max(at, too), tokens=tokens, hidden=hidden))
            found.append(_pass("embedding", "bf16", tokens * hidden, max(at, too, 1), tokens=tokens, hidden=hidden))
    for dtype in ("fp32", "bf16"):
        found += [_pass("optimizer", dtype, 1 << power, tier=power % 4 // 2) for power in range(20, 31, 2)]
    return found


_POWERS = (16, 20, 22, 24, 26, 28)


def _routing_passes() -> list[Case]:
    """Router, top-k, permute and unpermute of the layers whose experts are timed."""
    found = []
    layers = dict.fromkeys((hidden, top_k, experts, at) for hidden, _, top_k, experts, _, at in _LAYERS)
    for hidden, top_k, experts, at in layers:
        for tokens, too in ((128, 2), (1024, 1), (8192, 0), (32768, 1)):
            found += _routing(tokens, hidden, top_k, experts, "bf16", max(at, too))
    return found


def _routing(tokens: int, hidden: int, top_k: int, experts: int, dtype: str, tier: int = 0) -> list[Case]:
    sizes = {"tokens": tokens, "hidden": hidden, "top_k": top_k, "experts": experts}
    copies = tokens * top_k * hidden
    return [
        _pass("router", dtype, tokens * hidden, tier, **sizes),
        _pass("top-k", "fp32", tokens * experts, tier, **sizes),
        _pass("permute", dtype, copies, tier, **sizes),
        _pass("unpermute", dtype, copies, tier, **sizes),
    ]


def _small() -> list[Case]:
    """Sizes for a processor: every kind and pass, done in under a minute."""
    found = [Case("launch", {"what": "stream"})]
    found += [_gemm(size, size, size, "fp32") for size in (128, 256, 512, 1024)]
    found += [_gemm(m, 1024, 512, "fp32", tier=1) for m in (1, 16, 64, 256)]
    found += [_gemm(256, 256, 256, "bf16", tier=1)]
    for load in ("balanced", "power_law_1.2"):
        found += [_layer((tokens, 256, 128, 2, 16), 1, load, "fp32") for tokens in (64, 512)]
        found.append(_layer((512, 256, 128, 2, 16), 4, load, "fp32", tier=1))
    for direction in ("forward", "backward"):
        found.append(_heads_small(256, direction, 0))
        found.append(_heads_small(512, direction, 1))
    found += [_pass("copy", "fp32", 1 << power, tier=power % 4 // 2) for power in range(12, 24, 2)]
    found += [_pass("cast", "bf16", 1 << 20), _pass("activation", "fp32", 1 << 18)]
    found += [_pass("norm", "fp32", 512 * 512, tokens=512, hidden=512)]
    found += [_pass("embedding", "fp32", 512 * 512, tokens=512, hidden=512), _pass("optimizer", "fp32", 1 << 20)]
    return found + _routing(512, 256, 2, 16, "fp32")


def _heads_small(length: int, direction: str, tier: int) -> Case:
    sizes: Words = {"tokens": 2 * length, "length": length, "heads": 8, "kv_heads": 2, "head_dim": 32, "value_dim": 32}
    return Case("attention", sizes | {"causal": True, "direction": direction, "dtype": "fp32"}, tier)
