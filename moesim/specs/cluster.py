"""A cluster: one kind of GPU, the scale-up domains it comes in, and the scale-out fabric between them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moesim.specs.base import SourcedSpec, Spec
from moesim.specs.gpu import GpuSpec
from moesim.specs.links import DegradedSpec, LinkSpec
from moesim.units import BytesPerSecond, Seconds

FabricKind = Literal["single-switch", "rail-optimized", "fat-tree", "dual-plane", "torus", "links", "none"]
TREES = ("fat-tree", "dual-plane", "rail-optimized")
"""The kinds with leaf switches and uplinks."""
MOST_LINKS = 1 << 20


class FabricSpec(SourcedSpec):
    """The scale-out network.

    `oversubscription` is the ratio of a leaf's down-links to its up-links (1 = non-blocking). `efficiency` is the
    share of the wire rate that a well-formed large transfer reaches; `all_to_all_efficiency` replaces it for plain
    all-to-all where a fabric is known to do worse (None = the library's own). `message_seconds` is what one remote
    message costs where a processor's proxy thread drives the NIC.

    A tree of three `levels` has pods of `pod_leaves` leaf switches (on rails: sets of one leaf a rail), whose ratio of
    bandwidth from the leaves to bandwidth up to the core is `upper_oversubscription`. `links` are the whole network,
    written by hand, of kind links.
    """

    kind: FabricKind
    nic_bandwidth: BytesPerSecond | None = None
    nics_per_domain: int | None = Field(strict=True, default=None, ge=1, le=1 << 20)
    oversubscription: float = Field(default=1.0, ge=1.0, le=1000.0)
    leaf_ports: int = Field(strict=True, default=32, ge=1, le=4096, description="domains under one leaf switch")
    levels: int = Field(strict=True, default=2, ge=2, le=3)
    upper_oversubscription: float = Field(default=1.0, ge=1.0, le=1000.0)
    pod_leaves: int = Field(strict=True, default=32, ge=1, le=4096, description="leaf switches in one pod")
    links: tuple[LinkSpec, ...] = ()
    latency: Seconds | None = None
    message_seconds: Seconds | None = None
    efficiency: float = Field(default=1.0, gt=0.0, le=1.0)
    all_to_all_efficiency: float | None = Field(default=None, gt=0.0, le=1.0)
    torus_shape: tuple[Annotated[int, Field(strict=True, ge=1, le=1 << 20)], ...] | None = None
    torus_wraps: bool = True

    @model_validator(mode="after")
    def _fits_its_kind(self) -> FabricSpec:
        if (self.kind == "links") != bool(self.links):
            raise ValueError(
                "kind links needs its links: a list of {between: [NODE, NODE], bandwidth: 400 Gb/s}"
                if self.kind == "links"
                else f"links are for kind links, this one is {self.kind}"
            )
        if sum(link.number for link in self.links) > MOST_LINKS:
            raise ValueError(f"links: more than {MOST_LINKS} links in all")
        if self.levels == 3 and self.kind not in TREES:
            raise ValueError(f"levels 3 is for {', '.join(TREES)}, this one is {self.kind}")
        if self.upper_oversubscription > 1 and self.levels != 3:
            raise ValueError("upper_oversubscription needs levels: 3")
        return self


class ClusterSpec(Spec):
    """`gpus` GPUs of one kind on one fabric; the optional fields override what the GPU and the fabric say.

    `calibration` is a file of coefficients measured on this hardware, which go before the catalog's. `degraded` are
    slow and failed links.
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
    degraded: tuple[DegradedSpec, ...] = ()

    @property
    def domains(self) -> int:
        """How many scale-up domains the GPUs fill, the last perhaps in part."""
        return -(-self.gpus // self.gpus_per_domain)
