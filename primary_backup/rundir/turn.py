"""One at a time, and the newest wins: waiting for the lock, and knowing when to halt."""

import time
from collections.abc import Callable
from typing import NamedTuple

from primary_backup.plan import State
from primary_backup.rundir.directory import Memory, RunDir, Ticket
from primary_backup.system.proc import Issued

LOCK_SECONDS = 60.0
OVERTAKE_SECONDS = 6.0
"""How long a promotion waits for a backup or fault, which halts within one call's 5 s deadline."""
LOOK_SECONDS = 0.01


class Halted(Exception):
    """A newer notification, a signal or the deadline: nothing more is asked."""


class Stuck(Exception):
    """The lock did not come free."""


class Caller(NamedTuple):
    """Who carries out an intent: a hook, all of whose process it is, or a follower."""

    issued: Issued
    """How old the intent is."""
    signals: list[str]
    """The names of those that came; the first one ends it."""
    started: int = 0
    """When the process was born, in ticks; 0 where the intent is as old."""
    newer: Callable[[], str | None] = lambda: None
    """A newer word that waits in this same process."""
    wait: Callable[[float], object] = time.sleep
    """Wait so many seconds, or until there may be a newer word."""
    interrupt: Callable[[], None] = lambda: None
    """Called while a client is waited for; may raise Halted, and the client is killed."""
    leaves_unfinished: bool = False
    """Whether what a signal has ended is left for the next one to finish."""


class Turn:
    """An intent's place among all that are carried out."""

    def __init__(self, run_dir: RunDir | None, ticket: Ticket, caller: Caller) -> None:
        """Without a run directory there is no order, only what the caller knows."""
        self._run_dir = run_dir
        self._ticket = ticket
        self._caller = caller
        self._taken = False
        self.superseded = False
        """Whether a younger one was ever seen; it may be gone since."""

    def younger(self) -> str | None:
        """Which younger intent makes this one needless: its state and pid."""
        newer = self._caller.newer()
        if newer is not None:
            return newer
        if self._run_dir is None:
            return None
        acted = self._run_dir.recall()
        if acted.issued > self._ticket.issued and not self._is_open(acted):
            return f"superseded by a younger {acted.state} (pid {acted.pid})"
        shown = self._run_dir.youngest()
        if shown and shown.issued > self._ticket.issued and shown.state is not self._ticket.state:
            return f"superseded by a younger {shown.state.value} (pid {shown.issued.pid})"
        return None

    def _is_open(self, acted: Memory) -> bool:
        """Whether a younger one wanted the same, and it is still to be done, or found done."""
        if acted.state != self._ticket.state.value:
            return False
        if acted.done and not self._taken:
            return True
        if self._run_dir is not None and self._ticket.state is State.PRIMARY:
            return not acted.committed or acted.promotion != self._run_dir.promotion()
        return not acted.done

    def halted(self) -> str | None:
        """Why nothing more may be asked; None while this is still the newest word."""
        younger = self.younger()
        if younger is not None:
            self.superseded = True
            return younger
        signals = self._caller.signals
        return f"ended by {signals[0]}" if signals else None

    def check(self) -> None:
        """Raise Halted where nothing more may be asked."""
        why = self.halted()
        if why is not None:
            raise Halted(why)

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than until halted."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self.halted() is None:
            self._caller.wait(min(left, 0.05))

    def take(self) -> str | None:
        """Wait for the lock; raises Halted or Stuck, returns why a promotion goes on without.

        A lock that is held by a stopped process, or by a backup that does not halt, must not
        stand between a promotion and its commit.
        """
        if self._run_dir is None:
            return None
        began = time.monotonic()
        while not self._run_dir.try_lock(self._ticket):
            self.check()
            waited = time.monotonic() - began
            holder = self._run_dir.holder()
            by = f"held by a {holder.state} (pid {holder.pid})" if holder else "held"
            if self._ticket.state is State.PRIMARY:
                working = holder is not None and holder.state == State.PRIMARY.value
                stopped = holder is not None and holder.stopped
                if stopped or waited > (LOCK_SECONDS if working else OVERTAKE_SECONDS):
                    self._taken = True
                    return f"went on without the lock, {by}"
            elif waited > LOCK_SECONDS:
                raise Stuck(f"the lock did not come free in {LOCK_SECONDS:.0f} s, {by}")
            self._caller.wait(LOOK_SECONDS)
        self.check()
        self._taken = True
        return None
