"""The follower on a real pair: keepalived's lines, its end and return, and the follower's own."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from primary_backup.system.proc import boot_seconds
from tests.integration.following import (
    CONNECTIONS,
    COUNT,
    FIFO,
    GROUP,
    HEALED,
    NO_GROUP,
    WITHIN,
    await_line,
    lost,
    opened,
    read,
    read_along,
    replicated,
    requests,
)
from tests.lab.firewall import RUN_DIR, Firewall
from tests.lab.moments import asked, ended, finished, in_mid_commit, inserted
from tests.lab.pair import Lab, Pair, Wiring
from tests.waiting import stays, until

FLIPS = 1000
LOOKS = 6
"""Seconds in which an idle follower has looked at least once."""
LINES = "/run/lab/lines.fifo"
FLIP = "/run/lab/flip"
_FIFO_LINE = f"    vrrp_notify_fifo {FIFO}\n"
ITS_OWN = {
    _FIFO_LINE: f'{_FIFO_LINE}    vrrp_notify_fifo_script "/usr/bin/ftfw-transition follow'
    ' --group G1"\n'
}
"""keepalived starts the follower itself."""
FLIPPED = {
    _FIFO_LINE: f"{_FIFO_LINE}    notify_fifo {LINES}\n",
    GROUP: f"track_file flip {{\n    file {FLIP}\n    weight 0\n    init_file 0\n}}\n\n"
    + GROUP.replace("    group {", "    track_file {\n        flip\n    }\n    group {"),
}
"""A file decides between fault and backup, and a second FIFO gets every line as well."""


def logged(firewalls: tuple[Firewall, ...]) -> list[str]:
    """What each conntrackd has logged: every request but a look."""
    return [each.conntrackd_log() for each in firewalls]


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


@pytest.fixture
def wiring() -> Wiring:
    """All tests here follow."""
    return "fifo"


# -- keepalived ends, and comes back ------------------------------------------------------------


def test_a_keepalived_that_stops_reports_it_and_gives_every_connection_to_the_peer(
    pair: Pair,
) -> None:
    """STOP is in the old primary's record, nothing is asked for it, and the next line counts."""
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
    """Its death sends no line; the peer takes over, and the first notification after it counts."""
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
    """It reports nothing then, nothing is asked, and the next notification counts."""
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
    """It unlinks its own FIFO at a reload and at a stop: no line is lost, nothing is redone."""
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
    firewall.fix("eth1")
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
    """A reload starts a copy before the old one ends; a stop signals it before it reports STOP."""
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
    """Into fault and back to backup, each once keepalived has reported the last; ends there."""
    file = firewall.path(FLIP)
    for number in range(times):
        value, notification = (0, "BACKUP") if number % 2 else (1, "FAULT")
        file.write_text(f"{value}\n")
        await_line(pipe, notification)


def test_of_a_thousand_flips_the_last_one_decides(lab: Lab) -> None:
    """The flips of a tracked file cost a handful of transitions, and not one connection."""
    pair = lab(wiring="fifo", keepalived=FLIPPED).start()
    traffic = opened(pair)
    earlier = ended(pair.fw1)

    def events() -> list[tuple[str, str]]:
        found = pair.fw1.events("transition.finished")[earlier:]
        return [(event["state"], event["outcome"]) for event in found]

    with read_along(pair.fw1, LINES) as pipe:
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


# -- the follower ends, and comes back ----------------------------------------------------------


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
        pair.fw2.reload_keepalived()  # which dates its state again
    pair.fw2.start_follower()

    event = finished(pair.fw2, "primary", earlier)[0]
    assert event["outcome"] == "ok", event["reason"]
    assert event["recovered"] == event["expected"] >= count
    assert pair.fw2.kernel_entries() >= count
    assert inserted(pair.fw2) - before < 1.1 * count


def test_a_follower_that_is_started_again_asks_nothing_of_either_node(lab: Lab) -> None:
    """An upgrade on a live pair: not one request, neither at once nor at the next looks."""
    pair = lab(wiring="fifo", conntrackd={"PurgeTimeout 60": "PurgeTimeout 1"}).start()
    replicated(pair)
    firewalls = (pair.fw1, pair.fw2)
    memory = Path(f"/proc/{pair.fw2.pid}/root{RUN_DIR}/memory.json")
    due = json.loads(memory.read_text())["purge"][0]
    until(lambda: boot_seconds() > due, within=WITHIN, what="no purge is pending")
    logs, counts = logged(firewalls), [ended(each) for each in firewalls]

    for firewall in firewalls:
        assert firewall.stop_follower() == 0
        firewall.start_follower()

    for firewall, earlier, state in zip(firewalls, counts, ("primary", "backup"), strict=True):
        event = finished(firewall, state, earlier)[0]
        assert event["outcome"] == "ok"
        assert event["reason"] == f"already {state}, nothing is asked"
    stays(lambda: logged(firewalls) == logs, seconds=LOOKS, what="no request")
    assert lost(pair.fw1) == lost(pair.fw2) == []


