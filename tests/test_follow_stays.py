"""The follower stays, whatever happens; as a service, and at what cost."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from primary_backup.system.proc import TICKS_PER_SECOND, boot_seconds
from tests.fake.following import (
    ANOTHER_MASTER,
    DOWN,
    PROMOTION,
    SENT,
    WAITS,
    fill,
    in_mid,
    keepalived_s_end,
    service_manager,
    states,
    stopped,
)
from tests.fake.node import Follower, Node, is_running, later
from tests.waiting import until

# -- whatever happens, it stays -----------------------------------------------------------------


def test_a_configuration_is_read_again(node: Node, follower: Follower) -> None:
    """SIGHUP: an event reports whether it is in force; a broken one does not end the follower."""
    follower.signal(signal.SIGHUP)
    assert follower.reported("conf.read")["outcome"] == "ok"
    node.config.write_text("Sync {")
    follower.signal(signal.SIGHUP)
    event = follower.reported("conf.read", number=2)
    assert (event["outcome"], str(node.config) in event["reason"]) == ("degraded", True)
    node.configure("Mode ALARM { }")
    follower.signal(signal.SIGHUP)
    assert follower.reported("conf.read", number=3)["outcome"] == "ok"
    follower.send("MASTER")
    follower.finished(1)
    assert "-B" not in node.asked


@pytest.mark.parametrize("text", [None, "Sync {", "Stats { }\n", "\0"])
def test_a_broken_configuration_ends_no_follower(
    node: Node, follower: Follower, text: str | None
) -> None:
    """The notification ends failed or degraded; the one after the fix is carried out."""
    node.config.unlink()
    if text is not None:
        node.config.write_text(text)
    follower.send("MASTER")
    assert follower.finished(1)["outcome"] != "ok"
    follower.send("BACKUP")
    follower.finished(2)
    node.configure("Mode FTFW { }")
    follower.send("MASTER")
    assert follower.finished(3)["outcome"] == "ok"


def test_a_notification_that_was_refused_is_tried_again_once_the_cause_is_fixed(
    node: Node, follower: Follower
) -> None:
    """keepalived reports it once: nobody else would make this node a backup."""
    node.config.write_text("Sync {")
    node.on("-s", 'refuse "syntax error"')
    follower.send("BACKUP")
    assert follower.finished(1)["outcome"] == "failed"
    (node.world / "on" / "-s").unlink()
    node.configure("Mode FTFW { }")
    event = follower.finished(2)
    assert (event["state"], event["outcome"]) == ("backup", "ok")
    assert "-n" in node.asked


def test_a_rival_that_never_yields_is_answered_now_and_then(node: Node, follower: Follower) -> None:
    """keepalived writes a line for each of its adverts, and a re-assertion empties a cache."""
    follower.send("MASTER")
    follower.finished(1)
    for _ in range(30):
        follower.write(ANOTHER_MASTER)
        follower.goes_round()
    assert len(follower.transitions) == 2
    assert follower.finished(3)["cause"] == follower.finished(2)["cause"]


@pytest.mark.parametrize("trouble", ["gone", "of others", "a file"])
def test_a_run_directory_that_cannot_be_used_ends_no_follower(
    node: Node, follower: Follower, trouble: str
) -> None:
    """Each notification is carried out, and names what it lacks; a directory is made again."""
    with stopped(follower):  # else it makes one again between two acts
        shutil.rmtree(node.run_dir)
        if trouble == "of others":
            node.run_dir.mkdir()
            node.run_dir.chmod(0o777)
        elif trouble == "a file":
            node.run_dir.touch()
    follower.send("MASTER")
    ended = follower.finished(1)
    assert ended["outcome"] == ("ok" if trouble == "gone" else "degraded")
    assert node.asked == PROMOTION
    follower.goes_round()
    follower.send("STOP")
    assert follower.finished(2)["state"] == "stop"


def test_a_fifo_that_goes_with_the_run_directory_is_made_anew(node: Node) -> None:
    """The FIFO's place is in the run directory, by default: both are made again."""
    follower = node.follow(fifo=node.run_dir / "notify.fifo")
    with stopped(follower):
        shutil.rmtree(node.run_dir)
    until(follower.fifo.exists, "it is there again")
    follower.send("MASTER")
    assert follower.finished(1)["outcome"] == "ok"


def test_a_client_that_is_not_there_ends_no_follower(node: Node) -> None:
    """The notification fails, with what to install; then the next one is carried out."""
    node.client = node.world / "client"
    follower = node.follow()
    follower.send("MASTER")
    assert follower.finished(1)["outcome"] == "failed"
    with stopped(follower):
        shutil.copy(Path(__file__).with_name("fake") / "conntrackd", node.client)
        follower.send("STOP", "MASTER")
    until(lambda: states(follower)[-1] == "primary" and node.asked == PROMOTION, "it is promoted")


def test_a_log_that_nobody_reads_any_more_ends_no_follower(node: Node) -> None:
    """The pipe of its stderr has lost its reader."""
    reader, writer = os.pipe()
    os.close(reader)
    arguments = node.arguments("follow", "--group", "G1", str(node.fifo))
    os.mkfifo(node.fifo, 0o600)
    with keepalived_s_end(node.fifo) as end:
        node.spawn(arguments, stdout=writer, stderr=writer)
        os.close(writer)
        os.write(end, b'GROUP "G1" MASTER 0\n')
        until(lambda: node.asked == PROMOTION, "it is promoted")


