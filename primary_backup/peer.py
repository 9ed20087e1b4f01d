"""What the counters of ``-s`` tell about the other firewall: heard, arrived, taken."""

from primary_backup.conntrackd.status import Status
from primary_backup.requests import Requests

ALIVE_SECONDS = 1.1
"""A peer sends a keep-alive every second (ALIVE_INT)."""
SILENCE_SECONDS = 2.0
"""No silence of a living peer is as long as this."""
ABSENT_SECONDS = 5.0
"""How long a backup waits to hear any peer at all."""
SETTLED_SECONDS = 0.5
"""A bulk that is arriving makes no pause as long as this."""
EMPTY_SECONDS = 1.5
"""A peer that is heard and has anything to send has begun to by now."""
ARRIVING_SECONDS = 30.0
ENDLESS_MESSAGES = 1
"""A resend queue may keep the last acknowledgement for ever: no connection is in it."""
LOOK_SECONDS = 0.1


class Peer:
    """The peer, as far as this node's own daemon hears it."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self.heard = False
        """Whether a packet of the peer's came while somebody looked."""
        self.silent = False
        """Whether somebody listened for long enough, and heard nothing."""

    def listen(self, before: Status) -> bool:
        """Whether the peer is heard; waits for its next keep-alive, if it has to."""
        deadline = self._requests.clock() + SILENCE_SECONDS
        while not self.heard and self._requests.clock() < deadline:
            self._look_again()
            self._hear(before, self._requests.status())
        self.silent = not self.heard
        return self.heard

    def answer(self, before: Status, arriving: float = ARRIVING_SECONDS) -> Status:
        """Look until the peer's answer to ``-n`` has arrived whole, or nobody is heard.

        It may be ``arriving`` for so many seconds at most.
        """
        asked = moved = self._requests.clock()
        status = before
        while True:
            last, status = status, self._requests.status()
            now = self._requests.clock()
            arrived = status.replicated != before.replicated
            if self._hear(before, status) and not arrived:
                # It may have come up only now: what was asked before that is lost.
                self._requests.ask(("-n",))
                asked = moved = now
            if status.replicated != last.replicated:
                moved = now
            if self.heard and now - moved > (SETTLED_SECONDS if arrived else EMPTY_SECONDS):
                return status
            if now - asked > (arriving if arrived else ABSENT_SECONDS):
                self.silent = not self.heard
                return status
            self._look_again()

    def taken(self, before: Status) -> str:
        """What became of a bulk that was sent; waits while a peer that is heard takes it in."""
        least: int | None = None
        progress = self._requests.clock()
        while True:
            status = self._requests.status()
            left = self._requests.reach(self._requests.daemon.unacknowledged)
            now = self._requests.clock()
            since, first = self._requests.first or (now, before)
            self._hear(first, status)
            if left is not None and left <= ENDLESS_MESSAGES:
                return "the peer acknowledged everything"
            if left is None and self.heard and status.bytes_sent > before.bytes_sent:
                return f"{status.bytes_sent - before.bytes_sent} bytes sent, a peer is heard"
            if left is not None and (least is None or left < least):
                least, progress = left, now
            if not self.heard and now - since > ALIVE_SECONDS:
                self.silent = True
                return "sent, nobody listening"
            if self.heard and now - progress > SILENCE_SECONDS:
                return f"the peer acknowledged all but {left} messages"
            self._look_again()

    def _hear(self, before: Status, now: Status) -> bool:
        """Note a packet of the peer's; True for the first one."""
        first = not self.heard and now.packets_received > before.packets_received
        self.heard = self.heard or first
        return first

    def _look_again(self) -> None:
        self._requests.check()
        self._requests.pause(LOOK_SECONDS)
