"""What is received from the other firewall, by the counters of ``-s``."""

from collections.abc import Callable
from typing import NamedTuple

from primary_backup.conntrackd.status import Status
from primary_backup.memory import SocketIdentity
from primary_backup.past import Replica, Reported
from primary_backup.proof import (
    ARRIVING_PART,
    MORE_ROOM,
    Outcome,
    Verdict,
    covers,
    few_copies,
    slack,
)
from primary_backup.requests import Requests

ALIVE_SECONDS = 1.1
"""A peer sends a keep-alive every second (ALIVE_INT)."""
SILENCE_SECONDS = 2.0
"""A running peer sends more often than this."""
ABSENT_SECONDS = 5.0
"""How long a backup waits for any packet of the peer."""
SETTLED_SECONDS = 1.5
"""An answer makes no pause as long as this: FTFW sends a lost message again within a second."""
ARRIVING_SECONDS = 30.0
"""How long an answer may go on arriving."""
BULK_SECONDS = 10.0
"""How long a new primary may take for its commit, and then for sending everything."""
ENDLESS_MESSAGES = 1
"""A resend queue may keep the last acknowledgement for ever: no connection is in it."""
POLL_SECONDS = 0.1
ASKS = 2
"""A conntrackd that is restarted during the answer is asked for it once more."""
ASK_AGAIN = "a follower asks again by itself; without one run `ftfw-transition backup` later"
RESTARTED = "conntrackd was restarted again and again while the peer's answer arrived"


class Answer(NamedTuple):
    """What the peer sent one daemon, from right before it was asked."""

    before: Status
    after: Status

    @property
    def received(self) -> int:
        """Connections that the external cache, or the kernel table, was given.

        conntrackd counts messages: of one connection there may be several, but no more connections
        than it holds now.
        """
        messages = self.after.replicated - self.before.replicated
        return messages if self.after.external is None else min(messages, self.after.external)

    @property
    def refused(self) -> int:
        """Connections that it could not create: it was full."""
        return self.after.refused - self.before.refused

    @property
    def older(self) -> int:
        """Copies in the external cache that the peer did not send."""
        return (self.after.external or 0) - self.received


class Peer:
    """The peer, as far as this node's own daemon receives its packets."""

    def __init__(
        self, requests: Requests, reported: Callable[[], Reported | None] = lambda: None
    ) -> None:
        """``reported`` is how many connections the peer has reported last, where it reports any."""
        self._requests = requests
        self._reported = reported
        self.receiving = False
        """Whether a packet of the peer's came while it was waited for."""
        self.no_packets = False
        """Whether one was waited for long enough, and none came."""
        self.refused = 0
        """Connections of its answer that conntrackd could not create."""

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

    def fetch(self, ask: Callable[[], None]) -> Answer | None:
        """Ask the peer for all it has, by ``ask``; what came of it until the answer was whole.

        None where conntrackd was restarted again and again meanwhile: what one daemon has received
        its successor does not hold.
        """
        for _ in range(ASKS):
            self._requests.adopt()
            before = self._requests.status()
            daemon = self._requests.identity
            ask()
            after = self._answer(before, daemon)
            if after is not None:
                answer = Answer(before, after)
                self.refused = answer.refused
                return answer
            self.receiving = False
        return None

    def judge(self, answer: Answer | None) -> Verdict:
        """Whether an answer, or its absence, has made this node's replica whole."""
        if answer is None:
            return Verdict(Outcome.DEGRADED, RESTARTED, ASK_AGAIN)
        if not self.receiving:
            reason = "no packets from the peer on the dedicated link: this node holds no fresh copy"
            return Verdict(Outcome.DEGRADED, reason, ASK_AGAIN)
        if answer.refused > 0:
            reason = f"conntrackd could not create {answer.refused} connections of the peer's"
            return Verdict(Outcome.DEGRADED, f"{reason}: its cache is full", MORE_ROOM)
        if missing := self.missing(answer.after.external):
            return Verdict(Outcome.DEGRADED, missing, ASK_AGAIN)
        received = answer.received
        if received == 0:
            return Verdict(Outcome.OK, "peer is running, nothing to replicate")
        reason = f"{received} connections received from the peer"
        if not few_copies(answer.older, received):
            reason += f", beside {answer.older} copies that it did not send: it may have ended them"
        return Verdict(Outcome.OK, reason)

    def missing(self, held: int | None) -> str:
        """Why ``held`` connections are not what the peer has reported; empty where they are."""
        reported = self._reported()
        if reported is None or held is None or not Replica(reported=reported).lacks(held):
            return ""
        return f"{reported}, {held} are here"

    def _answer(self, before: Status, daemon: SocketIdentity | None) -> Status | None:
        """Poll until the peer's answer has arrived whole, or no packet comes.

        Connections are counted, and no messages: a peer that has traffic never stops sending.
        """
        asked = moved = self._requests.clock()
        status, least = before, self._held(before)
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
            held = self._held(status)
            if held - least > slack(held, ARRIVING_PART) or self.missing(status.external):
                least, moved = held, now
            least = min(least, held)
            if self.receiving and now - moved > SETTLED_SECONDS:
                return status
            if now - asked > (ARRIVING_SECONDS if arrived else ABSENT_SECONDS):
                self.no_packets = not self.receiving
                return status
            self._wait()

    def _held(self, status: Status) -> int:
        """Connections of the replica; without an external cache it is the kernel table."""
        if status.external is None:
            return self._requests.daemon.kernel().entries
        return status.external

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