def test_a_follower_that_is_started_again_after_a_reload_asks_nothing_of_the_primary(
    pair: Pair,
) -> None:
    """keepalived dates its state again when it is reloaded, though no notification was missed."""
    replicated(pair)
    pair.fw1.reload_keepalived()
    earlier = ended(pair.fw1)

    pair.fw1.stop_follower()
    pair.fw1.start_follower()

    assert finished(pair.fw1, "primary", earlier)[0]["outcome"] == "ok"
    assert requests(pair.fw1, earlier) == []


def test_a_follower_that_missed_a_notification_asks_keepalived_for_it(pair: Pair) -> None:
    """It was down when the primary died, and the line is lost: all connections survive."""
    traffic = opened(pair)
    earlier = ended(pair.fw2)
    pair.fw2.stop_follower()
    pair.fw1.cut()
    pair.fw2.until(pair.fw2.is_master, WITHIN, "is master")
    with read_along(pair.fw2, FIFO) as pipe:
        await_line(pipe, "MASTER")

    pair.fw2.start_follower()

    event = finished(pair.fw2, "primary", earlier)[0]
    assert event["outcome"] == "ok", event["reason"]
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_follower_that_missed_two_notifications_commits_what_the_peer_has_opened_meanwhile(
    pair: Pair,
) -> None:
    """Primary before and after, and a backup in between that nobody was there to see."""
    earlier = ended(pair.fw1)
    pair.fw1.stop_follower()
    pair.fw1.cut("eth1")
    finished(pair.fw2, "primary")
    traffic = pair.open_connections(CONNECTIONS)
    pair.fw1.until(lambda: pair.fw1.external() >= CONNECTIONS, WITHIN, "holds the copies")
    pair.fw1.fix("eth1")
    with read_along(pair.fw1, FIFO) as pipe:
        await_line(pipe, "BACKUP")
        pair.fw2.cut("eth1")
        await_line(pipe, "MASTER")

    pair.fw1.start_follower()

    assert "-c" in asked(finished(pair.fw1, "primary", earlier)[0])
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_a_master_without_record_whose_copies_were_not_committed_commits_them(pair: Pair) -> None:
    """Nobody knows how it became master, but a full external cache shows what is missing."""
    traffic = opened(pair)
    earlier = ended(pair.fw2)
    pair.fw2.stop_follower()
    pair.fw1.cut()
    pair.fw2.until(pair.fw2.is_master, WITHIN, "is master")
    with read_along(pair.fw2, FIFO) as pipe:
        await_line(pipe, "MASTER")
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
    """Half a firewall is neither primary nor backup: it is reported, and asked again."""
    firewall = alone(lab(wiring="fifo", keepalived=NO_GROUP).fw1)
    firewall.cut("eth0")
    firewall.until(lambda: not firewall.is_master(), WITHIN, "has lost one address")
    assert firewall.holds("10.10.0.1")

    firewall.start_follower("--group", "G1")

    assert firewall.events("keepalived.asked")[-1]["outcome"] == "degraded"
    stays(lambda: ended(firewall) == 0, seconds=2, what="nothing is done")
    firewall.fix("eth0")
    firewall.until(firewall.is_master, WITHIN, "holds both addresses")
    firewall.until(lambda: firewall.was_made("primary"), HEALED, "has asked again")


def test_of_instances_that_disagree_the_one_that_is_followed_counts(lab: Lab) -> None:
    """Without a group one instance is named, and the other one's state is nothing to it."""
    firewall = alone(lab(wiring="fifo", keepalived=NO_GROUP).fw1)
    firewall.cut("eth0")
    firewall.until(lambda: not firewall.is_master(), WITHIN, "has lost one address")
    with read_along(firewall, FIFO) as pipe:
        until(lambda: b"MASTER" in read(pipe), within=WITHIN, what="its lines")

    firewall.start_follower("--instance", "VI_1")

    finished(firewall, "primary")
    firewall.cut("eth1")
    finished(firewall, "fault")
