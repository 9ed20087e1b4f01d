"""The record against the facts: what a real daemon and a real kernel did, and what was reported."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from pathlib import Path

import pytest

from tests.lab.moments import (
    become,
    in_mid_commit,
    inserted,
    replicated,
    reported,
    seen_from_here,
    step,
)
from tests.lab.pair import Lab

SOCKET = "/var/run/conntrackd.ctl"
"""As in the shipped conntrackd.conf."""
SMALL_HASH = {"HashSize 131072": "HashSize 8192"}
EXPECTATIONS = {"# ExpectationSync On": "ExpectationSync On"}
DUMP_EXTERNAL, COMMIT = 17, 46
"""The client's numbers for -e and -c (conntrackd.h)."""
LARGEST_TABLE = 1 << 20


def ask(path: Path, notification: int) -> socket.socket:
    """A client that has asked and does not read the answer, as `conntrackd -e | slow`."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.sendall(struct.pack("i", notification))
    return client


# -- commit -----------------------------------------------------------------------------------


def test_every_copy_that_became_an_entry_is_counted(lab: Lab) -> None:
    """5,000 of 5,000, by the kernel's counter and by its table."""
    pair = replicated(lab, 5000)
    before = inserted(pair.fw2)

    event = become(pair.fw2, "primary")

    assert (event["exit"], event["outcome"]) == (0, "ok")
    assert (event["expected"], event["recovered"]) == (5000, 5000)
    assert inserted(pair.fw2) - before == 5000
    assert event["kernel_entries"] == pair.fw2.kernel_entries() == 5000


def test_a_copy_that_replaces_an_older_entry_is_counted_too(lab: Lab) -> None:
    """A node that fails back within PurgeTimeout still has its own old entries: the table does not
    grow then, and all the same every connection is as fresh as the peer's copy."""
    pair = replicated(lab, 5000)
    pair.fw2.load_entries(5000)

    event = become(pair.fw2, "primary")

    assert (event["outcome"], event["expected"], event["recovered"]) == ("ok", 5000, 5000)
    assert pair.fw2.kernel_entries() == 5000


def test_expectations_do_not_disturb_the_commit_of_connections(lab: Lab) -> None:
    """With ExpectationSync a plain -c does both, one after the other, and the proof still holds."""
    pair = replicated(lab, 1000, conntrackd=EXPECTATIONS)

    event = become(pair.fw2, "primary")

    assert (event["outcome"], event["expected"], event["recovered"]) == ("ok", 1000, 1000)
    assert (pair.fw2.kernel_entries(), pair.fw2.external()) == (1000, 0)


def test_a_full_kernel_table_is_degraded_and_the_only_copies_are_left(lab: Lab) -> None:
    """The client reports nothing of what the kernel refused. Room made, the kept copies go in."""
    # nf_conntrack_max is the whole machine's and must not be touched, but each namespace is
    # measured against it alone: this one is filled up, with what conntrackd does not replicate.
    limit = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    if limit > LARGEST_TABLE:
        pytest.skip(f"it would take {limit} entries to fill this machine's table")
    pair = replicated(lab, 1000)
    entries = (
        f"-I -p udp -s 10.30.{n >> 8 & 255}.{n & 255} -d 198.51.100.1"
        f" --sport {1024 + (n >> 16)} --dport 53 -u SEEN_REPLY,ASSURED -t 3600\n"
        for n in range(limit - 400)
    )
    pair.fw2.run("conntrack", "-R", "-", input="".join(entries))

    event = become(pair.fw2, "primary")

    assert (event["exit"], event["outcome"], event["expected"]) == (3, "degraded", 1000)
    assert 300 <= event["recovered"] <= 500
    assert event["recovered"] == pair.fw2.internal()
    assert pair.fw2.external() == 1000
    assert step(event, "flush")["attempts"] == 0
    pair.fw2.run("conntrack", "-D", "-p", "udp")
    pair.fw2.client("-c")
    assert pair.fw2.kernel_entries() == 1000


def test_a_commit_that_answers_late_is_not_asked_for_again(lab: Lab) -> None:
    """A slow reader of `conntrackd -e` keeps the committing client waiting, long after all
    entries were made: a second commit would replace live entries by old copies."""
    pair = replicated(lab, 50_000)
    path, before = pair.fw2.path(SOCKET), inserted(pair.fw2)

    hook = pair.fw2.start_hook("primary", "--json")
    with in_mid_commit(pair.fw2, before):
        reader = ask(path, DUMP_EXTERNAL)
    with reader:
        hook.wait(timeout=60)

    event = reported(pair.fw2, hook)
    assert step(event, "commit")["seconds"] > 4, "the client was not kept waiting"
    assert step(event, "commit")["attempts"] == 1
    assert inserted(pair.fw2) - before == 50_000
    assert (event["outcome"], event["recovered"]) == ("ok", 50_000)
    assert pair.fw2.external() == 0


