"""What each state asks of the real daemon in each replication mode, and that nothing is lost by it.

fw-1 tracks 500 connections which it replicates to fw-2, and fw-2 some of its own. keepalived has
no part in this: the hooks are called one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

import pytest

from tests.lab.firewall import Firewall
from tests.lab.moments import asked
from tests.lab.pair import Lab, Pair
from tests.waiting import stays

COUNT = 500
OWN = 100
"""Connections that only fw-2 has, before it is promoted."""
PURGE_SECONDS = 1
WITHIN = 20
"""Seconds for what takes one on a machine with nothing else to do."""

_SOON = {"PurgeTimeout 60": f"PurgeTimeout {PURGE_SECONDS}"}
_NOTRACK = {
    **_SOON,
    "Mode FTFW {": "Mode NOTRACK {",
    "ResendQueueSize 524288": "",
    "ACKWindowSize 300": "",
}
_DIRECT = {"DisableExternalCache Off": "DisableExternalCache On"}
_NO_INTERNAL = {"DisableExternalCache Off": "DisableInternalCache On"}
_NEITHER = {"DisableExternalCache Off": "DisableExternalCache On DisableInternalCache On"}
# Mode FTFW has no notification for it, but the daemon takes it from any Mode block.
_OR_ED = {"Sync {": "Sync {\n    Mode NOTRACK { DisableInternalCache On }\n"}

MODES: Mapping[str, Mapping[str, str]] = MappingProxyType({
    "FTFW": _SOON,
    "NOTRACK": _NOTRACK,
    "ALARM": {
        **_SOON,
        "Mode FTFW {": "Mode ALARM {",
        # Every second: an idle peer sends only when it refreshes.
        "ResendQueueSize 524288": "RefreshTime 1",
        "ACKWindowSize 300": "",
        "DisableExternalCache Off": "",
    },
    "FTFW direct": {**_SOON, **_DIRECT},
    "NOTRACK direct": {**_NOTRACK, **_DIRECT},
    "NOTRACK no internal": {**_NOTRACK, **_NO_INTERNAL},
    "NOTRACK neither": {**_NOTRACK, **_NEITHER},
    "FTFW no internal": {**_SOON, **_OR_ED},
    "FTFW neither": {**_SOON, **_DIRECT, **_OR_ED},
})  # fmt: skip
"""The modes by name, each as an edit of the shipped conntrackd.conf."""

DIRECT = [mode for mode in MODES if "direct" in mode or "neither" in mode]
"""The kernel's table is the replica: there is nothing to commit, and nothing may ever purge."""
CACHED = [mode for mode in MODES if mode not in DIRECT]
BULK = [mode for mode in MODES if mode != "ALARM" and not re.match("FTFW n", mode)]
"""The modes in which a bulk can be sent. FTFW's sends the internal cache, and without one the
daemon that is to send it crashes: our own at a `-B`, the peer's at a `-n`."""

ONE = ("--orig-src", "10.20.0.1", "--orig-port-src", "40000")
"""One of fw-1's connections, for conntrack(8)."""

Modes = Callable[[str], Pair]


@pytest.fixture
def modes(lab: Lab) -> Modes:
    """Builds a pair in a mode: fw-2 has a copy of fw-1's connections, and some of its own."""

    def build(mode: str) -> Pair:
        pair = lab(conntrackd=MODES[mode])
        pair.fw1.start_conntrackd()
        pair.fw2.start_conntrackd()
        pair.fw1.load_entries(COUNT)
        pair.fw2.load_entries(OWN, first=1000)
        pair.fw2.until(lambda: copies(pair.fw2, mode) >= COUNT, WITHIN, "has the copies")
        return pair

    return build


def copies(firewall: Firewall, mode: str) -> int:
    """How many of the peer's connections fw-2 holds, in whatever holds them in this mode."""
    return firewall.external() if mode in CACHED else firewall.kernel_entries() - OWN


def pids(pair: Pair) -> list[int]:
    """Both daemons, in numbers: none of our requests may crash one, least of all the peer's."""
    return [pair.fw1.conntrackd_pid, pair.fw2.conntrackd_pid]


def mark_one(firewall: Firewall, mark: int) -> None:
    """Change one live entry, which is an event that is replicated."""
    firewall.run("conntrack", "-U", "-p", "tcp", *ONE, "--mark", str(mark))


