"""keepalived's own word, asked for where nobody has written it into the FIFO."""

import contextlib
import time
from collections.abc import Callable

from primary_backup.follower.continuity import Tenure
from primary_backup.follower.inbox import Inbox, Word
from primary_backup.follower.needs import Pace
from primary_backup.intent import Intent, Kind
from primary_backup.keepalived.notify import Followed
from primary_backup.keepalived.state import Keepalived, NotRunning, Standing, Unknown, writes
from primary_backup.plan import State
from primary_backup.proof import ENDED, Outcome
from primary_backup.rundir.directory import Memory, RunDir, Unusable
from primary_backup.rundir.turn import Halted
from primary_backup.settings import Settings
from primary_backup.system.proc import Daemons, boot_seconds

_MOST_NAMED = 20
"""So many programs are named in the log, however many a container starts under new paths."""


class Inquiry:
    """What keepalived says when it is asked; what follows from it goes to the inbox."""

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
        self._tenure = Tenure(settings.run_dir)
        self._questions = Pace()
        self._unanswered = ""
        self._compared = ""
        self._seen: Standing | None = None
        self._unheard = 0
        self._deaf = ""
        self._named: set[str] = set()
        self.stopped = False
        """Whether keepalived does not run, so that there is nothing to keep up."""

    def ask(self, why: str) -> bool:
        """Bring about what it says: words may have been lost. Whether there was an answer."""
        before = self._inbox.look()
        try:
            said = self._keepalived(before).standing(self._followed)
        except Halted:
            # keepalived may have stepped down before this newer notification: a lost line said so.
            self._inbox.doubt()
            return False
        except Unknown as error:
            # One that is started later says a word by itself.
            awaited = isinstance(error, NotRunning)
            if self._unanswered != str(error):
                outcome = Outcome.OK if awaited else Outcome.DEGRADED
                self._event("keepalived.asked", outcome, f"{why}; {error}")
            self._unanswered = "" if awaited else str(error)
            self.stopped = awaited
            return False
        self._unanswered = ""
        why = f"{why}; keepalived says {said.state.value}"
        self._event("keepalived.asked", Outcome.OK, why)
        self._answer(said, self._memory(), why, before)
        return True

    def look(self) -> None:
        """Ask again what was not answered, where nobody writes, and once after a transition.

        After one: somebody may have typed another word than keepalived's.
        """
        now = time.monotonic()
        found = Keepalived(self._program).daemons()
        self._name_unasked(found)
        deaf, memory = self._is_deaf(found), self._memory()
        if not self._questions.allows(now) or self._inbox.look() is not None:
            return
        if self._unanswered:
            self._questions.take(now)
            self.ask("asked again")
            return
        if not deaf and memory.transition == self._compared:
            return
        try:
            said = self._keepalived(None).standing(self._followed)
        except Halted:
            return
        except Unknown as error:
            self._questions.take(now)
            self._tell(deaf, str(error))
            return
        self._tell(deaf)
        compared = self._compared
        if memory.ended:  # else it is under way, and looked at again
            self._compared = memory.transition
        seen, self._seen = self._seen, said._replace(since=0.0)
        changed = deaf and seen not in (None, self._seen)
        if memory.state == said.state.value and not changed:
            if memory.ended in ENDED:
                self._tenure.keep(said, memory)
        elif changed or memory.transition != compared or seen is None:
            why = f"keepalived says {said.state.value}"
            self._answer(said, memory, why)

    def _keepalived(self, before: Word | None) -> Keepalived:
        """keepalived, asked until there is a signal or a newer notification than ``before``."""

        def interrupt() -> None:
            self._interrupt()
            if self._inbox.look() is not before:
                raise Halted("there is a newer notification")

        return Keepalived(self._program, interrupt)

    def _name_unasked(self, found: Daemons) -> None:
        """Report, once, each program that may be keepalived but is not asked."""
        for what, why in Keepalived(self._program).unasked(found).items():
            if what not in self._named and len(self._named) < _MOST_NAMED:
                self._named.add(what)
                self._event("keepalived.unasked", Outcome.DEGRADED, why)

    def _answer(self, said: Standing, memory: Memory, why: str, before: Word | None = None) -> None:
        if said.state is State.PRIMARY and memory.stands_by and self._tenure.is_unbroken(said):
            if memory.forced and boot_seconds() < memory.purge_due:
                self._compared = ""  # somebody meant it: not before the purge has fired
                return
            why = f"{why}, and has all along; {memory.state} was not its word"
            intent = Intent(State.PRIMARY, why, Kind.REFRESH)
        else:
            intent = Intent(said.state, why, Kind.RECALL, self._tenure.since(said, memory))
        self._inbox.answer(intent, before)

    def _is_deaf(self, found: Daemons) -> bool:
        """Whether a keepalived runs, at two looks in a row, that does not write into our FIFO."""
        heard = writes(found, self._inbox.fifo.fileno()) is not False
        self._unheard = 0 if heard else self._unheard + 1
        self._deaf = "" if heard else self._deaf
        return self._unheard > 1

    def _tell(self, deaf: bool, error: str = "") -> None:  # noqa: FBT001  # it is no option
        """Name, once, a keepalived that writes elsewhere."""
        path = self._inbox.fifo.path
        why = f"keepalived does not write into {path}: name it in vrrp_notify_fifo, and reload it"
        why = f"{why}; {error}" if error else why
        if deaf and why != self._deaf:
            self._event("keepalived.asked", Outcome.DEGRADED, why)
            self._deaf = why

    def _memory(self) -> Memory:
        """What the last transition left, the follower's or anybody else's."""
        with (
            contextlib.suppress(Unusable),  # every transition says so
            contextlib.closing(RunDir(self._run_dir)) as run_dir,
        ):
            return run_dir.recall()
        return Memory()