def test_a_commit_that_somebody_else_asked_for_is_watched_to_its_end(lab: Lab) -> None:
    """The daemon skips a second -c and logs nothing, while the first one's entries still come."""
    pair = replicated(lab, 50_000)
    path, before = pair.fw2.path(SOCKET), inserted(pair.fw2)
    daemon = seen_from_here(pair.fw2, pair.fw2.conntrackd_pid)

    with ask(path, COMMIT):
        with in_mid_commit(pair.fw2, before):
            os.kill(daemon, signal.SIGSTOP)
        done = inserted(pair.fw2) - before
        hook = pair.fw2.start_hook("primary", "--json")
        pair.fw2.until(lambda: pair.fw2.pids("conntrackd", "-c"), 20, "it asks for a commit")
        os.kill(daemon, signal.SIGCONT)
        hook.wait(timeout=60)

    event = reported(pair.fw2, hook)
    assert done < 45_000, "the first commit was over"
    assert step(event, "commit")["attempts"] == 1
    assert inserted(pair.fw2) - before == 50_000
    assert event["recovered"] == 50_000 - done
    assert event["expected"] == 50_000


# -- flush ------------------------------------------------------------------------------------


def test_a_refused_flush_is_reported_with_its_cause(lab: Lab) -> None:
    """With HashSize 8192 the daemon ignores every flush that comes after a commit."""
    pair = replicated(lab, 1000, conntrackd=SMALL_HASH)

    event = become(pair.fw2, "primary")

    assert (event["exit"], event["outcome"]) == (3, "degraded")
    assert (event["expected"], event["recovered"]) == (1000, 1000)
    assert "HashSize" in event["reason"]
    assert pair.fw2.external() == 1000


@pytest.mark.parametrize("state", ["backup", "fault"])
def test_stale_copies_that_a_refused_flush_left_let_nothing_be_purged(lab: Lab, state: str) -> None:
    """They look like a peer that holds everything: a purge would believe them."""
    pair = replicated(lab, 1000, conntrackd=SMALL_HASH)
    become(pair.fw2, "primary")

    event = become(pair.fw2, state)

    assert step(event, "purge")["attempts"] == 0
    assert "last promotion" in step(event, "purge")["reason"]
    assert "flushing conntrack table" not in pair.fw2.path("/var/log/conntrackd.log").read_text()


# -- bulk-send --------------------------------------------------------------------------------


def test_a_bulk_that_is_acknowledged_has_arrived(lab: Lab) -> None:
    """FTFW's peer acknowledges: when the hook ends, its copies are there."""
    pair = replicated(lab, 5000)

    event = become(pair.fw2, "primary")

    assert pair.fw1.external() == 5000
    assert step(event, "bulk-send")["outcome"] == "ok"
    assert "acknowledged everything" in step(event, "bulk-send")["reason"]


def test_a_promotion_whose_peer_has_just_died_ends_ok(lab: Lab) -> None:
    """That is the ordinary case: nobody listens, which is reported and degrades nothing."""
    pair = replicated(lab, 1000)
    pair.fw2.cut("eth2")

    event = become(pair.fw2, "primary")

    assert (event["exit"], event["outcome"], event["recovered"]) == (0, "ok", 1000)
    assert step(event, "bulk-send")["reason"] == (
        "sent; no packets from the peer for 1.1 s (it is probably down)"
    )


# -- request-resync ---------------------------------------------------------------------------


def test_a_first_boot_with_nothing_to_replicate_ends_ok(lab: Lab) -> None:
    """A live peer that has nothing to send is no fault."""
    pair = lab()
    pair.fw1.start_conntrackd()
    pair.fw2.start_conntrackd()

    event = become(pair.fw2, "backup")

    assert (event["exit"], event["outcome"]) == (0, "ok")
    assert "nothing to replicate" in step(event, "request-resync")["reason"]


def test_a_replica_that_is_full_already_ends_ok(lab: Lab) -> None:
    """Its size does not change then, though everything is sent once more."""
    pair = replicated(lab, 1000)

    event = become(pair.fw2, "backup")

    assert (event["exit"], event["outcome"]) == (0, "ok")
    assert pair.fw2.external() == 1000


def test_a_backup_that_hears_nobody_is_degraded(lab: Lab) -> None:
    """It holds no copies, and would promote with nothing."""
    pair = lab()
    pair.fw2.start_conntrackd()

    event = become(pair.fw2, "backup")

    assert (event["exit"], event["outcome"]) == (3, "degraded")
    assert "no packets from the peer on the dedicated link" in event["reason"]


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_a_peer_that_comes_up_after_the_request_is_asked_again(lab: Lab, seconds: float) -> None:
    """A request that was made before the peer's daemon ran is lost, and nothing reports it."""
    pair = lab()
    pair.fw1.load_entries(1000)
    pair.fw2.start_conntrackd()
    log = pair.fw2.path("/var/log/conntrackd.log")

    hook = pair.fw2.start_hook("backup", "--json")
    pair.fw2.until(lambda: "resync requested" in log.read_text(), 20, "the request")
    time.sleep(seconds)  # the time is what is tested: the peer may be a while
    pair.fw1.start_conntrackd()
    hook.wait(timeout=60)

    event = reported(pair.fw2, hook)
    assert event["outcome"] == "ok", event["reason"]
    assert pair.fw2.external() == 1000
