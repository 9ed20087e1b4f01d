"""A firewall of the lab: conntrackd, keepalived and the hook, at their real paths."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .journal import Journal, Message, parse
from .node import Node

HOOK = "/usr/bin/ftfw-transition"
CONNTRACKD_CONF = "/etc/conntrackd/conntrackd.conf"
KEEPALIVED_CONF = "/etc/keepalived/keepalived.conf"
RULESET = "/etc/nftables.conf"
SYSCTL = "/etc/sysctl.d/ftfw.conf"
RUN_DIR = "/run/ftfw-transition"
KEY = "/etc/ftfw-transition/pair.key"
SECRET = "5a" * 32 + "\n"
"""What a pair's key file may hold."""
VIPS = ("10.10.0.1", "192.0.2.1")
ONE_MORE = "10.10.0.99"

# Each firewall writes to its own /run, and to layers above the machine's other directories. Its
# /dev has what daemons need and room for its own log socket.
_MOUNTS = """
mount -t tmpfs -o mode=755 lab /run
mkdir -m 1777 /run/lock
mkdir -m 755 /run/conntrackd
for directory in /etc /tmp /usr/bin /var; do
    layer=/run/lab/layers$directory
    mkdir -p "$layer/upper" "$layer/work"
    chmod --reference="$directory" "$layer/upper"
    mount -t overlay -o "lowerdir=$directory,upperdir=$layer/upper,workdir=$layer/work" \
        lab "$directory"
done
mkdir /run/lab/dev /run/lab/dev/pts /run/lab/tmp
mkdir -m 1777 /run/lab/dev/shm
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /run/lab/dev
cp -a /dev/fd /dev/stdin /dev/stdout /dev/stderr /run/lab/dev
mount --bind /run/lab/dev /dev
mkdir -p /etc/conntrackd /etc/keepalived /var/log
"""

# conntrackd keeps no connection of a firewall itself, and these are none.
_ENTRY = (
    "-I -p tcp -s 10.20.{high}.{low} -d 198.51.100.{server} --sport 40000 --dport 443"
    " --state ESTABLISHED -u SEEN_REPLY,ASSURED -t 3600\n"
)


