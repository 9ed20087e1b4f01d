"""Two booted machines between the lab's client and server, set up as in the README."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple, Self

from tests.lab.firewall import KEY, Firewall
from tests.lab.node import Node
from tests.lab.pair import DEDICATED_LINK, Pair, Wiring
from tests.lab.traffic import Traffic
from tests.waiting import until

from .machine import TREES, Disk, Machine

ROOT = Path(__file__).parents[2]
SECTION = "A pair from nothing in ten minutes"
CONNECTIONS = 20


def commands(wiring: Wiring) -> list[str]:
    """What an operator types on each machine: the lines of the README's section that are code.

    Whoever wires hooks reports it in the site file, and has no follower to start.
    """
    lines = re.findall(r"^ {4}(\S.*)$", _section(), re.MULTILINE)
    assert lines, f"the README has no commands under {SECTION!r}"
    if wiring == "hooks":
        lines = [re.sub(r"^(systemctl .*?) ftfw-transition\b", r"\1", line) for line in lines]
        lines = [line for line in lines if not line.endswith(" /etc/default/")]
        example = next(n for n, line in enumerate(lines) if line.endswith(">site.toml"))
        lines.insert(example + 1, """sed -i 's/^wiring = "fifo"/wiring = "hooks"/' site.toml""")
    return lines


def again() -> str:
    """What an operator types on fw-1 once fw-2 is there, where no follower does it."""
    (command,) = re.findall(r"type `(ftfw-transition primary)` there", _section())
    return str(command)


def removal() -> str:
    """What an operator types to be rid of the drop-ins: the README's line, in its section."""
    (line,) = re.findall(r"^`(rm /etc/systemd/.*)`$", _section(), re.MULTILINE)
    return str(line)


def _section() -> str:
    _, _, section = (ROOT / "README.md").read_text().partition(f"\n## {SECTION}\n")
    return section.partition("\n## ")[0]


class Live(NamedTuple):
    """Connections through the pair of every kind that must survive a failover."""

    translated: Traffic
    inbound: Traffic
    ipv6: Traffic

    def alive(self) -> tuple[int, int, int]:
        """How many of each echo something sent from now on."""
        return self.translated.alive(), self.inbound.alive(), self.ipv6.alive()

    def finish(self) -> tuple[int, int, int]:
        """Ask a last time, and close them."""
        one, two, three = (each.finish()["alive"] for each in self)
        return one, two, three


ALL_ALIVE = (CONNECTIONS, CONNECTIONS, CONNECTIONS)


