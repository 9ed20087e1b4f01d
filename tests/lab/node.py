"""A machine of the lab: its own network, mounts and processes, gone when the test is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from tests.waiting import until

T = TypeVar("T")

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}

UNPRIVILEGED = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
"""Before a command: it runs as a user who owns nothing."""

# The first process of a node does nothing but read its standard input, the other end of which is
# the test process's alone. When that end closes, be it by close() or by SIGKILL, the first process
# ends, and with it the kernel ends all others of the node and takes down its network and mounts.
# It ignores SIGCHLD so that orphans, such as a killed daemon, do not stay as zombies.
_FIRST_PROCESS = """
read -r pid _ </proc/self/stat
mount -t proc proc /proc
ip link set lo up
echo "$0" >/proc/sys/kernel/hostname
echo "$pid"
exec env --ignore-signal=CHLD cat >/dev/null
"""

_CLONE_NEWPID = 0x20000000
_libc = ctypes.CDLL(None, use_errno=True)


class Process(NamedTuple):
    """A process of a node. Between fork and exec it has its parent's notifications."""

    parent: int
    command: set[str]
    """The arguments of its command line, and the last component of each."""


def _look_at(process: Path) -> tuple[str, int, str]:
    """A process's state, its parent and its command line, which is empty in mid-exec."""
    state, parent, *_ = (process / "stat").read_text().rpartition(")")[2].split()
    return state, int(parent), (process / "cmdline").read_text(errors="replace")


@contextlib.contextmanager
def _children_in(pid: int) -> Iterator[None]:
    """Processes started meanwhile, by this thread, are started in the process namespace of `pid`.

    So a Popen is the program itself: signals and the exit status pass no go-between, as they would
    with `nsenter --pid`, which forks.
    """

    def enter(of: int | str) -> None:
        with open(f"/proc/{of}/ns/pid", "rb") as namespace:
            if _libc.setns(namespace.fileno(), _CLONE_NEWPID) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    enter(pid)
    try:
        yield
    finally:
        enter("self")


