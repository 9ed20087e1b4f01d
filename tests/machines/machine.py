"""A booted machine: a node of the lab that runs Debian's systemd in a container of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.lab.firewall import HOOK, RUN_DIR, Firewall
from tests.lab.node import Node
from tests.waiting import until

TREES = Path(os.environ.get("FTFW_TRANSITION_MACHINES", "/var/cache/ftfw-transition-machines"))
"""Where `tests/machines/prepare` has made them."""

# The tree stays as it is: what a machine writes goes to a layer of its own, its disk. Its /run is
# not that of the machine that runs the test, where another systemd might be asked by mistake.
_MOUNTS = """
mount -t tmpfs -o mode=755 machine /run
mkdir /run/root
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" machine /run/root
"""

# Into its own control groups first: two systemds in one would end each other's units.
_ENTER = 'for group in $GROUPS_OF_MACHINE; do echo 0 >"$group/cgroup.procs"; done; exec "$@"'

_NSPAWN = (
    "systemd-nspawn", "--quiet", "--directory=/run/root", "--register=no", "--keep-unit",
    "--resolv-conf=off", "--timezone=off",
)  # fmt: skip

_PASSING = (
    "/dev", "/proc", "/run", "/sys", "/var/backups", "/var/cache", "/var/lib/dpkg", "/var/log",
)  # fmt: skip


class Disk:
    """What a machine has written, above a tree that all share; it outlives a power cut."""

    def __init__(self, directory: Path, tree: Path) -> None:
        assert tree.is_dir(), f"there is no {tree}: tests/machines/prepare makes it"
        self.tree = tree.resolve()
        self.directory = directory
        for layer in ("upper", "work"):
            (directory / layer).mkdir(parents=True)

    def write(self, path: str, content: str | Path) -> None:
        """Put a file on it, before the machine is switched on; a Path is copied."""
        target = self.directory / "upper" / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copy(content, target)
        else:
            target.write_text(content)


class ControlGroups:
    """A control group in every hierarchy that systemd uses, for one machine."""

    def __init__(self, name: str) -> None:
        self.paths = [parent / f"ftfw-transition-{os.getpid()}-{name}" for parent in _own_groups()]
        for path in self.paths:
            path.mkdir()

    def close(self) -> None:
        """Remove them; the machine is gone."""
        for path in self.paths:
            _remove(path)


def _own_groups() -> Iterator[Path]:
    """The control groups of this process: cgroups(7), the one that has a name, and version 2."""
    own = dict(
        line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()
    )
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()
        name = "name=systemd" if kind == "cgroup" and "name=systemd" in options.split(",") else ""
        if kind == "cgroup2" or name:
            yield Path(before.split()[4]) / own[name].lstrip("/")


def _remove(group: Path) -> None:
    # From the innermost on. One whose last process is just being ended is busy.
    def removed() -> bool:
        for directory, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        return not group.exists()

    until(removed, within=30, what=f"{group} is empty")


def sweep() -> None:
    """Remove the control groups that a killed test has left: they are all that outlives it."""
    for parent in _own_groups():
        for group in parent.glob("ftfw-transition-*-*"):
            if not Path("/proc", group.name.split("-")[2]).exists():
                _remove(group)


class Machine(Firewall):
    """A firewall that boots, once its cables are plugged in; it dies with the test."""

    def __init__(self, name: str, workdir: Path, disk: Disk) -> None:
        self.disk = disk
        self._leader = ""
        super().__init__(name, workdir, Path(HOOK), {"/etc/hostname": f"{name}\n"})

    def _furnish(self, command: Path, files: Mapping[str, str]) -> None:
        self._command = command
        self._groups = ControlGroups(self.workdir.name)
        for path, text in files.items():
            self.disk.write(path, text)
        self.run("sh", "-ec", _MOUNTS, "mounts", self.disk.tree, self.disk.directory)

    def close(self) -> None:
        """End every process of the machine, and with the last one its network."""
        Node.close(self)
        self._groups.close()

    def nspawn(self, *arguments: str) -> subprocess.Popen[str]:
        """Start systemd-nspawn on the machine's disk and in its network."""
        return self.start(
            "sh", "-ec", _ENTER, "enter", *_NSPAWN, *arguments,
            env={
                "GROUPS_OF_MACHINE": " ".join(map(str, self._groups.paths)),
                # /proc/sys/net alone: it is that of the node's network namespace.
                "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
            },
        )  # fmt: skip

    def up(self) -> None:
        """Switch it on; all that is enabled has been started when this returns."""
        self._nspawn = self.nspawn(
            "--boot", "--console=pipe", f"--machine={self.name}",
            # Modules are the kernel's that all machines here share.
            "--capability=all", "--drop-capability=CAP_SYS_MODULE",
            "--network-namespace-path=/proc/self/ns/net",
        )  # fmt: skip
        self._leader = self.until(self._first_process, 10, "PID 1 has been started")
        booted = ("systemctl", "is-active", "--quiet", "multi-user.target")
        self.until(lambda: self.run(*booted, check=False).returncode == 0, 60, "has booted")

    def _first_process(self) -> str:
        """The number, on the node, of the container's PID 1."""
        for status in Path(f"/proc/{self.pid}/root/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):  # it may be gone by now
                fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
                match fields["NSpid"].split():
                    case [number, "1"]:
                        return number
        return ""

    def _spawn(
        self,
        argv: tuple[str | os.PathLike[str], ...],
        env: Mapping[str, str] | None,
        stdin: int,
        stdout: int,
        stderr: int,
    ) -> subprocess.Popen[str]:
        if self._leader:
            argv = ("nsenter", "--target", self._leader, "--all", "--", *argv)
        return super()._spawn(argv, {"HOME": "/root", **(env or {})}, stdin, stdout, stderr)

    def path(self, path: str) -> Path:
        """A file of the running machine, for the test process to read or to write."""
        inside = self.run("realpath", "-m", "--", path).stdout.rstrip("\n")
        return Path(f"/proc/{self.pid}/root/proc/{self._leader}/root{inside}")

    def shell(self, line: str, timeout: float = 300) -> str:
        """Run a line as its operator types it, as root in /root; what it prints."""
        return self.run("sh", "-ec", f"cd\n{line}", timeout=timeout).stdout

    def files(self) -> set[str]:
        """The paths of all files, but those of dpkg's, of logs and of caches."""
        left_out = " -o ".join(f"-path {path}" for path in _PASSING)
        return set(self.shell(f"find / \\( {left_out} \\) -prune -o -print").splitlines())

    def shut_down(self) -> None:
        """Have its systemd end everything in order, as a reboot does; its network stays."""
        self.run("systemctl", "reboot", check=False)
        self._nspawn.wait(timeout=60)

    def power_off(self) -> None:
        """Cut the power: nobody is notified, nothing is written any more, no packet leaves it."""
        # Its network namespace forwards on until the last process is gone.
        self.cut()
        self.close()
        # The kernel takes the network down some time after the last process.
        for switch, port in self._cables.values():
            is_there = ("ip", "link", "show", port)
            switch.until(lambda: switch.run(*is_there, check=False).returncode, 10, f"no {port}")  # noqa: B023

    # systemd

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).stdout.strip()

    def main_pid(self, unit: str) -> int:
        """The number of a unit's process on the machine; 0 where it has none."""
        return int(self.show(unit, "MainPID"))

    # ftfw-transition

    def last(self) -> dict[str, Any]:
        """The record of the last transition; {} before the first."""
        found = self.run("cat", f"{RUN_DIR}/last.json", check=False).stdout
        event: dict[str, Any] = json.loads(found or "{}")
        return event

    def stands(self, state: str) -> bool:
        """Say whether it was made so, and that ended well."""
        last = self.last()
        return (last.get("state"), last.get("outcome")) == (state, "ok") and self.is_quiet()

    def is_quiet(self) -> bool:
        """Say whether no transition is under way."""
        return not self.run("find", RUN_DIR, "-name", "ticket.*").stdout

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The events in the journal, by the very line of the README."""
        lines = self.shell("journalctl _UID=0 -t ftfw-transition -o cat | jq -c .").splitlines()
        events = [json.loads(line) for line in lines]
        return [event for event in events if name in (None, event["message"])]

    def report(self) -> str:
        """All that the machine has to tell, if it is on."""
        reported = Node.report(self)
        if self._leader and not self._nspawn.poll():
            for what in (
                "journalctl --no-pager -o short-precise -n 400", "cat /var/log/conntrackd.log",
                "conntrackd -s", "ip -br address",
            ):  # fmt: skip
                result = self.run("sh", "-c", f"{what} 2>&1", check=False)
                reported += f"--- {self.name}: {what}\n{result.stdout}\n"
        return reported
