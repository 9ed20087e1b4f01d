"""The follower: which notifications it carries out, and in which order."""

from __future__ import annotations

import os
import signal

import pytest

from primary_backup.keepalived.notify import STATES
from tests.fake.following import (
    ANOTHER_MASTER,
    PROMOTION,
    WAITS,
    goes_on,
    in_mid,
    keepalived_s_end,
    states,
)
from tests.fake.node import Follower, Node, later
from tests.waiting import until

REASSERTION = ["-f internal", "-R", "-B"]


# -- the newest wins ----------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["MASTER", "BACKUP", "FAULT"])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "line by line"])
def test_a_burst_costs_a_handful_of_transitions(
    follower: Follower, last: str, *, at_once: bool
) -> None:
    """1,000 flips: at most a handful of transitions, and the newest notification decides."""
    arguments = ["BACKUP" if last == "MASTER" else "MASTER", last] * 500
    if at_once:
        follower.send(*arguments)
    else:
        with keepalived_s_end(follower.fifo) as end:
            for state in arguments:
                os.write(end, f'GROUP "G1" {state} 0\n'.encode())
    until(lambda: states(follower)[-1:] == [STATES[last].value], f"the last line is {last}")
    follower.goes_round()
    assert states(follower)[-1] == STATES[last].value
    assert len(follower.transitions) <= 8


@pytest.mark.parametrize("state", ["BACKUP", "FAULT", "STOP"])
def test_a_new_notification_stops_a_transition_before_its_next_request(
    node: Node, follower: Follower, state: str
) -> None:
    """It comes while -c runs: the commit is waited for, and nothing more of the promotion asked."""
    in_mid(node, follower, "MASTER", "-c")
    follower.send(state)
    node.release("go")
    assert follower.finished(1)["outcome"] == "superseded"
    assert follower.finished(2)["state"] == STATES[state].value
    assert not {"-f", "-R", "-B"} & set(node.asked)


def test_a_new_notification_ends_the_wait_for_a_peer(node: Node) -> None:
    """A backup that receives nothing waits for 5 s: not once there is another notification."""
    node.has(peer=0)
    follower = node.follow()
    follower.send("BACKUP")
    until(lambda: "-n" in node.asked, "the backup listens")
    follower.send("STOP")
    ended = follower.finished(1)
    assert ended["outcome"] == "superseded"
    assert ended["seconds"] < 4


def test_a_new_notification_ends_a_retry(node: Node, follower: Follower) -> None:
    """No daemon listened to -c: it is not asked again, nor a daemon started, for an older state."""
    node.on("-c", f"{WAITS}; unreached")
    follower.send("MASTER")
    until((node.world / "asking").exists, "the commit is asked")
    follower.send("STOP")
    node.release("go")
    assert follower.finished(1)["outcome"] == "superseded"
    assert follower.finished(2)["state"] == "stop"
    assert node.asked == ["-c"]


def test_the_same_notification_does_not_restart_its_own_transition(
    node: Node, follower: Follower
) -> None:
    """MASTER while a promotion runs: it goes on to its end, and the second finds it done."""
    in_mid(node, follower, "MASTER", "-c")
    follower.send("MASTER")
    node.release("go")
    assert follower.finished(1)["outcome"] == "ok"
    assert follower.finished(2)["outcome"] == "ok"
    assert node.asked == PROMOTION


@pytest.mark.parametrize("between", ["BACKUP", "FAULT", "STOP"])
def test_a_promotion_that_was_left_in_between_begins_anew(
    node: Node, follower: Follower, between: str
) -> None:
    """MASTER, something else, MASTER, while the first commits: that one's commit is too old."""
    in_mid(node, follower, "MASTER", "-c")
    follower.send(between, "MASTER")
    node.release("go")
    assert follower.finished(1)["outcome"] == "superseded"
    assert follower.finished(2)["outcome"] == "ok"
    assert node.asked == ["-c", *PROMOTION]


