"""Which controls What if has, in groups; what each may be comes from moesim's catalog and specs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import streamlit as st

from moesim import catalog
from moesim.catalog import recorded
from moesim.errors import UserError
from moesim.network.dispatchers import DISPATCHERS
from moesim.specs.parallelism import DataSharding, ScheduleKind
from moesim.specs.routing import Dialect
from moesim.specs.workload import ComputeFormat, PrecisionSpec, WireFormat
from moesim.units import parse, show
from shared import shown
from views.what_if_controls import (
    AS_WRITTEN,
    PAGE,
    Board,
    Edit,
    all_settings,
    changed,
    choice,
    dig,
    name_of,
    number,
    pick,
    steps,
    toggle,
)

DROPLESS = "dropless"
ZIPF, LOG_NORMAL = "zipf", "log-normal"
NIC_RATES = ("100 Gb/s", "200 Gb/s", "400 Gb/s", "800 Gb/s", "1600 Gb/s")
AS_IT_IS = "as the fabric has it"
_TWOS = [1 << power for power in range(17)]
_GPU_COUNTS = sorted({*_TWOS, *(3 << power for power in range(1, 15))})
_TENSOR = _TWOS[:6]
_PIPELINE = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_FACTORS = [step / 4 for step in range(2, 17)]
_SKEWS = [step / 20 for step in range(51)]


def controls(on: Board, settings: tuple[str, ...]) -> None:
    """All groups; one that holds a problem is open and says so."""
    groups: tuple[tuple[str, tuple[str, ...], bool, Callable[[Board], None]], ...] = (
        ("Model and hardware", ("model", "cluster"), True, hardware),
        ("Parallelism", ("parallelism", "schedule", "stack_options"), True, parallelism),
        ("Routing", ("routing", "simulation"), True, routing),
        ("Communication", ("dispatcher", "overlap"), False, communication),
        ("Precision", ("precision",), False, precision),
        ("Workload and memory", ("workload", "recompute"), False, workload),
        ("All changes", ("--set", "settings"), False, partial(all_settings, settings=settings)),
    )
    for title, places, opened, draw in groups:
        wrong = bool(on.wrong(places))
        here = any(shown.inside(on.moved.removeprefix(f"{PAGE}-"), place) for place in places)
        key, before = _unfolded(title, wrong, fresh=not here)
        icon = ":material/error:" if wrong else None
        with st.expander(title, expanded=opened or before, icon=icon, key=key):
            draw(on)
            on.complain(places)


def _unfolded(title: str, wrong: bool, *, fresh: bool) -> tuple[str, bool]:
    """The key of a group, and whether it has ever held a problem: then it stays open when that is undone.

    A problem that comes anew opens also a group that was folded by hand: by a new key, as its browser knows no other
    way. Not where the control in the reader's hand is in the group (`fresh`), for it would lose the keyboard.
    """
    groups: dict[str, tuple[int, bool, bool]] = st.session_state.setdefault(f"{PAGE}-groups", {})
    count, before, ever = groups.get(title, (0, False, False))
    count += wrong and not before and fresh
    groups[title] = count, wrong, ever or wrong
    return f"{PAGE}-group-{title.replace(' ', '-').lower()}-{count}", ever or wrong


def hardware(on: Board) -> None:
    """Model, GPU, how many, fabric, NIC."""
    choice(on, "Model", "model", catalog.names("models"))
    choice(on, "GPU", "cluster.gpu", catalog.names("gpus"))
    steps(on, "GPUs", "cluster.gpus", _GPU_COUNTS)
    choice(on, "Fabric", "cluster.fabric", catalog.names("fabrics"))
    path = "cluster.nic_bandwidth"
    shipped, current = (_rate(dig(document, path)) for document in (on.shipped, on.merged))
    options = list(dict.fromkeys([AS_IT_IS, shipped, *NIC_RATES]))
    pick(on, "NIC bandwidth", current, options, Edit(path, shipped, _rate_text), (path,))


def _rate(value: Any) -> str:
    """A bandwidth in the words of the list."""
    if value is None:
        return AS_IT_IS
    try:
        rate = parse(value, "B/s")
    except UserError:
        return str(value)
    return next((text for text in NIC_RATES if abs(parse(text, "B/s") - rate) < 1e-6 * rate), show(rate, "B/s"))


def _rate_text(value: str) -> str:
    return "null" if value == AS_IT_IS else value


def parallelism(on: Board) -> None:
    """EP, TP, PP, and the schedule."""
    steps(on, "Expert parallel (EP)", "parallelism.expert", _expert_degrees(on))
    steps(on, "Tensor parallel (TP)", "parallelism.tensor", _TENSOR)
    layout = "stack_options.pipeline_layout"
    # A layout that lists its stages belongs to one number of stages.
    also = ((layout, "null"),) if dig(on.shipped, layout) else ()
    steps(on, "Pipeline parallel (PP)", "parallelism.pipeline", _PIPELINE, also=also)
    on.complain(("stack_options",))
    choice(on, "Schedule", "schedule.kind", get_args(ScheduleKind), places=("schedule",))


def _expert_degrees(on: Board) -> list[int]:
    """Degrees that divide the model's experts."""
    model = on.value("model")
    experts = model.get("n_experts") if isinstance(model, dict) else None
    if experts is None and name_of(model) in catalog.names("models"):
        experts = catalog.load("models", name_of(model)).n_experts
    count = experts if isinstance(experts, int) and experts > 0 else 1
    return [degree for degree in range(1, min(count, 1024) + 1) if count % degree == 0]


