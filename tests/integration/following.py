"""What the tests of the follower on a real pair share."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager

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
GROUP = "vrrp_sync_group G1 {\n    group {\n        VI_1\n        VI_2\n    }\n}\n"
NO_GROUP = {GROUP: ""}


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


@contextmanager
def read_along(firewall: Firewall, path: str) -> Iterator[int]:
    """A FIFO of the firewall's, open beside the follower."""
    pipe = os.open(firewall.path(path), os.O_RDWR | os.O_NONBLOCK)
    try:
        yield pipe
    finally:
        os.close(pipe)


def read(pipe: int) -> bytes:
    """What is in it now, which no other process reads any more."""
    try:
        return os.read(pipe, 1 << 16)
    except BlockingIOError:
        return b""


def await_line(pipe: int, notification: str) -> None:
    """Read keepalived's lines up to the group's, which comes after those of its instances."""
    line, reported = f'GROUP "G1" {notification} '.encode(), b""
    while line not in reported:
        assert select.select([pipe], [], [], WITHIN)[0], f"no {notification} after {reported!r}"
        reported += read(pipe)
