"""What a small training run is made of: its configuration and the presets. Its text is in `corpus`.

Nothing here needs torch. The run itself is `torch_train`; `moesim trace train` is its command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from moesim.errors import UnknownNameError
from moesim.routing.routers import router
from moesim.specs.base import Spec
from moesim.specs.model import RouterSpec
from moesim.specs.routing import CapacitySpec
from moesim.traces.corpus import LEAST

Size = Annotated[int, Field(strict=True, ge=1, le=1 << 20)]
Count = Annotated[int, Field(strict=True, ge=0, le=1 << 30)]
MOMENTS = (0.02, 0.3, 1.0)
"""Early, middle and late: shares of the steps after which decisions are recorded unless the steps are stated."""


class TrainingConfig(Spec):
    """One run: a decoder of `layers` layers, every `moe_every`-th with `experts` experts, and how it is trained.

    Widths are in elements; `dense_width` is the hidden width of a layer without experts. `balancing`: nothing, the
    Switch loss E sum f_i P_i with coefficient `balance_rate`, or a bias in the choice moved by `balance_rate` against
    the sign of the excess after each step; `z_loss` is the coefficient of the router's z-loss. `vocabulary` 256 are
    plain bytes, more are byte pairs learnt from the text. `record_steps`: steps after which `record_sequences` held
    out sequences are routed (None: early, middle and late); `recorded_layers`: those of the model that are kept
    (None: all with experts). `checkpoint_every` steps a checkpoint (0: none). `time_budget` in seconds, from
    the start or resumption: the run is cut to the steps that fit, and so depends on the machine's speed.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,99}$")
    layers: Size
    width: Size
    heads: Size
    sequence_length: Size
    batch: Size
    steps: Size
    experts: Size
    top_k: Size
    expert_width: Size
    dense_width: Size = 256
    moe_every: Size = 1
    shared_experts: Count = 0
    router: RouterSpec = RouterSpec()
    balancing: Literal["none", "auxiliary-loss", "bias-update"] = "none"
    balance_rate: float = Field(default=0.0, ge=0.0, le=100.0)
    z_loss: float = Field(default=0.0, ge=0.0, le=100.0)
    capacity: Literal["dropless"] | CapacitySpec = "dropless"
    learning_rate: float = Field(default=1e-3, gt=0.0, le=10.0)
    weight_decay: float = Field(default=0.1, ge=0.0, le=10.0)
    seed: Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)] = 0
    precision: Literal["float32", "bf16"] = "float32"
    vocabulary: Annotated[int, Field(strict=True, ge=256, le=1 << 15)] = 1024
    text_limit: Annotated[int, Field(strict=True, ge=LEAST, le=1 << 30)] = 400_000
    record_steps: tuple[Size, ...] | None = None
    record_sequences: Size = 102
    record_weights: bool = True
    record_token_ids: bool = True
    recorded_layers: tuple[Count, ...] | None = None
    checkpoint_every: Count = 0
    time_budget: float | None = Field(default=None, gt=0.0)

    @model_validator(mode="after")
    def _fits(self) -> TrainingConfig:
        rule = router(self.router, self.experts, self.top_k)
        if self.balancing == "bias-update" and not rule.takes_bias:
            raise ValueError(f"balancing bias-update needs a rule that takes a bias; {self.router.rule} takes none")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"width {self.width} is no even multiple of {self.heads} heads")
        if not self.model_layers:
            raise ValueError(f"moe_every {self.moe_every} leaves none of {self.layers} layers with experts")
        strange = sorted(set(self.recorded_layers or ()) - set(self.model_layers))
        if strange or self.recorded_layers == ():
            raise ValueError(f"recorded_layers: {strange or 'none'}; layers with experts are {self.model_layers}")
        if self.record_steps is not None and not self.record_steps:
            raise ValueError("record_steps: none is given; leave it out for early, middle and late")
        if self.balancing != "none" and self.balance_rate == 0.0:
            raise ValueError(f"balancing {self.balancing} needs a balance_rate above 0")
        return self

    @property
    def model_layers(self) -> tuple[int, ...]:
        """Layers with experts, by their place in the model: the last of each `moe_every`."""
        return tuple(range(self.moe_every - 1, self.layers, self.moe_every))

    def moments(self, steps: int) -> tuple[int, ...]:
        """Steps of a run of `steps` steps after which decisions are recorded, in order; the last one is among them."""
        if self.record_steps is None:
            chosen = {min(steps, max(1, round(share * steps))) for share in MOMENTS}
        else:
            chosen = {step for step in self.record_steps if step <= steps} or {steps}
        return tuple(sorted(chosen))


