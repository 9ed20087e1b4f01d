"""The resident mode: every word of real keepalived's is followed, and the pair is in sync after.

fw-1 is the primary and fw-2 its backup; on each a follower reads keepalived's FIFO.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from primary_backup.follower.upkeep import POLL_SECONDS
from tests.lab.firewall import HOOK, RUN_DIR, Firewall
from tests.lab.moments import asked, ended, finished, in_mid_commit, inserted
from tests.lab.node import stays, until
from tests.lab.pair import Lab, Pair, Wiring
from tests.lab.traffic import Traffic

CONNECTIONS = 50
COUNT = 500
FLIPS = 1000
PURGE_SECONDS = 3
PURGES_SOON = {"PurgeTimeout 60": f"PurgeTimeout {PURGE_SECONDS}"}
WITHIN = 20
"""Seconds for what takes two or three on a machine with nothing else to do."""
HEALED = 40
"""Seconds for what an idle follower finds at one of its looks, every 5 s, and sees to."""
LOOKS = 6
"""Seconds in which an idle follower has looked at least once."""

FIFO = f"{RUN_DIR}/notify.fifo"
LINES = "/run/lab/lines.fifo"
FLIP = "/run/lab/flip"
_FIFO_LINE = f"    vrrp_notify_fifo {FIFO}\n"
_GROUP = "vrrp_sync_group G1 {\n    group {\n        VI_1\n        VI_2\n    }\n}\n"
ITS_OWN = {
    _FIFO_LINE: f'{_FIFO_LINE}    vrrp_notify_fifo_script "/usr/bin/ftfw-transition follow'
    ' --group G1"\n'
}
"""keepalived starts the follower itself."""
NO_GROUP = {_GROUP: ""}
FLIPPED = {
    _FIFO_LINE: f"{_FIFO_LINE}    notify_fifo {LINES}\n",
    _GROUP: f"track_file flip {{\n    file {FLIP}\n    weight 0\n    init_file 0\n}}\n\n"
    + _GROUP.replace("    group {", "    track_file {\n        flip\n    }\n    group {"),
}
"""A file decides between fault and backup, and a second FIFO gets every line as well."""


@pytest.fixture
def wiring() -> Wiring:
    """All tests here follow."""
    return "fifo"


def opened(pair: Pair) -> Traffic:
    """Live connections through fw-1, and a copy of each on fw-2."""
    traffic = pair.open_connections(CONNECTIONS)
    pair.fw2.until(lambda: pair.fw2.external() >= CONNECTIONS, WITHIN, "holds the copies")
    return traffic


def replicated(pair: Pair, count: int = COUNT) -> None:
    """Entries on fw-1 that nobody uses, and a copy of each on fw-2."""
    pair.fw1.load_entries(count)
    # conntrackd looks again, after 30 s, for what the kernel could not tell it.
    pair.fw2.until(lambda: pair.fw2.external() >= count, 90, "holds the copies")


def requests(firewall: Firewall, earlier: int = 0) -> list[str]:
    """The options of all requests of all transitions after so many."""
    events = firewall.events("transition.finished")[earlier:]
    return [options for event in events for options in asked(event)]


def lost(firewall: Firewall) -> list[str]:
    """Why the follower found its node out of sync, each time it did."""
    return [event["reason"] for event in firewall.events("sync.lost")]


def log(firewall: Firewall) -> str:
    """What conntrackd has logged: every request but a look."""
    return Path(f"/proc/{firewall.pid}/root/var/log/conntrackd.log").read_text()


def is_there(firewall: Firewall, path: str) -> bool:
    """Say whether there is a file; no part of its path may be a link."""
    return Path(f"/proc/{firewall.pid}/root{path}").exists()


def alone(firewall: Firewall) -> Firewall:
    """A firewall with keepalived alone, which is master, though no follower has made it one."""
    firewall.start_conntrackd()
    firewall.run("mkdir", "-m", "700", RUN_DIR)  # keepalived makes the FIFO but no directory
    firewall.start_keepalived()
    firewall.until(firewall.is_master, WITHIN, "is master")
    return firewall


def forget(firewall: Firewall) -> None:
    """Let there be no record of what the firewall was made."""
    firewall.run("rm", "-f", f"{RUN_DIR}/memory.json", f"{RUN_DIR}/promotion")


@contextmanager
def overheard(firewall: Firewall, path: str) -> Iterator[int]:
    """A FIFO of the firewall's, open for whoever reads along."""
    pipe = os.open(firewall.path(path), os.O_RDWR | os.O_NONBLOCK)
    try:
        yield pipe
    finally:
        os.close(pipe)