@pytest.mark.parametrize(
    ("mode", "requests"),
    [
        ("FTFW", ["-c", "-f", "-R", "-B"]),
        ("NOTRACK", ["-c", "-f", "-R", "-B"]),
        ("ALARM", ["-c", "-f", "-R"]),
        ("FTFW direct", ["-c", "-f", "-R", "-B"]),
        ("NOTRACK direct", ["-c", "-f", "-R", "-B"]),
        # Without an internal cache a plain -f flushes the kernel's table.
        ("NOTRACK no internal", ["-c", "-f external", "-B"]),
        ("NOTRACK neither", ["-c", "-B"]),
        ("FTFW no internal", ["-c", "-f external"]),
        ("FTFW neither", ["-c"]),
    ],
)
def test_a_promotion_adds_the_peers_connections_and_loses_none(
    modes: Modes, mode: str, requests: list[str]
) -> None:
    """It asks what the mode allows, and the kernel's table is never flushed on the way."""
    pair = modes(mode)
    daemons = pids(pair)

    event = pair.fw2.hook_json("primary")

    assert event["outcome"] == "ok", event["reason"]
    assert asked(event) == requests
    assert event["recovered"] == (COUNT if mode in CACHED else 0)
    assert event["expected"] == (COUNT if mode in CACHED else None)
    assert pair.fw2.kernel_entries() >= COUNT + OWN
    assert pids(pair) == daemons


@pytest.mark.parametrize("mode", [mode for mode in CACHED if mode in BULK])
def test_after_a_promotion_the_peer_has_a_copy_of_everything(modes: Modes, mode: str) -> None:
    """The new primary's connections are safe before a second failure."""
    pair = modes(mode)

    pair.fw2.hook("primary", check=True)

    pair.fw1.until(lambda: pair.fw1.external() >= COUNT + OWN, WITHIN, "has the copies")


@pytest.mark.parametrize("mode", DIRECT)
def test_in_direct_mode_neither_backup_nor_fault_purges_the_replica(
    modes: Modes, mode: str
) -> None:
    """The kernel's table is all that a backup has: `-t` would empty it after PurgeTimeout."""
    pair = modes(mode)
    daemons = pids(pair)

    assert asked(pair.fw2.hook_json("backup")) == (["-n"] if mode in BULK else [])
    assert asked(pair.fw2.hook_json("fault")) == []

    assert pids(pair) == daemons
    stays(
        lambda: pair.fw2.kernel_entries() >= COUNT + OWN,
        seconds=PURGE_SECONDS + 1, what="every entry is in the table",
    )  # fmt: skip


@pytest.mark.parametrize("state", ["backup", "fault"])
@pytest.mark.parametrize("mode", CACHED)
def test_a_node_whose_peer_has_it_all_asks_for_a_purge(modes: Modes, mode: str, state: str) -> None:
    """What it still tracks is old; a backup first asks for the copies that the peer can send."""
    pair = modes(mode)
    daemons = pids(pair)

    event = pair.fw2.hook_json(state)

    asks_for_copies = ["-n"] if state == "backup" and mode in BULK else []
    assert event["outcome"] == "ok", event["reason"]
    assert asked(event) == [*asks_for_copies, "-t"]
    assert pids(pair) == daemons


@pytest.mark.parametrize(
    ("mode", "requests"),
    [
        ("FTFW", ["-f internal", "-R", "-B"]),
        ("NOTRACK", ["-f internal", "-R", "-B"]),
        ("ALARM", ["-f internal", "-R"]),
        ("FTFW direct", ["-f internal", "-R", "-B"]),
        ("NOTRACK no internal", ["-B"]),
        ("NOTRACK neither", ["-B"]),
        ("FTFW no internal", []),
    ],
)
def test_a_primary_that_is_one_already_commits_nothing_over_live_entries(
    modes: Modes, mode: str, requests: list[str]
) -> None:
    """A peer's stale copy would put an old mark and an old state into a live entry."""
    pair = modes(mode)
    pair.fw2.hook("primary", check=True)
    if mode in CACHED:
        mark_one(pair.fw1, 3)
        pair.fw2.until(lambda: pair.fw2.external() > 0, WITHIN, "has a stale copy")
    mark_one(pair.fw2, 7)

    event = pair.fw2.hook_json("primary")

    assert event["outcome"] == "ok", event["reason"]
    assert asked(event) == requests
    assert "mark=7" in pair.fw2.run("conntrack", "-L", "-p", "tcp", *ONE).stdout
    assert pair.fw2.kernel_entries() >= COUNT + OWN