class Machines(Pair):
    """Two machines: `trees` are those of fw-1 and fw-2, `deb` lies in each one's /root."""

    fw1: Machine
    fw2: Machine

    def __init__(self, workdir: Path, trees: tuple[str, str], deb: Path, wiring: Wiring) -> None:
        super().__init__(workdir, Path(), wiring=wiring)
        self._trees = dict(zip(DEDICATED_LINK, trees, strict=True))
        self.deb = deb
        self._boots = 0
        self.files: dict[str, set[str]] = {}
        """What was on each machine before anything was installed."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._link = stack.enter_context(Node("link", self.workdir))
            self._link.ip("link add br0 type bridge stp_state 0", "link set br0 up")
            super().__enter__()
            self._stack.push(stack.pop_all())
        return self

    def _lay_link(self) -> None:
        """Nothing is left to do: `_install` has plugged it in."""

    def _install(self, firewall: Firewall, host: int) -> None:
        super()._install(firewall, host)
        # Two cables and a switch that nobody notices: the end of a cable that is a pair of
        # devices would go with the machine that holds the other, and conntrackd never miss it.
        firewall.plug("eth2", self._link, firewall.name)
        self._link.ip(f"link set {firewall.name} master br0")

    def _firewall(self, name: str, packaging: Path) -> Machine:  # noqa: ARG002  # rendered there
        disk = Disk(self.workdir / f"disk-{name}", TREES / self._trees[name])
        disk.write(f"/root/{self.deb.name}", self.deb)
        return self._machine(name, disk)

    def _machine(self, name: str, disk: Disk) -> Machine:
        self._boots += 1
        return Machine(name, self.workdir / f"boot-{self._boots}", disk)

    @property
    def both(self) -> tuple[Machine, Machine]:
        """The machines, in the order in which they are switched on."""
        return self.fw1, self.fw2

    def set_up(self) -> None:
        """Type the README's commands, on fw-1 and then on fw-2."""
        self.files = {machine.name: machine.files() for machine in self.both}
        for machine in self.both:
            for line in commands(self.wiring):
                machine.shell(line, timeout=120)
            machine.until(lambda machine=machine: machine.last(), 20, "has its first record")  # type: ignore[misc]
        if self.wiring == "fifo":
            self._share_key()
        if self.wiring == "hooks":
            # The README's line for a pair without followers: fw-1 was alone until now.
            self.both[0].shell(again())
        self.settled()

    def _share_key(self) -> None:
        """Make a key on fw-1, and copy it to fw-2, as the README has it."""
        first, second = self.both
        first.shell("ftfw-transition key")
        key = shlex.quote(first.shell(f"cat {KEY}"))
        second.shell(f"install -d {os.path.dirname(KEY)} && umask 077 && printf %s {key} >{KEY}")

    def settled(self, within: float = 30) -> tuple[Machine, Machine]:
        """Wait until one is primary and one is backup, in sync; these two."""

        def roles() -> tuple[Machine, Machine] | None:
            for primary, backup in (self.both, self.both[::-1]):
                if (
                    primary.is_master()
                    and primary.stands("primary")
                    and backup.stands("backup")
                    # Not equal: what ends while conntrackd is down is reported to nobody.
                    and primary.internal() <= backup.external()
                ):
                    return primary, backup
            return None

        found = until(roles, within=within, what="one is primary, and one is backup and in sync")
        assert found
        return found

    def open(self) -> Live:
        """Open connections of every kind, and wait until the backup has all of them."""
        _, backup = self.settled()
        live = Live(
            self.open_connections(CONNECTIONS),
            self.open_inbound(CONNECTIONS),
            self.open_ipv6(CONNECTIONS),
        )
        backup.until(lambda: backup.external() >= sum(ALL_ALIVE), 10, "has a copy of each")
        return live

    def echo(self, text: str) -> str:
        """Send a datagram of one and the same flow from client to server; what comes back."""
        return self.client.run(
            "python3", "-c", _ECHO, "192.0.2.10", str(UDP_PORT), text, timeout=10
        ).stdout  # fmt: skip

    def start_echo(self) -> None:
        """Have the server answer datagrams."""
        echo = self.server.start("python3", "-c", _ECHO_SERVER, str(UDP_PORT))
        self.server.until(lambda: self.server.output(echo), what="the server listens")

    def power_off(self, machine: Machine) -> None:
        """Cut a machine's power; the other's end of the dedicated link loses its carrier."""
        (other,) = (each for each in self.both if each is not machine)
        machine.power_off()
        other.cut("eth2")

    def shut_down(self, machine: Machine) -> None:
        """Let a machine end in order, as for a reboot, and then be without power."""
        machine.shut_down()
        self.power_off(machine)

    def switch_on(self, dead: Machine) -> Machine:
        """Give a machine that is off its power again: its disk is as it was left.

        A new one stands for it, with cables of its own.
        """
        machine = self._stack.enter_context(self._machine(dead.name, dead.disk))
        if dead is self.fw1:
            self.fw1, other = machine, self.fw2
        else:
            self.fw2, other = machine, self.fw1
        self._install(machine, 2 if machine is self.fw1 else 3)
        self._address_link(machine)
        other.fix("eth2")
        machine.up()
        return machine

    def report(self) -> str:
        """All that the machines have to tell."""
        return "".join(node.report() for node in (*self.both, self.client, self.server))


UDP_PORT = 5353
_ECHO = """
import socket, sys
_, address, port, text = sys.argv
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flow:
    flow.bind(("", 40000))
    flow.settimeout(5)
    flow.sendto(text.encode(), (address, int(port)))
    print(flow.recv(100).decode(), end="")
"""
_ECHO_SERVER = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("", int(sys.argv[1])))
    print("listening", flush=True)
    while True:
        data, sender = server.recvfrom(100)
        server.sendto(data, sender)
"""
