"""keepalived's words as a follower takes them: all are read, only the newest counts."""

import itertools
import os
from typing import NamedTuple

from primary_backup.intent import Intent, Kind
from primary_backup.keepalived.fifo import Fifo
from primary_backup.keepalived.notify import Followed
from primary_backup.plan import State
from primary_backup.system.proc import TICKS_PER_SECOND, Issued, boot_seconds, own_start


class Word(NamedTuple):
    """What is to be done next, and how old that is."""

    intent: Intent
    issued: Issued


class Inbox:
    """The FIFO's words, of which only the newest counts."""

    def __init__(self, fifo: Fifo, followed: Followed) -> None:
        self.fifo = fifo
        self._followed = followed
        self._pid, self.started = os.getpid(), own_start().ticks
        self._words = itertools.count(1)
        self._master = False
        self.waiting: Word | None = None
        self.lost = False
        """Whether there may have been words, newer than these, that found the FIFO full."""

    def issued(self) -> Issued:
        """How old a word is that is read now: younger than every one before it."""
        return Issued(int(boot_seconds() * TICKS_PER_SECOND), self._pid, next(self._words))

    def look(self) -> Word | None:
        """Read all there is; the newest word that nobody has acted upon yet."""
        lines = self.fifo.lines()
        self.lost = self.lost or self.fifo.overflowed
        for line in lines:
            said = self._followed.read_line(line)
            if said is None or (said.reassert and not self._master):
                continue
            self._master = said.state is State.PRIMARY
            kind = Kind.REASSERT if said.reassert else Kind.BECOME
            if said.reassert and self.waiting is not None:
                continue  # a promotion that nobody has begun yet
            cause = f"keepalived: {line.decode(errors='replace')}"
            self._put(Intent(said.state, cause, kind), self.issued())
        return self.waiting

    def answer(self, intent: Intent, before: Word | None) -> None:
        """Let keepalived's answer be a word: newer than ``before``, which waited when it was asked.

        What came meanwhile is newer still: keepalived writes lines and answers one by one.
        """
        newer = self.look()
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
        """Let this be done, which follows from a look at ``issued``, if nobody has said a word."""
        if self.look() is None:
            self._put(intent, issued)

    def take(self) -> Word | None:
        """The newest word, which from now on is acted upon."""
        word, self.waiting = self.waiting, None
        return word

    def _put(self, intent: Intent, issued: Issued) -> None:
        before = self.waiting.intent if self.waiting is not None else None
        if before is not None and (before.stepped_down or before.state is not State.PRIMARY):
            intent = intent._replace(stepped_down=True)
        self._master = intent.state is State.PRIMARY
        self.waiting = Word(intent, issued)
