"""One transition: take the turn, decide, carry out, report, remember."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from primary_backup.conntrackd.accepted import Accepted, Invalid
from primary_backup.conntrackd.client import Refused, Unanswered, Unreached
from primary_backup.conntrackd.start import start
from primary_backup.decide import Caches, Decision, Observed, asks_caches, decide
from primary_backup.intent import Intent, Kind
from primary_backup.memory import Last, Memory
from primary_backup.plan import STARTS_DAEMON, State, Step, StepName
from primary_backup.proof import ENDED, Kernel, Outcome, Verdict
from primary_backup.record import conclude, final_event, step_event
from primary_backup.requests import STEP_SECONDS, Requests
from primary_backup.result import StepResult
from primary_backup.rundir.observed import known_replica, other_primary
from primary_backup.rundir.turn import Caller, Halted, Stuck, Turn
from primary_backup.settings import Settings
from primary_backup.system.kernel import observe
from primary_backup.system.proc import boot_id, boot_seconds
from primary_backup.transition import Transition

Emit = Callable[[str, dict[str, Any]], str]
"""Log one event, by name and fields; returns the line that was logged."""


class Ending(NamedTuple):
    """The final event, how it ended, and what was wrong with the input or the run directory."""

    outcome: Outcome
    event: dict[str, Any]
    line: str
    trouble: tuple[str, ...]
    unrecorded: Memory | None
    """What the next transition must know, where it could not be stored."""


def enter(intent: Intent, settings: Settings, emit: Emit, caller: Caller) -> Ending:
    """Carry out one intent: one transition, to its record."""
    controller = _Controller(intent, settings, emit, caller)
    try:
        controller.carry_out()
        return controller.conclude()
    finally:
        controller.leave()


class _Controller:
    """One transition, and what has come of it so far."""

    def __init__(self, intent: Intent, settings: Settings, emit: Emit, caller: Caller) -> None:
        self._intent = intent
        self._state = intent.state
        self._settings = settings
        self._emit = emit
        self._caller = caller
        self._turn = Turn(settings.run_dir, intent.state, caller)
        self._name = "-".join((boot_id()[:8], *map(str, caller.issued)))  # higher is newer
        self._accepted = Accepted(settings, intent.state, self._turn.run_dir, caller.interrupt)
        self._memory = Memory()
        self._notes: list[str] = []
        self._results: list[StepResult] = []
        self._early: Verdict | None = None
        self._began = boot_seconds()
        self._ended: Outcome | None = None

    # -- the order of things ----------------------------------------------------------------

    def carry_out(self) -> None:
        if self._intent.ends_promotion:
            self._turn.forget_promotion()
        if self._state is State.STOP:
            self._turn.forget_unfinished()
            self._early = Verdict(Outcome.OK, "keepalived is stopping: nothing to do")
            return
        try:
            self._accepted.load()
            # First: a notification that its configuration forbids stops no other.
            if self._state is not State.PRIMARY or self._accepted.is_idle:
                self._accepted.check()
            decision = self._decide()
            if decision.nothing is not None:
                self._turn.write(self._memory.confirmed(self._caller.issued))
                self._early = Verdict(Outcome.OK, decision.nothing)
                return
            self._run(decision)
            self._compare()
        except Invalid as error:
            self._early = Verdict(Outcome.FAILED, *error.args)
        except Stuck as error:
            advice = "find out what that process does, then run this again"
            self._early = Verdict(Outcome.FAILED, str(error), advice)
        except Halted as why:
            self._early = Verdict(Outcome.SUPERSEDED, str(why))

    def leave(self) -> None:
        """Let the next one go on, whatever came of this one."""
        signalled = self._caller.leaves_unfinished and bool(self._caller.signals)
        self._turn.leave(unfinished=signalled and self._ended not in ENDED)

    def _decide(self) -> Decision:
        """Wait for the turn, and decide by what is found then."""
        taken = self._turn.take()
        self._began = boot_seconds()
        self._memory = taken.memory.of(self._accepted.daemon.identity())
        caches = self._caches() if asks_caches(self._intent, self._memory) else None
        observed = Observed(self._caller.issued, self._began, taken.other_states, caches)
        decision = decide(self._intent, self._memory, self._accepted.replication, observed)
        if decision.forget_promotion:
            self._turn.forget_promotion()
            self._memory = self._memory._replace(promotion=None)
        return decision

    def _caches(self) -> Caches | None:
        try:
            return Caches(self._accepted.daemon.status().external, observe().entries)
        except (Unreached, Unanswered, Refused):
            return None

    def _run(self, decision: Decision) -> None:
        daemon, steps = self._accepted.daemon, decision.steps
        asked = self._turn.run_dir if decision.commits else None
        replica = known_replica(asked, self._caller.issued.seconds, self._memory.daemon)
        past = self._memory.past(self._state, self._began, replica)
        before = self._memory.last
        since = before.issued if before and before.state is self._state else self._caller.issued
        last = Last(self._name, self._caller.issued, self._state, time.time())
        self._memory = self._memory.knowing(replica).begun(last, steps, live=decision.live)
        # Once: a stop that comes meanwhile ends the promotion for good.
        self._turn.write(self._memory, promotes=self._memory.is_promoted_by(self._name))
        if not self._turn.records:  # a purge that is not remembered cannot be cancelled
            steps = tuple(step for step in steps if step.name is not StepName.PURGE)
        requests = Requests(
            daemon,
            identity=self._memory.daemon,
            start=partial(start, daemon) if self._may_start() else None,
            check=self._turn.check,
            pause=self._turn.pause,
            step_seconds=STEP_SECONDS,
        )
        transition = Transition(
            steps,
            requests,
            past,
            about_to=self._about_to,
            objection=partial(self._objection, since.seconds),
            awaits_bulk=decision.awaits_bulk,
            purge_seconds=self._purge_seconds,
            reported=lambda: known_replica(self._turn.run_dir, boot_seconds(), None).reported,
        )
        for result in transition.results():
            self._results.append(result)
            # Of a daemon that was restarted meanwhile, and not by us, nothing is proven.
            self._memory = self._memory.after(result)._replace(daemon=requests.identity)
            if result.attempts:
                self._turn.write(self._memory)
            self._emit("step.finished", step_event(self._name, self._state, result))
        self._notes += [self._accepted.note] if self._accepted.note else []

    def _may_start(self) -> bool:
        """Whether a dead daemon is started: in no fault, and by no other file than its own."""
        wanted = self._state in STARTS_DAEMON and not self._intent.kind.is_of_the_purge_alone
        return (wanted or self._intent.kind is Kind.REFRESH) and self._accepted.is_own

    @property
    def _purge_seconds(self) -> int:
        return conf.purge_timeout if (conf := self._accepted.daemon.conf) else 0

    def _about_to(self, step: Step, kernel: Kernel | None) -> None:
        """Write down what must not be forgotten of a step, before it is asked."""
        if kernel is not None:
            self._memory = self._memory.committing(kernel)
        elif step.name is StepName.PURGE:
            due = boot_seconds() + self._purge_seconds
            self._memory = self._memory.purging(due, forced=self._intent.force)
        else:
            return
        self._turn.write(self._memory)

    def _objection(self, since: float, ours: int, bulk: bool) -> Verdict | None:  # noqa: FBT001
        """Why another node is not certainly master, by what was found ``since`` then."""
        if self._intent.force:
            return None
        from primary_backup.keepalived.guard import objection  # a promotion needs nothing of it
        from primary_backup.keepalived.state import Keepalived

        shown = partial(other_primary, self._turn.run_dir, since, ours)
        keepalived = Keepalived(self._settings.keepalived, self._turn.check)
        return objection(keepalived, self._turn.pause, shown, bulk=bulk)

    def _compare(self) -> None:
        """After a manual ``primary``, note if keepalived reports that this node is not master.

        The follower reconciles by itself.
        """
        if self._state is not State.PRIMARY or self._caller.leaves_unfinished:
            return
        if not any(result.commit for result in self._results) or self._turn.halted() is not None:
            return  # nothing was committed, or there is a newer notification
        from primary_backup.keepalived.state import Keepalived  # after the commit

        try:
            refutation = Keepalived(self._settings.keepalived, self._turn.check).refutation()
        except Halted:
            return  # the promotion has ended, whatever came meanwhile
        if refutation is not None:
            # Else keepalived's own promotion, when it comes, would be a second one.
            self._turn.forget_promotion()
            self._notes.append(f"{refutation}: run `ftfw-transition backup`")

    # -- the record -------------------------------------------------------------------------

    def conclude(self) -> Ending:
        """Log and remember the final event."""
        results = tuple(self._results)
        verdict = self._early or conclude(self._state, results, self._caller.signals)
        if verdict.outcome is Outcome.SUPERSEDED and not self._turn.is_superseded():
            verdict = verdict._replace(outcome=Outcome.FAILED)  # by a signal, by nothing newer
        notes = (*self._turn.notes, *self._notes)
        if notes and verdict.outcome is Outcome.OK:
            verdict = verdict._replace(outcome=Outcome.DEGRADED)
        self._ended = verdict.outcome
        failure = verdict.reason if verdict.outcome is Outcome.FAILED else self._accepted.invalid
        verdict = verdict._replace(reason="; ".join((verdict.reason, *notes)))
        event = {
            **final_event(self._name, self._intent, verdict, results),
            "seconds": round(boot_seconds() - self._began, 3),
            "waited_seconds": round(self._began - self._caller.issued.seconds, 3),
            "kernel_entries": observe().entries,
        }
        line = self._emit("transition.finished", event)
        self._remember(verdict.outcome, line)
        trouble = (*self._turn.trouble, *([failure] if failure else ()))
        unrecorded = None if self._turn.records else self._memory
        return Ending(verdict.outcome, event, line, trouble, unrecorded)

    def _remember(self, outcome: Outcome, line: str) -> None:
        last = self._memory.last
        if last is not None and last.transition == self._name:
            whole = bool(self._results) and not self._intent.kind.is_of_the_purge_alone
            proven = boot_seconds() if whole and outcome is Outcome.OK else None
            self._memory = self._memory.ended(outcome, proven)
            self._turn.write(self._memory)
        self._turn.remember(line)
        if self._results and not self._accepted.invalid and outcome in ENDED:
            self._accepted.save()
