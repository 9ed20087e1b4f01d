"""One site: the few values that two firewalls' configuration files are made of."""

import re
import tomllib
from collections.abc import Callable, Iterator
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
)
from itertools import combinations
from typing import Any, NamedTuple

import voluptuous as vol

from primary_backup.system.printable import printable

WIRINGS = ("fifo", "hooks")
MODES = ("ftfw", "direct", "notrack", "alarm")

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface
"""An address with the length of its network's prefix."""


class SiteError(Exception):
    """The site file is wrong; each argument is one line for a person."""


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


def read_site(text: str) -> Site:
    """Read a site file (TOML); raises SiteError with a line for everything that is wrong."""
    try:
        said = _SCHEMA(tomllib.loads(text))
    except RecursionError as error:
        raise SiteError("not a site: nested too deeply") from error
    except vol.MultipleInvalid as errors:
        raise SiteError(*(_line(error) for error in errors.errors)) from errors
    except ValueError as error:  # TOMLDecodeError, and a number of more than 4300 digits
        raise SiteError(printable(f"not TOML: {error}")) from error
    site = Site(
        said["wiring"],
        said["mode"],
        Segment(**{**said["outside"], "vips": tuple(said["outside"]["vips"])}),
        Segment(**{**said["inside"], "vips": tuple(said["inside"]["vips"])}),
        said["link"]["interface"],
        said["link"]["port"],
        tuple(
            Node(each["name"], tuple(each["outside"]), tuple(each["inside"]), each["link"])
            for each in said["node"]
        ),
        tuple(Forward(each["port"], *each["to"]) for each in said["forward"]),
    )
    wrong = tuple(_contradictions(site))
    if wrong:
        raise SiteError(*wrong)
    return site


# What conntrackd, which has no quotes, reads as something else than a name.
_NO_NAME = re.compile(
    r"""
    [0-9a-fA-F]{1,4}  # an address (d0)
    | (?i: alarm|ftfw|nack|no|notrack|off|on|persistent|yes )
    # Its keywords, as far as they are short enough for an interface.
    | ACKWindowSize|Accept|Address|Backlog|CLOSE|CLOSED|CLOSE_WAIT|CacheTimeout|Checksum|
    CommitTimeout|Default|ESTABLISHED|ExpectMax|ExpectTimeout|ExpectationSync|FIN_WAIT|
    Filter|From|General|Group|HashLimit|HashSize|Helper|IPv4_address|IPv4_interface|
    IPv6_address|IPv6_interface|Ignore|Interface|Kernelspace|LAST_ACK|LISTEN|LockFile|
    LogFile|Mode|Multicast|Nice|Options|Path|Policy|PollSecs|Port|Priority|Protocol|
    PurgeTimeout|QueueLen|QueueNum|RcvSocketBuffer|RefreshTime|ResendQueueSize|SYN_RECV|
    SYN_SENT|Scheduler|SndSocketBuffer|StartupResync|State|Stats|Sync|Syslog|Systemd|TCP|
    TIME_WAIT|Type|UDP|UNIX|Userspace|for
    """,
    re.VERBOSE,
)


# -- each value by itself -----------------------------------------------------------------------


