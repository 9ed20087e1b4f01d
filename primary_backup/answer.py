"""The peer's answer to a request for all it has: when it has ended, and whether it is whole."""

from collections import deque
from typing import NamedTuple

from primary_backup.conntrackd.status import Status
from primary_backup.proof import (
    ENDED_PART,
    MORE_ROOM,
    REPLICA_PART,
    Outcome,
    Verdict,
    few_copies,
    slack,
)

SETTLED_SECONDS = 1.5
"""An answer makes no pause as long as this: FTFW sends again within a second what was lost."""
REPEAT_SECONDS = 5.0
"""How long messages may come without an end to be seen until the peer is asked once more."""
REPEAT_MESSAGES = 5_000
"""No more than these are asked for again: on a link of 1 Mbit/s they take 12 s."""
ASK_AGAIN = "a follower asks again by itself; without one run `ftfw-transition backup` later"


class Answer(NamedTuple):
    """What the peer sent one daemon, from right before it was asked."""

    before: Status
    after: Status
    messages: int
    """What it was sent when it was asked; of several times the most."""
    ended: bool

    @property
    def received(self) -> int:
        """Connections that the external cache, or the kernel table, was given.

        Of one there may be several messages, but no more connections than it holds now.
        """
        held = self.after.external
        return self.messages if held is None else min(self.messages, held)

    @property
    def refused(self) -> int:
        """Connections that it could not create: it was full."""
        return self.after.refused - self.before.refused

    @property
    def older(self) -> int:
        """Copies in the external cache that the peer did not send."""
        return (self.after.external or 0) - self.received

    def verdict(self, missing: str) -> Verdict:
        """Whether it is whole; ``missing``: why it is not, by what the peer has reported."""
        received = self.received
        if self.refused > 0:
            reason = f"conntrackd could not create {self.refused} connections of the peer's"
            return Verdict(Outcome.DEGRADED, f"{reason}: its cache is full", MORE_ROOM)
        if missing:
            return Verdict(Outcome.DEGRADED, missing, ASK_AGAIN)
        if not self.ended:
            reason = f"{received} connections received from the peer, more are arriving"
            return Verdict(Outcome.DEGRADED, reason, ASK_AGAIN)
        if received == 0:
            return Verdict(Outcome.OK, "peer is running, nothing to replicate")
        reason = f"{received} connections received from the peer"
        if not few_copies(self.older, received):
            reason += f", beside {self.older} copies that it did not send: it may have ended them"
        return Verdict(Outcome.OK, reason)


class Flow:
    """The messages of one answer; a peer that has traffic sends without a pause afterwards."""

    def __init__(self, now: float, messages: int) -> None:
        """Begin at a time, with what the daemon has received so far."""
        self._most = self._arrived = 0
        self._asked: tuple[float, int] | None = None
        self.messages = 0
        """The most that any answer brought."""
        self._first = messages
        self._interval = REPEAT_SECONDS
        self._next_repeat = now + self._interval
        self._begin(now, messages)

    def restart(self, now: float, messages: int, held: int) -> None:
        """The peer is asked once more, with so many connections ``held`` here."""
        self._asked = now, held
        self._begin(now, messages)

    def _begin(self, now: float, messages: int) -> None:
        self._from = messages
        self._seen = deque([(now, messages)])

    def has_ended(self, now: float, messages: int) -> bool:
        """Whether it has, by what the daemon has received in the last seconds."""
        self.messages = max(self.messages, messages - self._from)
        self._seen.append((now, messages))
        while len(self._seen) > 1 and self._seen[1][0] <= now - SETTLED_SECONDS:
            self._seen.popleft()
        self._arrived = messages - self._seen[0][1]
        self._most = max(self._most, self._arrived)
        return self._arrived <= ENDED_PART * self._most

    def is_confirmed(self, now: float, held: int) -> bool:
        """Whether this answer has added nothing to the one before, but the peer's traffic.

        ``held`` is how many connections are here now. One answer alone shows nothing: FTFW sends
        lost messages again, but not those that were under way when the first packets of a new
        daemon emptied the peer's resend queue (sync-ftfw.c); NOTRACK sends none again.
        """
        if self._asked is None:
            return False
        asked, before = self._asked
        traffic = self._arrived / SETTLED_SECONDS * (now - asked)
        return held - before <= slack(before, REPLICA_PART) + traffic

    def is_to_be_repeated(self, now: float, messages: int) -> bool:
        """Whether traffic may hide the end: connections that were opened meanwhile.

        They are sent again with the rest, so that this answer's height stands out.
        """
        received = messages - self._first
        if now < self._next_repeat or received > REPEAT_MESSAGES:
            return False
        self._interval *= 2
        self._next_repeat = now + self._interval
        return True
