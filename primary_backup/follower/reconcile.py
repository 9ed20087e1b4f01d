"""keepalived's state against ours: asked where no line in the FIFO reports it."""

import contextlib
import math
import time
from collections.abc import Callable

from primary_backup.follower.backoff import Backoff
from primary_backup.follower.continuity import Continuity
from primary_backup.follower.inbox import Inbox, Queued
from primary_backup.follower.unreported import Silence, explain
from primary_backup.intent import Intent, Kind
from primary_backup.keepalived.dump import Unknown
from primary_backup.keepalived.fifo import readers, writes
from primary_backup.keepalived.notify import Followed
from primary_backup.keepalived.state import Keepalived, NotRunning, VrrpState
from primary_backup.memory import Memory
from primary_backup.plan import State
from primary_backup.proof import ENDED, Outcome
from primary_backup.rundir.directory import RunDir, Unusable
from primary_backup.rundir.turn import Halted
from primary_backup.settings import Settings
from primary_backup.system.addresses import has_address
from primary_backup.system.identity import Daemons
from primary_backup.system.proc import boot_seconds

ASK_SECONDS = 60.0
"""So often keepalived is asked with nothing under way; it writes a line into its log each time."""
_MOST_NAMED = 20
"""So many programs are named in the log, however many a container starts under new paths."""


