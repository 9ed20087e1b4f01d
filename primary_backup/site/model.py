"""One site: the few values that two firewalls' configuration files are made of."""

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import NamedTuple

WIRINGS = ("fifo", "hooks")
MODES = ("ftfw", "direct", "notrack", "alarm")

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface
"""An address with the length of its network's prefix."""


class Segment(NamedTuple):
    """A network that both firewalls are routers of."""

    interface: str
    vrid: int
    """VRRP's virtual router id."""
    vips: tuple[Address, ...]

    @property
    def vips4(self) -> tuple[Address, ...]:
        """The virtual addresses that the adverts hold."""
        return tuple(vip for vip in self.vips if vip.version == 4)

    @property
    def vips6(self) -> tuple[Address, ...]:
        """Those that move with them."""
        return tuple(vip for vip in self.vips if vip.version == 6)


class Node(NamedTuple):
    """One firewall."""

    name: str
    outside: tuple[Interface, ...]
    inside: tuple[Interface, ...]
    link: IPv4Interface
    """Its address on the dedicated link."""

    @property
    def inside4(self) -> Interface:
        """Its IPv4 address on the inside."""
        return next(each for each in self.inside if each.version == 4)

    @property
    def inside6(self) -> Interface | None:
        """Its IPv6 address on the inside, where the inside has IPv6."""
        return next((each for each in self.inside if each.version == 6), None)


class Forward(NamedTuple):
    """A TCP port of the first outside virtual address, forwarded to a host on the inside."""

    port: int
    to: IPv4Address
    to_port: int


class Site(NamedTuple):
    """The pair; the first node is the preferred one."""

    wiring: str
    mode: str
    outside: Segment
    inside: Segment
    link: str
    """The interface of the dedicated link."""
    port: int
    """The UDP port of the replication."""
    nodes: tuple[Node, ...]
    forwards: tuple[Forward, ...]

    @property
    def report_port(self) -> int:
        """The UDP port of the followers' reports."""
        return self.port + 1


def no_host(address: Address, network: Network) -> str:
    """Why no host of a network can have that address; empty where one can."""
    if network.prefixlen < network.max_prefixlen - 1:  # else it is two hosts and nothing more
        if address == network.network_address:
            return f"{address} is the address of the network {network} itself"
        if address == network.broadcast_address and address.version == 4:
            return f"{address} is the broadcast address of {network}"
    return ""
