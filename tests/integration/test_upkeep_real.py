"""The follower on a real pair: in sync afterwards, purges, and what it costs."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from primary_backup.follower.upkeep import POLL_SECONDS
from tests.integration.following import (
    CONNECTIONS,
    COUNT,
    FIFO,
    HEALED,
    WITHIN,
    lost,
    opened,
    read_along,
    replicated,
    requests,
)
from tests.lab.firewall import HOOK, Firewall
from tests.lab.moments import asked, ended, finished
from tests.lab.pair import Lab, Pair, Wiring
from tests.waiting import stays

PURGE_SECONDS = 3
PURGES_SOON = {"PurgeTimeout 60": f"PurgeTimeout {PURGE_SECONDS}"}


@pytest.fixture
def wiring() -> Wiring:
    """All tests here follow."""
    return "fifo"


# -- in sync afterwards -------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["kill_conntrackd", "stop_conntrackd"])
def test_a_backup_whose_conntrackd_ended_is_in_sync_again_without_a_hand(
    pair: Pair, end: str
) -> None:
    """Started again if it is dead, asked to resync in any case: the next failover loses nothing."""
    traffic = opened(pair)
    assert lost(pair.fw2) == []

    getattr(pair.fw2, end)()
    if end == "stop_conntrackd":
        pair.fw2.client("-d", check=False)  # the follower may be faster

    pair.fw2.until(lambda: lost(pair.fw2), HEALED, "has noticed")
    pair.fw2.until(
        lambda: any(event["outcome"] == "ok" for event in finished(pair.fw2, "backup", 1)),
        HEALED, "is in sync",
    )  # fmt: skip
    assert pair.fw2.external() >= CONNECTIONS
    pair.fw1.cut()
    event = finished(pair.fw2, "primary")[0]
    assert event["outcome"] == "ok", event["reason"]
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_primary_whose_conntrackd_was_restarted_sends_what_the_peer_has_missed(
    pair: Pair,
) -> None:
    """Connections that were opened while it was down are on the backup too, and none is lost."""
    traffic = opened(pair)
    earlier = ended(pair.fw1)

    pair.fw1.stop_conntrackd()
    pair.fw1.load_entries(COUNT)
    pair.fw1.client("-d", check=False)  # the follower may be faster

    pair.fw2.until(lambda: pair.fw2.external() >= COUNT + CONNECTIONS, HEALED, "holds the copies")
    assert lost(pair.fw1)
    finished(pair.fw1, "primary", earlier)
    assert not {"-c", "-f", "-t"} & set(requests(pair.fw1, earlier))
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_backup_that_asked_while_the_peers_daemon_was_down_asks_again_once_it_is_back(
    pair: Pair,
) -> None:
    """A request that nobody received is lost: the follower repeats it when the peer sends."""
    pair.fw1.stop_follower()  # or it would start the daemon again
    pair.fw1.stop_conntrackd()
    pair.fw1.load_entries(COUNT)
    earlier = ended(pair.fw2)
    assert pair.fw2.hook_json("backup")["outcome"] == "degraded"
    assert pair.fw2.external() == 0

    pair.fw1.start_conntrackd()

    pair.fw2.until(lambda: pair.fw2.external() >= COUNT, HEALED, "holds the copies")
    assert lost(pair.fw2)
    assert finished(pair.fw2, "backup", earlier + 1)[-1]["outcome"] == "ok"


def test_a_dedicated_link_that_was_down_is_caught_up_with(lab: Lab) -> None:
    """What was opened meanwhile, more than conntrackd itself resends, is on the backup after it."""
    few = {"ResendQueueSize 524288": "ResendQueueSize 64"}
    pair = lab(wiring="fifo", conntrackd=few).start()
    replicated(pair)
    earlier = ended(pair.fw1)

    pair.fw1.cut("eth2")
    stays(lambda: not lost(pair.fw1), seconds=5, what="nothing to be done yet")
    pair.fw1.load_entries(COUNT, first=COUNT)
    stays(lambda: not lost(pair.fw1), seconds=5, what="nothing to be done yet")
    pair.fw1.fix("eth2")

    pair.fw2.until(lambda: pair.fw2.external() >= 2 * COUNT, HEALED, "holds the copies")
    assert not {"-c", "-f", "-t"} & set(requests(pair.fw1, earlier))
    for _ in range(10):
        pair.fw1.cut("eth2")
        pair.fw1.fix("eth2")
    for firewall in (pair.fw1, pair.fw2):
        firewall.until(firewall.is_quiet, WITHIN, "is quiet")
        assert len(lost(firewall)) <= 3
    assert pair.fw2.external() >= 2 * COUNT


def test_a_promotion_whose_conntrackd_could_not_start_is_still_owed(pair: Pair) -> None:
    """Once it starts, it is given what the living peer holds, and that is committed."""
    replicated(pair)
    pair.fw2.ip("link set eth2 down", "link set eth2 name away")
    pair.fw2.kill_conntrackd()  # it does not start without the interface of its file
    pair.fw1.stop_keepalived()
    pair.fw2.until(
        lambda: any(event["outcome"] == "failed" for event in finished(pair.fw2, "primary")),
        HEALED, "cannot start it",
    )  # fmt: skip
    assert pair.fw2.kernel_entries() < COUNT

    pair.fw2.ip("link set away name eth2", "link set eth2 up")

    pair.fw2.until(lambda: pair.fw2.kernel_entries() >= COUNT, 2 * HEALED, "has committed them")
    assert finished(pair.fw2, "primary", 2)[-1]["recovered"] >= COUNT


def test_a_primary_that_lacks_the_replica_asks_once_the_peer_s_packets_arrive(pair: Pair) -> None:
    """Its conntrackd was restarted while the dedicated link was down: what the failover could not
    bring back is asked for as soon as it can be."""
    replicated(pair)
    pair.fw2.cut("eth2")
    pair.fw2.stop_conntrackd()
    pair.fw2.client("-d", check=False)  # the follower may be faster
    pair.fw1.stop_keepalived()
    event = finished(pair.fw2, "primary")[0]
    assert (event["outcome"], event["recovered"] < COUNT) == ("degraded", True)

    pair.fw2.fix("eth2")

    pair.fw2.until(lambda: pair.fw2.kernel_entries() >= COUNT, 2 * HEALED, "has committed them")
    assert finished(pair.fw2, "primary", 2)[-1]["recovered"] >= COUNT


def test_a_daemon_that_dies_again_and_again_is_not_started_in_a_storm(pair: Pair) -> None:
    """Each time it takes longer until the next attempt: two in twelve seconds."""

    def dies() -> bool:
        pids = pair.fw2.pids("conntrackd", "-d")
        if pids:
            pair.fw2.run("kill", "-KILL", "--", *map(str, pids), check=False)
        return True

    stays(dies, seconds=12)

    assert 1 <= len(lost(pair.fw2)) <= 2


# -- purges -------------------------------------------------------------------------------------


def test_a_purge_that_was_held_back_is_made_up_for_and_its_firing_is_logged(lab: Lab) -> None:
    """The old primary received nobody; once the new one is proven to have all, it is cleaned."""
    pair = lab(wiring="fifo", conntrackd=PURGES_SOON).start()
    replicated(pair)
    pair.fw1.cut()
    held = finished(pair.fw1, "fault")[0]
    assert "-t" not in asked(held)
    assert finished(pair.fw2, "primary")[0]["recovered"] >= COUNT
    assert pair.fw1.kernel_entries() >= COUNT

    pair.fw1.fix("eth0", "eth1")
    held = finished(pair.fw1, "backup")[0]
    assert "-t" not in asked(held)

    pair.fw1.fix("eth2")

    (fired,) = pair.fw1.until(lambda: pair.fw1.events("purge.fired"), 2 * HEALED, "has purged")
    assert fired["outcome"] == "ok"
    assert pair.fw1.kernel_entries() < COUNT / 10
    assert pair.fw2.kernel_entries() >= COUNT
    assert pair.fw2.events("purge.fired") == []


def resyncs(firewall: Firewall) -> int:
    """How often its conntrackd was asked to request a resync."""
    return firewall.conntrackd_log().count("resync requested\n")


def test_a_bounce_of_the_only_primary_purges_nothing(lab: Lab) -> None:
    """The other node's conntrackd runs on with what it had before: as many, and none of these."""
    pair = lab(wiring="fifo", conntrackd=PURGES_SOON).start()
    replicated(pair)
    pair.fw1.stop_keepalived()
    finished(pair.fw2, "primary")
    traffic = pair.open_connections(CONNECTIONS)
    earlier = ended(pair.fw2)
    pair.fw2.cut("eth1")
    finished(pair.fw2, "fault", earlier)
    before = resyncs(pair.fw2)
    pair.fw2.fix("eth1")
    pair.fw2.until(lambda: resyncs(pair.fw2) > before, WITHIN, "asks its peer")
    pair.fw2.cut("eth1")
    finished(pair.fw2, "fault", earlier + 1)
    earlier = ended(pair.fw2)
    pair.fw2.fix("eth1")

    finished(pair.fw2, "primary", earlier)

    stays(
        lambda: pair.fw2.kernel_entries() >= CONNECTIONS,
        seconds=PURGE_SECONDS + 1, what="is not purged",
    )  # fmt: skip
    assert "-t" not in requests(pair.fw2, earlier - 1)
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_fault_purges_what_the_new_primary_has_sent(lab: Lab) -> None:
    """Its bulk was not asked for: the peer was promoted, and holds all that is held here."""
    pair = lab(wiring="fifo", conntrackd=PURGES_SOON).start()
    traffic = opened(pair)
    earlier = ended(pair.fw1)

    pair.fw1.cut("eth1")

    assert "-t" in asked(finished(pair.fw1, "fault", earlier)[0])
    pair.fw1.until(lambda: pair.fw1.kernel_entries() < CONNECTIONS / 2, WITHIN, "is purged")
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_follower_that_ends_cancels_its_purge_and_the_next_one_asks_for_it(lab: Lab) -> None:
    """Nothing would cancel it if this node were promoted meanwhile."""
    pair = lab(wiring="fifo", conntrackd={"PurgeTimeout 60": "PurgeTimeout 10"}).start()
    assert "-t" in requests(pair.fw2)
    earlier = ended(pair.fw2)

    assert pair.fw2.stop_follower() == 0

    assert requests(pair.fw2, earlier) == ["-f internal", "-R"]
    traffic = opened(pair)
    with read_along(pair.fw2, FIFO):  # as keepalived does: what is in it stays
        pair.fw1.cut()
        pair.fw2.until(pair.fw2.is_master, WITHIN, "is master")
        stays(lambda: pair.fw2.external() >= CONNECTIONS, seconds=10, what="has its copies")
        earlier = ended(pair.fw2)
        pair.fw2.start_follower()
        assert finished(pair.fw2, "primary", earlier)[0]["recovered"] >= CONNECTIONS
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_backup_that_is_typed_on_the_live_primary_purges_nothing_unless_it_is_meant(
    lab: Lab,
) -> None:
    """keepalived's own state forbids it, even where the peer holds every connection."""
    pair = lab(wiring="fifo", conntrackd=PURGES_SOON).start()
    replicated(pair)
    pair.fw2.load_entries(COUNT)  # the peer's own, so that only keepalived can object
    pair.fw1.until(lambda: pair.fw1.external() >= COUNT, WITHIN, "holds copies too")

    pair.fw1.stop_follower()  # which might take it back before it is done

    event = pair.fw1.hook_json("backup")

    assert event["outcome"] == "degraded"
    assert "keepalived reports that this node is master of VI_1, VI_2" in event["reason"]
    assert "-t" not in asked(event)
    stays(
        lambda: pair.fw1.kernel_entries() >= COUNT,
        seconds=PURGE_SECONDS + 1, what="has every entry",
    )  # fmt: skip
    earlier = ended(pair.fw1)
    assert "-t" in asked(pair.fw1.hook_json("backup", "--force"))
    pair.fw1.until(lambda: pair.fw1.kernel_entries() < COUNT / 10, WITHIN, "is purged")
    pair.fw1.start_follower()
    assert "the manual `backup` is reverted" in finished(pair.fw1, "primary", earlier)[0]["cause"]


