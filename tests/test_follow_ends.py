"""The follower: how it ends, what its successor finishes, and what a killed one leaves."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import nullcontext

import pytest

from primary_backup.follower.loop import STOP_SECONDS
from primary_backup.keepalived.notify import STATES
from primary_backup.system.proc import boot_id
from tests.fake.following import (
    DOWN,
    PROMOTION,
    SENT,
    WAITS,
    goes_on,
    in_mid,
    keepalived_s_end,
    service_manager,
    states,
    stopped,
)
from tests.fake.node import Follower, Hook, Node
from tests.waiting import until

DOES_NOTHING = f"{WAITS}; exit 0"
"""The same, and then it has no effect."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_follower(follower: Follower, number: signal.Signals) -> None:
    """Within a second, with status 0, and its last event names the reason."""
    follower.signal(number)
    ended = follower.wait(within=3)
    assert (ended.code, ended.lines) == (0, [])
    assert ended.events[-1]["message"] == "follow.ended"
    assert number.name in ended.events[-1]["reason"]


def test_a_stop_that_is_there_already_is_received(node: Node, follower: Follower) -> None:
    """keepalived writes STOP, and ends its follower."""
    with keepalived_s_end(node.fifo), stopped(follower):
        follower.send("STOP")
        follower.signal(signal.SIGTERM)
    assert follower.wait(within=3).code == 0
    assert states(follower) == ["stop"]


@pytest.mark.parametrize("seconds", [0, STOP_SECONDS], ids=["at once", "it stood still"])
def test_a_stop_that_comes_right_after_the_signal_is_received(node: Node, seconds: float) -> None:
    """keepalived signals its follower first, and writes its last lines then.

    They are read, even if the machine stood still and no time is left.
    """
    with service_manager(node) as (received, environment):
        follower = node.follow(environment=environment)
        with keepalived_s_end(node.fifo) as end:
            follower.signal(signal.SIGTERM)
            received("STOPPING=1")
            with stopped(follower) if seconds else nullcontext():
                over = time.monotonic() + seconds
                until(lambda: time.monotonic() > over, "its time is up")
                os.write(end, b'GROUP "G1" STOP 0\n')
            assert follower.wait(within=3).code == 0
    assert states(follower) == ["stop"]


def test_a_signal_does_not_wait_for_a_daemon_that_is_being_started(
    node: Node, follower: Follower
) -> None:
    """And leaves it to itself: half a start would leave a lock file."""
    node.on("any", DOWN)
    node.on("-d", ": >$world/asking; until_released go; : >$world/up")
    follower.send("MASTER")
    until((node.world / "asking").exists, "conntrackd is being started")
    follower.signal(signal.SIGTERM)
    assert follower.wait(within=3).code == 0
    node.release("go")
    until((node.world / "up").exists, "it is started all the same")


@pytest.mark.parametrize(
    ("state", "request_"), [("MASTER", "-c"), ("BACKUP", "-n"), ("FAULT", "-t"), ("BACKUP", "-s")]
)
def test_a_signal_leaves_a_transition_to_the_next_follower(
    node: Node, follower: Follower, state: str, request_: str
) -> None:
    """SIGTERM while a request is answered: it ends at once, and the next one finishes."""
    in_mid(node, follower, state, request_)
    follower.signal(signal.SIGTERM)
    assert follower.wait(within=3).code == 0
    assert follower.transitions[-1]["outcome"] != "ok"
    goes_on(node, request_)
    following = node.follow()
    ended = following.finished(1)
    assert (ended["state"], ended["outcome"]) == (STATES[state].value, "ok")


def test_a_notification_that_nobody_has_begun_is_left_to_the_next_follower(
    node: Node, follower: Follower
) -> None:
    """SIGTERM came with it: the FIFO forgets it, the run directory does not."""
    with stopped(follower):
        follower.send("MASTER")
        follower.signal(signal.SIGTERM)
    assert follower.wait(within=3).code == 0
    assert node.asked == []
    assert node.follow().finished(1)["state"] == "primary"
    assert node.asked == PROMOTION


def test_a_signal_that_comes_too_late_leaves_nothing(node: Node, follower: Follower) -> None:
    """The last answer had come: the next follower on the live primary asks nothing."""
    once_reaped = "while kill -0 $$; do :; done; kill -TERM $PPID"
    node.on("-s queue", f"{SENT} || return 0; ({once_reaped}) >/dev/null 2>&1 &")
    node.on("-R", "put internal 3")
    follower.send("MASTER")
    assert follower.wait().code == 0
    assert follower.transitions[-1]["outcome"] == "ok"
    (node.world / "on" / "-s queue").unlink()
    node.follow().goes_round()
    assert node.asked == PROMOTION


def test_a_follower_that_is_started_again_asks_nothing(node: Node, follower: Follower) -> None:
    """A package upgrade on the live primary: all was done."""
    follower.send("MASTER")
    follower.finished(1)
    follower.signal(signal.SIGTERM)
    follower.wait()
    following = node.follow()
    following.goes_round()
    assert (following.transitions, node.asked) == ([], PROMOTION)