class Reconciler:
    """What keepalived reports when it is asked; what follows from it goes to the inbox."""

    def __init__(
        self,
        inbox: Inbox,
        followed: Followed,
        settings: Settings,
        event: Callable[[str, Outcome, str], None],
        interrupt: Callable[[], None],
    ) -> None:
        """Take what is asked for; ``interrupt`` is called while keepalived is waited for."""
        self._inbox = inbox
        self._followed = followed
        self._program = settings.keepalived
        self._run_dir = settings.run_dir
        self._event = event
        self._interrupt = interrupt
        self._continuity = Continuity(settings.run_dir)
        self._backoff = Backoff()
        self._unanswered = ""
        self._compared = ""
        self._asked = -math.inf
        self._observed: VrrpState | None = None
        self._polls_elsewhere = 0
        self._elsewhere = ""
        self._named: set[str] = set()
        self.unrecorded: Memory | None = None
        """What the last transition left, where it could not be stored."""
        self.down_seconds: float | None = None
        """keepalived's master-down interval; None before it has reported one."""
        self.stopped = False
        """Whether keepalived does not run, so that there is nothing to keep up."""

    def ask(self, why: str, *, lost: bool = False) -> bool:
        """Bring about the state that it reports; whether it answered.

        ``lost``: a line of this keepalived's may have been lost, else there was none to be read.
        """
        before, self._asked = self._inbox.read(), time.monotonic()
        try:
            reported = self._keepalived(before).vrrp_state(self._followed)
        except Halted:
            # keepalived may have stepped down before this newer notification, in a lost line.
            self._inbox.doubt()
            return False
        except Unknown as error:
            self._is_unknown(why, error)
            return False
        self._unanswered = ""
        memory = self.memory()
        why = f"{why}; keepalived reports {reported.state.value}"
        self._event("keepalived.asked", Outcome.OK, why)
        if lost:
            self._name_difference(reported, memory)
        self._answer(reported, memory, why, before)
        return True

    def _is_unknown(self, why: str, error: Unknown) -> None:
        # One that is started later sends a line by itself.
        self.stopped = isinstance(error, NotRunning)
        if self._unanswered != str(error):
            outcome = Outcome.OK if self.stopped else Outcome.DEGRADED
            self._event("keepalived.asked", outcome, f"{why}; {error}")
        self._unanswered = "" if self.stopped else str(error)

    def poll(self) -> None:
        """Ask again what was not answered, where no line comes, and whenever it is due.

        After a transition too: a command that contradicts keepalived may have been typed.
        """
        now = time.monotonic()
        found = Keepalived(self._program).daemons()
        self._name_unasked(found)
        elsewhere, memory = self._writes_elsewhere(found), self.memory()
        if not self._backoff.allows(now) or self._inbox.read() is not None:
            return
        if self._unanswered:
            self._backoff.take(now)
            self.ask("asked again")
            return
        if found.none:
            self._asked = -math.inf  # as soon as one runs
            return
        if not elsewhere and not self._is_due(now, memory):
            return
        self._asked = now
        try:
            reported = self._keepalived(None).vrrp_state(self._followed)
        except Halted:
            return
        except Unknown as error:
            self._backoff.take(now)
            self._name_elsewhere(elsewhere, str(error))
            return
        self._name_elsewhere(elsewhere)
        self._compare(reported, memory, elsewhere=elsewhere)

    def _is_due(self, now: float, memory: Memory) -> bool:
        """Whether keepalived is to be asked, though it writes into our FIFO."""
        if memory.transition != self._compared or now - self._asked >= ASK_SECONDS:
            return True
        # A purge that is pending destroys the connections of a master.
        return memory.has_unforced_purge(boot_seconds()) or self._contradicts(memory)

    def _contradicts(self, memory: Memory) -> bool:
        """Whether the virtual addresses are here and we are no primary, or the reverse."""
        addresses = self._observed.addresses if self._observed is not None else ()
        found = {has_address(address) for address in addresses} - {None}
        is_primary = memory.last is not None and memory.last.state is State.PRIMARY
        return found == {not is_primary}

    def _compare(self, reported: VrrpState, memory: Memory, *, elsewhere: bool) -> None:
        """Act on a state that differs from ours, or has changed without a line."""
        last, compared = memory.last, self._compared
        if last is not None and last.outcome is not None:  # else it is compared again
            self._compared = memory.transition
        self.down_seconds = reported.down_seconds
        observed, self._observed = self._observed, reported._replace(since=0.0, down_seconds=0.0)
        unreported = memory.transition == compared  # else a command may have been typed
        changed = elsewhere and observed not in (None, self._observed)
        if unreported and observed is not None:
            changed = changed or observed.promotions != reported.promotions
        if last is not None and last.state is reported.state and not changed:
            if last.outcome in ENDED:
                self._continuity.note(reported, memory)
            if self._contradicts(memory):
                self._backoff.take(time.monotonic())  # an address was added or removed by hand
        elif not self._is_tried_again(reported, memory):
            if unreported:
                self._name_difference(reported, memory)
            self._answer(reported, memory, f"keepalived reports {reported.state.value}")

    def _is_tried_again(self, reported: VrrpState, memory: Memory) -> bool:
        """Whether a line reported that state, and its transition was refused before it began."""
        newest = self._inbox.newest
        if newest is None or newest.intent.state is not reported.state:
            return False
        return memory.last is None or memory.last.issued < newest.issued

    def _name_difference(self, reported: VrrpState, memory: Memory) -> None:
        """Report a state that no line in the FIFO did."""
        ours = memory.last.state if memory.last is not None else None
        if ours is reported.state or self._inbox.read() is not None:
            return
        found, fifo = Keepalived(self._program).daemons(), self._inbox.fifo
        silence = Silence(
            self._followed,
            fifo.path,
            tuple(self._inbox.others),
            readers(found, fifo.fileno()),
            writes(found, fifo.fileno()) is not False,
        )
        self._event("keepalived.differs", Outcome.DEGRADED, explain(reported.state, ours, silence))

    def _keepalived(self, before: Queued | None) -> Keepalived:
        """keepalived, asked until there is a signal or a newer notification than ``before``."""

        def interrupt() -> None:
            self._interrupt()
            if self._inbox.read() is not before:
                raise Halted("there is a newer notification")

        return Keepalived(self._program, interrupt)

    def _name_unasked(self, found: Daemons) -> None:
        """Report, once, each program that may be keepalived but is not asked."""
        for what, why in Keepalived(self._program).unasked(found).items():
            if what not in self._named and len(self._named) < _MOST_NAMED:
                self._named.add(what)
                self._event("keepalived.unasked", Outcome.DEGRADED, why)

    def _answer(
        self, reported: VrrpState, memory: Memory, why: str, before: Queued | None = None
    ) -> None:
        is_master = reported.state is State.PRIMARY
        if is_master and memory.stands_by and self._continuity.is_unbroken(reported):
            if memory.purge and memory.purge.forced and memory.has_pending_purge(boot_seconds()):
                self._compared = ""  # it was meant: not before the purge has fired
                return
            typed = memory.last.state.value if memory.last is not None else ""
            why = f"keepalived has been MASTER throughout: the manual `{typed}` is reverted"
            intent = Intent(State.PRIMARY, why, Kind.REFRESH)
        else:
            since = self._continuity.since(reported, memory)
            intent = Intent(reported.state, why, Kind.RESUME, since)
        self._inbox.answer(intent, before)

    def _writes_elsewhere(self, found: Daemons) -> bool:
        """Whether a keepalived runs, at two polls in a row, that does not write into our FIFO."""
        ours = writes(found, self._inbox.fifo.fileno()) is not False
        self._polls_elsewhere = 0 if ours else self._polls_elsewhere + 1
        self._elsewhere = "" if ours else self._elsewhere
        return self._polls_elsewhere > 1

    def _name_elsewhere(self, elsewhere: bool, error: str = "") -> None:  # noqa: FBT001  # a fact
        """Report, once, a keepalived that writes elsewhere."""
        path = self._inbox.fifo.path
        why = f"keepalived does not write into {path}: name it in vrrp_notify_fifo, and reload it"
        why = f"{why}; {error}" if error else why
        if elsewhere and why != self._elsewhere:
            self._event("keepalived.asked", Outcome.DEGRADED, why)
            self._elsewhere = why

    def memory(self) -> Memory:
        """What the last transition left, the follower's or another process's."""
        if self.unrecorded is not None:
            return self.unrecorded
        with (
            contextlib.suppress(Unusable),  # every transition reports it
            contextlib.closing(RunDir(self._run_dir)) as run_dir,
        ):
            return run_dir.recall()
        return Memory()
