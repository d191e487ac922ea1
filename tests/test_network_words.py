"""What is said of networks that cannot be, word for word: what, where, allowed and nearest; and just not said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_network_links import LEAF_SPINE, PLANES, TORUS, TREE3, faulty, wires
from test_network_topology import GROUPS, NIC, RAILS_TWO_TO_ONE, TWO_TO_ONE, cluster

from moesim.errors import InfeasibleError, InternalError, UnknownNameError, UserError
from moesim.network import link_checks
from moesim.network.demand import Choices, Demand, balanced_demand, nearest_format, payload_bytes
from moesim.network.dispatchers import Payload, dispatcher, nearest_dispatcher
from moesim.network.fluid import Fluid, drain
from moesim.network.link_checks import problems
from moesim.network.links import flows
from moesim.network.topology import group

XGMI: dict[str, Any] = {"scale_up_kind": "xgmi"}
ALONE: dict[str, Any] = {"domain": 1, "scale_up_kind": "none", "scale_up_bandwidth": None}
OPEN = {"kind": "torus", "torus_shape": (4, 4), "torus_wraps": False}
TREES = "allowed: fat-tree, dual-plane, rail-optimized"
NICS = "write the NICs that GPUs share as nodes"


def leaf(number: int) -> dict[str, Any]:
    return {"link": "uplink", "leaf": number, "share": 0}


def slow(one: str, other: str) -> dict[str, Any]:
    return {"between": [one, other], "share": 0.5}


def beyond(number: int, what: str) -> str:
    last = number - 1
    return f"{number}: the cluster has {number} {what}; allowed: 0 to {last}; nearest: {last}"


# cluster, the degraded link, where below it, what
FAULTS: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"gpus": 32, "fabric": TWO_TO_ONE}, leaf(2), ".leaf", beyond(2, "leaf switches")),
    ({"gpus": 33, "fabric": TWO_TO_ONE}, leaf(3), ".leaf", beyond(3, "leaf switches")),
    ({"gpus": 32, "fabric": RAILS_TWO_TO_ONE}, leaf(16), ".leaf", beyond(16, "leaf switches")),
    ({"gpus": 32, "fabric": RAILS_TWO_TO_ONE, "nics_per_domain": 4}, leaf(8), ".leaf", beyond(8, "leaf switches")),
    ({"gpus": 32, "fabric": RAILS_TWO_TO_ONE, "nics_per_domain": 16}, leaf(16), ".leaf", beyond(16, "leaf switches")),
    ({"gpus": 32, "fabric": {**RAILS_TWO_TO_ONE, "nics_per_domain": 2}}, leaf(4), ".leaf", beyond(4, "leaf switches")),
    ({"gpus": 64, "fabric": TREE3}, {"link": "uplink", "pod": 4, "share": 0}, ".pod", beyond(4, "pods")),
    ({"gpus": 32, "fabric": TWO_TO_ONE}, {"link": "uplink", "pod": 0, "share": 0}, ".pod",
     "a tree of two levels has no pods; allowed: leaf, or cluster.fabric.levels: 3"),
    ({"gpus": 32, "fabric": PLANES}, {"link": "plane", "plane": 2, "share": 0}, ".plane", beyond(2, "planes")),
    ({"gpus": 32, "fabric": TREE3}, {"link": "plane", "plane": 0, "share": 0}, "",
     "a fabric of kind fat-tree has no planes; allowed: kind dual-plane"),
    ({"gpus": 32}, {"link": "nic", "gpu": 32, "share": 0}, ".gpu", beyond(32, "GPUs")),
    ({"gpus": 32, **ALONE}, {"link": "scale-up", "gpu": 2, "share": 0}, "",
     "inline in domains of 1 has no scale-up links"),
    ({"gpus": 32, "domain": 1}, {"link": "scale-up", "gpu": 2, "share": 0}, "",
     "inline in domains of 1 has no scale-up links"),
    ({"gpus": 4, "domain": 1, "fabric": {"kind": "torus"}, **TORUS}, {"link": "nic", "gpu": 0, "share": 0}, "",
     "a fabric of kind torus has no NICs; allowed: scale-up"),
    ({"gpus": 32, "fabric": LEAF_SPINE}, leaf(0), "",
     f"a fabric of kind links has no uplinks; {TREES}; name a hand-written link as between: [NODE, NODE]"),
    ({"gpus": 32, "fabric": {"kind": "single-switch"}}, leaf(0), "",
     f"a fabric of kind single-switch has no uplinks; {TREES}"),
    ({"gpus": 32, **XGMI}, slow("gpu0", "leaf0"), ".between", "gpu0 and leaf0 must be GPUs; allowed: gpu0-31"),
    ({"gpus": 32, **XGMI}, slow("gpu0", "gpu32"), ".between", "gpu0 and gpu32 must be GPUs; allowed: gpu0-31"),
    ({"gpus": 32, **XGMI}, slow("gpu0", "gpu31"), ".between", "no link joins gpu0 and gpu31: they share no domain"),
    ({"gpus": 32}, slow("gpu0", "gpu1"), ".between",
     "names hand-written links, or links of a mesh or torus of GPUs; inline on inline has neither; allowed: link: nic,"
     " scale-up, uplink or plane"),
    ({"gpus": 32, "fabric": LEAF_SPINE}, slow("gpu0", "leaf1"), ".between", "no link joins gpu0 and leaf1"),
    ({"gpus": 16, "domain": 16, **TORUS}, slow("gpu0", "gpu5"), ".between",
     "gpu0 and gpu5 are no neighbours on the torus of 4 x 4; neighbours of gpu0: gpu1, gpu3, gpu4, gpu12"),
    ({"gpus": 16, "domain": 16, "fabric": OPEN, **TORUS}, slow("gpu0", "gpu3"), ".between",
     "gpu0 and gpu3 are no neighbours on the torus of 4 x 4; neighbours of gpu0: gpu1, gpu4"),
    ({"gpus": 20, "domain": 16, **TORUS}, slow("gpu17", "gpu19"), ".between",
     "gpu17 and gpu19 are no neighbours on the torus of 4 x 4; neighbours of gpu17: gpu16, gpu18"),
]  # fmt: skip


@pytest.mark.parametrize(("machine", "spec", "where", "what"), FAULTS)
def test_a_link_that_is_not_there(machine: dict[str, Any], spec: dict[str, Any], where: str, what: str) -> None:
    (found,) = problems(cluster(**{**machine, "degraded": (spec,)}))
    assert (found.where, found.what) == (f"cluster.degraded.0{where}", what)


@pytest.mark.parametrize(
    ("machine", "spec"),
    [
        ({"gpus": 33, "fabric": TWO_TO_ONE}, leaf(2)),
        ({"gpus": 32, "fabric": RAILS_TWO_TO_ONE}, leaf(15)),
        ({"gpus": 64, "fabric": TREE3}, {"link": "uplink", "pod": 3, "share": 0}),
        ({"gpus": 32, "fabric": PLANES}, {"link": "plane", "plane": 1, "share": 0}),
        ({"gpus": 32}, {"link": "nic", "gpu": 31, "share": 0}),
        ({"gpus": 4, "domain": 1, "fabric": {"kind": "torus"}, **TORUS}, {"link": "scale-up", "gpu": 3, "share": 0}),
        ({"gpus": 32, **XGMI}, slow("gpu7", "gpu6-9")),
        ({"gpus": 32, **XGMI}, slow("gpu24", "gpu31")),
        ({"gpus": 32, "fabric": LEAF_SPINE, **XGMI}, slow("gpu0", "gpu1")),
        ({"gpus": 32, "fabric": LEAF_SPINE}, slow("spine3", "leaf1")),
        ({"gpus": 32, "domain": 16, **TORUS}, slow("gpu16", "gpu28")),
    ],
)
def test_the_last_link_that_is_there(machine: dict[str, Any], spec: dict[str, Any]) -> None:
    assert problems(cluster(**{**machine, "degraded": (spec,)})) == []


def test_three_unknown_nodes_are_named() -> None:
    found = problems(cluster(32, fabric=LEAF_SPINE, degraded=(slow("leaf0", "spin1-5"),)))
    assert [problem.what.partition(";")[0] for problem in found] == [f"no node spin{number}" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        ({"nics_per_domain": 4}, "cluster.nics_per_domain", NICS),
        ({"fabric": {**LEAF_SPINE, "nics_per_domain": 4}}, "cluster.nics_per_domain", NICS),
        ({"nic_bandwidth": 1e9}, "cluster.nic_bandwidth", "hand-written links state their own bandwidth"),
        ({"fabric": {**LEAF_SPINE, "nic_bandwidth": 1e9}}, "cluster.fabric.nic_bandwidth",
         "hand-written links state their own bandwidth"),
        ({"oversubscription": 2.0}, "cluster.oversubscription",
         "write the uplinks of each switch with their bandwidth and count"),
    ],
)  # fmt: skip
def test_words_that_written_links_say_already(changes: dict[str, Any], where: str, what: str) -> None:
    (found,) = problems(cluster(32, **{"fabric": LEAF_SPINE, **changes}))
    assert (found.where, found.what) == (where, f"says nothing here: {what}")


def test_four_dead_ends_are_named() -> None:
    ends = [("leaf0", name, NIC) for name in "abc"] + [("leaf1", name, NIC) for name in "de"]
    apart = wires(("gpu0-15", "leaf0", NIC), ("gpu16-31", "leaf1", NIC), *ends)
    (found,) = problems(cluster(32, fabric=apart))
    assert found.what == "gpu0 has no way to gpu16 over the hand-written links; switches with one neighbour: a, b, c, d"


def test_so_many_places_are_allowed_and_not_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_checks, "MOST_PLACES", 16)
    relax = "state a kind of fabric, or join GPUs to fewer of them"
    for gpus, told in ((16, []), (17, [f"more than 16 sets of switches that GPUs hang at; {relax}"])):
        last = gpus - 1
        star = wires((f"gpu0-{last}", f"nic0-{last}", NIC, {"pairwise": True}), (f"nic0-{last}", "core", NIC))
        assert [one.what for one in problems(cluster(gpus, 1, fabric=star))] == told
    chain = wires(("gpu0-15", "gpu1-16", NIC, {"pairwise": True}))
    (found,) = problems(cluster(17, 1, fabric=chain))
    assert found.what == f"more than 16 GPUs joined to GPUs; {relax}"


def test_refusals_in_full() -> None:
    need = "a share above 0, or a group that leaves it out, would relax it"
    lost = {"link": "scale-up", "gpu": 3, "share": 0}
    for spec, fabric, text in (
        (lost, TWO_TO_ONE, f"a scale-up link that the group of 32 ranks needs has failed; {need}"),
        (leaf(0), TWO_TO_ONE, f"a leaf's uplinks that the group of 32 ranks needs have failed; {need}"),
        ({"link": "uplink", "pod": 0, "share": 0}, TREE3,
         f"a pod's links to the core that the group of 32 ranks needs have failed; {need}"),
    ):  # fmt: skip
        with pytest.raises(InfeasibleError) as caught:
            faulty(32, spec, fabric=fabric)
        assert str(caught.value) == text
    with pytest.raises(InfeasibleError) as caught:
        group(cluster(16, fabric={"kind": "none"}), 9)
    assert str(caught.value) == (
        "9 ranks need more than one domain of 8 GPUs, but the fabric is 'none'; a fabric, or a smaller group, would"
        " relax it"
    )
    assert group(cluster(16, fabric={"kind": "none"}), 8).domains == 1
    with pytest.raises(UserError, match=r"^gpu inline: 2 ranks share a domain, but scale_up_bandwidth is not stated$"):
        group(cluster(8, scale_up_bandwidth=None), 2)


def test_dispatchers_and_formats_by_other_names() -> None:
    with pytest.raises(UnknownNameError, match=r"dispatcher 'deepep-norma'.*nearest: deepep-normal"):
        dispatcher("deepep-norma")
    assert nearest_dispatcher("DeepEP_Normal") == ("deepep-normal", "")
    found, note = nearest_dispatcher("somebody's own")
    assert note == f"library somebody's own: no law of its own, answered by {found}"
    assert nearest_format("torch.bfloat16")[0] == nearest_format("BF16")[0] == "bf16"
    guess, note = nearest_format("fp7")
    assert note == f"wire format fp7: no layout of its own, answered by {guess}"
    with pytest.raises(UnknownNameError, match="wire format 'fp7'"):
        payload_bytes("fp7", 1, 1, "dispatch")
    with pytest.raises(UnknownNameError, match="network model 'maxmin'"):
        dispatcher("hybrid-ep").times(
            balanced_demand(Choices(8, 2), 8, 8, 1.0), GROUPS["one-node"], Payload(1.0, 1.0), network="maxmin"
        )


def test_shapes_that_do_not_fit_are_our_bug() -> None:
    fine = np.zeros((8, 8))
    Demand(fine, fine, np.zeros((8, 2)), np.zeros(8), 4)
    Demand(fine, fine, np.zeros((8, 3)), np.zeros(8), 3)
    for copies, ranks, domains in (
        (np.zeros((7, 8)), np.zeros((7, 8)), np.zeros((8, 2))),
        (fine, np.zeros((8, 7)), np.zeros((8, 2))),
        (fine, fine, np.zeros((8, 1))),
        (np.zeros((2, 8, 8)), np.zeros((2, 8, 8)), np.zeros((8, 2))),
    ):
        with pytest.raises(InternalError, match="demand: "):
            Demand(copies, ranks, domains, np.zeros(8), 4)
    with pytest.raises(InternalError, match="a tier that the group does not have"):
        flows(np.zeros((8, 8)), np.ones((8, 8)), GROUPS["one-node"])


def test_flows_that_cannot_be() -> None:
    first, link = np.array([0, 1], np.int64), np.array([0], np.int32)
    for share in (-0.1, 1.1):
        with pytest.raises(UserError, match=r"from 0 \(exact\) to 1; got"):
            Fluid(np.ones(1), share)
    assert Fluid(np.ones(1), 1.0).resolution == 1.0
    for size in (-1.0, np.nan, np.inf):
        with pytest.raises(UserError, match="size: bytes of a flow are finite and not negative"):
            drain(np.ones(1), first, link, np.array([size]))
    with pytest.raises(UserError, match="begin: seconds of a flow are finite"):
        drain(np.ones(1), first, link, np.ones(1), np.array([np.nan]))
    for capacity in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(InfeasibleError, match=f"flows pass link 0, whose capacity is {capacity:g} bytes/s"):
            drain(np.array([capacity]), first, link, np.ones(1))
    assert drain(np.array([1.0, 0.0]), first, link, np.ones(1)).seconds == 1.0
