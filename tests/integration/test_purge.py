"""A purge is asked for only when it is safe, and never hits a primary, whatever is late or dead.

`conntrackd -t` empties the kernel's table PurgeTimeout seconds later, whatever happens meanwhile.
fw-1 tracks 500 connections and fw-2 has a copy of each; keepalived has no part in this.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from tests.lab.firewall import Firewall
from tests.lab.moments import asked, step
from tests.lab.pair import Lab, Pair
from tests.waiting import stays

COUNT = 500
PURGE_SECONDS = 3
WITHIN = 20
"""Seconds for what takes one or two on a machine with nothing else to do."""
SUPERSEDED = 4
"""The exit status."""

NOTRACK = {
    "Mode FTFW {": "Mode NOTRACK {",
    "ResendQueueSize 524288": "",
    "ACKWindowSize 300": "",
}
NO_INTERNAL = {**NOTRACK, "DisableExternalCache Off": "DisableInternalCache On"}

_MET = "/run/lab/met{}"
_GO = "/run/lab/go"
_CLIENT = """#!/bin/sh
if [ ! -e {met} ]; then
    case " $* " in *" {option} "*)
        echo $PPID $$ >{met}
        {meanwhile}
    esac
fi
exec conntrackd "$@"
"""
FREEZE = "kill -STOP $PPID $$"
"""The hook and the client it has just started are stopped, as by a hypervisor."""
HOLD = f"while [ ! -e {_GO} ]; do sleep 0.01; done"
"""The request is not made before there is a file _GO."""

# Two tables in which other connections have the same address and port after translation: the
# kernel refuses the second one.
_TRANSLATED = (
    "-I -p tcp -s 10.20.{net}.{host} -d 198.51.100.1 --sport 40000 --dport 443"
    " --src-nat 192.0.2.1:{port} --state ESTABLISHED -u SEEN_REPLY,ASSURED -t 3600\n"
)

Build = Callable[..., Pair]


@pytest.fixture
def pair_of(lab: Lab) -> Build:
    """Builds a pair of daemons: `count` connections on fw-1, and a copy of each on fw-2."""

    def build(count: int = COUNT, purge: int = PURGE_SECONDS, **mode: Any) -> Pair:
        edit = {"PurgeTimeout 60": f"PurgeTimeout {purge}", **mode.get("mode", {})}
        pair = lab(conntrackd=edit)
        pair.fw1.start_conntrackd()
        pair.fw2.start_conntrackd()
        if count:
            pair.fw1.load_entries(count)
        pair.fw2.until(lambda: pair.fw2.external() >= count, WITHIN, "has the copies")
        return pair

    return build


def meet(firewall: Firewall, option: str, meanwhile: str) -> str:
    """Make a client for `--conntrackd` that first runs a script when a request has that option."""
    name = f"/run/lab/client{option}"
    met = _MET.format(option)
    client = firewall.path(name)
    client.write_text(_CLIENT.format(met=met, option=option, meanwhile=meanwhile))
    client.chmod(0o755)
    return name


def met(firewall: Firewall, option: str) -> list[int]:
    """Who makes the request, as the firewall numbers them: the hook and its client."""
    path = Path(f"/proc/{firewall.pid}/root{_MET.format(option)}")
    return [int(notification) for notification in path.read_text().split()] if path.exists() else []


def is_stopped(process: subprocess.Popen[str]) -> bool:
    """Say whether a process is stopped by a signal."""
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def tickets(firewall: Firewall, state: str = "") -> list[str]:
    """The tickets that are shown in the run directory."""
    directory = Path(f"/proc/{firewall.pid}/root/run/ftfw-transition")
    return [path.name for path in directory.glob(f"ticket.*{state}")]


def translated(firewall: Firewall, count: int, *, net: int) -> None:
    """Load translated connections, which share their ports with those of another `net`."""
    lines = (_TRANSLATED.format(net=net, host=n, port=50000 + n) for n in range(count))
    firewall.run("conntrack", "-R", "-", input="".join(lines))


def keep_the_cache(pair: Pair) -> dict[str, Any]:
    """Promote fw-2 where a tenth of the copies cannot be committed."""
    translated(pair.fw1, COUNT // 10, net=100)
    translated(pair.fw2, COUNT // 10, net=101)
    copies = COUNT + COUNT // 10
    pair.fw2.until(lambda: pair.fw2.external() == copies, WITHIN, "has the copies")
    event = pair.fw2.hook_json("primary")
    assert isinstance(event, dict)
    return event


# -- when it is asked ---------------------------------------------------------------------------


def test_what_the_new_primary_holds_is_purged_from_the_old_one(pair_of: Build) -> None:
    """Its table is cleaned after PurgeTimeout, and the copies stay."""
    pair = pair_of()
    pair.fw2.hook("primary", check=True)

    assert pair.fw1.hook_json("backup")["outcome"] == "ok"

    pair.fw1.until(lambda: pair.fw1.kernel_entries() < 10, WITHIN, "is purged")
    assert pair.fw1.external() >= COUNT
    assert pair.fw2.kernel_entries() >= COUNT


@pytest.mark.parametrize("state", ["backup", "fault"])
def test_nothing_is_purged_where_no_peer_is_received(pair_of: Build, state: str) -> None:
    """Its copy may be the last one; the record reports it."""
    pair = pair_of()
    pair.fw1.cut("eth2")

    event = pair.fw2.hook_json(state)

    assert step(event, "purge")["reason"] == (
        "nothing purged: no packets from the peer on the dedicated link"
    )
    assert "-t" not in asked(event)
    assert "flushing conntrack table in" not in pair.fw2.conntrackd_log()


@pytest.mark.parametrize("state", ["backup", "fault"])
@pytest.mark.parametrize("mode", [{}, NO_INTERNAL], ids=["FTFW", "no internal"])
def test_nothing_is_purged_that_the_peer_has_no_copy_of(
    pair_of: Build, mode: dict[str, str], state: str
) -> None:
    """Less than nine tenths in the external cache is no copy; the record shows both numbers."""
    pair = pair_of(mode=mode)
    pair.fw2.load_entries(COUNT * 8 // 10)
    pair.fw1.until(lambda: pair.fw1.external() == COUNT * 8 // 10, WITHIN, "has the copies")

    event = pair.fw1.hook_json(state)

    assert "holds 400, this node 500 connections" in step(event, "purge")["reason"]
    assert "-t" not in asked(event)
    assert "flushing conntrack table in" not in pair.fw1.conntrackd_log()


def test_nothing_is_purged_where_the_last_promotion_left_its_cache(pair_of: Build) -> None:
    """What could not be committed is nowhere else, and a fault asks no peer."""
    pair = pair_of()
    assert keep_the_cache(pair)["outcome"] == "degraded"

    event = pair.fw2.hook_json("fault")

    assert "did not flush its external cache" in step(event, "purge")["reason"]
    assert "-t" not in asked(event)
    assert pair.fw2.external() >= COUNT


def test_a_cache_that_was_left_goes_once_the_peer_has_sent_what_lives(pair_of: Build) -> None:
    """Otherwise the connections that ended meanwhile come back with the next promotion."""
    pair = pair_of()
    assert keep_the_cache(pair)["recovered"] == COUNT
    pair.fw1.stop_conntrackd()  # so that nobody receives of it when a connection ends
    pair.fw1.run("conntrack", "-D", "-p", "tcp", "--orig-src", "10.20.0.1")
    pair.fw1.start_conntrackd()
    pair.fw1.hook("primary", check=True)
    assert pair.fw2.external() == COUNT + COUNT // 10

    event = pair.fw2.hook_json("backup")

    assert event["outcome"] == "ok", event["reason"]
    assert asked(event) == ["-f external", "-n", "-t"]
    copies = pair.fw2.client("-e").stdout
    assert "src=10.20.0.2 " in copies
    assert "src=10.20.0.1 " not in copies


# -- and taken back -----------------------------------------------------------------------------


def test_a_fault_without_a_peer_disarms_what_a_backup_has_armed(pair_of: Build) -> None:
    """The link that bounces on a node whose peer has died: the table lives."""
    purge = 2 * PURGE_SECONDS  # hearing that nobody is there takes 1.5 s of it
    pair = pair_of(purge=purge)
    pair.fw2.load_entries(COUNT)
    pair.fw1.until(lambda: pair.fw1.external() == COUNT, WITHIN, "has the copies")
    assert "-t" in asked(pair.fw1.hook_json("backup"))
    pair.fw1.cut("eth2")

    event = pair.fw1.hook_json("fault")

    assert asked(event) == ["-f internal", "-R"]
    stays(lambda: pair.fw1.kernel_entries() >= COUNT, seconds=purge, what="has every entry")


def test_without_an_internal_cache_an_empty_commit_disarms(pair_of: Build) -> None:
    """`-f internal` would flush the kernel's table, and a full commit replace live entries."""
    purge = 2 * PURGE_SECONDS
    pair = pair_of(count=0, purge=purge, mode=NO_INTERNAL)
    assert "-t" in asked(pair.fw1.hook_json("backup"))
    pair.fw1.load_entries(COUNT)
    pair.fw1.cut("eth2")

    event = pair.fw1.hook_json("fault")

    assert asked(event) == ["-c"]
    stays(lambda: pair.fw1.kernel_entries() >= COUNT, seconds=purge, what="has every entry")


