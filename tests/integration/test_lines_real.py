"""A follower whose lines do not come, on a real pair: a failover is carried out all the same."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import pytest

from tests.integration.following import (
    CONNECTIONS,
    FIFO,
    HEALED,
    NO_GROUP,
    WITHIN,
    await_line,
    opened,
    read_along,
)
from tests.lab.firewall import RUN_DIR, Firewall
from tests.lab.moments import asked, ended, finished
from tests.lab.pair import Edit, Lab, Pair, Wiring
from tests.waiting import stays, until

PURGE_SECONDS = 20
PURGES_SOON = {"PurgeTimeout 60": f"PurgeTimeout {PURGE_SECONDS}"}
ANOTHER_GROUP = {"vrrp_sync_group G1": "vrrp_sync_group firewall"}


@pytest.fixture
def wiring() -> Wiring:
    """All tests here follow."""
    return "fifo"


def differs(firewall: Firewall) -> list[str]:
    """What the follower has reported of states that no line did."""
    return [event["reason"] for event in firewall.events("keepalived.differs")]


def fails_over(pair: Pair) -> str:
    """Lose the primary and no connection; what the follower reports of the missing line."""
    traffic = opened(pair)
    earlier = ended(pair.fw2)
    pair.fw1.cut()
    event = pair.fw2.until(lambda: finished(pair.fw2, "primary", earlier), HEALED, "is primary")[0]
    assert event["recovered"] >= CONNECTIONS
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS
    return differs(pair.fw2)[-1]


def started(pair: Pair) -> Pair:
    """fw-1 is master and fw-2 backup, as keepalived reports them: no line does."""
    for firewall in (pair.fw1, pair.fw2):
        firewall.start_conntrackd()
        firewall.start_follower()
    pair.fw1.start_keepalived()
    until(pair.fw1.is_master, within=WITHIN, what="fw-1 is master")
    pair.fw2.start_keepalived()
    for firewall, state in ((pair.fw1, "primary"), (pair.fw2, "backup")):
        firewall.until(partial(firewall.was_made, state), HEALED, "is compared")
    return pair


@pytest.mark.parametrize(
    ("keepalived", "named"),
    [
        pytest.param(ANOTHER_GROUP, '--group "firewall"', id="another name"),
        pytest.param(NO_GROUP, '--instance "VI_', id="instances alone"),
    ],
)
def test_a_group_that_keepalived_does_not_name_fails_over(
    lab: Lab, keepalived: Edit, named: str
) -> None:
    """Its state is compared with ours, and what to write where is reported."""
    pair = started(lab(wiring="fifo", keepalived=keepalived))

    reported = fails_over(pair)

    assert reported.startswith("keepalived reports primary, but this node was made backup: ")
    assert 'no line of GROUP "G1"' in reported
    assert named in reported


def test_another_reader_of_the_fifo_costs_no_connection(lab: Lab) -> None:
    """It is named; and a purge that was pending does not hit the new primary."""
    pair = lab(wiring="fifo", conntrackd=PURGES_SOON).start()
    assert "-t" in asked(pair.fw2.events("transition.finished")[-1])
    scheduled = time.monotonic()
    traffic = opened(pair)
    earlier = ended(pair.fw2)
    (follower,) = pair.fw2.followers()
    reader = pair.fw2.start("sh", "-c", f"exec cat {FIFO} >/run/lab/taken")
    pair.fw2.signal(signal.SIGSTOP, follower)
    pair.fw1.cut()
    pair.fw2.until(
        lambda: 'GROUP "G1" MASTER' in pair.fw2.run("cat", "/run/lab/taken").stdout,
        WITHIN, "takes the line away",
    )  # fmt: skip
    pair.fw2.signal(signal.SIGCONT, follower)

    event = pair.fw2.until(lambda: finished(pair.fw2, "primary", earlier), HEALED, "is primary")[0]

    assert event["recovered"] >= CONNECTIONS
    (reported,) = differs(pair.fw2)
    assert f"cat (pid {pair.fw2.pids('cat')[-1]}) reads {FIFO} too" in reported
    reader.terminate()
    left = max(0.0, PURGE_SECONDS + 1 - (time.monotonic() - scheduled))
    stays(lambda: pair.fw2.kernel_entries() >= CONNECTIONS, seconds=left, what="is not purged")
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS


def test_half_a_line_costs_no_failover(pair: Pair) -> None:
    """keepalived's own line ends it, and neither can be read: keepalived is asked."""
    traffic = opened(pair)
    earlier = ended(pair.fw2)
    (follower,) = pair.fw2.followers()
    pair.fw2.signal(signal.SIGSTOP, follower)
    pair.fw1.cut()
    with read_along(pair.fw2, FIFO) as pipe:
        await_line(pipe, "MASTER")
        os.write(pipe, b'GROUP "G1" BACKGROUP "G1" MASTER 0\n')
        pair.fw2.signal(signal.SIGCONT, follower)

        event = finished(pair.fw2, "primary", earlier)[0]

    assert event["recovered"] >= CONNECTIONS
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS
    assert "keepalived reports primary" in differs(pair.fw2)[-1]


def test_a_promotion_that_could_not_be_recorded_is_not_taken_back(lab: Lab) -> None:
    """An older record says backup: the live primary is not made one, and nothing is purged."""
    pair = lab(wiring="fifo")
    pair.fw2.run("mkdir", "-m", "700", RUN_DIR)
    pair.fw2.run("mount", "-t", "tmpfs", "-o", "mode=700,size=64k", "none", RUN_DIR)
    pair.start()
    traffic = opened(pair)
    earlier = ended(pair.fw2)
    pair.fw2.run("dd", "if=/dev/zero", f"of={RUN_DIR}/full", check=False)
    pair.fw1.cut()
    event = finished(pair.fw2, "primary", earlier)[0]
    assert "without a record" in event["reason"]
    pair.fw2.run("rm", f"{RUN_DIR}/full")

    pair.fw2.until(lambda: pair.fw2.events("record.stored"), HEALED, "stores the record")

    pair.fw1.fix()
    made = pair.fw2.events("transition.finished")[earlier:]
    assert {event["state"] for event in made} == {"primary"}
    assert [asked(event) for event in made if "-t" in asked(event)] == []
    assert traffic.finish(WITHIN)["alive"] == CONNECTIONS
    assert pair.fw2.run("jq", "-r", ".last[2]", f"{RUN_DIR}/memory.json").stdout == "primary\n"
