"""The router rules in torch: twins of `moesim.routing.routers`, through which gradients pass.

The choices are those of the numpy rules on the same logits, ties included: scores are float64, sorts are stable.
T tokens, E experts, K choices, C rows of an expert, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moesim.errors import UnknownNameError, UserError
from moesim.routing.assignment import NO_EXPERT
from moesim.routing.capacity import CapacityRule
from moesim.specs.model import RouterSpec
from moesim.specs.routing import CapacitySpec
from moesim.traces.torch_door import Tensor, functional, torch

TINY = 2.2250738585072014e-308
LIKELY = 0.5


@dataclass(frozen=True)
class Choice:
    """`experts` [T, K], best first and `NO_EXPERT` where there is none; their `weights` [T, K] (float32)."""

    experts: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Draw:
    """What a rule looks at: logits [T, E] (float64) of so many equally long `sequences`, K, the bias [E] of the choice,
    and the generator of what is drawn."""

    logits: Tensor
    top_k: int
    bias: Tensor | None
    generator: torch.Generator | None
    sequences: int


def choose(
    spec: RouterSpec,
    logits: Tensor,
    top_k: int,
    bias: Tensor | None = None,
    generator: torch.Generator | None = None,
    sequences: int = 1,
) -> Choice:
    """Assign tokens by their logits [T, E]; without a generator nothing is drawn and the likeliest is taken.

    The T tokens are those of so many equally long `sequences`, one after the other (expert choice looks at each).

    The jitter of a spec belongs on the router's input, to which the model applies it; the noise is added here.
    """
    if spec.rule not in RULES:
        raise UnknownNameError("router rule that can be trained", spec.rule, RULES)
    wide = logits.double()
    if generator is not None and spec.noise:
        noise = torch.randn(wide.shape, generator=generator, device=wide.device, dtype=wide.dtype)
        wide = wide + spec.noise * noise
    wide_bias = None if bias is None else bias.double()
    experts, weights = RULES[spec.rule](spec, Draw(wide, top_k, wide_bias, generator, sequences))
    return Choice(experts, (weights * spec.scale).float())


def keep(spec: CapacitySpec, choice: Choice, rows: int, generator: torch.Generator | None = None) -> Tensor:
    """Which copies [T, K] stay where each expert takes `rows`, as `moesim.routing.overflow.settle` drops them.

    Raises UserError for an overflow that is not dropped: training has no second home for a copy.
    """
    if spec.overflow != "drop":
        raise UserError(f"capacity: overflow {spec.overflow!r} cannot be trained; allowed: drop")
    T, K = choice.experts.shape
    precedence = CapacityRule.of(spec).precedence(K)
    gates, device = choice.weights.detach(), choice.experts.device
    tokens = torch.arange(T, device=device)
    if precedence.priority == "batch-prioritized":
        tokens = _falling(gates.amax(dim=1))
    queue = tokens[:, None] * K + torch.arange(K, device=device)
    queue = (queue.T if precedence.order == "choice-major" else queue).reshape(-1)
    if precedence.priority == "probability":
        queue = queue[_falling(gates.reshape(-1)[queue])]
    elif precedence.priority == "random":
        queue = queue[torch.rand(T * K, generator=generator, device=device).argsort(stable=True)]
    names = choice.experts.reshape(-1)[queue]
    by_name = names.argsort(stable=True)
    ordered = names[by_name]
    place = torch.arange(T * K, device=device) - torch.searchsorted(ordered, ordered)
    kept = torch.empty(T * K, dtype=torch.bool, device=device)
    kept[queue[by_name]] = (place < rows) & (ordered != NO_EXPERT)
    return kept.reshape(T, K)


def shares(spec: RouterSpec, logits: Tensor) -> Tensor:
    """Each expert's share of a token's score [T, E]: what the balancing loss averages."""
    if spec.rule != "sigmoid-top-k":
        return functional.softmax(logits.double(), dim=-1)
    scores = logits.double().sigmoid()
    return scores / scores.sum(-1, keepdim=True)


def counts(experts: Tensor, count: int) -> Tensor:
    """Copies of each of `count` experts [E] among the choices [T, K]."""
    shifted = experts.reshape(-1) - NO_EXPERT
    return torch.zeros(count + 1, dtype=torch.int64, device=experts.device).scatter_add_(
        0, shifted, torch.ones_like(shifted)
    )[1:]


def balancing_loss(spec: RouterSpec, logits: Tensor, experts: Tensor) -> Tensor:
    """E sum_e f_e P_e (Switch Transformer, equation 4), f each expert's share of the choices [T, K] and P its mean
    share of the scores; 1 if even."""
    chosen = counts(experts, logits.shape[-1]).double() / experts.numel()
    return (logits.shape[-1] * (chosen * shares(spec, logits).mean(0)).sum()).float()


def z_loss(logits: Tensor) -> Tensor:
    """Mean squared log of the softmax's denominator (ST-MoE, equation 5)."""
    return torch.logsumexp(logits.float(), dim=-1).square().mean()


