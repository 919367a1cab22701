"""The demo's network: a router and seven machines, a namespace each, joined by veth pairs.

    visitor ─┐                      ┌─ api ──► database, cache
    intruder ┴─ router (XDP here) ──┼─ frontend
                                    └─ dns

The router's end of each pair bears the machine's name and is what ztlens watches, on ingress only: every packet of a
machine is seen once, as it enters the router. The machine's end is `eth0` and stays down until `boot`, so that
nothing has been said before the datapath listens.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from ztlens.demo import netns


@dataclass(frozen=True)
class Machine:
    """A namespace with one interface; `number` is the third part of its addresses."""

    name: str
    number: int

    def address(self, family: int) -> str:
        """Its IPv4 (family 4) or IPv6 (family 6) address; policy.yaml names the same ones."""
        return f"10.77.{self.number}.10" if family == 4 else f"fd77:{self.number}::10"

    def gateway(self, family: int) -> str:
        """The router's address on its link."""
        return f"10.77.{self.number}.1" if family == 4 else f"fd77:{self.number}::1"


NAMES = ("frontend", "api", "database", "cache", "dns", "visitor", "intruder")
MACHINES = {name: Machine(name, number) for number, name in enumerate(NAMES, start=1)}
PREFIX_LENGTH = {4: 24, 6: 64}


class DemoNetwork:
    """The namespaces of one run. `prefix` makes their names its own: `<prefix>-router`, `<prefix>-api`, …"""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix or f"ztd{os.getpid()}"
        self.router = self.namespace("router")

    def namespace(self, name: str) -> str:
        """The full name of a machine's (or the router's) namespace."""
        return f"{self.prefix}-{name}"

    @property
    def namespaces(self) -> list[str]:
        """Every name `create` makes; what a clean-up has to take away."""
        return [self.namespace(name) for name in ("router", *MACHINES)]

    @property
    def interfaces(self) -> tuple[str, ...]:
        """The router's ends."""
        return tuple(MACHINES)

    def create(self) -> None:
        """Make router, machines and links; raises NetworkError, then nothing of it remains.

        A name that is taken is an error, and what bears it is not touched.
        """
        made: list[str] = []
        try:
            for name in self.namespaces:
                netns.add_namespace(name, router=name == self.router)
                made.append(name)
            netns.batch(self._links())
            netns.batch(self._router_addresses(), netns=self.router)
        except BaseException:
            _delete(made)
            raise

    def _links(self) -> Iterable[str]:
        for name in MACHINES:
            yield f"link add {name} netns {self.router} type veth peer name eth0 netns {self.namespace(name)}"

    def _router_addresses(self) -> Iterable[str]:
        for name, machine in MACHINES.items():
            for family, length in PREFIX_LENGTH.items():
                yield f"address add {machine.gateway(family)}/{length} dev {name}"
            yield f"link set {name} up"

    def boot(self) -> None:
        """Bring every machine's link up, with its addresses and default routes: from here on packets flow."""
        for name, machine in MACHINES.items():
            lines = [
                f"address add {machine.address(family)}/{length} dev eth0" for family, length in PREFIX_LENGTH.items()
            ]
            routes = [f"route add default via {machine.gateway(family)} dev eth0" for family in PREFIX_LENGTH]
            netns.batch([*lines, "link set eth0 up", *routes], netns=self.namespace(name))

    def delete(self) -> None:
        """Take every namespace away, as far as it is there. Raises NetworkError after having tried all."""
        _delete(self.namespaces)


def _delete(names: Iterable[str]) -> None:
    """Delete the router last: a machine's link goes with the machine."""
    first_error: netns.NetworkError | None = None
    for name in reversed(list(names)):
        try:
            netns.delete_namespace(name)
        except netns.NetworkError as error:
            first_error = first_error or error
    if first_error:
        raise first_error
