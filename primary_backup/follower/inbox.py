"""The notifications that a follower reads: all are read, only the newest counts."""

import itertools
import os
from typing import NamedTuple

from primary_backup.intent import Intent, Kind
from primary_backup.keepalived.fifo import Fifo
from primary_backup.keepalived.notify import Followed, sender
from primary_backup.plan import State
from primary_backup.system.proc import TICKS_PER_SECOND, Issued, boot_seconds, own_start

_MOST_NAMED = 20
"""So many groups and instances are remembered, however many lines name others."""
FULL = "the FIFO was full: notifications may have been lost"
_UNREADABLE = "a line of the FIFO is not one of keepalived's: a notification may have been lost"


class Queued(NamedTuple):
    """What is to be done next, and when it was issued."""

    intent: Intent
    issued: Issued


class Inbox:
    """The FIFO's notifications, of which only the newest counts."""

    def __init__(self, fifo: Fifo, followed: Followed) -> None:
        self.fifo = fifo
        self._followed = followed
        self._pid, self.started = os.getpid(), own_start().ticks
        self._numbers = itertools.count(1)
        self._master = False
        self.waiting: Queued | None = None
        self.newest: Queued | None = None
        """The newest that was ever queued, carried out or not."""
        self.lost = ""
        """Why a notification may be lost; empty where none is."""
        self.others: dict[str, None] = {}
        """The groups and instances of the lines that are not ours, the newest last."""

    def issued(self) -> Issued:
        """When a notification is issued that is read now: newer than every one before it."""
        return Issued(int(boot_seconds() * TICKS_PER_SECOND), self._pid, next(self._numbers))

    def read(self) -> Queued | None:
        """Read all there is; the newest notification that is not carried out yet."""
        lines = self.fifo.lines()
        if self.fifo.overflowed:
            self.lost = FULL
        for line in lines:
            notification = self._followed.read_line(line)
            if notification is None:
                self._note(sender(line))
            if notification is None or (notification.reassert and not self._master):
                continue
            self._master = notification.state is State.PRIMARY
            kind = Kind.REASSERT if notification.reassert else Kind.BECOME
            if notification.reassert and self.waiting is not None:
                continue  # a promotion that has not begun yet
            cause = f"keepalived: {line.decode(errors='replace')}"
            self._put(Intent(notification.state, cause, kind), self.issued())
        return self.waiting

    def _note(self, other: str | None) -> None:
        """Note whose line was not ours; None: it is none of keepalived's."""
        if other is None:
            self.lost = self.lost or _UNREADABLE
        elif other != str(self._followed):
            self.others.pop(other, None)
            self.others[other] = None
            if len(self.others) > _MOST_NAMED:
                del self.others[next(iter(self.others))]

    def answer(self, intent: Intent, before: Queued | None) -> None:
        """Queue keepalived's answer as if it were a line; it replaces ``before``.

        That was waiting when keepalived was asked. What came meanwhile is newer than the answer:
        keepalived writes lines and answers one by one.
        """
        newer = self.read()
        if newer is None or newer is before:
            if newer is None or newer.intent.state is not intent.state:
                self._put(intent, self.issued())
        elif intent.state is not State.PRIMARY:
            self.doubt()

    def doubt(self) -> None:
        """Make what is waiting a first promotion: an earlier notification may be lost."""
        if self.waiting is not None:
            intent = self.waiting.intent._replace(stepped_down=True)
            self.waiting = self.waiting._replace(intent=intent)

    def propose(self, intent: Intent, issued: Issued) -> None:
        """Queue an intent of our own, unless keepalived has sent a line meanwhile."""
        if self.read() is None:
            self._put(intent, issued)

    def supersedes(self, running: Intent) -> str | None:
        """Why a notification that waits makes the one that is carried out needless, or None."""
        waiting = self.read()
        if waiting is not None:
            same = waiting.intent.state is running.state and not waiting.intent.stepped_down
            newer = f"superseded: keepalived now reports {waiting.intent.state.value}"
            return None if same else newer
        if running.state is not State.PRIMARY and self.fifo.is_replaced():
            return "stopped: keepalived re-created the FIFO, its current state is asked first"
        return None

    def take(self) -> Queued | None:
        """The newest notification, which is carried out from now on."""
        taken, self.waiting = self.waiting, None
        return taken

    def _put(self, intent: Intent, issued: Issued) -> None:
        before = self.waiting.intent if self.waiting is not None else None
        if before is not None and (before.stepped_down or before.state is not State.PRIMARY):
            intent = intent._replace(stepped_down=True)
        self._master = intent.state is State.PRIMARY
        self.waiting = self.newest = Queued(intent, issued)
