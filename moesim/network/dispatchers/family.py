"""What all laws share: defaults, refusals, the group of one rank, and how far the answer can be trusted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from moesim.errors import InfeasibleError, UnknownNameError
from moesim.network.coefficients import law
from moesim.network.demand import Demand
from moesim.network.dispatchers.base import ExchangeTimes, Payload, PortTimes, nothing
from moesim.network.dispatchers.trust import trust
from moesim.network.fidelities import NETWORKS
from moesim.network.topology import GroupNetwork


@dataclass(frozen=True)
class Settings:
    """How an exchange is run: SMs given to it, the network model's name, and whether `notify` counts."""

    multiprocessors: int
    network: str
    notify: bool


class LawDispatcher(ABC):
    """A dispatcher whose times follow from a calibrated law; subclasses say where it runs and what the law is."""

    name: str
    settable: bool = True

    def calibration(self, group: GroupNetwork) -> str:
        """Name of the calibration that holds for this group: its own unless a law says otherwise."""
        return self.name

    def runs_on(self, group: GroupNetwork) -> str | None:
        """Why it cannot run on this group; None where it can: everywhere unless a law says otherwise."""
        return None

    def unfit(self, demand: Demand, group: GroupNetwork) -> str | None:
        """Meant for every demand unless a law says otherwise."""
        return None

    @abstractmethod
    def exchange(
        self, demand: Demand, group: GroupNetwork, payload: Payload, settings: Settings
    ) -> tuple[PortTimes, PortTimes]:
        """Dispatch and combine of a group of several ranks."""

    @property
    def default_multiprocessors(self) -> int:
        """SMs it takes unless told otherwise."""
        return int(law("multiprocessors").assumed(self.name))

    def multiprocessors(self, stated: int | None) -> int:
        """What is stated goes to those whose library has the setting."""
        return self.default_multiprocessors if stated is None or not self.settable else stated

    def times(
        self,
        demand: Demand,
        group: GroupNetwork,
        payload: Payload,
        multiprocessors: int | None = None,
        network: str = "port-load",
        notify: bool = True,
    ) -> ExchangeTimes:
        """Seconds by rank; see `Dispatcher`. Raises `InfeasibleError` where it does not run."""
        if network not in NETWORKS:
            raise UnknownNameError("network model", network, NETWORKS)
        used = self.multiprocessors(multiprocessors)
        if group.ranks == 1:
            return ExchangeTimes(*nothing(demand), "derived", 0.0, (), used)
        refusal = self.runs_on(group)
        if refusal is not None:
            raise InfeasibleError(refusal)
        there, back = self.exchange(demand, group, payload, Settings(used, network, notify))
        found = trust(group.law(self.calibration(group)), group, payload, used, self.unfit(demand, group))
        return ExchangeTimes(there, back, found.basis, found.relative, found.notes, used)


def needs_nvlink(name: str, group: GroupNetwork, or_like: tuple[str, ...] = ()) -> str | None:
    """The refusal of kernels that forward inside NVLink domains, `or_like` of these kinds; None where they run."""
    if group.ranks == 1:
        return None
    if group.kind not in ("nvlink", *or_like):
        return f"{name} needs NVLink between the GPUs of a domain, this group has {group.kind}"
    if group.ranks_per_domain < 2:
        return f"{name} needs at least 2 ranks of the group in a domain, this group has 1"
    return None


def needs_one_rack(name: str, group: GroupNetwork) -> str | None:
    """The refusal of kernels that write straight to every rank over NVLink; None where they run."""
    if group.domains > 1:
        return f"{name} needs all ranks in one NVLink domain, this group spans {group.domains}"
    return needs_nvlink(name, group)