def test_a_log_that_is_not_read_holds_up_no_notification(node: Node) -> None:
    """The pipe of its stderr is full, and stays so."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    fill(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    arguments = node.arguments("follow", "--group", "G1", str(node.fifo))
    os.mkfifo(node.fifo, 0o600)
    with keepalived_s_end(node.fifo) as end:
        node.spawn(arguments, stderr=writer)
        os.close(writer)
        os.write(end, b'GROUP "G1" MASTER 0\n')
        until(lambda: node.asked == PROMOTION, "it is promoted")
    os.close(reader)


def test_a_daemon_that_died_is_started_again(node: Node, follower: Follower) -> None:
    """An idle follower sees it, reports it, starts it and brings this node back in sync."""
    node.release("up")
    node.on("any", DOWN)
    node.on("-d", ": >$world/up")
    follower.send("MASTER")
    follower.finished(1)
    later()
    (node.world / "up").unlink()
    assert follower.reported("sync.lost")["outcome"] == "degraded"
    ended = follower.finished(2)
    assert (ended["state"], ended["steps"][0]["name"]) == ("primary", "start")
    assert node.asked[4:].count("-d") == 1
    assert [asked for asked in node.asked[4:] if asked != "-d"][-2:] == ["-R", "-B"]
    assert node.asked.count("-c") == 1


def test_a_notification_ends_a_poll_at_a_daemon_that_hangs(node: Node) -> None:
    """A notification does not wait for an idle follower's poll, whose client is ended."""
    follower = node.follow()
    node.on("-R", "put internal 3")
    # A promotion's last request.
    node.on("-s queue", f"{SENT} || return 0; echo '{WAITS}' >$world/on/any")
    follower.send("MASTER")
    follower.finished(1)
    until((node.world / "asking").exists, "it looks")
    follower.send("STOP")
    assert follower.finished(2, within=4)["state"] == "stop"
    until(lambda: not is_running(node.clients[-1]), "its client is gone")


# -- as a service -------------------------------------------------------------------------------


def test_a_service_manager_is_reported_everything(node: Node) -> None:
    """READY=1 once the FIFO is open, STATUS with the state, WATCHDOG=1, STOPPING=1 at the end."""
    with service_manager(node) as (received, environment):
        os.mkfifo(node.fifo, 0o600)
        follower = node.follow(environment=environment)
        assert "STATUS=" in received("READY=1")
        os.close(os.open(node.fifo, os.O_WRONLY | os.O_NONBLOCK))  # there is a reader
        for _ in range(3):
            assert received("WATCHDOG=1") == "WATCHDOG=1"
        follower.send("MASTER")
        assert "ok" in received("STATUS=primary")
        follower.signal(signal.SIGTERM)
        received("STOPPING=1")
        assert follower.wait().code == 0


def test_a_running_commit_is_alive(node: Node) -> None:
    """A request that takes its time is no reason for the watchdog to bark."""
    with service_manager(node) as (received, environment):
        follower = node.follow(environment=environment)
        in_mid(node, follower, "MASTER", "-c")
        begun = boot_seconds()
        while boot_seconds() < begun + 1:  # some that were sent before may come first
            received("WATCHDOG=1")
        node.release("go")
        assert follower.finished(1)["outcome"] == "ok"


def test_a_daemon_that_is_started_is_no_part_of_the_service(node: Node) -> None:
    """It must not speak to the service manager in our name."""
    node.on("any", DOWN)
    node.on("-d", "env >$world/environment; : >$world/up")
    follower = node.follow(environment={"NOTIFY_SOCKET": str(node.world / "notify")})
    follower.send("MASTER")
    follower.finished(1)
    assert "NOTIFY_SOCKET" not in (node.world / "environment").read_text()


# -- what it costs ------------------------------------------------------------------------------


CHEAP = "Mode ALARM { DisableInternalCache On DisableExternalCache On }"
"""A promotion is one -c here, and a fault is nothing."""


@pytest.mark.parametrize("state", [None, "MASTER", "STOP"])
def test_an_idle_follower_costs_next_to_nothing(node: Node, state: str | None) -> None:
    """It sleeps: before any notification, as a primary, and after keepalived has stopped."""
    with service_manager(node) as (received, environment):
        follower = node.follow(environment=environment)
        if state is not None:
            follower.send(state)
            follower.finished(1)
        follower.goes_round()
        before = follower.cpu_ticks
        for _ in range(3):  # every 0.5 s
            received("WATCHDOG=1")
        assert follower.cpu_ticks - before < 0.25 * TICKS_PER_SECOND


def test_ten_thousand_notifications_cost_no_memory(node: Node) -> None:
    """At most 40 MiB, and less than 1 MiB more after 10,000 notifications than after 1,000."""
    node.configure(CHEAP)
    follower = node.follow()
    assert follower.resident_kib <= 40 * 1024
    sizes = []
    for _ in range(10):
        follower.send(*["MASTER", "FAULT"] * 500)
        follower.goes_round()
        sizes.append(follower.resident_kib)
    assert states(follower)[-1] == "fault"
    assert sizes[-1] - sizes[0] < 1024


@pytest.mark.parametrize("trusted", [True, False], ids=["", "untrusted run directory"])
def test_a_hundred_transitions_leave_no_file_open(node: Node, *, trusted: bool) -> None:
    """Nor do they cost more memory than the first few."""
    node.configure(CHEAP)
    if not trusted:
        node.run_dir.mkdir()
        node.run_dir.chmod(0o777)
    follower = node.follow()
    files, memory = [], []
    for number in range(1, 121):
        follower.send("MASTER" if number % 2 else "FAULT")
        follower.finished(number)
        if number in (20, 120):
            follower.goes_round()
            files.append(follower.descriptors)
            memory.append(follower.resident_kib)
    assert files[1] - files[0] < 10  # a client that has just ended may not have been let go yet
    assert memory[1] - memory[0] < 3 * 1024
