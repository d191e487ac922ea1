"""What a user meets who writes links by hand or breaks some: messages that say what, where, allowed and nearest."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from test_network_links import LEAF_SPINE, PLANES, RAILS_ALONE, RING, TORUS, TREE3, faulty, wires
from test_network_topology import NIC, TWO_TO_ONE, cluster, gpu

from moesim.errors import InfeasibleError
from moesim.network.links import problems
from moesim.network.topology import degraded_note, group
from moesim.specs.cluster import ClusterSpec
from moesim.specs.explain import explain
from moesim.specs.links import LinkSpec, nodes


def complaints(**changes: Any) -> list[str]:
    """What the specs alone say of a cluster."""
    document = {"gpu": gpu().model_dump(), "gpus": 16, "gpus_per_domain": 8, "fabric": {"kind": "none"}, **changes}
    with pytest.raises(ValidationError) as caught:
        ClusterSpec.model_validate(document)
    return [str(problem) for problem in explain(caught.value, ClusterSpec)]


@pytest.mark.parametrize(
    ("link", "text"),
    [
        ({"between": ["gpu7-0", "leaf0"], "bandwidth": 1e9}, "'gpu7-0' runs backwards; nearest: gpu0-7"),
        ({"between": ["gpu", "leaf0"], "bandwidth": 1e9}, "'gpu' names no GPU; allowed: gpu5, or gpu0-7"),
        ({"between": ["gpu-1", "leaf0"], "bandwidth": 1e9}, "'gpu-1' names no node; allowed: gpu5"),
        ({"between": ["gpu0"], "bandwidth": 1e9}, "between: expected the two ends of a link, such as"),
        ({"between": ["gpu0-4", "leaf0-2"], "bandwidth": 1e9, "pairwise": True}, "5 nodes are not a multiple of 3"),
        ({"between": ["gpu0", "leaf0"]}, "fabric.links.0.bandwidth: is required"),
        ({"between": ["gpu0", "leaf0"], "bandwidth": "400 GB"}, "'GB' is a unit of B"),
        ({"between": ["gpu0-4000000", "leaf0-4"], "bandwidth": 1e9}, "more than 1048576 links"),
    ],
)
def test_a_link_that_makes_no_sense_is_told_in_one_line(link: dict[str, Any], text: str) -> None:
    found = complaints(fabric={"kind": "links", "links": [link]})
    assert any(text in line and "\n" not in line for line in found), found


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"link": "nic", "share": 0.5}, "link nic needs gpu: NUMBER, got none"),
        ({"link": "nik", "gpu": 1, "share": 0.5}, "'nik' is not known; nearest: nic"),
        ({"share": 0.5}, "needs either link (nic, scale-up, uplink or plane) or between"),
        ({"link": "uplink", "gpu": 1, "share": 0.5}, "link uplink needs leaf or pod: NUMBER, got gpu"),
        ({"link": "nic", "gpu": 1}, "degraded.0.share: is required"),
        ({"link": "nic", "gpu": 1, "share": 2}, "must be at most 1.0, got 2"),
        ({"link": "nic", "gpu": 1, "share": 1e-160}, "share: must be 0 for a failed link, or at least 1e-06"),
        ({"between": ["leaf0", "leaf1"], "gpu": 1, "share": 0}, "between names the link; gpu says nothing here"),
        ({"between": ["leaf0"], "share": 0}, "between: expected the two ends of a link, such as [gpu0-7, leaf0], got"),
    ],
)
def test_a_degraded_link_that_makes_no_sense_is_told_in_one_line(spec: dict[str, Any], text: str) -> None:
    found = complaints(degraded=[spec])
    assert any(text in line and "\n" not in line for line in found), found


@pytest.mark.parametrize(
    ("fabric", "text"),
    [
        ({"kind": "links"}, "kind links needs its links"),
        ({"kind": "fat-tree", "links": [{"between": ["a", "b"], "bandwidth": 1e9}]}, "links are for kind links"),
        ({"kind": "single-switch", "levels": 3}, "levels 3 is for fat-tree, dual-plane, rail-optimized"),
        ({"kind": "fat-tree", "upper_oversubscription": 2.0}, "upper_oversubscription needs levels: 3"),
    ],
)
def test_a_fabric_states_only_what_its_kind_has(fabric: dict[str, Any], text: str) -> None:
    assert any(text in line for line in complaints(fabric=fabric))


NO_SPINE = wires(("gpu0-15", "leaf0", NIC), ("gpu16-31", "leaf1", NIC), ("leaf0", "leaf01x", NIC))
ONE_SHORT = wires(("gpu0-6", "leaf0", NIC))
ODD = wires(("gpu0-599", "nic0-599", NIC, {"pairwise": True}), ("nic0-599", "core", NIC))


@pytest.mark.parametrize(
    ("changes", "where", "text"),
    [
        ({"gpus": 16, "fabric": LEAF_SPINE}, "cluster.fabric.links.1.between", "gpu16-31: the cluster has 16 GPUs"),
        (
            {"gpus": 32, "fabric": NO_SPINE},
            "cluster.fabric.links",
            "gpu0 has no way to gpu16 over the hand-written links; switches with one neighbour: leaf01x",
        ),
        ({"gpus": 16, "fabric": ONE_SHORT, "domain": 1}, "cluster.fabric.links", "gpu7 has no link"),
        ({"gpus": 32, "fabric": LEAF_SPINE, "nic_bandwidth": 1e9}, "cluster.nic_bandwidth", "says nothing here"),
        ({"gpus": 600, "domain": 1, "fabric": ODD}, "cluster.fabric.links", "more than 512 sets of switches"),
    ],
)
def test_a_network_that_does_not_join_the_gpus_is_refused(changes: dict[str, Any], where: str, text: str) -> None:
    gpus = changes.pop("gpus")
    found = [problem for problem in problems(cluster(gpus, **changes)) if problem.where == where]
    assert any(text in problem.what for problem in found)


@pytest.mark.parametrize(
    ("fabric", "spec", "where", "text"),
    [
        (TWO_TO_ONE, {"link": "nic", "gpu": 55, "share": 0}, "gpu", "55: the cluster has 32 GPUs; allowed: 0 to 31"),
        (TWO_TO_ONE, {"link": "uplink", "leaf": 2, "share": 0}, "leaf", "the cluster has 2 leaf switches"),
        (TWO_TO_ONE, {"link": "uplink", "pod": 0, "share": 0}, "pod", "a tree of two levels has no pods"),
        (TREE3, {"link": "uplink", "pod": 2, "share": 0}, "pod", "the cluster has 2 pods"),
        (TREE3, {"link": "plane", "plane": 0, "share": 0}, "", "a fabric of kind fat-tree has no planes"),
        (PLANES, {"link": "plane", "plane": 2, "share": 0}, "plane", "nearest: 1"),
        (LEAF_SPINE, {"link": "uplink", "leaf": 0, "share": 0}, "", "name a hand-written link as between"),
        (LEAF_SPINE, {"between": ["leaf0", "spin1"], "share": 0}, "between", "no node spin1; nearest: spine1"),
        (LEAF_SPINE, {"between": ["gpu0", "leaf1"], "share": 0}, "between", "no link joins gpu0 and leaf1"),
        (TWO_TO_ONE, {"between": ["gpu0", "gpu1"], "share": 0}, "between", "names hand-written links, or links of"),
        ({"kind": "none"}, {"link": "nic", "gpu": 0, "share": 0}, "", "a fabric of kind none has no NICs"),
    ],
)
def test_a_degraded_link_that_is_not_there_is_refused(
    fabric: dict[str, Any], spec: dict[str, Any], where: str, text: str
) -> None:
    found = problems(cluster(32, fabric=fabric, degraded=(spec,)))
    assert [problem.where for problem in found] == [f"cluster.degraded.0.{where}".rstrip(".")]
    assert text in found[0].what


@pytest.mark.parametrize("fabric", [TWO_TO_ONE, TREE3, PLANES, LEAF_SPINE, RAILS_ALONE])
def test_sound_clusters_have_no_problems(fabric: dict[str, Any]) -> None:
    assert problems(cluster(32, fabric=fabric, degraded=({"link": "nic", "gpu": 3, "share": 0},))) == []


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (({"link": "nic", "gpu": gpu, "share": 0} for gpu in range(8)), "domain 0 of the group has no NIC left"),
        ([{"link": "scale-up", "gpu": 3, "share": 0}], "a scale-up link"),
    ],
)
def test_a_group_that_failed_links_cut_off_is_infeasible(network: Any, text: str) -> None:
    with pytest.raises(InfeasibleError, match=text) as caught:
        faulty(16, *network)
    assert "would relax it" in str(caught.value)


def test_failed_uplinks_planes_and_written_links_are_infeasible_only_where_they_are_needed() -> None:
    lost = {"link": "uplink", "leaf": 0, "share": 0}
    with pytest.raises(InfeasibleError, match="leaf's uplinks"):
        faulty(32, lost, fabric=TWO_TO_ONE)
    assert faulty(32, lost, ranks=16, fabric=TWO_TO_ONE).fair_nic_rate == NIC
    with pytest.raises(InfeasibleError, match="pod's links to the core"):
        faulty(64, {"link": "uplink", "pod": 0, "share": 0}, fabric=TREE3)
    with pytest.raises(InfeasibleError, match="all 2 planes"):
        faulty(32, *({"link": "plane", "plane": plane, "share": 0} for plane in (0, 1)), fabric=PLANES)
    with pytest.raises(InfeasibleError, match="gpu0 has no way to gpu16"):
        faulty(32, {"between": ["leaf0", "spine0-3"], "share": 0}, fabric=LEAF_SPINE)
    with pytest.raises(InfeasibleError, match="gpu3 has no link left"):
        faulty(8, {"link": "nic", "gpu": 3, "share": 0}, domain=1, fabric=RING)


MESH: dict[str, Any] = {"scale_up_kind": "xgmi"}
SLICE: dict[str, Any] = {"domain": 32, "fabric": {"kind": "torus", "torus_shape": (4, 4, 4)}, **TORUS}


@pytest.mark.parametrize(
    ("gpus", "changes", "between", "text"),
    [
        (
            16,
            {"domain": 16, **TORUS},
            ("gpu0", "gpu5"),
            "no neighbours on the torus of 4 x 4; neighbours of gpu0: gpu1",
        ),
        (32, {"domain": 16, **TORUS}, ("gpu16", "gpu21"), "neighbours of gpu16: gpu17, gpu19, gpu20, gpu28"),
        (32, {"domain": 16, **TORUS}, ("gpu15", "gpu16"), "no link joins gpu15 and gpu16: they share no domain"),
        (32, SLICE, ("gpu0", "gpu2"), "torus of 4 x 4 x 4; neighbours of gpu0: gpu1, gpu3, gpu4, gpu12, gpu16"),
        (16, MESH, ("gpu7", "gpu8"), "no link joins gpu7 and gpu8: they share no domain"),
    ],
)
def test_gpus_that_no_link_joins_are_refused(
    gpus: int, changes: dict[str, Any], between: tuple[str, str], text: str
) -> None:
    found = problems(cluster(gpus, degraded=({"between": between, "share": 0.5},), **changes))
    assert [problem.where for problem in found] == ["cluster.degraded.0.between"]
    assert text in found[0].what


@pytest.mark.parametrize("between", [("gpu0", "gpu1"), ("gpu3", "gpu0"), ("gpu12", "gpu0"), ("gpu0-3", "gpu4-7")])
def test_neighbours_on_a_torus_may_be_named(between: tuple[str, str]) -> None:
    assert problems(cluster(16, 16, degraded=({"between": between, "share": 0.5},), **TORUS)) == []


@pytest.mark.parametrize(
    ("links", "text"),
    [
        ([("gpu0", "leaf0", NIC, {"one_way": True})], "gpu0: links lead out of it, none into it; a second link"),
        ([("leaf0", "gpu0", NIC, {"one_way": True})], "gpu0: links lead into it, none out of it"),
        ([("leaf0", "gpu0-2", NIC, {"one_way": True}), ("gpu0", "leaf0", NIC, {"one_way": True})], "gpu1 and 1 more"),
    ],
)
@pytest.mark.parametrize(("gpus", "domain"), [(16, 8), (16, 1), (8, 8)])
def test_a_gpu_with_links_one_way_only_is_refused_in_any_cluster(links: Any, text: str, gpus: int, domain: int) -> None:
    """Also where a neighbour could take in for it, and where the links are idle: the mistake is in the writing."""
    first = 3 if text.startswith("gpu1") else 1
    fabric = wires(*links, (f"gpu{first}-{gpus - 1}", "leaf0", NIC))
    found = problems(cluster(gpus, domain, fabric=fabric))
    assert [problem.where for problem in found] == ["cluster.fabric.links"]
    assert text in found[0].what


def test_a_failed_way_in_is_told_as_such() -> None:
    fabric = wires(("gpu0-15", "leaf0", NIC, {"one_way": True}), ("core", "gpu0-15", NIC, {"one_way": True}),
                   ("leaf0", "core", NIC, {"one_way": True}))  # fmt: skip
    with pytest.raises(InfeasibleError, match="gpu3 has no link left that leads into it"):
        faulty(16, {"between": ["core", "gpu3"], "share": 0}, domain=1, fabric=fabric)


@pytest.mark.parametrize("of_fabric", [True, False])
def test_written_links_have_no_oversubscription(of_fabric: bool) -> None:
    fabric = {**LEAF_SPINE, "oversubscription": 2.0} if of_fabric else LEAF_SPINE
    (problem,) = problems(cluster(32, fabric=fabric, **({} if of_fabric else {"oversubscription": 1.0})))
    assert problem.where == ("cluster.fabric.oversubscription" if of_fabric else "cluster.oversubscription")
    assert "says nothing here: write the uplinks" in problem.what


def test_the_group_with_the_fault_is_the_one_simulated() -> None:
    """GPU 13 is rank 5 of the second group of 8; on hand-written links that very group is taken."""
    assert faulty(32, {"link": "nic", "gpu": 21, "share": 0.5}, ranks=16).own_nic_rates[5] == NIC / 2
    spec = {"link": "nic", "gpu": 29, "share": 0.5}
    written = faulty(32, spec, ranks=4, domain=1, fabric=LEAF_SPINE)
    assert list(written.gpu) == [28, 29, 30, 31]
    leaves = [(f"gpu{8 * leaf}-{8 * leaf + 7}", f"leaf{leaf}", NIC) for leaf in range(4)]
    split = wires(*leaves, ("leaf0-3", "core", NIC))
    spine = {"between": ["leaf3", "core"], "share": 0.5}
    assert faulty(32, spine, ranks=16, domain=1, fabric=split).first_gpu == 16


def test_an_answer_says_what_is_degraded() -> None:
    assert degraded_note(group(cluster(16), 16)) is None
    faults = ({"link": "nic", "gpu": 5, "share": 0.5}, {"link": "scale-up", "gpu": 3, "share": 0.8})
    assert degraded_note(faulty(16, *faults)) == (
        "degraded: nic of gpu 5 at 50%, scale-up of gpu 3 at 80%;"
        " the group simulated is taken to be the one that holds them"
    )


def test_ranges_are_written_out_in_order() -> None:
    assert nodes("leaf0-2").names == ["leaf0", "leaf1", "leaf2"]
    assert nodes("GPU3").are_gpus
    assert nodes("core").names == ["core"]
    rails = LinkSpec.model_validate({"between": ["gpu0-3", "rail0-1"], "bandwidth": "400 Gb/s", "pairwise": True})
    assert rails.pairs == [("gpu0", "rail0"), ("gpu1", "rail1"), ("gpu2", "rail0"), ("gpu3", "rail1")]
    every = LinkSpec.model_validate({"between": ["leaf0-1", "spine0-1"], "bandwidth": 50e9})
    assert every.pairs == [("leaf0", "spine0"), ("leaf0", "spine1"), ("leaf1", "spine0"), ("leaf1", "spine1")]
    assert (rails.number, every.number, rails.bandwidth) == (4, 4, 50e9)