@pytest.mark.parametrize("between", ["BACKUP", "FAULT", "STOP"])
def test_a_primary_that_was_something_else_for_a_moment_commits_again(
    follower: Follower, node: Node, between: str
) -> None:
    """Both notifications are read at once: the first was not carried out, but it was read."""
    follower.send("MASTER")
    follower.finished(1)
    follower.send(between, "MASTER")
    follower.finished(2)
    assert node.asked == PROMOTION * 2


def test_a_primary_that_is_reported_so_again_commits_nothing(
    follower: Follower, node: Node
) -> None:
    """Its entries are live, and newer than any copy."""
    follower.send("MASTER")
    follower.finished(1)
    later()
    follower.send("MASTER")
    follower.finished(2)
    assert node.asked == [*PROMOTION, *REASSERTION]


# -- whose notifications ----------------------------------------------------------------------


def test_a_primary_that_received_another_one_re_asserts(follower: Follower, node: Node) -> None:
    """MASTER_RX_LOWER_PRI comes from an instance only, also where a group is followed."""
    follower.send("MASTER")
    follower.finished(1)
    later()
    follower.write(ANOTHER_MASTER)
    assert follower.finished(2)["outcome"] == "ok"
    assert node.asked == [*PROMOTION, *REASSERTION]


@pytest.mark.parametrize("state", [None, "BACKUP", "FAULT", "STOP"])
def test_a_node_that_is_no_primary_re_asserts_nothing(
    follower: Follower, node: Node, state: str | None
) -> None:
    """MASTER_RX_LOWER_PRI makes nobody a primary."""
    if state is not None:
        follower.send(state)
        follower.finished(1)
    asked = node.asked
    follower.write(ANOTHER_MASTER)
    follower.goes_round()
    assert node.asked == asked
    assert len(follower.transitions) == (state is not None)


def test_a_re_assertion_replaces_no_promotion(node: Node, follower: Follower) -> None:
    """Both are read at once: the promotion still has its commit to make."""
    follower.write(b'GROUP "G1" MASTER 0\n' + ANOTHER_MASTER)
    follower.finished(1)
    assert node.asked == PROMOTION


@pytest.mark.parametrize(
    ("whose", "reported"),
    [
        (("GROUP", "G1"), b'GROUP "G2" MASTER 0\n'),
        (("GROUP", "G1"), b'INSTANCE "G1" MASTER 100\n'),
        (("INSTANCE", "VI_1"), b'INSTANCE "VI_2" MASTER 100\n'),
        (("INSTANCE", "VI_1"), b'GROUP "VI_1" MASTER 0\n'),
    ],
)
def test_notifications_of_another_group_are_not_ours(
    node: Node, whose: tuple[str, str], reported: bytes
) -> None:
    """Another group's, another instance's, and those of the other kind."""
    follower = node.follow(*whose)
    follower.write(reported)
    follower.goes_round()
    assert (follower.transitions, node.calls) == ([], [])
    follower.send("MASTER")
    assert follower.finished(1)["state"] == "primary"


def test_another_instance_s_rival_is_not_ours(node: Node) -> None:
    """An instance's follower heeds the MASTER_RX_LOWER_PRI of its own instance alone."""
    follower = node.follow("INSTANCE", "VI_1")
    follower.send("MASTER")
    follower.finished(1)
    follower.write(b'INSTANCE "VI_2" MASTER_RX_LOWER_PRI 150\n')
    follower.goes_round()
    assert node.asked == PROMOTION
    follower.write(ANOTHER_MASTER)
    follower.finished(2)
    assert node.asked == [*PROMOTION, *REASSERTION]


def test_a_rival_takes_the_place_of_no_promotion_that_failed(
    node: Node, follower: Follower
) -> None:
    """Its commit is still owed: only entries that were brought back are worth asserting."""
    node.on("-c", 'refuse "parsing config file in line (1)"')
    follower.send("MASTER")
    assert follower.finished(1)["outcome"] == "failed"
    goes_on(node, "-c")
    asked = len(node.asked)

    follower.write(ANOTHER_MASTER)

    until(lambda: len(follower.transitions) > 1, "what is owed is done")
    assert node.asked[asked:][:4] == PROMOTION


