"""What earlier transitions left, and what this one leaves to the next."""

import contextlib
import time
from collections.abc import Callable

from primary_backup.commit import Earlier
from primary_backup.plan import PURGES, State, Step, When
from primary_backup.proof import ENDED, Kernel, Outcome
from primary_backup.rundir.directory import Memory, RunDir, Ticket
from primary_backup.system.proc import TICKS_PER_SECOND, boot_id, boot_seconds
from primary_backup.transition import Past, StepResult, Transition

PURGE_MARGIN_SECONDS = 5.0
"""A purge that is late is still pending."""
_CANCEL_PURGE = frozenset({"commit", "flush", "flush-internal", "disarm"})
_UNDER_WAY = ""


class History:
    """What this intent knows of the earlier ones; without a run directory, nothing."""

    def __init__(self, run_dir: RunDir | None, ticket: Ticket) -> None:
        self._run_dir = run_dir
        self._ticket = ticket
        self._boot = boot_id()
        self._memory = Memory()
        self._identity: Callable[[], tuple[int, ...] | None] = lambda: None
        self._lacking = False
        self._begun = False
        self.transition = "-".join((self._boot[:8], *map(str, ticket.issued)))
        """This transition's id: higher is newer."""
        self.trouble = ""
        """Why the next one will not know of this one."""

    def step_down(self) -> None:
        """Whatever becomes of keepalived's word: after it, the next promotion is a first one."""
        if self._run_dir is not None and self._run_dir.recall().issued <= self._ticket.issued:
            self._run_dir.step_down()

    def recall(self, identity: Callable[[], tuple[int, ...] | None]) -> None:
        """Take over what was left, as far as this same daemon still has it."""
        self._identity = identity
        daemon = identity()
        before = self._run_dir.recall() if self._run_dir is not None else Memory()
        same = before.daemon is not None and daemon == tuple(before.daemon)
        self._lacking = before.lacking if same else before.stands_by
        if same:
            self._memory = before

    def done_by(self) -> str | None:
        """Which transition did the same, and proved it, while this one was born already."""
        memory = self._memory
        done = int(memory.done * TICKS_PER_SECOND)  # a issued is no finer
        if memory.state != self._ticket.state.value or done <= self._ticket.issued.ticks:
            return None
        if self._ticket.state is State.PRIMARY and not self._has_committed():
            return None
        return memory.transition

    def confirm(self) -> None:
        """Nothing was to be done, but this is the newest word: an older one finds it so."""
        self._memory = self._memory._replace(**self._ticket.issued._asdict())
        self._write()

    def is_second(self) -> bool:
        """Whether this daemon's last request was a primary's, whose entries are live by now."""
        if self._run_dir is None or not self._has_committed():
            return False
        if any(ticket.state is not State.PRIMARY for ticket in self._run_dir.tickets()):
            return False
        at_its_end = self._memory.ended in ENDED or self._memory.entries is None
        return self._memory.state == State.PRIMARY.value and at_its_end

    @property
    def owes_commit(self) -> bool:
        """Whether the last word was a promotion whose commit was not brought to its end."""
        return self._memory.state == State.PRIMARY.value and not self._has_committed()

    def is_standing(self, since: float) -> bool:
        """Whether this same state, in which keepalived is ``since``, was brought to its end.

        ``since`` is in seconds of the wall clock. A backup that heard nobody is not at its end,
        and a primary that stepped down meanwhile is none.
        """
        memory = self._memory
        if memory.state != self._ticket.state.value or self.has_missed(since):
            return False
        if self._ticket.state is State.BACKUP:
            return memory.ended == Outcome.OK.value
        if self._ticket.state is State.PRIMARY and not self._holds():
            return False
        return memory.ended in ENDED

    def has_missed(self, since: float) -> bool:
        """Whether keepalived has changed its state since the last transition began."""
        return not self.is_blank and self._memory.began < since

    @property
    def is_blank(self) -> bool:
        """Whether nothing is known of what was asked of this daemon."""
        return not self._memory.state

    @property
    def has_armed(self) -> bool:
        """Whether a purge that this tool asked for has not fired yet."""
        return boot_seconds() < self._memory.purge_due

    def begin(self, steps: tuple[Step, ...], *, live: bool) -> Past:
        """Write down the intent, before the first request; what this one has to reckon with.

        ``live``: this node has been what it is to be, so that a primary has nothing to commit.
        """
        earlier = self._earlier()
        past = Past(
            self._memory.kept,
            purge_pending=self.has_armed,
            earlier=earlier,
            lacking=self._lacking,
        )
        memory = self._memory._replace(
            boot=self._boot,
            transition=self.transition,
            **self._ticket.issued._asdict(),
            state=self._ticket.state.value,
            done=0.0,
            ended=_UNDER_WAY,
            began=time.time(),
            silent=False,
            lacking=self._lacking,
            held=self._memory.held and self._ticket.state in PURGES,
        )
        commits = any(step.name == "commit" for step in steps)
        promoted = self._ticket.state is State.PRIMARY
        first = (earlier is None and commits) or not self._holds()
        if self._run_dir is not None and promoted and first:
            self._run_dir.promote(self.transition)
            memory = memory._replace(
                promotion=self.transition,
                committed=live and not commits,
                inserted=None,
                entries=None,
            )
        elif promoted and not commits and memory.committed:
            # The entries are live: whatever becomes of this, there is no commit left to judge.
            memory = memory._replace(inserted=None, entries=None)
        self._memory = memory
        self._begun = True
        self._write()
        return past

    def about_to(
        self, step: Step, purge_seconds: int, kernel: Kernel, *, forced: bool = False
    ) -> None:
        """Write down what must not be forgotten of a step, before it is asked."""
        if step.when is When.PEER_COVERS:
            due = boot_seconds() + purge_seconds + PURGE_MARGIN_SECONDS
            self._memory = self._memory._replace(purge_due=due, forced=forced)
        elif step.name == "commit":
            self._memory = self._memory._replace(kept=True)  # until it is flushed
            if self._memory.entries is None:
                self._memory = self._memory._replace(
                    inserted=kernel.inserted, entries=kernel.entries
                )
        else:
            return
        self._write()

    def learn(self, result: StepResult, transition: Transition) -> None:
        """Write down what a step has changed."""
        asked = result.attempts > 0 and result.outcome is not Outcome.FAILED
        taken_back = result.name == "purge" and not transition.purged
        if asked and (result.name in _CANCEL_PURGE or taken_back):
            self._memory = self._memory._replace(purge_due=0.0)
        ended = result.outcome in (Outcome.OK, Outcome.DEGRADED)
        answered = result.name == "request-resync" and result.outcome is Outcome.OK
        filled = answered or (result.name == "commit" and ended)
        self._memory = self._memory._replace(
            committed=self._memory.committed or (result.name == "commit" and ended),
            kept=transition.kept,
            silent=transition.silent,
            lacking=(self._memory.lacking or result.name == "start") and not filled,
        )
        if result.name in ("purge", "commit"):
            self._memory = self._memory._replace(held=transition.held)
        if result.attempts:
            self._write()

    def finish(self, event: str, outcome: Outcome, *, proven: bool) -> None:
        """Keep the final event; ``proven``: whoever waits for the same finds it done."""
        if self._run_dir is None:
            return
        if self._begun:
            done = boot_seconds() if proven else 0.0
            self._memory = self._memory._replace(done=done, ended=outcome.value)
            self._write()
        with contextlib.suppress(OSError):  # the event itself stands in the log
            self._run_dir.remember(event)

    def _holds(self) -> bool:
        """Whether the promotion that is remembered is the one after which none stepped down."""
        if self._run_dir is None or not self._memory.promotion:
            return False
        return self._memory.promotion == self._run_dir.promotion()

    def _has_committed(self) -> bool:
        return self._memory.committed and self._holds()

    def _earlier(self) -> Earlier | None:
        """The commit of a promotion that holds, but was not brought to its end."""
        memory = self._memory
        if self._ticket.state is not State.PRIMARY or memory.ended in ENDED:
            return None
        if memory.entries is None or not self._holds():
            return None
        return Earlier(Kernel(memory.inserted, memory.entries), ended=memory.committed)

    def _write(self) -> None:
        if self._run_dir is None or self._run_dir.recall().issued > self._ticket.issued:
            return  # a younger one has acted, and written down its own
        self._memory = self._memory._replace(daemon=self._identity())
        try:
            self._run_dir.memorise(self._memory)
        except OSError as error:
            self.trouble = str(error.strerror)
