"""The resident mode: the newest word of keepalived's FIFO, and in sync when there is none.

One thread, no queue: the pipe is the queue and select(2) the wait, so that a new word ends any
pause at once.
"""

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from primary_backup.conf import ConfError
from primary_backup.controller import Emit, Intent, Kind, Settings, enter, read_conf
from primary_backup.fifo import Fifo
from primary_backup.keepalived import NotRunning, Standing, Unknown, standing
from primary_backup.notify import Followed
from primary_backup.plan import State
from primary_backup.proc import TICKS_PER_SECOND, Birth, boot_seconds, born
from primary_backup.proof import Outcome
from primary_backup.request import Halted
from primary_backup.rundir import RunDir, Unusable
from primary_backup.service import Service
from primary_backup.turn import Caller
from primary_backup.upkeep import LOOK_SECONDS, Upkeep
from primary_backup.watch import Pace

FIFO_SECONDS = 0.25
"""How long it takes to notice that keepalived has made its FIFO anew."""
STOP_SECONDS = 0.2
"""keepalived signals a follower of its own first, and then writes its STOP lines."""


class Word(NamedTuple):
    """What keepalived said last, and what it may have said before unheard."""

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


class Follower:
    """A process that stays, until SIGTERM."""

    def __init__(
        self,
        fifo: Fifo,
        followed: Followed,
        settings: Settings,
        emit: Emit,
        show: Callable[[], None],
    ) -> None:
        """Take what is followed; ``show`` writes out what ``emit`` held back."""
        self._inbox = Inbox(fifo, followed)
        self._followed = followed
        self._settings = settings
        self._emit = emit
        self._show = show
        self._service = Service()
        self._signals: list[str] = []
        self._hangup = False
        self._awake, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda n, _: self._signals.append(signal.Signals(n).name))
        signal.signal(signal.SIGHUP, self._hang_up)
        self._upkeep = Upkeep(settings, self._event, self._interrupt_look)
        self._unanswered = ""
        self._questions = Pace()
        self._stopped = False
        self._tenure_due = False
        self._next_look = 0.0

    def _hang_up(self, _number: int, _frame: object) -> None:
        self._hangup = True

    # -- the loop ---------------------------------------------------------------------------

    def run(self) -> None:
        """Follow until SIGTERM or SIGINT; raises NoFifo where the FIFO is taken away."""
        self._service.say(READY="1", STATUS=f"following {self._inbox.fifo.path}")
        self._event("follow.started", Outcome.OK, f"following {self._inbox.fifo.path}")
        self._catch_up("the follower has started", self._unfinished())
        while not self._signals:
            self._service.alive()
            if self._hangup:
                self._hangup = False
                self._read_again()
            if self._inbox.fifo.is_replaced():
                self._reopen()
            self._inbox.look()
            if self._inbox.lost:
                self._inbox.lost = False
                self._catch_up("the FIFO was full: words may have been lost")
            word = self._inbox.take()
            if word is not None:
                self._act(word)
            elif not self._stopped and time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + LOOK_SECONDS
                self._look()
            if self._inbox.waiting is None:
                self._wait(max(0.0, min(FIFO_SECONDS, self._left())))
        self._end()

    def _left(self) -> float:
        """Seconds until there is something to do, though nobody says a word."""
        look = math.inf if self._stopped else self._next_look - time.monotonic()
        return min(look, self._service.patience_seconds)

    def _wait(self, seconds: float) -> None:
        """Sleep until there is something in the FIFO, or a signal."""
        self._service.alive()
        ready, _, _ = select.select([self._inbox.fifo.fileno(), self._awake], [], [], seconds)
        if self._awake in ready:
            os.read(self._awake, 4096)

    def _end(self) -> None:
        """Read STOP, if keepalived ends as well; what else is there is left to the next one."""
        self._service.say(STOPPING="1")
        until = time.monotonic() + STOP_SECONDS
        while (left := until - time.monotonic()) > 0:
            word = self._inbox.look()
            if word is not None and word.intent.state is State.STOP:
                break
            self._wait(left)
        word = self._inbox.take()
        if word is not None:
            self._act(word)
        self._event("follow.ended", Outcome.OK, f"ended by {self._signals[0]}")

    def _reopen(self) -> None:
        self._inbox.look()
        path = self._inbox.fifo.path
        self._inbox.fifo.close()
        with contextlib.suppress(Unusable):  # every transition says so
            RunDir(self._settings.run_dir).close()  # the FIFO may have gone with it
        self._inbox.fifo = Fifo(path)
        self._catch_up(f"{path} was made anew: words may have been lost")

    def _read_again(self) -> None:
        """Check conntrackd.conf, which is read for every word anyway."""
        try:
            read_conf(self._settings.config)
        except ConfError as error:
            self._event("conf.read", Outcome.DEGRADED, str(error))
        else:
            self._event("conf.read", Outcome.OK, f"{self._settings.config} is in force")

    def _look(self) -> None:
        """With nothing else to do: ask what was not answered, and see to the daemon."""
        now = time.monotonic()
        if self._unanswered and self._questions.allows(now):
            self._questions.take(now)
            self._catch_up("asked again")
            return
        if self._tenure_due:
            self._tenure_due = False
            self._keep_tenure()
        intent = self._upkeep.look()
        if intent is not None:
            self._inbox.put(intent)

    def _keep_tenure(self) -> None:
        """Note of which tenure of keepalived's the last transition was: a reload changes dates."""
        with contextlib.suppress(Unknown, Unusable, OSError):  # then the dates decide
            said = standing(self._followed)
            with contextlib.closing(RunDir(self._settings.run_dir)) as run_dir:
                memory = run_dir.recall()
                if self._inbox.look() is None and memory.state == said.state.value:
                    run_dir.keep_tenure(memory.transition, said.tenure)

    def _since(self, said: Standing) -> float:
        """Since when keepalived has been in its state: for ever, if it never left the tenure."""
        with (
            contextlib.suppress(Unusable),  # every transition says so
            contextlib.closing(RunDir(self._settings.run_dir)) as run_dir,
        ):
            if run_dir.is_tenure(run_dir.recall().transition, said.tenure):
                return 0.0
        return said.since

    # -- words ------------------------------------------------------------------------------

    def _catch_up(self, why: str, unfinished: Intent | None = None) -> None:
        """Ask keepalived for its state: words may have been lost, or nobody was here to read."""
        self._inbox.look()
        try:
            stands = standing(self._followed)
        except Unknown as error:
            # One that is started later says a word by itself.
            awaited = isinstance(error, NotRunning)
            if self._unanswered != str(error):
                outcome = Outcome.OK if awaited else Outcome.DEGRADED
                self._event("keepalived.asked", outcome, f"{why}; {error}")
            self._unanswered = "" if awaited else str(error)
            self._stopped = awaited
            if self._inbox.waiting is None and unfinished is not None:
                self._inbox.put(unfinished)
            return
        self._unanswered = ""
        state = stands.state
        said = f"{why}; keepalived says {state.value}"
        self._event("keepalived.asked", Outcome.OK, said)
        waiting = self._inbox.look()
        if waiting is None or waiting.intent.state is not state:
            self._inbox.put(Intent(state, said, Kind.RECALL, self._since(stands)))

    def _unfinished(self) -> Intent | None:
        """What a killed process of before has not finished."""
        try:
            with contextlib.closing(RunDir(self._settings.run_dir)) as run_dir:
                ticket, memory = run_dir.unfinished(), run_dir.recall()
        except Unusable:
            return None  # every transition says so
        if ticket is None or ticket.birth < memory.birth:
            return None
        return Intent(ticket.state, "a killed process has not finished it")

    def _act(self, word: Word) -> None:
        running = word.intent

        def newer() -> str | None:
            self._service.alive()
            waiting = self._inbox.look()
            if waiting is None:
                return None
            if waiting.intent.state is running.state and not waiting.intent.stepped_down:
                return None
            return f"superseded by a younger {waiting.intent.state.value}, keepalived's word"

        caller = Caller(
            word.birth,
            self._signals,
            started=self._inbox.started,
            newer=newer,
            wait=self._wait,
            interrupt=self._interrupt,
            leaves_unfinished=True,
        )
        event = enter(running, self._settings, self._emit, caller).event
        self._show()
        self._service.say(STATUS=f"{event['state']}: {event['outcome']} – {event['reason']}")
        self._stopped = running.state is State.STOP
        self._tenure_due = True
        self._next_look = 0.0  # the first look is what the next ones are compared with

    def _interrupt(self) -> None:
        """End a wait for a client: a commit goes on without it, and is judged by the next one."""
        self._service.alive()
        if self._signals:
            raise Halted(f"ended by {self._signals[0]}")

    def _interrupt_look(self) -> None:
        """A look at the daemon is not worth a word's waiting."""
        self._interrupt()
        if self._inbox.look() is not None:
            raise Halted("there is a new word")

    def _event(self, name: str, outcome: Outcome, reason: str) -> None:
        self._emit(name, {"outcome": outcome.value, "reason": reason})
        self._show()