def _parsed(parse: Callable[[str], Any], what: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        # No value of a site has a `%`, and what follows it in an IPv6 address may be anything.
        if isinstance(value, str) and "%" not in value:
            try:
                return parse(value)
            except ValueError:
                pass
        raise vol.Invalid(f"{value!r} is not {what}")

    return check


def _address(text: str) -> Address:
    address = ip_address(text)
    for kind in ("unspecified", "loopback", "multicast"):
        if getattr(address, f"is_{kind}"):
            raise vol.Invalid(f"{address} is {kind}: no host of a network has it")
    if address.version == 6 and address.is_link_local:
        raise vol.Invalid(f"{address} is link-local: give one that is routed")
    return address


def _with_prefix(text: str) -> Interface:
    if "/" not in text:
        raise ValueError(text)
    interface = ip_interface(text)
    if wrong := _no_host(_address(str(interface.ip)), interface.network):
        raise vol.Invalid(wrong)
    return interface


def _no_host(address: Address, network: Network) -> str:
    """Why no host of this network can have that address; empty where one can."""
    if network.prefixlen < network.max_prefixlen - 1:  # else it is two hosts and nothing more
        if address == network.network_address:
            return f"{address} is the address of the network {network} itself"
        if address == network.broadcast_address and address.version == 4:
            return f"{address} is the broadcast address of {network}"
    return ""


def _with_prefix4(text: str) -> IPv4Interface:
    return IPv4Interface(str(_with_prefix(text)))


def _target(text: str) -> tuple[IPv4Address, int]:
    host, _, port = text.rpartition(":")
    if not 1 <= int(port) <= 65535:
        raise ValueError(port)
    return IPv4Address(str(_address(host))), int(port)


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?", text):
        raise ValueError(text)
    return text


def _device(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,14}", text) or _NO_NAME.fullmatch(text):
        raise ValueError(text)
    return text


def _one_of(*words: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in words:
            raise vol.Invalid(f"{value!r} is none of {', '.join(words)}")
        return value

    return check


def _whole(least: int, most: int) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not int or not least <= value <= most:
            raise vol.Invalid(f"{value!r} is no whole number from {least} to {most}")
        return value

    return check


def _port_of_root(value: Any) -> Any:
    port = _whole(1, 65535)(value)
    # Where net.ipv4.ip_local_port_range begins: the kernel lets ip_unprivileged_port_start reach it
    # and refuses more (EINVAL).
    if port >= 32768:
        raise vol.Invalid(
            f"{port} cannot be kept for root, because the kernel gives ports from 32768 on to every"
            " program: take one below"
        )
    return port


_INTERFACE = _parsed(_device, "the name of a network interface that conntrackd can read")
_ADDRESSES = [_parsed(_with_prefix, "an address with a prefix length, as in 10.10.0.2/24")]
_SEGMENT = {
    vol.Required("interface"): _INTERFACE,
    vol.Required("vrid"): _whole(1, 255),
    vol.Required("vips"): [_parsed(_address, "an address without a prefix length")],
}
_SCHEMA = vol.Schema(
    {
        vol.Optional("wiring", default="fifo"): _one_of(*WIRINGS),
        vol.Optional("mode", default="ftfw"): _one_of(*MODES),
        vol.Required("outside"): _SEGMENT,
        vol.Required("inside"): _SEGMENT,
        vol.Required("link"): {
            vol.Required("interface"): _INTERFACE,
            vol.Optional("port", default=3780): _port_of_root,
        },
        vol.Required("node"): [
            {
                vol.Required("name"): _parsed(_name, "a host name"),
                vol.Required("outside"): _ADDRESSES,
                vol.Required("inside"): _ADDRESSES,
                vol.Required("link"): _parsed(
                    _with_prefix4, "an IPv4 address with a prefix length, as in 10.99.99.1/30"
                ),
            }
        ],
        vol.Optional("forward", default=list): [
            {
                vol.Required("port"): _whole(1, 65535),
                vol.Required("to"): _parsed(
                    _target, "an IPv4 address and a port, as 10.10.0.10:80"
                ),
            }
        ],
    }
)


def _line(error: vol.Invalid) -> str:
    where = ".".join(str(part + 1 if isinstance(part, int) else part) for part in error.path)
    what = {
        "extra keys not allowed": "unknown key: remove it, or mend its spelling",
        "required key not provided": "is missing",
    }.get(error.msg, error.msg)
    return printable(f"{where}: {what}")


# -- all of them together -----------------------------------------------------------------------


def _contradictions(site: Site) -> Iterator[str]:
    if len(site.nodes) != 2:
        yield f"node: a pair has two, here are {len(site.nodes)}"
        return
    first, second = site.nodes
    if first.name == second.name:
        yield f"node: both are named {first.name}"
    elif first.name.lower() == second.name.lower():
        yield f"node: {first.name} and {second.name} differ in nothing but case"
    interfaces = (site.outside.interface, site.inside.interface, site.link)
    if len(set(interfaces)) < len(interfaces):
        yield f"outside, inside and link share an interface: {', '.join(interfaces)}"
    yield from _of_segment("outside", site.outside, first.outside, second.outside)
    yield from _of_segment("inside", site.inside, first.inside, second.inside)
    if first.link.network != second.link.network:
        yield f"link: {first.link} and {second.link} are not in one network"
    yield from _overlaps(first)
    yield from _twice(site)
    for forward in site.forwards:
        networks = [each.network for each in first.inside if forward.to in each.network]
        if not networks:
            yield f"forward: {forward.to} lies outside of the inside network"
        elif wrong := _no_host(forward.to, networks[0]):
            yield f"forward: {wrong}"
        elif str(forward.to) in _given(site):
            yield f"forward: {forward.to} is an address of the firewalls themselves"


def _overlaps(node: Node) -> Iterator[str]:
    networks = [("outside", each.network) for each in node.outside]
    networks += [("inside", each.network) for each in node.inside]
    networks += [("link", node.link.network)]
    for (one, network), (other, second) in combinations(networks, 2):
        # Of two families, neither is within the other.
        if one != other and (network.network_address in second or second[0] in network):
            yield f"{one} and {other} overlap: {network} and {second}"


def _of_segment(
    name: str, segment: Segment, ours: tuple[Interface, ...], theirs: tuple[Interface, ...]
) -> Iterator[str]:
    for number, each in ((1, ours), (2, theirs)):
        versions = sorted(address.version for address in each)
        if versions not in ([4], [4, 6]):
            yield f"node.{number}.{name}: one IPv4 address is needed, and at most one of IPv6"
    networks = {each.network for each in ours}
    if networks != {each.network for each in theirs}:
        yield f"{name}: the two nodes' addresses are not in the same networks"
    if not segment.vips4:
        yield f"{name}.vips: VRRP needs one of IPv4 at least"
    for vip in segment.vips:
        if not any(vip in network for network in networks):
            yield f"{name}.vips: {vip} lies outside of the nodes' network"
        told = filter(None, (_no_host(vip, network) for network in networks))
        yield from (f"{name}.vips: {wrong}" for wrong in told)


def _given(site: Site) -> list[str]:
    given = [str(vip) for vip in (*site.outside.vips, *site.inside.vips)]
    for node in site.nodes:
        given += [str(each.ip) for each in (*node.outside, *node.inside, node.link)]
    return given


def _twice(site: Site) -> Iterator[str]:
    given = _given(site) + [f"port {forward.port}" for forward in site.forwards]
    yield from (f"{each} is given twice" for each in sorted(set(given)) if given.count(each) > 1)
