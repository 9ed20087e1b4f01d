"""What is received from the other firewall, by the counters of ``-s``."""

from collections.abc import Callable

from primary_backup.answer import ASK_AGAIN, SETTLED_SECONDS, Answer, Flow
from primary_backup.conntrackd.status import Queue, Status
from primary_backup.memory import SocketIdentity
from primary_backup.past import Reported
from primary_backup.proof import MORE_QUEUE, Outcome, Verdict, covers
from primary_backup.requests import Requests

ALIVE_SECONDS = 1.1
"""A peer sends a keep-alive every second (ALIVE_INT)."""
SILENCE_SECONDS = 2.0
"""A running peer sends more often than this."""
ABSENT_SECONDS = 5.0
"""How long a backup waits for any packet of the peer."""
ARRIVING_SECONDS = 120.0
"""How long an answer may go on arriving: 40,000 connections over 1 Mbit/s took 100 s."""
BULK_SECONDS = 10.0
"""How long a new primary may take for its commit, and then for sending everything."""
ENDLESS_MESSAGES = 1
"""A resend queue may keep the last acknowledgement for ever: no connection is in it."""
POLL_SECONDS = 0.1
ASKS = 2
"""A conntrackd that is restarted during the answer is asked for it once more."""
REPEATS = 3
"""So often a peer is asked once more, until its answer adds nothing to the one before."""
RESTARTED = "conntrackd was restarted again and again while the peer's answer arrived"


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
            answer = self._answer(before, daemon)
            if answer is not None:
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
        return answer.verdict(self.missing(answer.after.external))

    def missing(self, held: int | None) -> str:
        """Why ``held`` connections are not what the peer has reported; empty where they are."""
        reported = self._reported()
        if reported is None or held is None or not reported.exceeds(held):
            return ""
        return f"{reported}, {held} are here"

    def _answer(self, before: Status, daemon: SocketIdentity | None) -> Answer | None:
        """Poll until the peer's answer has arrived whole, or no packet comes."""
        asked = began = self._requests.clock()
        status, flow = before, Flow(began, before.replicated)
        repeats = REPEATS
        while True:
            last, status = status, self._requests.status()
            now = self._requests.clock()
            if self._requests.daemon.identity() != daemon or status.replicated < last.replicated:
                return None
            arrived = status.replicated != before.replicated
            if self._receive(before, status) and not arrived:
                # It may have come up only now: what was asked before that is lost.
                self._requests.ask(("-n",))
                asked = began = now
            has_ended = flow.has_ended(now, status.replicated) and now - asked > SETTLED_SECONDS
            repeat = self.receiving and flow.is_to_be_repeated(now, status.replicated)
            if self.receiving and has_ended:
                confirmed = flow.is_confirmed(now, self._held(status))
                is_whole = confirmed and not self.missing(status.external)
                if is_whole or not repeats or status.refused > before.refused:
                    return Answer(before, status, flow.messages, ended=confirmed)
                repeat, repeats = True, repeats - 1
            if repeat:
                self._requests.ask(("-n",))
                asked = now
                flow.restart(now, status.replicated, self._held(status))
            if now - began > (ARRIVING_SECONDS if arrived else ABSENT_SECONDS):
                self.no_packets = not self.receiving
                return Answer(before, status, flow.messages, ended=has_ended)
            self._wait()

    def send(self, before: Status, ask: Callable[[], None]) -> Verdict:
        """Send the peer all there is, by ``ask``; waits while it acknowledges that.

        A peer's absence degrades no promotion: it has just died, that is the ordinary case.
        """
        queue = self._queue()
        ask()
        if before.internal == 0:
            return Verdict(Outcome.OK, "nothing to send")
        reason, left = self._taken(before)
        dropped = left.dropped - queue.dropped if left and queue else 0
        if dropped <= 0 or self.no_packets:
            return Verdict(Outcome.OK, reason)
        reason = f"{reason}; {dropped} messages found no room to be sent again"
        return Verdict(Outcome.DEGRADED, reason, MORE_QUEUE)

    def _taken(self, before: Status) -> tuple[str, Queue | None]:
        """What became of a bulk that was sent, and what waits for the peer then."""
        least: int | None = None
        progress = self._requests.clock()
        while True:
            status = self._requests.status()
            queue = self._queue()
            left = queue.unacknowledged if queue else None
            now = self._requests.clock()
            since, first = self._requests.first or (now, before)
            self._receive(first, status)
            if left is not None and left <= ENDLESS_MESSAGES:
                return "the peer acknowledged everything", queue
            if left is None and self.receiving and status.bytes_sent > before.bytes_sent:
                sent = status.bytes_sent - before.bytes_sent
                return f"{sent} bytes sent, and packets of the peer arrive", queue
            if left is not None and (least is None or left < least):
                least, progress = left, now
            if not self.receiving and now - since > ALIVE_SECONDS:
                self.no_packets = True
                reason = f"sent; no packets from the peer for {ALIVE_SECONDS} s"
                return f"{reason} (it is probably down)", queue
            if self.receiving and now - progress > SILENCE_SECONDS:
                return f"the peer acknowledged all but {left} messages", queue
            self._wait()

    def _held(self, status: Status) -> int:
        """Connections of the peer's that are here; in direct mode in the kernel table."""
        held = status.external
        return self._requests.daemon.kernel().entries if held is None else held

    def _queue(self) -> Queue | None:
        return self._requests.reach(self._requests.daemon.queue)

    def _receive(self, before: Status, now: Status) -> bool:
        """Note a packet of the peer's; True for the first one."""
        first = not self.receiving and now.packets_received > before.packets_received
        self.receiving = self.receiving or first
        return first

    def _wait(self) -> None:
        self._requests.check()
        self._requests.pause(POLL_SECONDS)
