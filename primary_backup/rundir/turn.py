"""One transition at a time, and the newest wins: the lock, the order, and when to halt."""

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

from primary_backup.memory import Last, Memory
from primary_backup.plan import State
from primary_backup.rundir.directory import RunDir, Unusable
from primary_backup.rundir.tickets import Ticket, show, take_unfinished, under_way
from primary_backup.system.proc import Issued

LOCK_SECONDS = 60.0
OVERTAKE_SECONDS = 6.0
"""How long a promotion waits for a backup or fault, which halts within one call's 5 s deadline."""
POLL_SECONDS = 0.01
PAUSE_SECONDS = 0.05
"""How long a pause goes on, at most, after a newer notification."""


class Halted(Exception):
    """A newer notification, a signal or the deadline: nothing more is asked."""


class Stuck(Exception):
    """The lock did not come free."""


class Caller(NamedTuple):
    """Who carries out an intent: a hook, all of whose process it is, or a follower."""

    issued: Issued
    """When the notification or command was issued."""
    signals: list[str]
    """The names of the signals that were received; the first one ends the transition."""
    started: int = 0
    """When the process was started, in ticks; 0 where that is when the intent was issued."""
    newer: Callable[[], str | None] = lambda: None
    """Why a newer notification that waits in this same process supersedes this one, or None."""
    wait: Callable[[float], object] = time.sleep
    """Wait so many seconds, or until there may be a newer notification."""
    interrupt: Callable[[], None] = lambda: None
    """Called while a client is waited for; may raise Halted, and the client is killed."""
    leaves_unfinished: bool = False
    """True for a follower: after SIGTERM its successor finishes the transition."""


class Taken(NamedTuple):
    """What is found once it is this transition's turn."""

    memory: Memory
    """What earlier transitions left, of any daemon."""
    other_states: bool
    """Another process has a notification for another state to carry out."""


