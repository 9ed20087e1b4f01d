"""Reading a site file: TOML, and each of its values by itself."""

import re
import tomllib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, ip_address, ip_interface
from typing import Any

import voluptuous as vol

from primary_backup.site.checks import contradictions
from primary_backup.site.model import (
    MODES,
    WIRINGS,
    Address,
    Forward,
    Interface,
    Node,
    Segment,
    Site,
    no_host,
)
from primary_backup.system.printable import printable


class SiteError(Exception):
    """The site file is wrong; each argument is one line for a person."""


def read_site(text: str) -> Site:
    """Read a site file (TOML); raises SiteError with a line for everything that is wrong."""
    try:
        values = _SCHEMA(tomllib.loads(text))
    except RecursionError as error:
        raise SiteError("not a site: nested too deeply") from error
    except vol.MultipleInvalid as errors:
        raise SiteError(*(_line(error) for error in errors.errors)) from errors
    except ValueError as error:  # TOMLDecodeError, and a number of more than 4300 digits
        raise SiteError(printable(f"not TOML: {error}")) from error
    site = Site(
        values["wiring"],
        values["mode"],
        Segment(**{**values["outside"], "vips": tuple(values["outside"]["vips"])}),
        Segment(**{**values["inside"], "vips": tuple(values["inside"]["vips"])}),
        values["link"]["interface"],
        values["link"]["port"],
        tuple(
            Node(each["name"], tuple(each["outside"]), tuple(each["inside"]), each["link"])
            for each in values["node"]
        ),
        tuple(Forward(each["port"], *each["to"]) for each in values["forward"]),
    )
    wrong = tuple(contradictions(site))
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
    if wrong := no_host(_address(str(interface.ip)), interface.network):
        raise vol.Invalid(wrong)
    return interface


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


def _one_of(*names: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in names:
            raise vol.Invalid(f"{value!r} is none of {', '.join(names)}")
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
    # The next one is that of the followers' reports. Where net.ipv4.ip_local_port_range begins: the
    # kernel lets ip_unprivileged_port_start reach it and refuses more (EINVAL).
    if port >= 32767:
        raise vol.Invalid(
            f"{port} and the next one cannot be kept for root, because the kernel gives ports from"
            " 32768 on to every program: take one below 32767"
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
        "extra keys not allowed": "unknown key: remove it, or correct its spelling",
        "required key not provided": "is missing",
    }.get(error.msg, error.msg)
    return printable(f"{where}: {what}")
