"""A node with the installed hook and a fake conntrackd, in namespaces of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from primary_backup.system.proc import TICKS_PER_SECOND, boot_seconds
from tests.waiting import until

HOOK = Path(sys.executable).with_name("ftfw-transition")
CLIENT = Path(__file__).with_name("conntrackd")
CONF = """\
General {{
    LockFile {world}/lock
    UNIX {{
        Path {world}/ctl
    }}
}}
Sync {{
    {mode}
    UDP {{
        Port 3780
    }}
}}
"""
# Neither this machine's log nor its systemd may be asked; a terminal comes with its descriptor.
# Devices of its own are on a file system of its own: /tmp may be one without any (nodev).
_FURNISH = """
mount -t tmpfs -o mode=755 none {dev}
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom {dev}
mount --bind {dev} /dev
mount -t tmpfs none /run
echo ready
exec {sleep} infinity
"""


def is_running(pid: int) -> bool:
    """Whether a process exists, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def later() -> None:
    """Wait until the clock by which starts are reported has moved on."""
    now = int(boot_seconds() * TICKS_PER_SECOND)
    until(lambda: boot_seconds() * TICKS_PER_SECOND > now + 1, "the clock moves on")


class Ended(NamedTuple):
    """What came of one hook."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What was reported on stderr to a person."""
        return [line for line in self.err.splitlines() if not line.startswith("{")]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was logged, to stderr where there is no other log."""
        return [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]

    @property
    def event(self) -> dict[str, Any]:
        """The final event."""
        event = self.events[-1]
        assert event["message"] == "transition.finished", self.err
        return event

    def step(self, name: str) -> dict[str, Any]:
        """One step of the final event."""
        steps: list[dict[str, Any]] = self.event["steps"]
        return next(step for step in steps if step["name"] == name)


class Hook:
    """One invocation on its way."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid

    def wait(self, within: float = 60) -> Ended:
        """Wait for its end."""
        out, err = self.process.communicate(timeout=within)
        return Ended(self.process.returncode, (out or b"").decode(), (err or b"").decode())

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def stopped(self) -> bool:
        """Whether it is stopped by a signal."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"


class Follower(Hook):
    """A resident follower on its way; its log is a file, which is read while it runs."""

    def __init__(self, process: subprocess.Popen[bytes], fifo: Path, whose: str, log: Path) -> None:
        super().__init__(process)
        self.fifo = fifo
        self._whose = whose
        self._log = log

    def wait(self, within: float = 60) -> Ended:
        """Wait for its end."""
        return super().wait(within)._replace(err=self._log.read_text())

    def send(self, *states: str) -> None:
        """Write keepalived's notifications for whom it follows, all at once."""
        self.write("".join(f"{self._whose} {state} 0\n" for state in states).encode())

    def write(self, lines: bytes) -> None:
        """Write anything into its FIFO, as fast as it is read."""
        with self.fifo.open("wb", buffering=0) as fifo:
            while lines:
                lines = lines[fifo.write(lines) :]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it has logged so far."""
        whole, _, _ = self._log.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    @property
    def transitions(self) -> list[dict[str, Any]]:
        """How each transition ended so far."""
        return [event for event in self.events if event["message"] == "transition.finished"]

    def finished(self, number: int, within: float = 20) -> dict[str, Any]:
        """Wait until so many transitions have ended; how that one did."""
        until(lambda: len(self.transitions) >= number, f"transition {number} ends", within)
        return self.transitions[number - 1]

    def reported(
        self, name: str, reason: str = "", number: int = 1, within: float = 20
    ) -> dict[str, Any]:
        """Wait for so many events of that name, with that in their reason; the last of them."""

        def found() -> list[dict[str, Any]]:
            return [
                event
                for event in self.events
                if event["message"] == name and reason in event["reason"]
            ]

        until(lambda: len(found()) >= number, f"{name} {reason}", within)
        return found()[number - 1]

    def goes_round(self) -> None:
        """Wait until it has looked at everything at least once more."""
        for _ in range(2):  # the first may have come when it had looked already
            before = sum(event["message"] == "conf.read" for event in self.events)
            self.signal(signal.SIGHUP)
            self.reported("conf.read", number=before + 1)

    @property
    def descriptors(self) -> int:
        """How many files it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    @property
    def cpu_ticks(self) -> int:
        """How long it has worked, without its clients."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    @property
    def resident_kib(self) -> int:
        """How much memory it takes now."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])


