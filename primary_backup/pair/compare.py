"""Whether a replica holds what its primary has, by both nodes' counts: values alone.

conntrackd's protocol does not tell how many connections the peer has, so that the peer's follower
reports it. Counts that were made at different times are compared by a count of ours that two
counts of the peer's enclose. Times are seconds on one clock of this node's.
"""

from collections import deque
from typing import NamedTuple

from primary_backup.proof import REPLICA_PART, slack

_COUNTS = 4
"""Of the peer's, at most so many are between the two that enclose one of ours, with them."""


class Theirs(NamedTuple):
    """A count of the peer's connections, which was made between two times."""

    earliest: float
    latest: float
    connections: int
    """Entries of its internal cache."""
    refused: int | None
    """Connections that its conntrackd could not create, so far."""
    daemon: tuple[int, int, int] | None
    since: float
    """When the peer became what it is."""


class Ours(NamedTuple):
    """A count of the replica."""

    at: float
    connections: int
    """Entries of the external cache."""
    refused: int | None
    daemon: tuple[int, int, int] | None


class Match(NamedTuple):
    """What one comparison shows."""

    ours: Ours
    reported: int
    doubt: str
    """Why the replica is not shown to be whole; empty where it is."""


class Comparison:
    """The counts of one primary and of its replica, as they come."""

    def __init__(self) -> None:
        self._theirs: deque[Theirs] = deque(maxlen=_COUNTS)
        self._ours: Ours | None = None
        self._first: tuple[Theirs, Ours] | None = None

    def count(self, ours: Ours) -> None:
        """Take a count of the replica, if it can be compared.

        One that the peer's next count may not be later than waits for the one after that: two nodes
        that poll at the same moments would never be compared.
        """
        waits = self._ours is not None and self._theirs[-1].latest > self._ours.at
        if not waits and any(each.latest <= ours.at for each in self._theirs):
            self._ours = ours

    def after(self, theirs: Theirs, node: str) -> Match | None:
        """What the peer's counts show up to this one, if ours is between two of them."""
        if self._theirs and theirs.earliest <= self._theirs[-1].latest:
            return None  # the same count, reported again
        if self._theirs and theirs.daemon != self._theirs[-1].daemon:
            self._theirs.clear()
            self._ours = None
        self._theirs.append(theirs)
        if self._ours is None or self._ours.at > theirs.earliest:
            return None
        ours, self._ours = self._ours, None
        earlier = [each for each in self._theirs if each.latest <= ours.at]
        enclosing = [earlier[-1], *(each for each in self._theirs if each.latest > ours.at)]
        first = self._of_these_daemons(enclosing[0], ours)
        low = min(each.connections for each in enclosing)
        high = max(each.connections for each in enclosing)
        apart = slack(high, REPLICA_PART)
        doubt = ""
        if not low - apart <= ours.connections <= high + apart:
            doubt = (
                f"{node} reported {theirs.connections} connections, here were {ours.connections}"
            )
        elif lost := _growth(first[0].refused, theirs.refused):
            doubt = f"the conntrackd of {node} could not create {lost} connections (HashLimit?)"
        elif lost := _growth(first[1].refused, ours.refused):
            doubt = f"the conntrackd of this node could not create {lost} connections (HashLimit?)"
        return Match(ours, theirs.connections, doubt)

    def _of_these_daemons(self, theirs: Theirs, ours: Ours) -> tuple[Theirs, Ours]:
        """The first counts of both daemons, since the peer's last transition: it rebuilds all."""
        first = self._first
        if first is None or not _is_same(first, (theirs, ours)):
            first = self._first = theirs, ours
        return first


def _is_same(first: tuple[Theirs, Ours], now: tuple[Theirs, Ours]) -> bool:
    daemons = first[0].daemon == now[0].daemon and first[1].daemon == now[1].daemon
    return daemons and abs(first[0].since - now[0].since) <= 1


def _growth(before: int | None, after: int | None) -> int:
    return 0 if before is None or after is None else after - before