def test_nobody_finishes_a_promotion_that_was_stopped(node: Node, follower: Follower) -> None:
    """keepalived ends in mid-promotion, with a STOP: the next follower waits for a notification."""
    in_mid(node, follower, "MASTER", "-c")
    with keepalived_s_end(node.fifo) as end:
        follower.signal(signal.SIGTERM)
        os.write(end, b'GROUP "G1" STOP 0\n')
        assert follower.wait(within=3).code == 0
    assert follower.transitions[-1]["state"] == "stop"
    goes_on(node, "-c")
    following = node.follow()
    following.goes_round()
    assert (following.transitions, node.asked) == ([], ["-c"])


def test_nobody_finishes_a_promotion_that_was_killed_before_a_stop(
    node: Node, follower: Follower
) -> None:
    """The stop came by a hook: the next follower waits for a notification."""
    in_mid(node, follower, "MASTER", "-c")
    killed(follower)
    assert node.run("stop").code == 0
    goes_on(node, "-c")
    following = node.follow()
    following.goes_round()
    assert (following.transitions, node.asked) == ([], ["-c"])


def killed(hook: Hook) -> None:
    """End it with SIGKILL."""
    hook.signal(signal.SIGKILL)
    hook.process.wait()


def test_a_commit_that_did_nothing_is_asked_again(node: Node, follower: Follower) -> None:
    """SIGKILL while -c is asked: the next follower promotes, with a commit of its own."""
    in_mid(node, follower, "MASTER", "-c", DOES_NOTHING)
    killed(follower)
    goes_on(node, "-c")
    ended = node.follow().finished(1)
    assert ended["state"] == "primary"
    assert node.asked == ["-c", *PROMOTION]


INSERTS = """
put internal 0
for port in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    conntrack -I -p tcp -s 10.0.0.1 -d 10.0.0.2 --sport $port --dport 80 --state ESTABLISHED -t 600
done >/dev/null 2>&1
"""
"""A commit that makes 20 entries in the node's own kernel table."""


@pytest.mark.skipif(shutil.which("conntrack") is None, reason="conntrack makes the entries")
def test_a_commit_that_was_done_is_not_asked_again(node: Node, follower: Follower) -> None:
    """SIGKILL before -c is answered, but the kernel's counter shows all of its entries."""
    node.has(external=20)
    node.on("-R", "put internal 20")
    in_mid(node, follower, "MASTER", "-c")
    (node.world / "asking").unlink()
    killed(follower)
    goes_on(node, "-c")
    (node.world / "go").unlink()
    node.on("-c", f"{INSERTS}{WAITS}")
    second = node.follow()
    until((node.world / "asking").exists, "its entries are made")
    killed(second)
    goes_on(node, "-c")
    ended = node.follow().finished(1)
    assert (ended["outcome"], ended["expected"], ended["recovered"]) == ("ok", 20, 20)
    assert node.asked == ["-c", *PROMOTION]


def test_a_commit_that_was_waited_for_is_not_asked_again(node: Node, follower: Follower) -> None:
    """SIGKILL after -c and before the end of -f: the next follower goes on after the commit."""
    in_mid(node, follower, "MASTER", "-f")
    killed(follower)
    goes_on(node, "-f")
    following = node.follow()
    assert following.finished(1)["state"] == "primary"
    assert node.asked == ["-c", "-f", "-f", "-R", "-B"]


def test_what_waits_in_the_fifo_is_newer_than_what_was_not_finished(
    node: Node, follower: Follower
) -> None:
    """A BACKUP that the killed one had not read: the promotion is nobody's any more."""
    in_mid(node, follower, "MASTER", "-c")
    with keepalived_s_end(node.fifo):
        with stopped(follower):
            follower.send("BACKUP")
            follower.signal(signal.SIGKILL)
        follower.process.wait()
        following = node.follow()
        goes_on(node, "-c")
        assert following.finished(1)["state"] == "backup"
        following.goes_round()
    assert states(following) == ["backup"]


def test_of_several_the_newest_is_finished(node: Node, follower: Follower) -> None:
    """A hook waited when both were killed: its notification was the last."""
    in_mid(node, follower, "MASTER", "-c")
    with stopped(follower):
        hook = node.start("backup")
        until(lambda: node.shows("backup"), "the hook waits")
        killed(hook)
        follower.signal(signal.SIGKILL)
    follower.process.wait()
    goes_on(node, "-c")
    following = node.follow()
    assert following.finished(1)["state"] == "backup"
    following.goes_round()
    assert states(following) == ["backup"]


def test_what_a_killed_hook_left_is_finished(node: Node, follower: Follower) -> None:
    """While a follower is there, nothing stays half done."""
    follower.send("BACKUP")
    follower.finished(1)
    node.on("-c", DOES_NOTHING)
    hook = node.start("primary")
    until((node.world / "asking").exists, "the commit runs")
    killed(hook)
    goes_on(node, "-c")
    assert follower.reported("sync.lost")["outcome"] == "degraded"
    assert follower.finished(2)["state"] == "primary"
    assert [asked for asked in node.asked if asked not in ("-n", "-t")] == ["-c", *PROMOTION]


@pytest.mark.parametrize("boot", ["this", "another"])
def test_a_record_of_another_boot_is_never_finished(node: Node, boot: str) -> None:
    """The very same record of this boot is."""
    killed_one = node.spawn(["true"])
    killed_one.wait()
    name = boot_id()[:8] if boot == "this" else "01234567"
    node.run_dir.mkdir(mode=0o700)
    (node.run_dir / f"ticket.{name}.100.{killed_one.pid}.0.0.primary").touch()
    following = node.follow()
    following.goes_round()
    assert states(following) == (["primary"] if boot == "this" else [])