def read(pipe: int) -> bytes:
    """What is in it now, which nobody else will read any more."""
    try:
        return os.read(pipe, 1 << 16)
    except BlockingIOError:
        return b""


def hear(pipe: int, word: str) -> None:
    """Read keepalived's lines up to the group's, which comes after those of its instances."""
    line, said = f'GROUP "G1" {word} '.encode(), b""
    while line not in said:
        assert select.select([pipe], [], [], WITHIN)[0], f"no {word} after {said!r}"
        said += read(pipe)


# -- keepalived ends, and comes back --------------------------------------------------------------


def test_a_keepalived_that_stops_says_so_and_gives_every_connection_to_the_peer(
    pair: Pair,
) -> None:
    """STOP is in the old primary's record, nothing is asked for it, and later words count."""
    traffic = opened(pair)

    pair.fw1.stop_keepalived()

    (stopped,) = finished(pair.fw1, "stop")
    assert asked(stopped) == []
    assert finished(pair.fw2, "primary")[0]["outcome"] == "ok"
    assert traffic.alive(WITHIN) == CONNECTIONS
    earlier = ended(pair.fw1)
    pair.fw1.start_keepalived()
    assert finished(pair.fw1, "backup", earlier)[0]["outcome"] == "ok"
    pair.fw2.stop_keepalived()
    assert finished(pair.fw1, "primary", earlier)[0]["outcome"] == "ok"
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_keepalived_that_is_killed_costs_nothing_before_or_after_its_return(pair: Pair) -> None:
    """Nobody is told that it died; the peer takes over, and the first word after it counts."""
    traffic = opened(pair)
    earlier = ended(pair.fw1)

    pair.fw1.kill_keepalived()

    assert finished(pair.fw2, "primary")[0]["outcome"] == "ok"
    assert requests(pair.fw1, earlier) == []
    pair.fw1.start_keepalived()
    assert finished(pair.fw1, "backup", earlier)[0]["outcome"] == "ok"
    assert traffic.alive(WITHIN) == CONNECTIONS
    pair.fw2.cut("eth1")
    assert finished(pair.fw1, "primary", earlier)[0]["outcome"] == "ok"
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_keepalived_that_is_reloaded_on_the_primary_changes_nothing(pair: Pair) -> None:
    """It says nothing then, nothing is asked, and the next word counts."""
    traffic = opened(pair)
    earlier = ended(pair.fw1)

    pair.fw1.reload_keepalived()

    stays(lambda: requests(pair.fw1, earlier) == [], seconds=1, what="nothing is asked")
    assert traffic.alive(WITHIN) == CONNECTIONS
    pair.fw1.cut("eth1")
    finished(pair.fw1, "fault", earlier)
    assert finished(pair.fw2, "primary")[0]["outcome"] == "ok"
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_fifo_that_keepalived_made_is_followed_wherever_it_makes_it_anew(lab: Lab) -> None:
    """It unlinks its own FIFO at a reload and at a stop: no word is lost, nothing is redone."""
    firewall = alone(lab(wiring="fifo").fw1)
    firewall.load_entries(COUNT)
    firewall.start_follower()
    finished(firewall, "primary")
    earlier = ended(firewall)

    firewall.reload_keepalived()

    finished(firewall, "primary", earlier)
    assert requests(firewall, earlier) == []
    firewall.cut("eth1")
    finished(firewall, "fault", earlier)
    earlier = ended(firewall)
    firewall.mend("eth1")
    finished(firewall, "primary", earlier)
    firewall.stop_keepalived()
    finished(firewall, "stop", earlier)
    stopped = ended(firewall)
    firewall.start_keepalived()
    assert finished(firewall, "primary", stopped)
    assert "-t" not in requests(firewall)
    assert firewall.kernel_entries() >= COUNT