def routing(on: Board) -> None:
    """Capacity and its dialect, router, load."""
    _capacity(on)
    router = Edit("routing.router", name_of(dig(on.shipped, "routing.router")))
    choice(on, "Router", "routing.router", ["model-default", *catalog.names("routers")], edit=router)
    _load(on)


def _capacity(on: Board) -> None:
    path = "routing.capacity"
    shipped, current = dig(on.shipped, path), on.value(path)
    before = {} if isinstance(shipped, str) or not shipped else shipped
    held = current if isinstance(current, dict) else {}
    kept = {key: value for key, value in held.items() if value is not None and key not in ("factor", "dialect")}
    first_factor = before.get("factor", 1.25)
    factor = held.get("factor", first_factor)
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not math.isfinite(factor):
        factor = first_factor
    # Capacity counts every token: none can stand for others.
    also = (("simulation.sampled_tokens", "null"),) if dig(on.shipped, "simulation.sampled_tokens") else ()

    def dialect_text(value: str) -> str:
        return DROPLESS if value == DROPLESS else _inline({"factor": factor, "dialect": value, **kept})

    dialect = held.get("dialect", "megatron") if held else DROPLESS
    first = before.get("dialect", "megatron") if before else DROPLESS
    edit = Edit(path, first if factor == before.get("factor", factor) else None, dialect_text, also)
    st.session_state[f"{PAGE}-{path}"] = dialect
    st.selectbox(
        "Capacity dialect",
        [DROPLESS, *get_args(Dialect)],
        key=f"{PAGE}-{path}",
        on_change=changed,
        args=(f"{PAGE}-{path}", edit),
        help="How a library rounds and shares out expert capacity; dropless routes every token.",
    )
    on.complain((), f"{PAGE}-{path}")
    key = f"{PAGE}-{path}.factor"
    st.session_state[key] = factor
    same = before.get("factor") if dialect == first else None
    edit = Edit(path, same, lambda value: _inline({"factor": value, "dialect": dialect, **kept}), also)
    options = sorted({*_FACTORS, factor, before.get("factor", factor)})
    st.select_slider(
        "Capacity factor", options, key=key, on_change=changed, args=(key, edit), disabled=dialect == DROPLESS
    )
    on.complain((path, "simulation.sampled_tokens"), key)


