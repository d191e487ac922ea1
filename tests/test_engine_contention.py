"""Gradients and exchanges on the same ports: solved by hand, and what they do to a step."""

from __future__ import annotations

import numpy as np
import pytest
import simpy

import moesim
from moesim.engine.contention import SharedPorts, Wire, shares_ports
from moesim.step.model import StepModel

ACROSS_NODES = {
    "model": "mixtral-8x7b",
    "cluster": {"gpu": "h100-sxm", "gpus": 64, "gpus_per_domain": 4},
    "parallelism": {"expert": 8, "pipeline": 2},
    "workload": {"global_batch": 64, "sequence_length": 2048},
    "dispatcher": {"kind": "deepep-normal"},
    "overlap": {"expert_communication": True},
    "simulation": {"microbatch_samples": 1},
}


def step(network: str, **changes: object) -> float:
    document = {**ACROSS_NODES, **changes}
    settings = {"microbatch_samples": 1, "network": network}
    scenario = moesim.load({**document, "simulation": settings})
    return moesim.simulate(scenario, even_if_infeasible=True).summary["step_time"].value


def beside(asked: Wire, reduction: float, after: float = 0.0) -> tuple[SharedPorts, tuple[np.ndarray, np.ndarray]]:
    env = simpy.Environment()
    ports = SharedPorts(env, np.full(len(asked.send), reduction))
    found: list[tuple[np.ndarray, np.ndarray]] = []

    def exchange() -> object:
        yield env.timeout(after)
        began = env.now
        ends = yield ports.exchange(asked)
        found.append(ports.delays(asked, began, ends))

    env.process(exchange())
    env.run()
    ports.network.check()
    return ports, found[0]


def wire(send: float, receive: float, elsewhere: float = 0.0, ranks: int = 2) -> Wire:
    return Wire(*(np.full(ranks, value) for value in (send, receive, elsewhere, elsewhere)))


def test_both_take_half_a_port_until_the_shorter_one_ends() -> None:
    ports, (sends, receives) = beside(wire(1.0, 1.0), 2.0)
    assert sends == pytest.approx([1.0, 1.0])  # one second of work at half the rate
    assert receives == pytest.approx([1.0, 1.0])
    assert ports.delay == pytest.approx(1.0)  # three seconds of work in all


def test_what_comes_when_the_reduction_is_nearly_over_is_hardly_late() -> None:
    ports, (sends, _) = beside(wire(4.0, 4.0), 2.0, after=1.5)
    assert sends == pytest.approx([0.5, 0.5])
    assert ports.delay == pytest.approx(0.5)


def test_the_fuller_port_holds_the_reduction_up() -> None:
    """A flow through an outward and an inward port is as slow as the slower one; 1 s is left after 2 s at half rate."""
    ports, (sends, receives) = beside(wire(1.0, 0.25), 2.0)
    assert receives == pytest.approx([0.25, 0.25])
    assert sends == pytest.approx([1.0, 1.0])
    assert ports.delay == pytest.approx(1.0)


def test_a_delay_that_other_links_hide_is_not_felt() -> None:
    _, (sends, _) = beside(wire(1.0, 1.0, elsewhere=1.6), 2.0)
    assert sends == pytest.approx([0.4, 0.4])
    _, (sends, _) = beside(wire(1.0, 1.0, elsewhere=5.0), 2.0)
    assert sends == pytest.approx([0.0, 0.0])


def test_a_step_is_longer_the_more_is_shared() -> None:
    ideal, port_load, flows = (step(name) for name in ("ideal", "port-load", "max-min"))
    assert ideal < port_load < flows
    assert flows < 1.2 * port_load


def test_reduction_and_exchanges_meet_only_where_they_use_the_same_links() -> None:
    def meets(**changes: object) -> bool:
        document = {**ACROSS_NODES, "simulation": {"network": "max-min"}, **changes}
        return shares_ports(StepModel(moesim.load(document)), 0)

    assert meets()
    assert not meets(simulation={"network": "port-load"})
    assert not meets(overlap={"expert_communication": True, "data_parallel": False})
    # Experts inside one NVLink domain, gradients between domains: nothing shared.
    assert not meets(cluster={"gpu": "h100-sxm", "gpus": 64})


def test_the_estimate_takes_the_busiest_port_whatever_the_simulation_does() -> None:
    documents = ({**ACROSS_NODES, "simulation": {"network": name}} for name in ("port-load", "max-min"))
    plain, flows = (moesim.estimate(moesim.load(item), even_if_infeasible=True) for item in documents)
    assert flows.summary["step_time"].value == plain.summary["step_time"].value


def test_only_the_end_of_an_exchange_depends_on_others_flows() -> None:
    """A rank's own dispatch is what its ports carry, however long it waits for links that others use."""
    document = {**ACROSS_NODES, "overlap": {"data_parallel": False}, "routing": {"load": {"zipf": 0.6}}}
    found = []
    for network in ("port-load", "max-min"):
        settings = {"microbatch_samples": 1, "network": network}
        scenario = moesim.load({**document, "simulation": settings})
        found.append(moesim.simulate(scenario, even_if_infeasible=True))
    plain, flows = (result.summary["combine_time"].value for result in found)
    assert flows == pytest.approx(plain, rel=1e-9)
    assert any("max-min" in note for note in found[1].notes)
    assert not any("max-min" in note for note in found[0].notes)


def test_contention_grows_with_what_the_shared_links_carry() -> None:
    """One interface for four GPUs, or one at a quarter of its rate: both collectives take it four times as long."""

    def late(**changes: object) -> float:
        cluster = {**ACROSS_NODES["cluster"], **changes}  # type: ignore[dict-item]
        return step("max-min", cluster=cluster) - step("port-load", cluster=cluster)

    healthy = late()
    assert late(nics_per_domain=1) > 2.5 * healthy
    assert late(degraded=[{"link": "nic", "gpu": 0, "share": 0.25}]) > 1.5 * healthy
