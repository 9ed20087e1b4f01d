"""What an idle node needs, from one poll of its daemon after the other: values alone."""

from enum import Enum
from typing import NamedTuple

from primary_backup.conntrackd.status import Status
from primary_backup.memory import SocketIdentity
from primary_backup.proof import Left, uncovered

SILENCE_SECONDS = 2.0
"""A running peer sends more often than this."""


class Need(Enum):
    """What an idle node needs; the text is why, for the record."""

    START = "conntrackd is not running"
    RESTARTED = "conntrackd was restarted: its caches are new"
    UNFINISHED = "the last transition was not finished"
    PEER = "packets of the peer arrive again"
    LACKING = "the peer holds connections that this node does not"
    PURGE = "the peer's copy covers what is held here: the deferred purge is safe now"


class Past(NamedTuple):
    """How the last transition left things."""

    daemon: SocketIdentity | None
    """The identity of the daemon that it asked."""
    finished: bool
    no_packets: bool
    """Packets of the peer were waited for, and none came."""
    deferred: bool
    """A purge was deferred."""
    left: Left
    sends: bool
    """Whether a peer in this mode sends every second, and all that it has when asked."""
    lacking: bool = False
    """The peer was asked for all it has, and its answer was not whole."""


class Poll(NamedTuple):
    """What one poll of the daemon found."""

    seconds: float
    """When, on any one monotonic clock."""
    daemon: SocketIdentity | None
    status: Status | None
    """None where no daemon listens."""
    ours: int
    """Connections held here."""


class Needs:
    """What the polls since one transition have found."""

    def __init__(self, past: Past) -> None:
        self._past = past
        self._last: tuple[float, int] | None = None
        self._no_packets = past.no_packets
        self._need = None if past.finished else Need.UNFINISHED

    def after(self, poll: Poll) -> Need | None:
        """What the node needs after one more poll, until a transition has met it."""
        if poll.status is None:
            return Need.START
        if poll.daemon not in (None, self._past.daemon):
            return Need.RESTARTED
        receiving = self._receive(poll.seconds, poll.status.packets_received)
        if self._need is None and self._past.lacking and self._past.sends and receiving:
            return Need.LACKING
        if self._need is None and self._past.deferred and receiving:
            why = uncovered(poll.status.external, poll.ours, receiving=True, left=self._past.left)
            return Need.PURGE if why is None else None
        return self._need

    def _receive(self, now: float, packets: int) -> bool:
        """Whether packets came since the last poll; a peer that had sent none is back then."""
        if self._last is None:
            self._last = now, packets
            return False
        since, before = self._last
        if packets == before:
            is_silent = self._past.sends and now - since >= SILENCE_SECONDS
            self._no_packets = self._no_packets or is_silent
            return False
        self._last = now, packets
        if self._no_packets and self._past.sends and self._need is None:
            self._need = Need.PEER
        self._no_packets = False
        return True