def test_no_variable_makes_a_backup_purge_the_live_primary(lab: Lab) -> None:
    """Only a `--force` that was typed overrules keepalived; the environment of a hook does not."""
    pair = lab(wiring="fifo", conntrackd=PURGES_SOON).start()
    replicated(pair)
    pair.fw2.load_entries(COUNT)  # the peer's own, so that only keepalived can object
    pair.fw1.until(lambda: pair.fw1.external() >= COUNT, WITHIN, "holds copies too")
    pair.fw1.stop_follower()

    forced = {f"FTFW_TRANSITION_{name}": "1" for name in ("FORCE", "BACKUP_FORCE")}
    ended = pair.fw1.run(HOOK, "backup", "--json", check=False, env=forced)

    event = json.loads(ended.stdout)
    assert "keepalived reports that this node is master of VI_1, VI_2" in event["reason"]
    assert "-t" not in asked(event)


def test_a_backup_that_is_typed_on_the_live_primary_does_not_last(pair: Pair) -> None:
    """keepalived has reported primary all along: the node is one again, and commits nothing."""
    replicated(pair)
    earlier = ended(pair.fw1)

    assert pair.fw1.hook_json("backup")["state"] == "backup"

    returned = finished(pair.fw1, "primary", earlier)[0]
    assert returned["outcome"] == "ok", returned["reason"]
    assert asked(returned) == ["-R", "-B"]
    earlier = ended(pair.fw1)
    pair.fw1.stop_follower()
    pair.fw1.start_follower()
    assert finished(pair.fw1, "primary", earlier)[0]["steps"] == []