class Node:
    """A machine of the lab."""

    def __init__(self, name: str, workdir: Path) -> None:
        self.name = name
        self.workdir = workdir / name
        self.workdir.mkdir(parents=True)
        self._outputs: list[Path] = []
        self._started: list[subprocess.Popen[str]] = []
        self._cables: dict[str, tuple[Node, str]] = {}
        self._first = subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child",
             "sh", "-ec", _FIRST_PROCESS, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=ENVIRONMENT, cwd="/", start_new_session=True,
        )  # fmt: skip
        assert self._first.stdout is not None
        line = self._first.stdout.readline()
        if not line:
            raise RuntimeError(f"{name}: no namespaces: {self._first.communicate()[1]}")
        self.pid = int(line)
        """The node's first process, as the test process sees it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the node; its network and its mounts go with the last one."""
        assert self._first.stdin is not None
        self._first.stdin.close()
        # Ours to reap, and the kernel lets the first process end only after they are.
        for process in self._started:
            process.wait(timeout=60)
            if process.stdin:
                # What was still to be written has no reader any more.
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        self._first.wait(timeout=60)
        for pipe in (self._first.stdout, self._first.stderr):
            assert pipe is not None
            pipe.close()

    def _spawn(
        self,
        argv: tuple[str | os.PathLike[str], ...],
        env: Mapping[str, str] | None,
        stdin: int,
        stdout: int,
        stderr: int,
    ) -> subprocess.Popen[str]:
        with _children_in(self.pid):
            return subprocess.Popen(
                ["nsenter", f"--net=/proc/{self.pid}/ns/net", f"--mount=/proc/{self.pid}/ns/mnt",
                 f"--uts=/proc/{self.pid}/ns/uts", "--", *argv],
                stdin=stdin, stdout=stdout, stderr=stderr,
                text=True, env={**ENVIRONMENT, **(env or {})}, cwd="/", start_new_session=True,
            )  # fmt: skip

    def run(
        self,
        *argv: str | os.PathLike[str],
        check: bool = True,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the node to its end, as `subprocess.run` does."""
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        process = self._spawn(argv, env, stdin, subprocess.PIPE, subprocess.PIPE)
        with process:
            try:
                stdout, stderr = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                raise
        result = subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)
        if check and process.returncode != 0:
            error = subprocess.CalledProcessError(process.returncode, argv, stdout, stderr)
            error.add_note(f"on {self.name}:\n{stdout}{stderr}")
            raise error
        return result

    def start(
        self,
        *argv: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[str]:
        """Start a program that lives until it is signalled or the node is closed.

        The Popen is the program itself, so that SIGSTOP stops it and not a go-between. What it
        prints is in `output(process)` and in the report.
        """
        path = self.workdir / f"{len(self._outputs):02}-{Path(argv[0]).name}.log"
        with path.open("w") as output:
            process = self._spawn(argv, env, stdin, output.fileno(), subprocess.STDOUT)
        self._outputs.append(path)
        self._started.append(process)
        return process

    def output(self, process: subprocess.Popen[str]) -> str:
        """What a started program has printed by now."""
        return self._outputs[self._started.index(process)].read_text(errors="replace")

    def until(self, predicate: Callable[[], T], within: float = 20, what: str = "") -> T:
        """Wait for a fact: `until`, with the node's name in what is missed."""
        return until(predicate, within=within, what=f"{self.name}: {what}")

    def path(self, path: str) -> Path:
        """A file of the node, for the test process to read or to write."""
        # Resolved on the node: through /proc/PID/root a link such as /var/lock -> /run/lock would
        # lead to the file of the machine that runs the test.
        inside = self.run("realpath", "-m", "--", path).stdout.rstrip("\n")
        return Path(f"/proc/{self.pid}/root{inside}")

    def processes(self) -> dict[int, Process]:
        """The node's processes, by its own numbers."""
        found = {}
        for process in Path(f"/proc/{self.pid}/root/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it may be gone by now
                state, parent, line = _look_at(process)
                while not line and state not in "ZX":
                    state, parent, line = _look_at(process)  # it is just being executed
                arguments = line.split("\0")
                command = {*arguments, *(name.rpartition("/")[2] for name in arguments)}
                found[int(process.name)] = Process(parent, command)
        return found

    def pids(self, *arguments: str) -> list[int]:
        """The node's processes, by its own numbers, that have all these arguments."""
        return sorted(
            pid for pid, process in self.processes().items() if {*arguments} <= process.command
        )

    def signal(self, number: signal.Signals, *pids: int) -> None:
        """Signal processes of the node, by the numbers they have there."""
        self.run("kill", f"-{number.name.removeprefix('SIG')}", "--", *map(str, pids))

    def ip(self, *lines: str) -> None:
        """Run lines of `ip -batch` in the node's network, with the test's process numbers."""
        # Not run(): `netns PID` in a line means a process as the test sees it.
        subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", "-batch", "-"],
            input="\n".join(lines), text=True, env=ENVIRONMENT, check=True,
        )  # fmt: skip

    def plug(self, device: str, into: Node, port: str) -> None:
        """Lay a cable from a device of this node to a port of another, both new and up."""
        self.ip(
            f"link add {device} type veth peer name {port} netns {into.pid}",
            f"link set {device} up",
        )
        into.ip(f"link set {port} up")
        self._cables[device] = (into, port)
        into._cables[port] = (self, device)

    @property
    def ports(self) -> tuple[str, ...]:
        """The devices at which a cable ends."""
        return tuple(self._cables)

    def cut(self, *devices: str) -> None:
        """Pull cables, all of them if none is named: the carrier is lost on this side."""
        self._set_far_ends(devices, "down")

    def fix(self, *devices: str) -> None:
        """Plug cables in again, all of them if none is named."""
        self._set_far_ends(devices, "up")

    def _set_far_ends(self, devices: tuple[str, ...], state: str) -> None:
        # The far end: setting this one down would be an operator's `ip link set down`, which
        # also takes the routes away.
        for device in devices or self._cables:
            node, port = self._cables[device]
            node.ip(f"link set {port} {state}")

    def report(self) -> str:
        """All that the node's programs have printed, for whoever must explain a failure."""
        outputs = ((path.name, path.read_text(errors="replace")) for path in self._outputs)
        return "".join(f"--- {self.name}: {name}\n{text}\n" for name, text in outputs if text)
