"""What the tests of the follower on a real pair share."""

from __future__ import annotations

from tests.lab.firewall import RUN_DIR, Firewall
from tests.lab.moments import asked
from tests.lab.pair import Pair
from tests.lab.traffic import Traffic

CONNECTIONS = 50
COUNT = 500
WITHIN = 20
"""Seconds for what takes two or three on a machine with nothing else to do."""
HEALED = 40
"""Seconds for what an idle follower finds at one of its looks, every 5 s, and sees to."""
FIFO = f"{RUN_DIR}/notify.fifo"


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
