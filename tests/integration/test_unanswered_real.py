"""A conntrackd that the peer has not answered yet, on a real pair: nothing to recover is not ok."""

from __future__ import annotations

import signal

from tests.integration.following import COUNT, HEALED, WITHIN
from tests.lab.firewall import RUN_DIR, Firewall
from tests.lab.moments import become, ended, finished, replicated, reported, step
from tests.lab.pair import Lab

UNANSWERED = "the peer had not answered this conntrackd yet"


def reboot(firewall: Firewall) -> None:
    """End its daemons, and leave nothing that a reboot would not."""
    firewall.stop_keepalived()
    firewall.stop_follower()
    firewall.stop_conntrackd()
    firewall.run("sh", "-c", f"rm -rf {RUN_DIR}/*")
    firewall.run("conntrack", "-F")


def made(firewall: Firewall, earlier: int) -> list[str]:
    """What it was made, in order, after so many transitions."""
    return [event["state"] for event in firewall.events("transition.finished")[earlier:]]


def test_a_node_that_takes_over_before_its_link_is_up_asks_once_it_is(lab: Lab) -> None:
    """It has rebooted, and the peer, whose connections they are, is still running."""
    pair = lab(wiring="fifo").start()
    pair.fw1.load_entries(COUNT)
    pair.fw2.until(lambda: pair.fw2.external() >= COUNT, WITHIN, "holds the copies")
    reboot(pair.fw1)
    finished(pair.fw2, "primary")
    earlier = ended(pair.fw1)
    pair.fw1.cut("eth2")
    pair.fw1.start_conntrackd()
    pair.fw1.start_follower()
    pair.fw1.start_keepalived()
    pair.fw1.until(lambda: "backup" in made(pair.fw1, earlier), WITHIN, "is backup")

    pair.fw2.stop_keepalived()

    event = finished(pair.fw1, "primary", earlier)[0]
    assert event["outcome"] == "degraded"
    assert UNANSWERED in event["reason"]
    assert pair.fw1.kernel_entries() < COUNT
    pair.fw1.fix("eth2")
    pair.fw1.until(lambda: pair.fw1.kernel_entries() >= COUNT, 2 * HEALED, "has committed them")
    pair.fw1.until(
        lambda: finished(pair.fw1, "primary", earlier)[-1]["outcome"] == "ok", WITHIN, "ok"
    )


def test_a_promotion_that_overtakes_the_peer_s_answer_waits_for_it(lab: Lab) -> None:
    """What has come is committed at once, and the rest as soon as it is there."""
    pair = replicated(lab, COUNT)
    pair.fw2.stop_conntrackd()
    pair.fw2.start_conntrackd()
    peer = pair.fw1.conntrackd_pid
    pair.fw1.signal(signal.SIGSTOP, peer)
    backup = pair.fw2.start_hook("backup", "--json")
    pair.fw2.until(lambda: "resync requested" in pair.fw2.conntrackd_log(), WITHIN, "asks the peer")
    primary = pair.fw2.start_hook("primary", "--json")
    backup.wait(timeout=60)
    assert reported(pair.fw2, backup)["outcome"] == "superseded"

    pair.fw1.signal(signal.SIGCONT, peer)

    primary.wait(timeout=60)
    event = reported(pair.fw2, primary)
    assert UNANSWERED in step(event, "commit")["reason"]
    assert pair.fw2.kernel_entries() >= COUNT


def test_a_node_whose_peer_died_before_it_answered_is_degraded(lab: Lab) -> None:
    """Nothing shows that there was nothing to recover; a second one asks again."""
    pair = lab()
    pair.fw2.start_conntrackd()
    assert become(pair.fw2, "backup")["outcome"] == "degraded"

    for _ in range(2):
        event = become(pair.fw2, "primary")

        assert (event["outcome"], event["exit"]) == ("degraded", 3)
        assert UNANSWERED in event["reason"]
        assert "no packets from a peer that could send what it held" in event["reason"]
        assert event["advice"]
