"""Two firewalls between an inside and an outside, wired as the shipped files expect it.

    client .10 --- inside 10.10.0.0/24 --- eth1 fw-1 eth0 --- outside 192.0.2.0/24 --- server .10
                   fd00:10::/64            .2   eth2  .2      2001:db8:2::/64
                            |                    |  10.99.99.0/30    |
                            |              .3   eth2  .3             |
                            +------------- eth1 fw-2 eth0 -----------+

`python -m tests.lab.pair COMMAND` brings one up and waits, to be poked at by hand.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

from tests.waiting import until

from .firewall import CONNTRACKD_CONF, KEEPALIVED_CONF, RULESET, SYSCTL, Firewall
from .node import Node
from .traffic import Traffic

PACKAGING = Path(__file__).parents[2] / "packaging"
DEDICATED_LINK = {"fw-1": "10.99.99.1", "fw-2": "10.99.99.2"}

Edit = Mapping[str, str]
"""Texts of a shipped file, each with the text that takes its place on both firewalls."""

AS_SHIPPED: Edit = MappingProxyType({})

Wiring = Literal["hooks", "fifo"]
"""How keepalived shows: it starts a program, or a follower reads its FIFO."""
Mode = Literal["ftfw", "direct", "notrack", "alarm"]
"""Which of the shipped files conntrackd reads."""
CONNTRACKD = {
    "ftfw": "conntrackd/conntrackd.conf",
    "direct": "conntrackd/conntrackd-direct.conf",
    "notrack": "conntrackd/conntrackd-notrack.conf",
    "alarm": "conntrackd/conntrackd-alarm.conf",
}
KEEPALIVED = {"hooks": "keepalived/keepalived-hooks.conf", "fifo": "keepalived/keepalived.conf"}


def _edited(path: Path, edit: Edit) -> str:
    text = path.read_text()
    for old, new in edit.items():
        if old not in text:
            raise ValueError(f"{path} does not contain {old!r}")
        text = text.replace(old, new)
    return text


class Pair:
    """A pair of firewalls, with `client` on the inside and `server` on the outside.

    `conntrackd` may also be the text of a whole file, in which @OWN@ and @PEER@ stand for the two
    firewalls' addresses on the dedicated link.
    """

    fw1: Firewall
    fw2: Firewall
    client: Node
    server: Node

    def __init__(
        self,
        workdir: Path,
        command: Path,
        *,
        conntrackd: Edit | str = AS_SHIPPED,
        keepalived: Edit = AS_SHIPPED,
        nftables: Edit = AS_SHIPPED,
        wiring: Wiring = "hooks",
        mode: Mode = "ftfw",
    ) -> None:
        self.workdir = workdir
        self.command = command
        self.wiring = wiring
        self.mode = mode
        self._conntrackd = conntrackd
        self._keepalived = keepalived
        self._nftables = nftables
        self._traffic = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.fw1 = stack.enter_context(self._firewall("fw-1", PACKAGING))
            self.fw2 = stack.enter_context(self._firewall("fw-2", PACKAGING / "fw-2"))
            self._outside, self._inside, self.client, self.server = (
                stack.enter_context(Node(name, self.workdir))
                for name in ("outside", "inside", "client", "server")
            )
            self._wire()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _firewall(self, name: str, packaging: Path) -> Firewall:
        if isinstance(self._conntrackd, str):
            (peer,) = (address for node, address in DEDICATED_LINK.items() if node != name)
            conntrackd = self._conntrackd.replace("@OWN@", DEDICATED_LINK[name])
            conntrackd = conntrackd.replace("@PEER@", peer)
        else:
            conntrackd = _edited(packaging / CONNTRACKD[self.mode], self._conntrackd)
        keepalived = _edited(packaging / KEEPALIVED[self.wiring], self._keepalived)
        ruleset = _edited(packaging / "nftables/ftfw.nft", self._nftables)
        files = {
            CONNTRACKD_CONF: conntrackd,
            KEEPALIVED_CONF: keepalived,
            RULESET: ruleset,
            SYSCTL: (PACKAGING / "sysctl.d/ftfw.conf").read_text(),
        }
        return Firewall(name, self.workdir, self.command, files)

    def _wire(self) -> None:
        for switch in (self._outside, self._inside):
            # No snooping: adverts are multicast, and nobody here asks for membership.
            switch.ip("link add br0 type bridge stp_state 0 mcast_snooping 0", "link set br0 up")
        self._install(self.fw1, 2)
        self._install(self.fw2, 3)
        self._lay_link()
        self.server.plug("eth0", self._outside, "server")
        self.client.plug("eth0", self._inside, "client")
        self._outside.ip("link set server master br0")
        self._inside.ip("link set client master br0")
        self.server.ip(
            "address add 192.0.2.10/24 dev eth0",
            "address add 2001:db8:2::10/64 dev eth0 nodad",
            "route add fd00:10::/64 via 2001:db8:2::1",
        )
        self.client.ip(
            "address add 10.10.0.10/24 dev eth0",
            "address add fd00:10::10/64 dev eth0 nodad",
            "route add default via 10.10.0.1",
            "route add default via fd00:10::1",
        )
        for firewall in (self.fw1, self.fw2):
            self._address_link(firewall)
            firewall.up()

    def _install(self, firewall: Firewall, host: int) -> None:
        for device, switch in (("eth0", self._outside), ("eth1", self._inside)):
            firewall.plug(device, switch, firewall.name)
            switch.ip(f"link set {firewall.name} master br0")
        firewall.ip(
            f"address add 192.0.2.{host}/24 dev eth0",
            f"address add 10.10.0.{host}/24 dev eth1",
            f"address add 2001:db8:2::{host}/64 dev eth0 nodad",
            f"address add fd00:10::{host}/64 dev eth1 nodad",
        )

    def _lay_link(self) -> None:
        self.fw1.plug("eth2", self.fw2, "eth2")

    def _address_link(self, firewall: Firewall) -> None:
        firewall.ip(f"address add {DEDICATED_LINK[firewall.name]}/30 dev eth2")

    def start(self) -> Self:
        """Start all daemons; fw-1 is primary, fw-2 its backup, and both have been made it."""
        for firewall in (self.fw1, self.fw2):
            firewall.start_conntrackd()
            if self.wiring == "fifo":
                firewall.start_follower()
        # One after the other: at the same time, 8 ms of skew would decide who is first.
        self.fw1.start_keepalived()
        until(self.fw1.is_master, within=20, what="fw-1 is master")
        self.fw2.start_keepalived()
        self.fw1.until(lambda: self.fw1.was_made("primary"), 10, "has been made primary")
        self.fw2.until(lambda: self.fw2.was_made("backup"), 20, "has been made backup")
        return self

    def open_connections(self, count: int) -> Traffic:
        """Open TCP connections from client to server that exchange data until they are finished."""
        return self._open("192.0.2.10", count)

    def open_ipv6(self, count: int) -> Traffic:
        """The same over IPv6, where nothing is translated."""
        return self._open("2001:db8:2::10", count)

    def _open(self, address: str, count: int) -> Traffic:
        self._traffic += 1
        return Traffic(self.client, self.server, address, 8000 + self._traffic, count)

    def open_inbound(self, count: int) -> Traffic:
        """The same from server to client, through the port of the virtual address that leads in."""
        return Traffic(
            self.server, self.client, "192.0.2.1", 8080, count, listens=("10.10.0.10", 80)
        )

    def report(self) -> str:
        """All that the pair's programs have printed and logged."""
        return "".join(node.report() for node in (self.fw1, self.fw2, self.client, self.server))


Lab = Callable[..., Pair]
"""Builds a pair that lives as long as the test, as the fixture `lab` does."""

if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as directory,
        Pair(Path(directory), Path(sys.argv[1])) as pair,
    ):
        pair.start()
        for node in (pair.fw1, pair.fw2, pair.client, pair.server):
            print(f"{node.name}: nsenter --all --target {node.pid}")
        input("Press Enter to tear the lab down. ")