def moved_bias(bias: Tensor, copies: Tensor, rate: float) -> Tensor:
    """The bias [L, E] after a step: up by `rate` where an expert got less than the mean, down where more
    (DeepSeek-V3 report, section 2.1.2)."""
    loads = copies.to(bias.dtype)
    return bias + rate * torch.sign(loads.mean(-1, keepdim=True) - loads)


def _best(scores: Tensor, top_k: int) -> Tensor:
    return _falling(scores.detach())[..., :top_k]


def _falling(values: Tensor) -> Tensor:
    """The order in which values fall; equal ones keep theirs."""
    return (-values).argsort(dim=-1, stable=True)


def _softmax(logits: Tensor) -> Tensor:
    powers = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def _sigmoid(logits: Tensor) -> Tensor:
    small = (-logits.abs()).exp()
    return torch.where(logits >= 0, torch.ones_like(small), small) / (1.0 + small)


def _top_k(scores: Tensor, spec: RouterSpec, draw: Draw, renormalized: bool) -> tuple[Tensor, Tensor]:
    chosen_by = scores.detach()
    if draw.bias is not None:
        chosen_by = chosen_by + draw.bias
    if spec.groups > 1:
        chosen_by = _limit_to_groups(chosen_by, spec)
    experts = _best(chosen_by, draw.top_k)
    weights = scores.gather(-1, experts)
    if renormalized:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=TINY)
    return experts, weights


def _limit_to_groups(scores: Tensor, spec: RouterSpec) -> Tensor:
    grouped = scores.unflatten(-1, (spec.groups, -1))
    if spec.group_score == "max":
        group_scores = grouped.amax(dim=-1)
    else:
        group_scores = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
    kept = torch.zeros_like(group_scores, dtype=torch.bool)
    kept.scatter_(-1, _best(group_scores, spec.top_groups), True)
    return grouped.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(-2)


def _gshard(spec: RouterSpec, draw: Draw) -> tuple[Tensor, Tensor]:
    experts = _best(draw.logits, 2)
    gates = _softmax(draw.logits.gather(-1, experts))
    if spec.second_threshold is None:
        return experts, gates
    chance = gates[:, 1].detach() / spec.second_threshold
    if draw.generator is None:
        lost = chance < LIKELY
    else:
        lost = chance <= torch.rand(chance.shape, generator=draw.generator, device=chance.device, dtype=chance.dtype)
    lost = torch.stack([torch.zeros_like(lost), lost], dim=-1)
    return experts.masked_fill(lost, NO_EXPERT), gates.masked_fill(lost, 0.0)


def _expert_choice(spec: RouterSpec, draw: Draw) -> tuple[Tensor, Tensor]:
    scores = _softmax(draw.logits)
    by_sequence = scores.detach().unflatten(0, (draw.sequences, -1))
    tokens, experts = by_sequence.shape[1:]
    rows = min(max(round(tokens * draw.top_k / experts), 1), tokens)
    taken = torch.zeros_like(by_sequence, dtype=torch.bool)
    taken.scatter_(1, (-by_sequence).argsort(dim=1, stable=True)[:, :rows], True)
    return _padded(taken.flatten(0, 1), scores)


def _top_p(spec: RouterSpec, draw: Draw) -> tuple[Tensor, Tensor]:
    scores = _softmax(draw.logits)
    order = _falling(scores.detach())
    short = scores.detach().gather(-1, order).cumsum(-1)[:, :-1] < spec.top_p
    needed = (1 + short.sum(-1, keepdim=True)).clamp(max=spec.max_choices or scores.shape[-1])
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen.scatter_(-1, order, torch.arange(scores.shape[-1], device=scores.device) < needed)
    weights = torch.where(chosen, scores, 0.0)
    if spec.renormalize:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=TINY)
    return _padded(chosen, weights)


def _padded(chosen: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the chosen experts [T, E], heaviest first, as wide as the longest."""
    number = chosen.sum(-1, keepdim=True)
    width = max(1, int(number.max()))
    experts = torch.where(chosen, -weights.detach(), torch.inf).argsort(dim=-1, stable=True)[:, :width]
    there = torch.arange(width, device=experts.device) < number
    return experts.masked_fill(~there, NO_EXPERT), weights.gather(-1, experts).masked_fill(~there, 0.0)


RULES: dict[str, Callable[[RouterSpec, Draw], tuple[Tensor, Tensor]]] = {
    "softmax-top-k": lambda spec, draw: _top_k(_softmax(draw.logits), spec, draw, spec.renormalize),
    "noisy-top-k": lambda spec, draw: _top_k(_softmax(draw.logits), spec, draw, True),
    "switch-top-1": lambda spec, draw: _top_k(_softmax(draw.logits), spec, draw, False),
    "sigmoid-top-k": lambda spec, draw: _top_k(_sigmoid(draw.logits), spec, draw, spec.renormalize),
    "gshard-top-2": _gshard,
    "expert-choice": _expert_choice,
    "top-p": _top_p,
}
