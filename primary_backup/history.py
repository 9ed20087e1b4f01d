"""What earlier transitions left, and what this one leaves to the next."""

import contextlib
import time
from collections.abc import Callable

from primary_backup.plan import State, Step, When
from primary_backup.proof import Outcome
from primary_backup.rundir import Memory, RunDir, Ticket, boot_id
from primary_backup.transition import Past, StepResult, Transition

PURGE_MARGIN_SECONDS = 5.0
"""A purge that is late is still pending."""
_CANCEL_PURGE = frozenset({"commit", "flush", "flush-internal", "disarm"})


class History:
    """What this invocation knows of the earlier ones; without a run directory, nothing."""

    def __init__(self, run_dir: RunDir | None, ticket: Ticket) -> None:
        self._run_dir = run_dir
        self._ticket = ticket
        self._boot = boot_id()
        self._memory = Memory()
        self._identity: Callable[[], tuple[int, ...] | None] = lambda: None
        self.transition = f"{self._boot[:8]}-{ticket.birth.ticks}-{ticket.birth.pid}"
        """This transition's id: higher is newer."""
        self.trouble = ""
        """Why the next one will not know of this one."""

    def step_down(self) -> None:
        """Whatever becomes of keepalived's word: after it, the next primary is a first one."""
        if self._run_dir is None or self._ticket.state is State.PRIMARY:
            return
        if self._run_dir.recall().birth < self._ticket.birth:
            self._run_dir.forget_commit()

    def recall(self, identity: Callable[[], tuple[int, ...] | None]) -> None:
        """Take over what was left, as far as this same daemon still has it."""
        self._identity = identity
        daemon = identity()
        before = self._run_dir.recall() if self._run_dir is not None else Memory()
        if daemon is not None and before.daemon is not None and daemon == tuple(before.daemon):
            self._memory = before

    def done_by(self) -> str | None:
        """Which transition did the same, and proved it, while this one was born already."""
        memory = self._memory
        if memory.state != self._ticket.state.value or memory.done <= self._ticket.birth.seconds:
            return None
        if self._ticket.state is State.PRIMARY and not self._has_committed():
            return None
        return memory.transition

    def is_second(self) -> bool:
        """Whether this daemon's last request was a primary's, which committed to the end."""
        if self._run_dir is None or not self._has_committed():
            return False
        if any(ticket.state is not State.PRIMARY for ticket in self._run_dir.tickets()):
            return False
        return self._memory.state == State.PRIMARY.value

    def begin(self, steps: tuple[Step, ...]) -> Past:
        """Write down the intent, before the first request; what this one has to reckon with."""
        past = Past(self._memory.kept, purge_pending=boot_seconds() < self._memory.purge_due)
        if self._run_dir is not None and any(step.name == "commit" for step in steps):
            self._run_dir.forget_commit()
        self._memory = self._memory._replace(
            boot=self._boot,
            transition=self.transition,
            ticks=self._ticket.birth.ticks,
            pid=self._ticket.birth.pid,
            state=self._ticket.state.value,
            done=0.0,
        )
        self._write()
        return past

    def about_to(self, step: Step, purge_seconds: int) -> None:
        """Write down what must not be forgotten of a step, before it is asked."""
        if step.when is When.PEER_COVERS:
            due = boot_seconds() + purge_seconds + PURGE_MARGIN_SECONDS
            self._memory = self._memory._replace(purge_due=due)
        elif step.name == "commit":
            self._memory = self._memory._replace(kept=True)  # until it is flushed
        else:
            return
        self._write()

    def learn(self, result: StepResult, transition: Transition) -> None:
        """Write down what a step has changed."""
        asked = result.attempts > 0 and result.outcome is not Outcome.FAILED
        taken_back = result.name == "purge" and not transition.purged
        if asked and (result.name in _CANCEL_PURGE or taken_back):
            self._memory = self._memory._replace(purge_due=0.0)
        if asked and result.name == "commit" and self._run_dir is not None:
            with contextlib.suppress(OSError):  # a full disk: then the next is a first one too
                self._run_dir.note_commit()
        self._memory = self._memory._replace(kept=transition.kept)
        if result.attempts:
            self._write()

    def finish(self, event: str, *, proven: bool) -> None:
        """Keep the final event; ``proven``: whoever waits for the same finds it done."""
        if self._run_dir is None:
            return
        if proven:
            self._memory = self._memory._replace(done=boot_seconds())
            self._write()
        with contextlib.suppress(OSError):  # the event itself stands in the log
            self._run_dir.remember(event)

    def _has_committed(self) -> bool:
        return self._run_dir is not None and self._run_dir.has_committed()

    def _write(self) -> None:
        if self._run_dir is None or self._run_dir.recall().birth > self._ticket.birth:
            return  # a younger one has acted, and written down its own
        self._memory = self._memory._replace(daemon=self._identity())
        try:
            self._run_dir.memorise(self._memory)
        except OSError as error:
            self.trouble = str(error.strerror)


def boot_seconds() -> float:
    """Seconds since boot, with those asleep: the clock of a process's birth (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
