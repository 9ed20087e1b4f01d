"""keepalived's words as a follower takes them: all are read, only the newest counts."""

import os
from typing import NamedTuple

from primary_backup.fifo import Fifo
from primary_backup.intent import Intent, Kind
from primary_backup.notify import Followed
from primary_backup.plan import State
from primary_backup.proc import TICKS_PER_SECOND, Birth, boot_seconds, born


class Word(NamedTuple):
    """What is to be done next, and how old that is."""

    intent: Intent
    birth: Birth


class Inbox:
    """The FIFO's words, of which only the newest counts."""

    def __init__(self, fifo: Fifo, followed: Followed) -> None:
        self.fifo = fifo
        self._followed = followed
        self._pid, self.started = os.getpid(), born().ticks
        self._last = Birth(0, self._pid)
        self._master = False
        self.waiting: Word | None = None
        self.lost = False
        """Whether there may have been words, newer than these, that found the FIFO full."""

    def birth(self) -> Birth:
        """How old a word is that is read now: younger than every one that was acted upon."""
        now = int(boot_seconds() * TICKS_PER_SECOND)
        return Birth(max(now, self._last.ticks + 1), self._pid)

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
            self.put(Intent(said.state, cause, kind))
        return self.waiting

    def put(self, intent: Intent) -> None:
        """Let this be the newest word."""
        before = self.waiting.intent if self.waiting is not None else None
        if before is not None and (before.stepped_down or before.state is not State.PRIMARY):
            intent = intent._replace(stepped_down=True)
        self._master = intent.state is State.PRIMARY
        self.waiting = Word(intent, self.birth())

    def take(self) -> Word | None:
        """The newest word, which from now on is acted upon."""
        word, self.waiting = self.waiting, None
        if word is not None:
            self._last = word.birth
        return word