class Firewall(Node):
    """A firewall of the lab."""

    def __init__(self, name: str, workdir: Path, command: Path, files: Mapping[str, str]) -> None:
        super().__init__(name, workdir)
        try:
            self._furnish(command, files)
        except BaseException:
            super().close()
            raise

    def _furnish(self, command: Path, files: Mapping[str, str]) -> None:
        self._command = command.absolute()
        self.run("sh", "-ec", _MOUNTS)
        self._journal = Journal(self.path("/dev/log"))
        hook = self.path(HOOK)
        # Root's and nobody else's to write, as keepalived demands of a script and of every
        # directory above it; the command it stands for may be anywhere.
        hook.write_text(f'#!/bin/sh\necho "$*" >>/run/lab/hooks\nexec "{self._command}" "$@"\n')
        hook.chmod(0o755)
        for path, text in files.items():
            self.path(path).write_text(text)

    def close(self) -> None:
        """End every process of the firewall."""
        super().close()
        self._journal.close()

    def up(self) -> None:
        """Load the ruleset and make the node a router."""
        self.run("nft", "-f", RULESET)
        self.run("sysctl", "-qp", SYSCTL)

    # conntrackd

    def start_conntrackd(self) -> None:
        """Start the daemon; it is ready when this returns."""
        self.run("conntrackd", "-d", "-C", CONNTRACKD_CONF)

    def stop_conntrackd(self) -> None:
        """Let the daemon end itself."""
        self.client("-k")
        self.until(lambda: not self.pids("conntrackd", "-d"), what="conntrackd ends")

    def kill_conntrackd(self) -> None:
        """Kill the daemon, as a crash would: its lock file stays."""
        self.signal(signal.SIGKILL, self.conntrackd_pid)
        self.until(lambda: not self.pids("conntrackd", "-d"), what="conntrackd is gone")

    @property
    def conntrackd_pid(self) -> int:
        """The daemon's number on the firewall, for `signal()`."""
        (pid,) = self.pids("conntrackd", "-d")
        return pid

    def conntrackd_log(self) -> str:
        """What the daemon has logged: every request but a look."""
        return self.path("/var/log/conntrackd.log").read_text()

    def client(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run conntrackd as a client."""
        return self.run("conntrackd", "-C", CONNTRACKD_CONF, *arguments, check=check)

    def status(self) -> str:
        """What `conntrackd -s` prints."""
        return self.client("-s").stdout

    def internal(self) -> int:
        """Entries in the internal cache."""
        return self._entries("cache internal")

    def external(self) -> int:
        """Entries in the external cache."""
        return self._entries("cache external")

    def _entries(self, cache: str) -> int:
        status = self.status()
        match = re.search(rf"{cache}:\ncurrent active connections:\s+(\d+)", status)
        assert match, f"{self.name}: no {cache} in {status!r}"
        return int(match[1])

    # the kernel's table

    def kernel_entries(self) -> int:
        """Entries in the kernel's table, the firewall's own included."""
        return int(self.run("conntrack", "-C").stdout)

    def load_entries(self, count: int, first: int = 0) -> None:
        """Put established TCP connections number `first` and on into the kernel's table."""
        lines = (
            _ENTRY.format(high=n >> 8 & 255, low=n & 255, server=(n >> 16) + 1)
            for n in range(first, first + count)
        )
        self.run("conntrack", "-R", "-", input="".join(lines))

    def flush_kernel(self) -> None:
        """Empty the kernel's table of what conntrackd replicates."""
        self.client("-F")

    # keepalived

    def start_keepalived(self) -> None:
        """Start keepalived; it is not yet in any state when this returns."""
        self._keepalived = self.start(
            # As the shipped drop-in has it.
            "chrt", "--rr", "20", "keepalived", "--dont-fork", "--log-detail",
            env={"TMPDIR": "/run/lab/tmp"},  # for its state dump
        )  # fmt: skip

    def stop_keepalived(self) -> None:
        """End keepalived as a service manager does: it gives up the virtual addresses."""
        self._keepalived.terminate()
        self._keepalived.wait(timeout=10)

    def reload_keepalived(self) -> None:
        """Have a master read its file again, with one more address in it, which it holds then."""
        file = self.path(KEEPALIVED_CONF)
        block = "    virtual_ipaddress"
        more = f"{block}_excluded {{\n        {ONE_MORE}/32\n    }}\n{block} {{"
        file.write_text(file.read_text().replace(f"{block} {{", more, 1))
        self._keepalived.send_signal(signal.SIGHUP)
        self.until(lambda: self.holds(ONE_MORE), 10, "has read its file again")

    def kill_keepalived(self) -> None:
        """Kill keepalived, both processes at once: no notification, the virtual addresses stay."""
        pids = self.pids("keepalived")
        # Stopped first, because each of the two acts upon the other's death.
        self.signal(signal.SIGSTOP, *pids)
        self.signal(signal.SIGKILL, *pids)
        self._keepalived.wait(timeout=10)

    def holds(self, address: str) -> bool:
        """Say whether an address, such as one of `VIPS`, is on the firewall."""
        return bool(self.run("ip", "-o", "address", "show", "to", address).stdout)

    def is_master(self) -> bool:
        """Say whether the firewall holds all virtual addresses."""
        return all(map(self.holds, VIPS))

    # the hook

    def hook(
        self, *arguments: str, check: bool = False, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run ftfw-transition as an operator does."""
        return self.run(HOOK, *arguments, check=check, timeout=timeout)

    def hook_json(self, *arguments: str) -> Any:
        """Run ftfw-transition with --json; what it printed, whatever its exit status."""
        return json.loads(self.hook(*arguments, "--json").stdout)

    def start_hook(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ftfw-transition and do not wait for it."""
        return self.start(HOOK, *arguments)

    def hook_calls(self) -> list[str]:
        """The arguments of every start of ftfw-transition so far, keepalived's and the test's."""
        calls = Path(f"/proc/{self.pid}/root/run/lab/hooks")
        return calls.read_text().splitlines() if calls.exists() else []

    def hooks_running(self) -> list[int]:
        """The numbers, on the firewall, of the hooks that have not ended."""
        names = {Path(HOOK).name, self._command.name}
        return sorted(
            pid
            for pid, process in self.processes().items()
            if names & process.command and "follow" not in process.command
        )

    def is_quiet(self) -> bool:
        """Say whether no hook runs, and no transition of a follower's is under way."""
        tickets = Path(f"/proc/{self.pid}/root{RUN_DIR}").glob("ticket.*")
        return not self.hooks_running() and not any(tickets)

    def was_made(self, state: str) -> bool:
        """Say whether the notification for a state was carried out, and nothing is under way."""
        followed = (event["state"] for event in self.events("transition.finished"))
        return (state in self.hook_calls() or state in followed) and self.is_quiet()

    # the follower

    def start_follower(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """Start the follower; it has asked keepalived and follows when this returns."""
        asked = len(self.events("keepalived.asked"))
        self._follower = self.start(HOOK, "follow", *(arguments or ("--group", "G1")), env=env)
        self.until(lambda: self.events("keepalived.asked")[asked:], 10, "the follower follows")

    def take_key(self, key: str) -> None:
        """Put the pair's key, one line or two, where the follower reads it: root's alone."""
        path = self.path(KEY)
        path.parent.mkdir(exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(key)

    def followers(self) -> list[int]:
        """The numbers, on the firewall, of the followers."""
        found = {
            pid: process.parent
            for pid, process in self.processes().items()
            if process.command >= {Path(HOOK).name, "follow"}
        }
        return sorted(pid for pid, parent in found.items() if parent not in found)

    def stop_follower(self) -> int:
        """End the follower as a service manager does; its exit status."""
        self._follower.terminate()
        return self._follower.wait(timeout=10)

    def kill_follower(self) -> None:
        """Kill the follower, as the kernel would for want of memory."""
        self._follower.kill()
        self._follower.wait(timeout=10)

    # the log

    def journal(self) -> list[Message]:
        """Everything logged on the firewall so far."""
        return [parse(datagram) for datagram in self._journal.datagrams()]

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The events ftfw-transition has logged so far, or those of one name."""
        lines = [line.message for line in self.journal() if line.identifier == Path(HOOK).name]
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in events if name in (None, event.get("message"))]

    def report(self) -> str:
        """All that the firewall's programs have printed and logged."""
        parts = {"hooks called": "\n".join(self.hook_calls())}
        log = Path(f"/proc/{self.pid}/root/var/log/conntrackd.log")
        if log.exists():
            parts["conntrackd.log"] = log.read_text(errors="replace")
        parts["journal"] = "\n".join(
            f"<{line.priority}> {line.identifier}: {line.message}" for line in self.journal()
        )
        reported = "".join(f"--- {self.name}: {name}\n{text}\n" for name, text in parts.items())
        return super().report() + reported