def test_a_node_whose_keepalived_writes_elsewhere_is_promoted_all_the_same(pair: Pair) -> None:
    """A FIFO that somebody removed is re-created, but keepalived still writes into the old one."""
    replicated(pair)
    pair.fw2.run("rm", FIFO)
    elsewhere = pair.fw2.until(
        lambda: [e for e in pair.fw2.events("keepalived.asked") if e["outcome"] == "degraded"],
        HEALED, "says that it is not written to",
    )  # fmt: skip
    assert FIFO in elsewhere[0]["reason"]

    pair.fw1.cut()

    pair.fw2.until(lambda: ended(pair.fw2) and pair.fw2.was_made("primary"), HEALED, "is primary")
    assert pair.fw2.events("transition.finished")[-1]["recovered"] >= COUNT


def test_a_node_whose_keepalived_writes_elsewhere_is_left_in_sync_all_the_same(lab: Lab) -> None:
    """Hooks, and beside them a follower that is there to heal."""
    pair = lab(wiring="hooks").start()
    replicated(pair)
    pair.fw2.start_follower()
    pair.fw2.until(
        lambda: [e for e in pair.fw2.events("keepalived.asked") if e["outcome"] == "degraded"],
        HEALED, "says that it is not written to",
    )  # fmt: skip
    earlier = ended(pair.fw2)

    pair.fw2.kill_conntrackd()

    assert finished(pair.fw2, "backup", earlier)[0]["outcome"] == "ok"
    pair.fw2.until(lambda: pair.fw2.external() >= COUNT, HEALED, "holds the copies again")


