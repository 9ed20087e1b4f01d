"""What is received from the other firewall, by the counters of ``-s``."""

from collections.abc import Callable
from typing import NamedTuple

from primary_backup.conntrackd.status import Status
from primary_backup.memory import SocketIdentity
from primary_backup.proof import covers
from primary_backup.requests import Requests

ALIVE_SECONDS = 1.1
"""A peer sends a keep-alive every second (ALIVE_INT)."""
SILENCE_SECONDS = 2.0
"""A running peer sends more often than this."""
ABSENT_SECONDS = 5.0
"""How long a backup waits for any packet of the peer."""
SETTLED_SECONDS = 0.5
"""A bulk that is arriving makes no pause as long as this."""
EMPTY_SECONDS = 1.5
"""A peer that has anything to send has begun by now."""
ARRIVING_SECONDS = 30.0
BULK_SECONDS = 10.0
"""How long a new primary may take for its commit, and then for sending everything."""
ENDLESS_MESSAGES = 1
"""A resend queue may keep the last acknowledgement for ever: no connection is in it."""
POLL_SECONDS = 0.1
ASKS = 2
"""A conntrackd that is restarted during the answer is asked for it once more."""
RESTARTED = "conntrackd was restarted again and again while the peer's answer arrived"


class Answer(NamedTuple):
    """What the peer sent one daemon, from right before it was asked."""

    before: Status
    after: Status

    @property
    def received(self) -> int:
        """Connections that the external cache, or the kernel table, was given."""
        return self.after.replicated - self.before.replicated

    @property
    def older(self) -> int:
        """Copies in the external cache that the peer did not send."""
        return (self.after.external or 0) - self.received


class Peer:
    """The peer, as far as this node's own daemon receives its packets."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self.receiving = False
        """Whether a packet of the peer's came while it was waited for."""
        self.no_packets = False
        """Whether one was waited for long enough, and none came."""

    def await_packet(self, before: Status) -> bool:
        """Wait for a packet of the peer's, a keep-alive if nothing else; whether one came."""
        deadline = self._requests.clock() + SILENCE_SECONDS
        while not self.receiving and self._requests.clock() < deadline:
            self._wait()
            self._receive(before, self._requests.status())
        self.no_packets = not self.receiving
        return self.receiving

    def await_bulk(self, before: Status) -> tuple[Status, bool]:
        """Wait for all that a new primary sends by itself; whether as much came as is held here."""
        deadline = self._requests.clock() + BULK_SECONDS
        if not self.await_packet(before):
            return before, False
        while True:
            status = self._requests.status()
            ours = self._requests.ours(status)
            if not ours or self._requests.clock() > deadline:
                return status, False
            if covers(status.replicated - before.replicated, ours):
                return status, True
            self._wait()

    def fetch(self, ask: Callable[[], None], arriving: float = ARRIVING_SECONDS) -> Answer | None:
        """Ask the peer for all it has, by ``ask``; what came of it until the answer was whole.

        It may be ``arriving`` for so many seconds at most. None where conntrackd was restarted
        again and again meanwhile: what one daemon has received its successor does not hold.
        """
        for _ in range(ASKS):
            self._requests.adopt()
            before = self._requests.status()
            daemon = self._requests.identity
            ask()
            after = self._answer(before, daemon, arriving)
            if after is not None:
                return Answer(before, after)
            self.receiving = False
        return None

    def _answer(
        self, before: Status, daemon: SocketIdentity | None, arriving: float
    ) -> Status | None:
        """Poll until the peer's answer has arrived whole, or no packet comes."""
        asked = moved = self._requests.clock()
        status = before
        while True:
            last, status = status, self._requests.status()
            now = self._requests.clock()
            if self._requests.daemon.identity() != daemon or status.replicated < last.replicated:
                return None
            arrived = status.replicated != before.replicated
            if self._receive(before, status) and not arrived:
                # It may have come up only now: what was asked before that is lost.
                self._requests.ask(("-n",))
                asked = moved = now
            if status.replicated != last.replicated:
                moved = now
            if self.receiving and now - moved > (SETTLED_SECONDS if arrived else EMPTY_SECONDS):
                return status
            if now - asked > (arriving if arrived else ABSENT_SECONDS):
                self.no_packets = not self.receiving
                return status
            self._wait()

    def taken(self, before: Status) -> str:
        """What became of a bulk that was sent; waits while the peer acknowledges it."""
        least: int | None = None
        progress = self._requests.clock()
        while True:
            status = self._requests.status()
            left = self._requests.reach(self._requests.daemon.unacknowledged)
            now = self._requests.clock()
            since, first = self._requests.first or (now, before)
            self._receive(first, status)
            if left is not None and left <= ENDLESS_MESSAGES:
                return "the peer acknowledged everything"
            if left is None and self.receiving and status.bytes_sent > before.bytes_sent:
                sent = status.bytes_sent - before.bytes_sent
                return f"{sent} bytes sent, and packets of the peer arrive"
            if left is not None and (least is None or left < least):
                least, progress = left, now
            if not self.receiving and now - since > ALIVE_SECONDS:
                self.no_packets = True
                return f"sent; no packets from the peer for {ALIVE_SECONDS} s (it is probably down)"
            if self.receiving and now - progress > SILENCE_SECONDS:
                return f"the peer acknowledged all but {left} messages"
            self._wait()

    def _receive(self, before: Status, now: Status) -> bool:
        """Note a packet of the peer's; True for the first one."""
        first = not self.receiving and now.packets_received > before.packets_received
        self.receiving = self.receiving or first
        return first

    def _wait(self) -> None:
        self._requests.check()
        self._requests.pause(POLL_SECONDS)
