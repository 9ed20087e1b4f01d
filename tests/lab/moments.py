"""What the tests of real daemons share: a pair with copies, a commit that runs, an event."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .firewall import CONNTRACKD_CONF, Firewall
from .pair import Lab, Pair


def replicated(lab: Lab, count: int, *, direct: bool = False, **edits: Any) -> Pair:
    """A pair, with `count` connections on fw-1 and their copies on fw-2; without keepalived.

    `direct` reports that fw-2 has its copies in the kernel table, for want of an external cache.
    """
    pair = lab(**edits)
    pair.fw1.start_conntrackd()
    pair.fw2.start_conntrackd()
    pair.fw1.load_entries(count)
    where = pair.fw2.kernel_entries if direct else pair.fw2.external
    # conntrackd looks again, after 30 s, for what the kernel could not tell it.
    pair.fw2.until(lambda: where() == count, 90, f"{count} copies")
    return pair


def inserted(firewall: Firewall) -> int:
    """Entries ever made through netlink, read without running anything on the firewall."""
    header, *rows = Path(f"/proc/{firewall.pid}/net/stat/nf_conntrack").read_text().splitlines()
    column = header.split().index("insert")
    return sum(int(row.split()[column], 16) for row in rows)


@contextlib.contextmanager
def in_mid_commit(firewall: Firewall, before: int) -> Iterator[None]:
    """Do something while a commit runs that started from `before` entries, and lasts 0.4 s."""
    deadline = time.monotonic() + 30
    # Above conntrackd, which is a real-time process too, and leaves others no time on its CPU.
    os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(30))
    try:
        while inserted(firewall) - before < 500:
            assert time.monotonic() < deadline, "no commit has begun"
            time.sleep(0.0005)  # not until(), which looks every 20 ms
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def seen_from_here(firewall: Firewall, pid: int) -> int:
    """The test's own number for a process of the firewall, to signal it without delay."""
    here = Path(f"/proc/{firewall.pid}/ns/pid").readlink()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/pid").readlink() == here:
                status = (process / "status").read_text()
                if f"NSpid:\t{process.name}\t{pid}\n" in status:
                    return int(process.name)
        except OSError:  # it has just ended
            continue
    raise AssertionError(f"{firewall.name} has no process {pid}")


def become(firewall: Firewall, *arguments: str) -> dict[str, Any]:
    """One transition, and its final event with the hook's exit status in it."""
    hook = firewall.hook(*arguments, "--json")
    return {**json.loads(hook.stdout), "exit": hook.returncode}


def reported(firewall: Firewall, hook: subprocess.Popen[str]) -> dict[str, Any]:
    """The final event that a started hook has printed; what is wrong may stand before it."""
    return dict(json.loads(firewall.output(hook).splitlines()[-1]))


def step(event: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One of the steps of an event."""
    (found,) = (each for each in event["steps"] if each["name"] == name)
    return dict(found)


def asked(event: Mapping[str, Any]) -> list[str]:
    """The options of the requests that a transition really made, from the record it leaves."""
    commands = [step["command"] for step in event["steps"] if step["attempts"]]
    return [command.partition(f" -C {CONNTRACKD_CONF} ")[2] for command in commands]


def ended(firewall: Firewall) -> int:
    """How many transitions have ended by now."""
    return len(firewall.events("transition.finished"))


def finished(firewall: Firewall, state: str, earlier: int = 0) -> list[dict[str, Any]]:
    """Wait until nothing is under way, and one to that state ended after `earlier` others."""

    def found() -> list[dict[str, Any]]:
        if not firewall.is_quiet():
            return []
        events = firewall.events("transition.finished")[earlier:]
        return [event for event in events if event["state"] == state]

    return firewall.until(found, 20, f"a transition to {state} ends")