@pytest.mark.parametrize("wiring", ["fifo", "hooks"])
def test_a_primary_that_is_typed_on_the_backup_breaks_no_failover(pair: Pair, wiring: str) -> None:
    """keepalived's own promotion is a first one all the same; with hooks the record has it."""
    traffic = opened(pair)
    if wiring == "fifo":
        pair.fw2.stop_follower()  # which might take it back before it is done
    earlier = ended(pair.fw2)

    event = pair.fw2.hook_json("primary")

    assert event["outcome"] == "degraded"
    assert "keepalived reports that this node is backup" in event["reason"]
    if wiring == "fifo":
        pair.fw2.start_follower()
        assert finished(pair.fw2, "backup", earlier)[0]["outcome"] == "ok"
    else:
        pair.fw1.client("-B")
    pair.fw2.until(lambda: pair.fw2.external() >= CONNECTIONS, WITHIN, "holds the copies again")
    pair.fw1.cut()
    failover = finished(pair.fw2, "primary", earlier + 1)[-1]
    assert failover["outcome"] == "ok", failover["reason"]
    assert failover["recovered"] >= CONNECTIONS
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_keepalived_that_is_too_busy_to_answer_forbids_a_purge(lab: Lab) -> None:
    """It may be master, and is: once it answers, the follower reverts the manual backup."""
    pair = lab(wiring="fifo", conntrackd=PURGES_SOON).start()
    replicated(pair)
    pair.fw2.load_entries(COUNT)  # the peer's own, so that only keepalived can object
    pair.fw1.until(lambda: pair.fw1.external() >= COUNT, WITHIN, "holds copies too")
    # The dump is the parent's to ask for: the other one goes on sending its adverts.
    (parent, *_) = sorted(pair.fw1.pids("keepalived"))
    earlier = ended(pair.fw1)
    pair.fw1.signal(signal.SIGSTOP, parent)
    try:
        event = pair.fw1.hook_json("backup")
    finally:
        pair.fw1.signal(signal.SIGCONT, parent)

    assert event["outcome"] == "degraded"
    assert "nothing purged: keepalived does not answer (keepalived (pid" in event["reason"]
    assert "-t" not in asked(event)
    returned = finished(pair.fw1, "primary", earlier)[0]
    assert "the manual `backup` is reverted" in returned["cause"]
    stays(
        lambda: pair.fw1.kernel_entries() >= COUNT,
        seconds=PURGE_SECONDS + 1, what="has every entry",
    )  # fmt: skip