# -- beside hooks -------------------------------------------------------------------------------


def test_a_hook_by_hand_wins_over_an_older_notification(node: Node, follower: Follower) -> None:
    """`ftfw-transition backup` while the follower promotes: the promotion ends after its -c."""
    in_mid(node, follower, "MASTER", "-c")
    hook = node.start("backup")
    until(lambda: node.shows("backup"), "the hook waits")
    node.release("go")
    assert follower.finished(1)["outcome"] == "superseded"
    ended = hook.wait()
    assert (ended.code, ended.event["outcome"]) == (0, "ok")
    assert not {"-f", "-R", "-B"} & set(node.asked)


def test_a_notification_wins_over_an_older_hook(node: Node, follower: Follower) -> None:
    """A BACKUP line while a person promotes: the hook ends after its -c, and exits 4."""
    node.on("-c", WAITS)
    hook = node.start("primary")
    until((node.world / "asking").exists, "the commit runs")
    follower.send("BACKUP")
    until(lambda: node.shows("backup"), "the follower waits")
    node.release("go")
    assert hook.wait().code == 4
    assert follower.finished(1)["outcome"] == "ok"
    assert not {"-f", "-R", "-B"} & set(node.asked)


def test_a_hook_that_is_late_is_older_than_a_notification(node: Node, follower: Follower) -> None:
    """Issued before the line was read, and slow: it asks nothing, and exits 4."""
    late = node.spawn(["sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *node.arguments("backup")])
    until(lambda: late.stopped, "the hook is stopped")
    later()
    follower.send("MASTER")
    follower.finished(1)
    asked = node.asked
    late.signal(signal.SIGCONT)
    assert late.wait().code == 4
    assert node.asked == asked


def test_a_hook_after_slow_flips_is_newer_than_they_are(node: Node, follower: Follower) -> None:
    """Each of them supersedes the one before within a tick of the clock."""
    follower.send("BACKUP")
    until(lambda: node.shows("backup"), "the first one is under way")
    for number in range(1, 200):
        follower.send(("BACKUP", "FAULT")[number % 2])
        until(lambda: len(follower.transitions) >= number, "it supersedes the one before")  # noqa: B023
    later()
    assert node.run("primary").event["outcome"] == "ok"
    assert min(event["waited_seconds"] for event in follower.transitions) >= 0


def test_a_hook_after_a_burst_is_newer_than_its_notifications(
    node: Node, follower: Follower
) -> None:
    """1,000 lines were read within a moment: a `fault` that is typed after them is the newest."""
    follower.send(*["BACKUP", "MASTER"] * 500)
    until(lambda: states(follower)[-1:] == ["primary"], "the last line is MASTER")
    follower.goes_round()
    ended = node.run("fault")
    assert (ended.code, ended.event["outcome"]) == (0, "ok")


def test_a_notification_that_found_its_work_done_is_the_newest_all_the_same(
    node: Node, follower: Follower
) -> None:
    """MASTER, a slow FAULT hook, MASTER, while the first promotes: the FAULT is late."""
    in_mid(node, follower, "MASTER", "-R")
    later()
    late = node.spawn(["sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *node.arguments("fault")])
    until(lambda: late.stopped, "the hook is stopped")
    later()
    follower.send("MASTER")
    later()
    node.release("go")
    follower.finished(2)
    late.signal(signal.SIGCONT)
    assert late.wait().code == 4
    assert node.asked == PROMOTION


def test_a_promotion_by_hand_is_not_made_again(node: Node, follower: Follower) -> None:
    """keepalived reports MASTER after a person did: a re-assertion, no commit over live entries."""
    assert node.run("primary").code == 0
    follower.send("MASTER")
    follower.finished(1)
    assert node.asked == [*PROMOTION, *REASSERTION]
