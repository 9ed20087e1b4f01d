"""In sync afterwards: what one look at an idle daemon after the other tells."""

from enum import Enum
from typing import NamedTuple

from primary_backup.conntrackd.status import Status
from primary_backup.proof import uncovered

SILENCE_SECONDS = 2.0
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0
CALM_SECONDS = 600.0
"""After so long without need the next one is met at once again."""


class Need(Enum):
    """What an idle node needs; the text is why, for the record."""

    START = "conntrackd is not running"
    RESTARTED = "conntrackd was restarted: its caches are new"
    UNFINISHED = "the last transition was not finished"
    PEER = "the peer is heard again"
    PURGE = "the peer covers what is held here: the purge that was held back is safe now"


class Past(NamedTuple):
    """How the last transition left things."""

    daemon: tuple[int, ...] | None
    """The identity of the daemon that it asked."""
    finished: bool
    silent: bool
    """The peer was listened for, and not heard."""
    held: bool
    """A purge was held back."""
    kept: bool
    answers: bool
    """Whether a peer in this mode is heard every second, and sends all that it has when asked."""


class Look(NamedTuple):
    """One look at the daemon."""

    seconds: float
    """When, on any one monotonic clock."""
    daemon: tuple[int, ...] | None
    status: Status | None
    """None where nobody listens."""
    ours: int
    """Connections held here."""


class Watch:
    """What the looks since one transition tell."""

    def __init__(self, past: Past) -> None:
        self._past = past
        self._last: tuple[float, int] | None = None
        self._silent = past.silent
        self._need = None if past.finished else Need.UNFINISHED

    def see(self, look: Look) -> Need | None:
        """Take in one more look; what the node needs, until a transition has met it."""
        if look.status is None:
            return Need.START
        if look.daemon not in (None, self._past.daemon):
            return Need.RESTARTED
        heard = self._hear(look.seconds, look.status.packets_received)
        if self._need is None and self._past.held and heard:
            why = uncovered(look.status, look.ours, heard=True, kept=self._past.kept)
            return Need.PURGE if why is None else None
        return self._need

    def _hear(self, now: float, packets: int) -> bool:
        """Whether the peer spoke since the last look; one that was silent is back then."""
        if self._last is None:
            self._last = now, packets
            return False
        since, before = self._last
        if packets == before:
            self._silent = self._silent or (self._past.answers and now - since >= SILENCE_SECONDS)
            return False
        self._last = now, packets
        if self._silent and self._past.answers and self._need is None:
            self._need = Need.PEER
        self._silent = False
        return True


class Pace:
    """How often a need may be met: at once, then ever more seldom, until it has been calm."""

    def __init__(self, longest: float = LONGEST_PAUSE_SECONDS) -> None:
        """``longest``: the pause that is never exceeded, in seconds."""
        self._longest = longest
        self._next = 0.0
        self._pause = FIRST_PAUSE_SECONDS

    def allows(self, seconds: float) -> bool:
        """Whether a need may be met now, in seconds on a monotonic clock."""
        return seconds >= self._next

    def take(self, seconds: float) -> None:
        """Note that one is met now."""
        if seconds > self._next + CALM_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        self._next = seconds + self._pause
        self._pause = min(self._longest, 2 * self._pause)