class Turn:
    """One transition's place among all that are carried out, and its record for the next one."""

    def __init__(self, path: str, state: State, caller: Caller) -> None:
        """Open the run directory; without one there is no order, only what the caller knows."""
        self.ticket = Ticket(caller.issued, state, caller.started)
        self.notes: list[str] = []
        """What a person must know of this turn: it makes an ``ok`` transition degraded."""
        self.trouble: list[str] = []
        """What is wrong with the run directory."""
        self.records = True
        """Whether the next transition will know of this one."""
        self._path = path
        self._caller = caller
        self._taken = self._superseded = False
        try:
            self.run_dir: RunDir | None = RunDir(path)
        except Unusable as error:
            self.run_dir, self.records = None, False
            self.notes.append(f"continuing without the lock and without a record: {error}")
            self.trouble.append(str(error))

    # -- order ------------------------------------------------------------------------------

    def halted(self) -> str | None:
        """Why nothing more may be asked; None while no notification is newer."""
        return self._newer() or self._signal()

    def is_superseded(self) -> bool:
        """Whether a newer one was ever found; its process may have died since."""
        return self._superseded or self._newer() is not None

    def check(self) -> None:
        """Raise Halted where nothing more may be asked."""
        self._halt(self._newer())

    def _halt(self, newer: str | None) -> None:
        self._superseded = self._superseded or newer is not None
        why = newer or self._signal()
        if why is not None:
            raise Halted(why)

    def _signal(self) -> str | None:
        signals = self._caller.signals
        return f"received {signals[0]}" if signals else None

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than until halted."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self.halted() is None:
            self._caller.wait(min(left, PAUSE_SECONDS))

    def _newer(self) -> str | None:
        """Which newer notification makes this one needless: its state and pid."""
        newer = self._caller.newer()
        if newer is not None or self.run_dir is None:
            return newer
        return self._superseded_by(
            self.run_dir.newer(self.ticket.issued), under_way(self.run_dir, self.ticket)
        )

    def _superseded_by(self, memory: Memory | None, tickets: list[Ticket]) -> str | None:
        last = memory.last if memory is not None else None
        if memory is not None and last is not None and not self._carries_on(memory, last):
            return f"superseded by a newer {last.state.value} (pid {last.issued.pid})"
        shown = max(tickets, default=None)
        if shown and shown.issued > self.ticket.issued and shown.state is not self.ticket.state:
            return f"superseded by a newer {shown.state.value} (pid {shown.issued.pid})"
        return None

    def _carries_on(self, memory: Memory, last: Last) -> bool:
        """True if the newer transition has our state but did not finish it: then we carry on."""
        if last.state is not self.ticket.state:
            return False
        if last.proven is not None and not self._taken:
            return True  # the turn shows that there is nothing left to do
        if last.state is State.PRIMARY:
            return not memory.has_committed
        return last.proven is None

    # -- the lock ---------------------------------------------------------------------------

    def take(self) -> Taken:
        """Show this transition to all others, and wait for the lock; raises Halted or Stuck.

        A lock that is held by a stopped process, or by a backup that does not halt, must not
        stand between a promotion and its commit.
        """
        if self.run_dir is None:
            return Taken(Memory(), other_states=False)
        self._show(self.run_dir)
        began = time.monotonic()
        ours = self.ticket.issued.pid, self.ticket.state.value
        is_locked = True
        while not self.run_dir.try_lock(*ours):
            self.check()
            if self._overtakes(time.monotonic() - began):
                is_locked = False
                break
            self._caller.wait(POLL_SECONDS)
        memory, tickets = self.run_dir.recall(), under_way(self.run_dir, self.ticket)
        if is_locked:
            is_newer = memory.last is not None and memory.last.issued > self.ticket.issued
            self._halt(
                self._caller.newer() or self._superseded_by(memory if is_newer else None, tickets)
            )
        self._taken = True
        others = any(ticket.state is not self.ticket.state for ticket in tickets)
        return Taken(memory, other_states=others)

    def _show(self, run_dir: RunDir) -> None:
        try:
            show(run_dir, self.ticket)
        except OSError as error:
            self._fails("other transitions cannot see this one", error)

    def _overtakes(self, waited: float) -> bool:
        """Whether to go on without the lock, after so many seconds; raises Stuck."""
        holder = self.run_dir.holder() if self.run_dir is not None else None
        by = f"held by a {holder.state} (pid {holder.pid})" if holder else "held"
        if self.ticket.state is not State.PRIMARY:
            if waited > LOCK_SECONDS:
                raise Stuck(f"the lock did not come free in {LOCK_SECONDS:.0f} s, {by}")
            return False
        working = holder is not None and holder.state == State.PRIMARY.value
        is_stopped = holder is not None and holder.stopped
        if not is_stopped and waited <= (LOCK_SECONDS if working else OVERTAKE_SECONDS):
            return False
        self.notes.append(f"did not wait for the lock any longer ({by})")
        return True

    # -- the record -------------------------------------------------------------------------

    def write(self, memory: Memory, *, promotes: bool = False) -> None:
        """Store the memory, unless a newer transition has stored its own."""
        if self.run_dir is None:
            return
        try:
            self.run_dir.memorise(memory, promotes=promotes)
        except OSError as error:
            if self.records:
                self._fails("continuing without a record", error)
            self.records = False

    def remember(self, event: str) -> None:
        """Store the final event, the line exactly as it was logged."""
        if self.run_dir is not None:
            with contextlib.suppress(OSError):  # it stands in the log
                self.run_dir.remember(event)

    def forget_promotion(self) -> None:
        """Forget the current promotion, so that the next ``primary`` commits."""
        if self.run_dir is not None and self.run_dir.newer(self.ticket.issued) is None:
            self.run_dir.forget_promotion()

    def forget_unfinished(self) -> None:
        """Forget what killed processes left unfinished: keepalived has stopped."""
        if self.run_dir is not None:
            take_unfinished(self.run_dir)

    def leave(self, *, unfinished: bool) -> None:
        """Let the next one go on; ``unfinished``: whoever comes after shall finish this one."""
        if self.ticket.state is not State.PRIMARY:
            self.forget_promotion()  # again: a promotion that was under way may have begun since
        if self.run_dir is None:
            return
        if unfinished:
            self._show(self.run_dir)
        else:
            self.run_dir.remove(self.ticket.name)
        take_unfinished(self.run_dir, self.ticket)
        self.run_dir.close()

    def _fails(self, what: str, error: OSError) -> None:
        self.notes.append(f"{what}: {error.strerror}")
        self.trouble.append(f"run directory {self._path}: {error.strerror}")