# -- what it costs ------------------------------------------------------------------------------


IDLE_SECONDS = 20
PROGRAMS = 2
"""Clients of one poll: `-s`, and `-s runtime` while a purge is pending."""
PIDS = 4
"""Process and thread numbers that one client takes, those of `sh` included."""
WAKES = 16
"""A second: four by its timer; while a client is waited for it wakes more often."""


class Spent(NamedTuple):
    """What an idle follower has used, by counters that a busy machine does not raise."""

    at: float
    """When, in monotonic seconds."""
    pids: int
    """Processes and threads ever started on the firewall, where nothing else starts any."""
    wakes: int
    """How often the follower went to sleep."""
    kib: int
    """Its memory now."""

    @classmethod
    def by(cls, firewall: Firewall) -> Spent:
        (pid,) = firewall.followers()
        process = Path(f"/proc/{firewall.pid}/root/proc/{pid}/status")
        status = dict(line.split(":", 1) for line in process.read_text().splitlines())
        pids = int(firewall.run("cat", "/proc/sys/kernel/ns_last_pid").stdout)
        wakes = int(status["voluntary_ctxt_switches"])
        return cls(time.monotonic(), pids, wakes, int(status["VmRSS"].split()[0]))


def test_an_idle_follower_costs_next_to_nothing(pair: Pair) -> None:
    """It starts the clients of a poll every 5 s, sleeps in between, and takes 40 MiB."""
    replicated(pair)
    firewalls = (pair.fw1, pair.fw2)
    for firewall in firewalls:
        firewall.until(firewall.is_quiet, WITHIN, "is quiet")
    before = [Spent.by(firewall) for firewall in firewalls]
    stays(lambda: all(each.is_quiet() for each in firewalls), seconds=IDLE_SECONDS, what="is idle")
    for earlier, now in zip(before, map(Spent.by, firewalls), strict=True):
        seconds = now.at - earlier.at
        polls = int(seconds / POLL_SECONDS) + 1
        assert now.pids - earlier.pids <= polls * PROGRAMS * PIDS + 1  # one reads the counter
        assert now.wakes - earlier.wakes <= WAKES * seconds
        assert now.kib <= 40 * 1024