class Node:
    """One node; its world, which the fake client reads and writes, is the directory ``world``."""

    def __init__(self, path: Path) -> None:
        self.world = path / "world"
        self.run_dir = path / "run"
        self.config = self.world / "conntrackd.conf"
        self.fifo = path / "notify.fifo"
        self.socket = self.world / "ctl"
        self.client = CLIENT
        self._hooks: list[Hook] = []
        (self.world / "on").mkdir(parents=True)
        self.socket.touch()  # whose identity is the daemon's
        self.configure("Mode FTFW { }")
        self.has(peer=1)
        (path / "dev").mkdir()
        furnish = _FURNISH.format(dev=path / "dev", sleep=shutil.which("sleep"))
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-ec", furnish],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        assert self._holder.stdout is not None
        ready = self._holder.stdout.readline()
        self._holder.stdout.close()
        assert ready == b"ready\n", "a node needs namespaces of its own"

    def close(self) -> None:
        """End whatever still runs here."""
        for hook in self._hooks:
            if not hook.ended:
                hook.process.kill()
            hook.process.communicate()
        for pid in self.clients_left:
            os.kill(pid, signal.SIGKILL)
        self._holder.kill()
        self._holder.wait()

    # -- the world --------------------------------------------------------------------------

    def configure(self, sync: str, path: Path | None = None) -> None:
        """Write a conntrackd.conf with these settings in its Sync section."""
        (path or self.config).write_text(CONF.format(world=self.world, mode=sync))

    def has(self, **numbers: int) -> None:
        """Give the world numbers: internal, external, holds, peer (1: it lives), queued."""
        for name, number in numbers.items():
            (self.world / name).write_text(f"{number}\n")

    def number(self, name: str) -> int:
        """One of the world's numbers."""
        return int((self.world / name).read_text())

    def on(self, request: str, do: str) -> None:
        """Let the client do something else at a request: sh, see the client."""
        (self.world / "on" / request).write_text(do + "\n")

    def release(self, name: str) -> None:
        """Let a client go on that waits until released."""
        (self.world / name).touch()

    def _calls(self) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in (self.world / "calls").read_text().splitlines()]
        except FileNotFoundError:
            return []

    @property
    def calls(self) -> list[str]:
        """Every request that the client was started for: its options in one string."""
        return [" ".join(call["argv"][2:]) for call in self._calls()]

    @property
    def asked(self) -> list[str]:
        """The requests that change something."""
        return [call for call in self.calls if not call.startswith("-s")]

    @property
    def clients(self) -> list[int]:
        """The process ids of all clients that were started."""
        return [call["pid"] for call in self._calls()]

    @property
    def clients_left(self) -> list[int]:
        """Those that still run; a number may be another process's by now."""
        mine = str(self.world)
        return [pid for pid in self.clients if is_running(pid) and mine in self._cmdline(pid)]

    # -- the hook ---------------------------------------------------------------------------

    def arguments(self, *arguments: str) -> list[str]:
        """The hook's command line, with this node's paths before the arguments."""
        return [
            str(HOOK),
            *("--config", str(self.config)),
            *("--conntrackd", str(self.client)),
            *("--run-dir", str(self.run_dir)),
            *arguments,
        ]

    def start(self, *arguments: str, **popen: Any) -> Hook:
        """Start a hook as keepalived would."""
        return self.spawn(self.arguments(*arguments), **popen)

    def spawn(
        self,
        arguments: Iterable[str | bytes],
        environment: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> Hook:
        """Start any program in this node's namespaces."""
        process = subprocess.Popen(
            ["nsenter", "--target", str(self._holder.pid), "--net", "--mount", *arguments],
            env={"PATH": os.environ["PATH"], **(environment or {})},
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                **popen,
            },
        )
        self._hooks.append(Hook(process))
        return self._hooks[-1]

    def follow(
        self,
        *whose: str,
        fifo: Path | None = None,
        environment: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> Follower:
        """Start a follower, by default of the group G1; it has opened its FIFO."""
        kind, name = whose or ("GROUP", "G1")
        fifo = fifo or self.fifo
        log = self.world / f"follow.{len(self._hooks)}.log"
        arguments = self.arguments("follow", f"--{kind.lower()}", name, str(fifo))
        with log.open("wb") as stderr:
            hook = self.spawn(
                arguments, environment, **{"stdout": subprocess.DEVNULL, "stderr": stderr, **popen}
            )
        follower = Follower(hook.process, fifo, f'{kind} "{name}"', log)
        self._hooks[-1] = follower
        until(
            lambda: (
                follower.ended or any(e["message"] == "follow.started" for e in follower.events)
            ),
            "the follower follows",
        )
        return follower

    def run(self, *arguments: str, **popen: Any) -> Ended:
        """Run a hook to its end."""
        return self.start(*arguments, **popen).wait()

    def sh(self, script: str) -> None:
        """Run a script in this node's namespaces, which must succeed."""
        ended = self.spawn(["sh", "-ec", script]).wait()
        assert ended.code == 0, ended.err

    # -- what a hook leaves -----------------------------------------------------------------

    @property
    def last(self) -> str:
        """The record of the last transition, as it stands in the run directory."""
        return (self.run_dir / "last.json").read_text()

    def shows(self, state: str) -> bool:
        """Whether an invocation for this state has shown that it waits or works."""
        return any(self.run_dir.glob(f"ticket.*.{state}"))

    def log_socket(self) -> socket.socket:
        """Put up a log, as journald does; whoever asks for it reads it, or does not."""
        log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        log.bind(f"/proc/{self._holder.pid}/root/dev/log")
        log.settimeout(5)
        return log

    @staticmethod
    def _cmdline(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return ""
