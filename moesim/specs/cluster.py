"""A cluster: one kind of GPU, the scale-up domains it comes in, and the scale-out fabric between them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moesim.specs.base import SourcedSpec, Spec
from moesim.specs.gpu import GpuSpec
from moesim.units import BytesPerSecond, Seconds

FabricKind = Literal["single-switch", "rail-optimized", "fat-tree", "dual-plane", "torus", "none"]


class FabricSpec(SourcedSpec):
    """The scale-out network.

    `oversubscription` is the ratio of a leaf's down-links to its up-links (1 = non-blocking). `efficiency` is the
    share of the wire rate that a well-formed large transfer reaches; `all_to_all_efficiency` replaces it for plain
    all-to-all where a fabric is known to do worse (None = the library's own).
    """

    kind: FabricKind
    nic_bandwidth: BytesPerSecond | None = None
    oversubscription: float = Field(default=1.0, ge=1.0, le=1000.0)
    leaf_ports: int = Field(strict=True, default=32, ge=1, le=4096, description="domains under one leaf switch")
    latency: Seconds | None = None
    efficiency: float = Field(default=1.0, gt=0.0, le=1.0)
    all_to_all_efficiency: float | None = Field(default=None, gt=0.0, le=1.0)
    torus_shape: tuple[Annotated[int, Field(strict=True, ge=1, le=1 << 20)], ...] | None = None
    torus_wraps: bool = True


class ClusterSpec(Spec):
    """`gpus` GPUs of one kind on one fabric; the optional fields override what the GPU and the fabric say.

    `calibration` is a file of coefficients measured on this hardware, which go before the catalog's.
    """

    gpu: GpuSpec
    gpus: int = Field(strict=True, ge=1, le=1 << 22)
    fabric: FabricSpec
    gpus_per_domain: int = Field(strict=True, ge=1, le=1 << 20)
    scale_up_bandwidth: BytesPerSecond | None = None
    nic_bandwidth: BytesPerSecond | None = None
    nics_per_domain: int | None = Field(strict=True, default=None, ge=1, le=1 << 20)
    oversubscription: float | None = Field(default=None, ge=1.0, le=1000.0)
    calibration: str | None = None

    @property
    def domains(self) -> int:
        """How many scale-up domains the GPUs fill, the last perhaps in part."""
        return -(-self.gpus // self.gpus_per_domain)