def test_a_follower_that_keepalived_starts_lives_through_a_reload_and_reads_the_stop(
    lab: Lab,
) -> None:
    """A reload starts a copy before the old one ends; a stop signals it before it says STOP."""
    pair = lab(wiring="fifo", keepalived=ITS_OWN)
    alone(pair.fw1)
    finished(pair.fw1, "primary")
    pair.fw2.start_conntrackd()
    pair.fw2.run("mkdir", "-m", "700", RUN_DIR)
    pair.fw2.start_keepalived()
    finished(pair.fw2, "backup")
    traffic = opened(pair)
    earlier, followers = ended(pair.fw1), pair.fw1.followers()

    pair.fw1.reload_keepalived()

    finished(pair.fw1, "primary", earlier)
    pair.fw1.until(
        lambda: len(now := pair.fw1.followers()) == 1 and now != followers,
        WITHIN, "the copy is alone",
    )  # fmt: skip
    assert requests(pair.fw1, earlier) == []
    assert traffic.alive(WITHIN) == CONNECTIONS
    pair.fw1.stop_keepalived()
    assert asked(finished(pair.fw1, "stop", earlier)[0]) == []
    pair.fw1.until(lambda: not pair.fw1.followers(), WITHIN, "the follower has ended")
    assert finished(pair.fw2, "primary")[0]["outcome"] == "ok"
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_promotion_that_a_stop_of_keepalived_has_ended_is_not_taken_up_again(lab: Lab) -> None:
    """A follower of its own is signalled before it reads STOP: after that nothing is unfinished."""
    pair = lab(wiring="fifo", keepalived=ITS_OWN)
    firewall = pair.fw1
    firewall.load_entries(COUNT)  # so that the promotion sends a bulk, and listens for a peer
    alone(firewall)
    firewall.until(
        lambda: [each for each in firewall.events("step.finished") if each["step"] == "flush"],
        WITHIN, "is in the middle of its promotion",
    )  # fmt: skip

    firewall.stop_keepalived()

    finished(firewall, "stop")
    firewall.until(lambda: not firewall.followers(), WITHIN, "the follower has ended")
    earlier = ended(firewall)
    firewall.start_follower()
    stays(lambda: requests(firewall, earlier) == [], seconds=2, what="nothing is asked")


def flip(firewall: Firewall, pipe: int, times: int) -> None:
    """Into fault and back to backup, each as soon as keepalived has told the last; ends there."""
    file = firewall.path(FLIP)
    for number in range(times):
        value, word = (0, "BACKUP") if number % 2 else (1, "FAULT")
        file.write_text(f"{value}\n")
        hear(pipe, word)