@pytest.mark.parametrize("milliseconds", [0, 10, 50])
def test_a_promotion_just_as_a_purge_fires_has_every_entry(
    pair_of: Build, milliseconds: int
) -> None:
    """What the purge has eaten of the commit is committed once more."""
    count = 20_000
    pair = pair_of(count=count, purge=1)
    pair.fw2.load_entries(count)  # so that the purge has something to do
    fires = "flushing kernel conntrack table (scheduled)"
    wait = f'until grep -q "{fires}" /var/log/conntrackd.log; do :; done'
    client = meet(pair.fw2, "-c", f"{wait}; sleep {milliseconds / 1000}")
    pair.fw2.client("-t")

    event = pair.fw2.hook_json("--conntrackd", client, "primary")

    assert fires in pair.fw2.conntrackd_log()
    assert event["outcome"] == "ok", event["reason"]
    assert event["recovered"] >= count
    # Two in a thousand cannot be distinguished from entries that have expired.
    assert pair.fw2.kernel_entries() >= 0.998 * count


# -- hooks that are late, or dead ---------------------------------------------------------------


@pytest.mark.parametrize("option", ["-s", "-n", "-t"])
def test_a_late_backup_never_purges_a_primary(pair_of: Build, option: str) -> None:
    """Frozen before it waits for the lock, or while it holds it: it is overtaken."""
    pair = pair_of()
    late = pair.fw2.start_hook("--conntrackd", meet(pair.fw2, option, FREEZE), "backup")
    pair.fw2.until(lambda: is_stopped(late), WITHIN, "the backup is frozen")
    assert pair.fw2.hook_json("primary")["recovered"] == COUNT

    pair.fw2.signal(signal.SIGCONT, *met(pair.fw2, option))

    assert late.wait(timeout=60) == SUPERSEDED
    stays(
        lambda: pair.fw2.kernel_entries() >= COUNT,
        seconds=PURGE_SECONDS + 1, what="has every entry",
    )  # fmt: skip