def _load(on: Board) -> None:
    """A named profile, a law with its skew, or a recorded trace."""
    path = "routing.load"
    kinds = [*catalog.names("profiles"), ZIPF, LOG_NORMAL, *recorded.names("traces")]
    shipped, current = (_load_kind(dig(document, path), kinds) for document in (on.shipped, on.merged))
    options = list(dict.fromkeys([shipped, *kinds]))
    pick(on, "Load (skew or trace)", current, options, Edit(path, shipped, _load_text), (path,))
    if current not in (ZIPF, LOG_NORMAL):
        return
    law = current.replace("-", "_")
    value, before = dig(on.merged, f"{path}.{law}"), dig(on.shipped, f"{path}.{law}")
    if not isinstance(value, (int, float)):
        st.caption(f"skew from {value[0]} to {value[1]} over the layers" if isinstance(value, (list, tuple)) else "")
        return
    key = f"{PAGE}-{path}.{law}"
    st.session_state[key] = value
    edit = Edit(path, before, lambda skew: _inline({law: skew}))
    label = "Zipf exponent" if law == ZIPF else "Standard deviation of the log load"
    st.select_slider(label, sorted({*_SKEWS, value}), key=key, on_change=changed, args=(key, edit))
    on.complain((), key)


def _load_kind(load: Any, kinds: list[str]) -> str:
    name = load if isinstance(load, str) else name_of(load)
    if name in kinds:
        return name
    found = load if isinstance(load, dict) else {}
    if found.get("trace"):
        return str(found["trace"]).rpartition("/")[2].removesuffix(".npz")
    law = next((law for law in ("zipf", "log_normal") if found.get(law) is not None), None)
    return law.replace("_", "-") if law else AS_WRITTEN


def _load_text(value: str) -> str:
    return _inline({value.replace("-", "_"): 0.6}) if value in (ZIPF, LOG_NORMAL) else value


def communication(on: Board) -> None:
    """Dispatcher and what runs beside compute."""
    shipped = name_of(dig(on.shipped, "dispatcher"))
    edit = Edit("dispatcher", shipped, lambda value: _inline({"kind": value}))
    current = name_of(on.value("dispatcher"))
    pick(on, "Dispatcher", current, ["auto", *DISPATCHERS], edit, ("dispatcher",))
    toggle(on, "Experts' exchanges beside compute", "overlap.expert_communication")
    toggle(on, "Two-batch overlap", "overlap.two_batch")
    toggle(on, "Shared experts beside exchanges", "overlap.shared_experts")
    toggle(on, "Data-parallel traffic beside compute", "overlap.data_parallel")
    toggle(on, "Pipeline messages beside compute", "overlap.pipeline")
    said = dig(on.shipped, "stack_options.user_buffers")
    before = dig(on.shipped, "overlap.tensor_parallel")
    first = next((value for value in (before, said) if value is not None), True)
    toggle(on, "Tensor-parallel traffic beside compute", "overlap.tensor_parallel", shipped=first)


def precision(on: Board) -> None:
    """Number formats."""
    fields = PrecisionSpec.model_fields
    choice(on, "Compute", "precision.compute", get_args(ComputeFormat))
    choice(on, "Dispatch", "precision.dispatch", get_args(WireFormat))
    choice(on, "Combine", "precision.combine", get_args(WireFormat))
    choice(on, "Gradients", "precision.gradients", get_args(fields["gradients"].annotation))
    choice(on, "Optimizer", "precision.optimizer", get_args(fields["optimizer"].annotation))


def workload(on: Board) -> None:
    """Batch, sequence, recompute, sharding."""
    number(on, "Global batch (sequences)", "workload.global_batch")
    number(on, "Micro batch (sequences)", "workload.micro_batch")
    number(on, "Sequence length (tokens)", "workload.sequence_length")
    recompute = on.value("recompute"), dig(on.shipped, "recompute")
    current, shipped = (AS_WRITTEN if isinstance(one, (list, tuple)) else str(one) for one in recompute)
    options = list(dict.fromkeys([shipped, "none", "selective", "full"]))
    pick(on, "Recompute", current, options, Edit("recompute", shipped), ("recompute",))
    choice(on, "Data-parallel sharding", "parallelism.data_sharding", get_args(DataSharding))


def _inline(value: dict[str, Any]) -> str:
    """A mapping as the text of an override."""
    return json.dumps(value)