def test_of_a_thousand_flips_the_last_one_decides(lab: Lab) -> None:
    """The flips of a tracked file cost a handful of transitions, and not one connection."""
    pair = lab(wiring="fifo", keepalived=FLIPPED).start()
    traffic = opened(pair)
    earlier = ended(pair.fw1)

    def events() -> list[tuple[str, str]]:
        found = pair.fw1.events("transition.finished")[earlier:]
        return [(event["state"], event["outcome"]) for event in found]

    with overheard(pair.fw1, LINES) as pipe:
        read(pipe)
        flip(pair.fw1, pipe, FLIPS // 2)
        pair.fw1.signal(signal.SIGSTOP, *pair.fw1.followers())
        followed = len(events())
        flip(pair.fw1, pipe, FLIPS // 2)
        pair.fw1.signal(signal.SIGCONT, *pair.fw1.followers())

    pair.fw1.until(lambda: events()[-1:] == [("backup", "ok")], WITHIN, "is made backup")
    assert len(events()) - followed <= 3  # how many before, the machine's pace decides
    assert traffic.alive(WITHIN) == CONNECTIONS
    pair.fw2.cut("eth1")
    assert finished(pair.fw1, "primary", earlier)[0]["outcome"] == "ok"
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


# -- the follower ends, and comes back ------------------------------------------------------------


@pytest.mark.parametrize("reloaded", [False, True])
def test_a_follower_that_is_killed_in_the_middle_of_a_commit_finishes_it_after_its_return(
    pair: Pair, *, reloaded: bool
) -> None:
    """Every entry is recovered, and none that lives is replaced by its copy a second time."""
    count = 50_000
    replicated(pair, count)
    before = inserted(pair.fw2)
    earlier = ended(pair.fw2)
    pair.fw1.cut()
    with in_mid_commit(pair.fw2, before):
        pair.fw2.kill_follower()

    assert ended(pair.fw2) == earlier
    if reloaded:
        pair.fw2.reload_keepalived()  # which dates its state anew
    pair.fw2.start_follower()

    event = finished(pair.fw2, "primary", earlier)[0]
    assert event["outcome"] == "ok", event["reason"]
    assert event["recovered"] == event["expected"] >= count
    assert pair.fw2.kernel_entries() >= count
    assert inserted(pair.fw2) - before < 1.1 * count


def test_a_follower_that_is_started_again_asks_nothing_of_either_node(pair: Pair) -> None:
    """An upgrade on a live pair: not one request, neither at once nor at the next looks."""
    replicated(pair)
    firewalls = (pair.fw1, pair.fw2)
    logs, counts = [log(each) for each in firewalls], [ended(each) for each in firewalls]

    for firewall in firewalls:
        assert firewall.stop_follower() == 0
        firewall.start_follower()

    for firewall, earlier, state in zip(firewalls, counts, ("primary", "backup"), strict=True):
        event = finished(firewall, state, earlier)[0]
        assert event["outcome"] == "ok"
        assert event["reason"] == f"already {state}, nothing is asked"
    stays(lambda: [log(each) for each in firewalls] == logs, seconds=LOOKS, what="no request")
    assert lost(pair.fw1) == lost(pair.fw2) == []


def test_a_follower_that_is_started_again_after_a_reload_asks_nothing_of_the_primary(
    pair: Pair,
) -> None:
    """keepalived dates its state anew when it is reloaded, though no word was missed."""
    replicated(pair)
    pair.fw1.reload_keepalived()
    earlier = ended(pair.fw1)

    pair.fw1.stop_follower()
    pair.fw1.start_follower()

    assert finished(pair.fw1, "primary", earlier)[0]["outcome"] == "ok"
    assert requests(pair.fw1, earlier) == []


def test_a_follower_that_missed_a_word_asks_keepalived_for_it(pair: Pair) -> None:
    """It was down when the primary died, and its word is lost: still all connections live."""
    traffic = opened(pair)
    earlier = ended(pair.fw2)
    pair.fw2.stop_follower()
    pair.fw1.cut()
    pair.fw2.until(pair.fw2.is_master, WITHIN, "is master")
    with overheard(pair.fw2, FIFO) as pipe:
        hear(pipe, "MASTER")

    pair.fw2.start_follower()

    event = finished(pair.fw2, "primary", earlier)[0]
    assert event["outcome"] == "ok", event["reason"]
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_follower_that_missed_two_words_commits_what_the_peer_has_opened_meanwhile(
    pair: Pair,
) -> None:
    """Primary before and after, and a backup in between that nobody was there to see."""
    earlier = ended(pair.fw1)
    pair.fw1.stop_follower()
    pair.fw1.cut("eth1")
    finished(pair.fw2, "primary")
    traffic = pair.open_connections(CONNECTIONS)
    pair.fw1.until(lambda: pair.fw1.external() >= CONNECTIONS, WITHIN, "holds the copies")
    pair.fw1.mend("eth1")
    with overheard(pair.fw1, FIFO) as pipe:
        hear(pipe, "BACKUP")
        pair.fw2.cut("eth1")
        hear(pipe, "MASTER")

    pair.fw1.start_follower()

    assert "-c" in asked(finished(pair.fw1, "primary", earlier)[0])
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_master_without_record_whose_copies_were_not_committed_commits_them(pair: Pair) -> None:
    """Nobody knows how it became master, but a full external cache tells what is missing."""
    traffic = opened(pair)
    earlier = ended(pair.fw2)
    pair.fw2.stop_follower()
    pair.fw1.cut()
    pair.fw2.until(pair.fw2.is_master, WITHIN, "is master")
    with overheard(pair.fw2, FIFO) as pipe:
        hear(pipe, "MASTER")
    forget(pair.fw2)

    pair.fw2.start_follower()

    assert "-c" in asked(finished(pair.fw2, "primary", earlier)[0])
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_master_without_record_that_holds_the_connections_commits_nothing(pair: Pair) -> None:
    """Its entries are live, newer than any copy: it asserts itself, as after a split brain."""
    traffic = opened(pair)
    earlier = ended(pair.fw1)
    pair.fw1.stop_follower()
    forget(pair.fw1)

    pair.fw1.start_follower()

    event = finished(pair.fw1, "primary", earlier)[0]
    assert asked(event) == ["-f internal", "-R", "-B"]
    assert event["outcome"] == "ok", event["reason"]
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_instances_that_disagree_move_nothing_until_they_agree(lab: Lab) -> None:
    """Half a firewall is neither primary nor backup: it is said, and asked again."""
    firewall = alone(lab(wiring="fifo", keepalived=NO_GROUP).fw1)
    firewall.cut("eth0")
    firewall.until(lambda: not firewall.is_master(), WITHIN, "has lost one address")
    assert firewall.holds("10.10.0.1")

    firewall.start_follower("--group", "G1")

    assert firewall.events("keepalived.asked")[-1]["outcome"] == "degraded"
    stays(lambda: ended(firewall) == 0, seconds=2, what="nothing is done")
    firewall.mend("eth0")
    firewall.until(firewall.is_master, WITHIN, "holds both addresses")
    firewall.until(lambda: firewall.was_made("primary"), HEALED, "has asked again")


def test_of_instances_that_disagree_the_one_that_is_followed_counts(lab: Lab) -> None:
    """Without a group one instance is named, and the other one's state is nothing to it."""
    firewall = alone(lab(wiring="fifo", keepalived=NO_GROUP).fw1)
    firewall.cut("eth0")
    firewall.until(lambda: not firewall.is_master(), WITHIN, "has lost one address")
    with overheard(firewall, FIFO) as pipe:
        until(lambda: b"MASTER" in read(pipe), within=WITHIN, what="its words")

    firewall.start_follower("--instance", "VI_1")

    finished(firewall, "primary")
    firewall.cut("eth1")
    finished(firewall, "fault")


# -- in sync afterwards ---------------------------------------------------------------------------


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
    """A request that nobody heard is lost: the follower repeats it when the peer is heard."""
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
    few = {"ResendQueueSize 131072": "ResendQueueSize 64"}
    pair = lab(wiring="fifo", conntrackd=few).start()
    replicated(pair)
    earlier = ended(pair.fw1)

    pair.fw1.cut("eth2")
    stays(lambda: not lost(pair.fw1), seconds=5, what="nothing to be done yet")
    pair.fw1.load_entries(COUNT, first=COUNT)
    stays(lambda: not lost(pair.fw1), seconds=5, what="nothing to be done yet")
    pair.fw1.mend("eth2")

    pair.fw2.until(lambda: pair.fw2.external() >= 2 * COUNT, HEALED, "holds the copies")
    assert not {"-c", "-f", "-t"} & set(requests(pair.fw1, earlier))
    for _ in range(10):
        pair.fw1.cut("eth2")
        pair.fw1.mend("eth2")
    for firewall in (pair.fw1, pair.fw2):
        firewall.until(firewall.is_quiet, WITHIN, "is quiet")
        assert len(lost(firewall)) <= 3
    assert pair.fw2.external() >= 2 * COUNT


def test_a_daemon_that_dies_again_and_again_is_not_started_in_a_storm(pair: Pair) -> None:
    """Each time it takes longer until the next attempt: two in twelve seconds."""

    def dies() -> bool:
        pids = pair.fw2.pids("conntrackd", "-d")
        if pids:
            pair.fw2.run("kill", "-KILL", "--", *map(str, pids), check=False)
        return True

    stays(dies, seconds=12)

    assert 1 <= len(lost(pair.fw2)) <= 2


# -- purges ---------------------------------------------------------------------------------------


def test_a_purge_that_was_held_back_is_made_up_for_and_its_firing_is_logged(lab: Lab) -> None:
    """The old primary heard nobody; once the new one is proven to have all, it is cleaned."""
    pair = lab(wiring="fifo", conntrackd=PURGES_SOON).start()
    replicated(pair)
    pair.fw1.cut()
    held = finished(pair.fw1, "fault")[0]
    assert "-t" not in asked(held)
    assert finished(pair.fw2, "primary")[0]["recovered"] >= COUNT
    assert pair.fw1.kernel_entries() >= COUNT

    pair.fw1.mend("eth2")

    (fired,) = pair.fw1.until(lambda: pair.fw1.events("purge.fired"), 2 * HEALED, "has purged")
    assert fired["outcome"] == "ok"
    assert pair.fw1.kernel_entries() < COUNT / 10
    assert pair.fw2.kernel_entries() >= COUNT
    assert pair.fw2.events("purge.fired") == []


def test_a_backup_that_is_typed_on_the_live_primary_purges_nothing_unless_it_is_meant(
    lab: Lab,
) -> None:
    """keepalived's own word forbids it, even where the peer holds every connection."""
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
    """keepalived has said primary all along: the node is one again, and commits nothing."""
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
    """A FIFO that somebody removed is made anew, but keepalived still writes into the old one."""
    replicated(pair)
    pair.fw2.run("rm", FIFO)
    deaf = pair.fw2.until(
        lambda: [e for e in pair.fw2.events("keepalived.asked") if e["outcome"] == "degraded"],
        HEALED, "says that it is not written to",
    )  # fmt: skip
    assert FIFO in deaf[0]["reason"]

    pair.fw1.cut()

    pair.fw2.until(lambda: ended(pair.fw2) and pair.fw2.was_made("primary"), HEALED, "is primary")
    assert pair.fw2.events("transition.finished")[-1]["recovered"] >= COUNT


def test_a_node_whose_keepalived_writes_elsewhere_is_kept_in_sync_all_the_same(lab: Lab) -> None:
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
def test_a_primary_that_is_typed_on_the_backup_spoils_no_failover(pair: Pair, wiring: str) -> None:
    """keepalived's own promotion is the first one all the same; with hooks the record says so."""
    traffic = opened(pair)
    earlier = ended(pair.fw2)
    if wiring == "fifo":
        pair.fw2.stop_follower()  # which might take it back before it is done

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


# -- what it costs --------------------------------------------------------------------------------


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