def test_a_backup_that_comes_to_life_after_a_newer_primary_asks_nothing(pair_of: Build) -> None:
    """It is as old as its issued, not as its first look at the lock."""
    pair = pair_of()
    late = pair.fw2.start_hook("backup", "--json")
    late.send_signal(signal.SIGSTOP)
    pair.fw2.until(lambda: is_stopped(late), WITHIN, "the backup is frozen")
    assert pair.fw2.hook_json("primary")["outcome"] == "ok"

    late.send_signal(signal.SIGCONT)

    assert late.wait(timeout=60) == SUPERSEDED
    assert asked(json.loads(pair.fw2.output(late))) == []


def test_a_backup_that_is_killed_does_not_stop_a_live_promotion(pair_of: Build) -> None:
    """It was newer, but nobody else would carry the promotion out."""
    pair = pair_of()
    promotion = pair.fw2.start_hook("--conntrackd", meet(pair.fw2, "-c", HOLD), "primary")
    pair.fw2.until(lambda: met(pair.fw2, "-c"), WITHIN, "is about to commit")
    newer = pair.fw2.start_hook("backup")
    pair.fw2.until(lambda: tickets(pair.fw2, "backup"), WITHIN, "waits for its turn")

    newer.kill()
    newer.wait()
    pair.fw2.path(_GO).touch()

    assert promotion.wait(timeout=60) == 0
    assert asked(pair.fw2.events("transition.finished")[-1]) == ["-c", "-f", "-R", "-B"]
    assert pair.fw2.kernel_entries() >= COUNT


def test_a_backup_that_still_reads_its_input_does_not_stop_a_live_promotion(
    pair_of: Build,
) -> None:
    """It may yet refuse what it reads, and then it was no notification of keepalived's to obey."""
    pair = pair_of()
    promotion = pair.fw2.start_hook("--conntrackd", meet(pair.fw2, "-c", HOLD), "primary")
    pair.fw2.until(lambda: met(pair.fw2, "-c"), WITHIN, "is about to commit")
    newer = pair.fw2.start_hook("--conntrackd", meet(pair.fw2, "-s", FREEZE), "backup")
    pair.fw2.until(lambda: is_stopped(newer), WITHIN, "has the client read its configuration")

    pair.fw2.path(_GO).touch()

    assert promotion.wait(timeout=60) == 0
    assert pair.fw2.kernel_entries() >= COUNT


@pytest.mark.parametrize("newest", ["primary", "backup"])
def test_of_twenty_hooks_at_once_the_newest_decides(pair_of: Build, newest: str) -> None:
    """Each leaves its record, none leaves a ticket or the lock, and nothing is lost."""
    pair = pair_of()
    states = [*islice(cycle(["backup", "primary", "fault"]), 19), newest]

    hooks = [pair.fw2.start_hook(state) for state in states]

    statuses = [hook.wait(timeout=120) for hook in hooks]
    finished = pair.fw2.events("transition.finished")
    assert sorted(event["state"] for event in finished) == sorted(states)
    assert len({event["transition"] for event in finished}) == len(states)
    assert set(statuses) <= {0, 3, SUPERSEDED}
    assert statuses[-1] == 0
    last = [event["state"] for event in finished if event["outcome"] != "superseded"][-1]
    assert last == newest
    assert tickets(pair.fw2) == []
    pair.fw2.run("flock", "--nonblock", "/run/ftfw-transition/lock", "true")
    if newest == "primary":
        stays(
            lambda: pair.fw2.kernel_entries() >= COUNT,
            seconds=PURGE_SECONDS + 1, what="has every entry",
        )  # fmt: skip
