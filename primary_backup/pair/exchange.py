"""Which messages of the peer are fresh: values alone, and no clock of the peer's.

Each side sends a new random number (nonce) with its message of each second; the other answers it at
once. A message is fresh where it repeats one of our last five, and its number rises.
"""

from collections import deque
from typing import NamedTuple

from primary_backup.pair.message import Message, Refused
from primary_backup.pair.report import Report

NONCES = 5
"""So many of ours may be repeated, the newest last."""
_LEFT = 8
"""So many former processes of the peer are remembered, whose messages may be replayed."""

Process = tuple[str, int]
"""A process of the peer: its boot and its start."""


class Fresh(NamedTuple):
    """A message that the peer has certainly sent since one of our own."""

    message: Message
    made: float
    """When our number was made that it repeats: it is not older than that (monotonic seconds)."""
    received: float
    """When it was received (monotonic seconds)."""


class Exchange:
    """What was sent to the peer and received from it, by one process."""

    def __init__(self, own: str, peer: str, boot: str, start: int) -> None:
        """Take both addresses on the dedicated link, and what distinguishes this process."""
        self.ends = own, peer
        self._own = own
        self._peer = peer
        self._boot = boot
        self._start = start
        self._sent = 0
        self._nonces: dict[str, float] = {}
        self._answered: deque[str] = deque([""], maxlen=NONCES)
        self._process: Process | None = None
        self._left: deque[Process] = deque(maxlen=_LEFT)
        self._received = -1
        self.fresh: Fresh | None = None
        """The newest fresh message."""
        self.stale: tuple[float, Report] | None = None
        """The newest that is the peer's and not fresh, and when it was received (monotonic)."""

    def renew(self, nonce: str, now: float) -> None:
        """Go on with a new random number, at so many monotonic seconds."""
        self._nonces[nonce] = now
        while len(self._nonces) > NONCES:
            del self._nonces[next(iter(self._nonces))]

    def message(self, report: Report) -> Message:
        """The next message to the peer, once there is a random number."""
        self._sent += 1
        nonce = next(reversed(self._nonces))
        return Message(
            self._own,
            self._peer,
            self._boot,
            self._start,
            self._sent,
            nonce,
            self._answered[-1],
            report,
        )

    def receive(self, message: Message, now: float) -> bool:
        """Take one message; whether it is to be answered at once. Raises Refused.

        A message that is not fresh may still be the first of a peer that was started again: it is
        answered, and the peer's next one is fresh.
        """
        if message.sender == self._own:
            raise Refused("reflected")
        if (message.sender, message.receiver) != (self._peer, self._own):
            raise Refused("misdirected")
        process = message.boot, message.start
        if process in self._left or (process == self._process and message.number <= self._received):
            raise Refused("replayed")
        made = self._nonces.get(message.echo)
        if made is not None:
            if self._process not in (None, process):
                self._left.append(self._process or process)
            self._process = process
            self.fresh = Fresh(message, made, now)
        else:
            self.stale = now, message.report
        if process == self._process:
            self._received = message.number
        if message.nonce in self._answered:
            return False
        self._answered.append(message.nonce)
        return True
