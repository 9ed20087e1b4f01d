"""Whole failovers: real keepalived, real conntrackd, connections that live through them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.lab.firewall import Firewall
from tests.lab.moments import ended, finished
from tests.lab.pair import Lab, Pair, Wiring
from tests.waiting import stays, until

PURGE_SECONDS = 3
PURGES_SOON = {"PurgeTimeout 60": f"PurgeTimeout {PURGE_SECONDS}"}
DEAF = """
table ip unreached {
    chain input {
        type filter hook input priority -10;
        ip protocol 112 drop
    }
}
"""
"""A ruleset of its own: a firewall receives no adverts, and all links stay up."""
BOTH_WIRINGS = pytest.mark.parametrize("wiring", ["hooks", "fifo"])
WITHIN = 20
"""Seconds for what takes two or three on a machine with nothing else to do."""


def reasserted(firewall: Firewall) -> list[dict[str, Any]]:
    """What was done at each notification that another master was there."""
    events = firewall.events("transition.finished")
    return [e for e in events if "MASTER_RX_LOWER_PRI" in e["cause"] and e["steps"]]


def states(firewall: Firewall) -> list[str]:
    """What the firewall was made, in order; what was superseded is not counted."""
    events = firewall.events("transition.finished")
    return [event["state"] for event in events if event["outcome"] != "superseded"]


def is_in_state(firewall: Firewall, notification: str) -> bool:
    """Say whether that is what the firewall was made last, and nothing is under way."""
    return states(firewall)[-1:] == [notification] and firewall.is_quiet()


def replicated(pair: Pair, count: int) -> None:
    """Give fw-1 connections and wait until fw-2 has a copy of each."""
    pair.fw1.load_entries(count)
    pair.fw2.until(lambda: pair.fw2.external() >= count, WITHIN, "holds the copies")


def primary(pair: Pair) -> Firewall:
    """Wait until one of the two is primary, and nothing is under way on either."""

    def found() -> list[Firewall]:
        firewalls = (pair.fw1, pair.fw2)
        if not all(firewall.is_quiet() for firewall in firewalls):
            return []
        return [each for each in firewalls if is_in_state(each, "primary") and each.is_master()]

    (firewall,) = until(found, within=WITHIN, what="one is primary")
    return firewall


def test_fifty_connections_live_through_the_loss_of_the_primary(pair: Pair) -> None:
    """Translated connections go on by way of the backup, and the record proves it."""
    traffic = pair.open_connections(50)
    pair.fw2.until(lambda: pair.fw2.external() >= 50, WITHIN, "holds the copies")

    pair.fw1.cut("eth1")

    (event,) = finished(pair.fw2, "primary")
    assert event["outcome"] == "ok", event["reason"]
    assert event["recovered"] >= 50
    assert traffic.finish(within=WITHIN)["alive"] == 50


def test_every_line_of_a_failover_in_the_journal_is_one_json_object(pair: Pair) -> None:
    """`journalctl -t ftfw-transition -o cat | jq .` works as is, and shows every step."""
    pair.fw1.cut("eth1")

    (event,) = finished(pair.fw2, "primary")

    lines = [each for each in pair.fw2.journal() if each.identifier == "ftfw-transition"]
    assert all(line.message.startswith("{") for line in lines)
    assert "\n" not in "".join(line.message for line in lines)
    steps = [
        each["step"]
        for each in pair.fw2.events("step.finished")
        if each["transition"] == event["transition"]
    ]
    assert steps == [step["name"] for step in event["steps"]]
    assert {"commit", "flush", "resync", "bulk-send"} <= set(steps)


@BOTH_WIRINGS
def test_a_first_boot_with_two_empty_tables_ends_ok_on_both_nodes(pair: Pair) -> None:
    """There is nothing to recover and nothing to replicate, and that is no fault."""
    for firewall, state in ((pair.fw1, "primary"), (pair.fw2, "backup")):
        event = finished(firewall, state)[-1]
        assert event["outcome"] == "ok", event["reason"]
        assert event["recovered"] == 0


@BOTH_WIRINGS
def test_a_promotion_ends_ok_though_the_peer_has_just_died(pair: Pair) -> None:
    """Nobody listens to the bulk: the ordinary case, which degrades nothing."""
    traffic = pair.open_connections(50)
    pair.fw2.until(lambda: pair.fw2.external() >= 50, WITHIN, "holds the copies")

    pair.fw1.cut()

    event = finished(pair.fw2, "primary")[0]
    assert event["outcome"] == "ok", event["reason"]
    assert traffic.finish(within=WITHIN)["alive"] == 50


@BOTH_WIRINGS
def test_a_failback_before_the_old_entries_are_purged_loses_nothing(pair: Pair) -> None:
    """A node that still has its own old entries commits over them, all of them."""
    traffic = pair.open_connections(50)
    pair.fw2.until(lambda: pair.fw2.external() >= 50, WITHIN, "holds the copies")
    pair.fw1.cut("eth1")
    finished(pair.fw2, "primary")
    assert traffic.alive(within=WITHIN) == 50
    earlier = ended(pair.fw1)
    pair.fw1.fix("eth1")
    assert finished(pair.fw1, "backup", earlier)[0]["outcome"] == "ok"
    assert pair.fw1.kernel_entries() >= 50

    pair.fw2.cut("eth1")

    event = finished(pair.fw1, "primary", earlier)[0]
    assert event["outcome"] == "ok", event["reason"]
    assert event["recovered"] == event["expected"] >= 50
    assert traffic.finish(within=WITHIN)["alive"] == 50


@BOTH_WIRINGS
def test_the_survivor_of_a_split_brain_asserts_itself_and_commits_nothing(pair: Pair) -> None:
    """keepalived shows it only MASTER_RX_LOWER_PRI: live entries are newer than any copy."""
    traffic = pair.open_connections(50)
    pair.fw2.until(lambda: pair.fw2.external() >= 50, WITHIN, "holds the copies")
    earlier = ended(pair.fw1)
    for firewall in (pair.fw1, pair.fw2):
        firewall.run("nft", "-f", "-", input=DEAF)
    pair.fw2.until(pair.fw2.is_master, WITHIN, "thinks that it is alone")
    finished(pair.fw2, "primary")
    stepping_down = ended(pair.fw2)

    # fw-1 first: as soon as fw-2 receives of a higher priority it is silent.
    pair.fw1.run("nft", "delete table ip unreached")
    pair.fw1.until(lambda: reasserted(pair.fw1), WITHIN, "receives the other master")
    pair.fw2.run("nft", "delete table ip unreached")

    assert finished(pair.fw2, "backup", stepping_down)[0]["outcome"] == "ok"
    asserted = reasserted(pair.fw1)[0]
    others = pair.fw1.events("transition.finished")[earlier:]
    assert asserted["outcome"] == "ok", asserted["reason"]
    asked = [step["name"] for step in asserted["steps"] if step["attempts"]]
    assert asked == ["flush-internal", "resync", "bulk-send"]
    assert "commit" not in [step["name"] for event in others for step in event["steps"]]
    assert traffic.finish(within=WITHIN)["alive"] == 50


@pytest.mark.parametrize(
    ("wiring", "returns"), [("hooks", "fw1"), ("hooks", "fw2"), ("fifo", "fw1")]
)
def test_a_switch_that_is_away_for_longer_than_the_purge_costs_nothing(
    lab: Lab, wiring: Wiring, returns: str
) -> None:
    """Both nodes are in fault and back; whichever becomes primary has every entry."""
    pair = lab(conntrackd=PURGES_SOON, wiring=wiring).start()
    replicated(pair, 500)
    pair.fw1.cut("eth1")
    pair.fw2.cut("eth1")
    until(
        lambda: all(is_in_state(each, "fault") for each in (pair.fw1, pair.fw2)),
        within=WITHIN, what="both are in fault",
    )  # fmt: skip
    gone = time.monotonic()
    until(lambda: time.monotonic() > gone + PURGE_SECONDS + 1, within=WITHIN, what="purge is due")

    getattr(pair, returns).fix("eth1")

    becomes = primary(pair)
    assert becomes is getattr(pair, returns)
    assert becomes.kernel_entries() >= 500


def test_a_link_that_is_up_for_a_second_between_two_faults_costs_nothing(lab: Lab) -> None:
    """What the backup in between has armed does not fire in the fault after it."""
    pair = lab(conntrackd=PURGES_SOON).start()
    replicated(pair, 500)
    firewalls = (pair.fw1, pair.fw2)
    for firewall in firewalls:
        firewall.cut("eth1")
    until(
        lambda: all(is_in_state(each, "fault") for each in firewalls),
        within=WITHIN, what="both are in fault",
    )  # fmt: skip

    for firewall in firewalls:
        firewall.fix("eth1")
    up = time.monotonic()
    until(lambda: time.monotonic() > up + 1, within=WITHIN, what="the link is up for 1 s")
    for firewall in firewalls:
        firewall.cut("eth1")

    until(
        lambda: all(states(each).count("fault") == 2 for each in firewalls)
        and all(is_in_state(each, "fault") for each in firewalls),
        within=WITHIN, what="both are in fault again",
    )  # fmt: skip
    stays(
        lambda: max(each.kernel_entries() for each in firewalls) >= 500,
        seconds=PURGE_SECONDS + 1, what="every entry is in one of the tables",
    )  # fmt: skip
    for firewall in firewalls:
        firewall.fix("eth1")
    assert primary(pair).kernel_entries() >= 500
