"""A GPU (or TPU chip) by its datasheet."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from moesim.specs.base import SourcedSpec
from moesim.units import Bytes, BytesPerSecond, FlopPerSecond, Watts

Generation = Literal["ampere", "ada", "hopper", "blackwell", "cdna3", "cdna4", "tpu", "other"]
ScaleUpKind = Literal["nvlink", "pcie", "xgmi", "torus", "none"]


class GpuSpec(SourcedSpec):
    """One accelerator. Rates are dense (no structured sparsity); bandwidths are in one direction, per GPU."""

    generation: Generation = "other"
    bf16: FlopPerSecond
    fp8: FlopPerSecond | None = None
    fp4: FlopPerSecond | None = None
    memory: Bytes
    memory_bandwidth: BytesPerSecond
    scale_up_kind: ScaleUpKind = "nvlink"
    scale_up_bandwidth: BytesPerSecond | None = None
    gpus_per_domain: int = Field(strict=True, default=8, ge=1, le=1 << 20)
    torus_dimensions: int | None = Field(strict=True, default=None, ge=2, le=3)
    nic_bandwidth: BytesPerSecond | None = None
    power: Watts | None = None
    multiprocessors: int | None = Field(strict=True, default=None, ge=1, le=10000)