@dataclass(frozen=True)
class Preset:
    """Several runs under one name; `time_budget` (seconds) is shared by the runs that are left."""

    runs: tuple[TrainingConfig, ...]
    time_budget: float | None = None


# Coefficients: Switch loss 1e-2 (Switch Transformer, section 2.2), z-loss 1e-3 (ST-MoE, section 3.2), bias rate 1e-3
# (DeepSeek-V3 report, section 4.2: for some ten thousand steps and more; a short run needs a larger one).
def _six(base: dict[str, Any], sizes: dict[str, dict[str, Any]], bias_rate: float) -> tuple[TrainingConfig, ...]:
    many = sizes["many"]
    top = f"top-{many['top_k']}-of-{many['experts']}"
    loss = {"balancing": "auxiliary-loss", "balance_rate": 0.01, "z_loss": 0.001}
    plain = {"rule": "softmax-top-k"}
    biased = {"rule": "sigmoid-top-k", "bias": True}
    runs: tuple[dict[str, Any], ...] = (
        {"name": "switch-top-1", **sizes["switch"], **loss, "router": {"rule": "switch-top-1", "jitter": 0.01}},
        {"name": "gshard-top-2", **sizes["few"], **loss, "router": {"rule": "gshard-top-2"}},
        {"name": f"{top}-balancing-loss", **many, **loss, "router": plain},
        {"name": f"{top}-bias", **many, "balancing": "bias-update", "balance_rate": bias_rate, "router": biased},
        {"name": f"{top}-unbalanced", **many, "router": plain},
        {"name": "expert-choice", **sizes["few"], "router": {"rule": "expert-choice"}},
    )
    return tuple(TrainingConfig(**{**base, **run}) for run in runs)


_TINY = {
    "layers": 2, "width": 32, "heads": 2, "sequence_length": 24, "batch": 8, "steps": 12,
    "text_limit": LEAST, "vocabulary": 300, "record_sequences": 12, "checkpoint_every": 4,
}  # fmt: skip
_SMALL = {
    "layers": 4, "width": 96, "heads": 4, "sequence_length": 64, "batch": 16, "steps": 300,
    "learning_rate": 3e-3, "record_weights": False, "checkpoint_every": 100,
}  # fmt: skip
# 12 layers of width 768: 2.4 M attention and 4.7 M active expert weights a layer, 85 M in all; at 6 FLOP a weight and
# token and 16,384 tokens a step 8 TFLOP a step: 1,000 steps of each router in 75 s at an eighth of an H200's dense bf16
# peak (Switch with half the active experts). A checkpoint is 12 bytes for each of 260-490 M parameters: few of them.
_GPU = {
    "layers": 12, "width": 768, "heads": 12, "sequence_length": 512, "batch": 32, "steps": 1500,
    "learning_rate": 6e-4, "precision": "bf16", "vocabulary": 4096, "text_limit": 8_000_000,
    "record_weights": False, "recorded_layers": (0, 3, 7, 11), "checkpoint_every": 600,
}  # fmt: skip


def _tiny() -> Preset:
    sizes = {
        "switch": {"experts": 4, "top_k": 1, "expert_width": 32},
        "few": {"experts": 4, "top_k": 2, "expert_width": 32},
        "many": {"experts": 8, "top_k": 4, "expert_width": 16},
    }
    return Preset(_six(_TINY, sizes, bias_rate=0.01))


def _small() -> Preset:
    sizes = {
        "switch": {"experts": 8, "top_k": 1, "expert_width": 192},
        "few": {"experts": 8, "top_k": 2, "expert_width": 96},
        "many": {"experts": 16, "top_k": 4, "expert_width": 48},
    }
    return Preset(_six(_SMALL, sizes, bias_rate=0.01))


def _gpu() -> Preset:
    sizes = {
        "switch": {"experts": 16, "top_k": 1, "expert_width": 1024},
        "few": {"experts": 8, "top_k": 2, "expert_width": 1024},
        "many": {"experts": 64, "top_k": 8, "expert_width": 256},
    }
    return Preset(_six(_GPU, sizes, bias_rate=0.003), time_budget=480.0)


PRESETS: dict[str, Callable[[], Preset]] = {"tiny": _tiny, "small": _small, "gpu": _gpu}
"""`tiny` takes seconds (tests), `small` some minutes on two processor cores, `gpu` at most 9 minutes on one H200."""


def preset(name: str) -> Preset:
    """The preset of that name; raises UnknownNameError."""
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[name]()
