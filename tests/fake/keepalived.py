"""Real keepalived processes in a network namespace, for the tests that ask them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from primary_backup.keepalived.dump import Unknown
from primary_backup.keepalived.guard import objection
from primary_backup.keepalived.notify import Followed
from primary_backup.keepalived.state import Keepalived, VrrpState
from primary_backup.plan import State
from primary_backup.proof import Outcome
from tests.lab.node import Node
from tests.waiting import until

GROUP = Followed("GROUP", "G1")
VI_1 = Followed("INSTANCE", "VI_1")
MASTER = {"VI_1": State.PRIMARY}
BACKUP = {"VI_1": State.BACKUP}
WITHIN = 10
"""Seconds for what takes a tenth of one on a machine with nothing else to do."""
# Priority 255 is master at once, and a backup that awaits a notification every 40 s stays one.
_INSTANCE = """
vrrp_instance {name} {{
    interface {device}
    version 3
    virtual_router_id {number}
    priority {priority}
    advert_int {advert}
    virtual_ipaddress {{
        10.9.0.{number}/32
    }}
}}
"""
DUMP = """[{
    "data": {"iname": "VI_1", "state": 2, "last_transition": 1700000000.5},
    "stats": {"become_master": 1}
}]"""
"""What would make a backup a master, if it were believed."""
INSTALLED = Keepalived("/usr/sbin/keepalived")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Place(Node):
    """A node with two networks, one of them up, and a /run of its own."""

    def __init__(self, name: str, workdir: Path) -> None:
        super().__init__(name, workdir)
        self.run("mount", "-t", "tmpfs", "none", "/run")
        self.run("mkdir", "/run/tmp")
        self.ip(
            "link add up0 type veth peer name up1",
            "link set up0 up",
            "link set up1 up",
            "address add 10.9.0.254/24 dev up0",
            "link add down0 type veth peer name down1",
        )
        self.files = Path(f"/proc/{self.pid}/root/run")
        self._keepaliveds = 0

    def keepalived(
        self,
        instances: Mapping[str, State],
        program: str | Path = "keepalived",
        *,
        tmpdir: str | None = "/run/tmp",
        advert: float = 40,
    ) -> subprocess.Popen[str]:
        """Start one whose instances will be in these states."""
        self._keepaliveds += 1
        name = f"keepalived-{self._keepaliveds}"
        text = "".join(
            _INSTANCE.format(
                name=instance,
                device="down0" if state is State.FAULT else "up0",
                number=10 * self._keepaliveds + number,
                priority=255 if state is State.PRIMARY else 100,
                advert=advert,
            )
            for number, (instance, state) in enumerate(instances.items())
        )
        (self.files / f"{name}.conf").write_text(text)
        return self.start(
            program, "--dont-fork", "--vrrp", "--log-console", "--no-syslog",
            "--use-file", f"/run/{name}.conf",
            "--pid", f"/run/{name}.pid", "--vrrp_pid", f"/run/{name}-vrrp.pid",
            env={} if tmpdir is None else {"TMPDIR": tmpdir},
        )  # fmt: skip

    def is_master(self) -> bool:
        """Whether the first address of the first keepalived is held."""
        return bool(self.run("ip", "-o", "address", "show", "to", "10.9.0.10").stdout)

    def master(self) -> subprocess.Popen[str]:
        """Start one, and wait until it is master."""
        process = self.keepalived(MASTER)
        self.until(self.is_master, WITHIN, "is master")
        return process

    @contextmanager
    def network(self) -> Iterator[None]:
        """Be in this node's network; the files are those of the test."""
        with (
            open("/proc/self/ns/net", "rb") as before,
            open(f"/proc/{self.pid}/ns/net", "rb") as there,
        ):
            assert _libc.setns(there.fileno(), _CLONE_NEWNET) == 0
            try:
                yield
            finally:
                assert _libc.setns(before.fileno(), _CLONE_NEWNET) == 0

    def awaits(self, fact: Callable[[], bool]) -> None:
        """Wait until keepalived reports so."""

        def reported() -> bool:
            with self.network(), suppress(Unknown):
                return fact()
            return False

        self.until(reported, WITHIN, "keepalived is what it was to be")

    def asked(self, followed: Followed = GROUP, *, keepalived: Keepalived = INSTALLED) -> VrrpState:
        """What keepalived reports; on a busy machine it may not answer in time: asked again."""
        for _ in range(20):
            with suppress(SilenceError):
                return self.asked_once(followed, keepalived=keepalived)
        raise SilenceError

    def asked_once(
        self, followed: Followed = GROUP, *, keepalived: Keepalived = INSTALLED
    ) -> VrrpState:
        """What keepalived reports, if it answers."""
        try:
            with self.network():
                return keepalived.vrrp_state(followed)
        except Unknown as error:
            if "wrote no dump" in str(error):
                raise SilenceError from error
            raise

    def objection(self, keepalived: Keepalived = INSTALLED) -> str | None:
        """Why nothing may be purged."""
        with self.network():
            verdict = objection(keepalived)
        assert verdict is None or (verdict.outcome is Outcome.DEGRADED and verdict.advice)
        return verdict.reason if verdict else None

    def answer(self, keepalived: Keepalived = INSTALLED) -> str | None:
        """The same, once keepalived answers: on a busy machine it is asked again."""
        for _ in range(20):
            reported = self.objection(keepalived)
            if reported is None or "wrote no dump" not in reported:
                return reported
        raise SilenceError

    @contextmanager
    def stopped(self, *processes: int) -> Iterator[None]:
        """For a while, these do nothing."""
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        until(lambda: {*map(state, processes)} == {"T"}, within=WITHIN, what="they are stopped")
        try:
            yield
        finally:
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @contextmanager
    def held_up(self, *command: str, env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
        """A program that cannot go on, because it writes into a FIFO that is full."""
        fifo = self.files / "full"
        os.mkfifo(fifo)
        full = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while True:
                os.write(full, bytes(4096))
        arguments = ["sh", "-c", 'exec "$@" >/run/full 2>&1', "sh", *command]
        process = self.start(*arguments, env=env)
        until(lambda: program(process) == "keepalived", within=WITHIN, what="it is started")
        until(lambda: state(process.pid) == "S", within=WITHIN, what="it waits")
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            os.close(full)


class SilenceError(Exception):
    """keepalived does not answer in time."""


def state(pid: int) -> str:
    """The state of a process, a letter of proc(5)'s."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def program(process: subprocess.Popen[str]) -> str:
    """The name of the program that a process runs."""
    return Path(f"/proc/{process.pid}/exe").readlink().name


def child(process: subprocess.Popen[str]) -> int:
    """The process of keepalived that does the work."""

    def found() -> str:
        return subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
        ).stdout

    return int(until(found, within=WITHIN, what="keepalived works"))
