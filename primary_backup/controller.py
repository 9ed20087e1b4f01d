"""Hold the lock, carry out the plan, log each step, remember the result."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from primary_backup.conntrackd.client import Daemon, Refused, Unanswered, Unreached
from primary_backup.conntrackd.conf import ConfError, Conntrackd, read_conf, read_file, replication
from primary_backup.conntrackd.start import start
from primary_backup.history import History
from primary_backup.intent import Intent, Kind
from primary_backup.plan import (
    STARTS_DAEMON,
    State,
    Step,
    When,
    plan,
    purge,
    refresh,
)
from primary_backup.proof import Commit, Outcome, Verdict
from primary_backup.record import advice, conclude, step_event, step_fields
from primary_backup.requests import Requests
from primary_backup.rundir.directory import CONF, RunDir, Ticket, Unusable
from primary_backup.rundir.turn import Caller, Halted, Stuck, Turn
from primary_backup.settings import Settings
from primary_backup.system.proc import boot_seconds, own_start
from primary_backup.transition import StepResult, Transition

Emit = Callable[[str, dict[str, Any]], str]
"""Log one event, by name and fields; returns the line that was logged."""

TRANSITION_SECONDS = 45.0
"""When a transition gives up; the time in which a commit makes entries does not count."""


class Ending(NamedTuple):
    """The final event, how it ended, and what was wrong with the input or the run directory."""

    outcome: Outcome
    event: dict[str, Any]
    line: str
    trouble: tuple[str, ...]


def enter(intent: Intent, settings: Settings, emit: Emit, caller: Caller | None = None) -> Ending:
    """Carry out one intent: one transition, to its record; without a caller, as a hook."""
    invocation = _Invocation(intent, settings, emit, caller or _hook())
    try:
        invocation.carry_out()
        return invocation.ending()
    finally:
        invocation.leave()


def _hook() -> Caller:
    """This whole process, which ends when it is told to."""
    signals: list[str] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda n, _: signals.append(signal.Signals(n).name))
    return Caller(own_start(), signals)


class _Refusal(Exception):
    """Nothing can be asked of the daemon; the second argument says what to do."""


class _Invocation:
    """One transition, and what has come of it so far."""

    def __init__(self, intent: Intent, settings: Settings, emit: Emit, caller: Caller) -> None:
        self._intent = intent
        self._state = intent.state
        self._settings = settings
        self._emit = emit
        self._caller = caller
        self._ticket = Ticket(caller.issued, intent.state, caller.started)
        self._turned = boot_seconds()
        self._trouble: list[str] = []
        self._unread = ""
        self._origin = f"# {settings.config}\n".encode()
        self._notes: list[str] = []
        self._steps: list[StepResult] = []
        self._early: Verdict | None = None
        self._ended: Outcome | None = None
        self._commit: Commit | None = None
        self._conf: Conntrackd | None = None
        self._run_dir = self._open()
        self._history = History(self._run_dir, self._ticket)
        self._turn = Turn(self._run_dir, self._ticket, caller)
        self._daemon = Daemon(
            settings.conntrackd, settings.config, None, caller.interrupt, self._spare
        )

    def _spare(self, message: str) -> str | None:
        """The file for a promotion whose conntrackd.conf was spoilt since the daemon read it."""
        path = os.path.join(self._settings.run_dir, CONF)
        if self._state is not State.PRIMARY or self._run_dir is None:
            return None
        try:
            if not self._run_dir.kept_conf().startswith(self._origin):
                return None  # that of another --config
        except OSError:
            return None
        self._unread = self._unread or f"{self._settings.config}: {message}"
        return path

    def _open(self) -> RunDir | None:
        try:
            return RunDir(self._settings.run_dir)
        except Unusable as error:
            self._trouble.append(str(error))
            self._notes.append(f"without lock or record: {error}")
            return None

    # -- the order of things ----------------------------------------------------------------

    def carry_out(self) -> None:
        if self._intent.stepped_down or self._state is not State.PRIMARY:
            self._history.step_down()
        if self._state is State.STOP:
            if self._run_dir is not None:
                self._run_dir.unfinished()  # nobody shall finish it: keepalived has stopped
            reason = "nothing is asked of conntrackd: no peer can have proven itself by now"
            self._early = Verdict(Outcome.OK, reason)
            return
        try:
            self._read_input()  # first: a word that its configuration forbids stops nobody
            self._show()
            self._take_turn()
            self._history.recall(self._daemon.identity)
            needless = self._needless()
            if needless is not None:
                self._history.confirm()
                self._early = Verdict(Outcome.OK, needless)
                return
            self._run(self._plan())
            self._compare()
        except _Refusal as refusal:
            self._early = Verdict(Outcome.FAILED, *refusal.args)
        except Halted as why:
            self._early = Verdict(Outcome.SUPERSEDED, str(why))
            if self._is_left():
                self._show()

    def leave(self) -> None:
        """Let the next one go on, whatever came of this one."""
        if self._state is not State.PRIMARY:
            self._history.step_down()  # again: a promotion that was under way may have begun since
        if self._run_dir is None:
            return
        if self._is_left():
            self._run_dir.leave()
        else:
            self._run_dir.withdraw()
        self._run_dir.close()

    def _is_left(self) -> bool:
        """Whether a signal has ended it before its end, and the caller's successor finishes it."""
        if not self._caller.leaves_unfinished or not self._caller.signals:
            return False
        return self._ended not in (Outcome.OK, Outcome.DEGRADED)

    def _show(self) -> None:
        if self._run_dir is None:
            return
        try:
            self._run_dir.show(self._ticket)
        except OSError as error:
            self._no_record(f"without a ticket: {error.strerror}", str(error.strerror))

    def _read_input(self) -> None:
        """Read the configuration; only a promotion goes on before the client has accepted it."""
        config = self._settings.config
        try:
            self._conf = read_conf(config)
        except ConfError as error:
            self._unread = str(error)
        if (self._conf is None or self._conf.mode is None) and (
            spare := self._spare("no Sync section")
        ):
            # The client accepts an empty file, and reaches nobody by it.
            config = spare if self._conf is not None else config
            with contextlib.suppress(ConfError):
                self._conf = read_conf(spare)
        self._daemon = self._daemon._replace(config=config, conf=self._conf)
        idle = self._conf is not None and self._conf.mode is None
        if self._state is State.PRIMARY and not idle:
            return
        try:
            self._daemon.request(("-s",))
        except (Unreached, Unanswered):
            pass  # it was read and accepted, that is all that counts here
        except Refused as error:
            raise _Refusal(
                str(error), "fix what the client names, then run the same command again"
            ) from error
        if idle:
            reason = f"{self._settings.config} has no Sync section: there is nothing to fail over"
            raise _Refusal(
                reason,
                "add `Sync { Mode FTFW { … } UDP { … } }`, or name the right file with --config",
            )

    def _take_turn(self) -> None:
        if self._run_dir is None:
            return
        try:
            note = self._turn.take()
        except Stuck as error:
            raise _Refusal(
                str(error), "look at what that process does, then run this again"
            ) from error
        if note is not None:
            self._notes.append(note)
        self._turned = boot_seconds()

    def _needless(self) -> str | None:
        """Why nothing is to be asked at all."""
        done_by = self._history.done_by()
        if done_by is not None:
            return f"already done by transition {done_by}"
        if self._intent.kind is Kind.RECALL and self._history.is_standing(self._intent.since):
            return f"already {self._state.value}, nothing is asked"
        return None

    def _plan(self) -> tuple[Step, ...]:
        kind, replicated = self._intent.kind, replication(self._conf)
        disarms = self._state is State.PRIMARY and self._history.has_armed
        if kind is Kind.REFRESH and not disarms:
            return refresh(self._state, replicated)
        if kind is Kind.PURGE:
            return purge(replicated)
        # Without an internal cache a commit is all that disarms.
        live = kind is Kind.REFRESH and replicated is not None and replicated.internal_cache
        again = self._state is State.PRIMARY and (live or self._is_live())
        return plan(self._state, replicated, again=again)

    def _is_live(self) -> bool:
        """Whether this node is primary already, so that its entries are newer than any copy."""
        kind, history = self._intent.kind, self._history
        if kind is Kind.RECALL and history.has_missed(self._intent.since):
            history.step_down()
            return False
        if kind is Kind.REASSERT:
            return not history.owes_commit  # the promotion before the rival's word may have failed
        if not history.is_blank or kind is not Kind.RECALL:
            return history.is_second()
        try:
            status = self._daemon.status()
        except (Unreached, Unanswered, Refused):
            return False
        # Nobody knows how a follower's node became primary: a full cache was never committed.
        return (status.external or 0) <= 0.1 * self._daemon.kernel().entries

    # -- the plan ---------------------------------------------------------------------------

    def _run(self, steps: tuple[Step, ...]) -> None:
        live = self._intent.kind in (Kind.REFRESH, Kind.RECALL)
        past = self._history.begin(steps, live=live)
        if self._run_dir is None or self._history.trouble:
            steps = tuple(step for step in steps if step.when is not When.PEER_COVERS)
        requests = Requests(
            self._daemon,
            start=partial(start, self._daemon) if self._may_start() else None,
            halted=self._turn.halted,
            pause=self._turn.pause,
            deadline=time.monotonic() + TRANSITION_SECONDS,
        )
        transition = Transition(steps, requests, past, self._about_to, self._objection)
        for result in transition.results():
            self._commit = transition.commit
            self._steps.append(result)
            self._history.learn(result, transition)
            event = step_event(self._history.transition, self._state, result, self._commit)
            self._emit("step.finished", event)
        if self._unread:
            safe = "only what is safe in every mode was asked"
            spared = "the last file that was accepted was used"
            self._notes.append(f"{spared if self._conf else safe}: {self._unread}")
        if self._history.trouble:
            self._no_record(f"without record: {self._history.trouble}", self._history.trouble)

    def _may_start(self) -> bool:
        """Whether a dead daemon is started: in no fault, and by no other file than its own."""
        wanted = self._state in STARTS_DAEMON or self._intent.kind is Kind.REFRESH
        return wanted and self._daemon.config == self._settings.config

    def _about_to(self, step: Step) -> None:
        seconds = self._conf.purge_timeout if self._conf else 0
        self._history.about_to(step, seconds, self._daemon.kernel(), forced=self._intent.force)

    def _objection(self) -> Verdict | None:
        """Why keepalived's state forbids a purge; ended by a newer notification."""
        if self._intent.force:
            return None
        from primary_backup.keepalived.state import Keepalived  # a promotion needs nothing of it

        return Keepalived(self._settings.keepalived, self._turn.check).objection()

    def _compare(self) -> None:
        """Compare a manual promotion with keepalived's state; a follower does so by itself."""
        if self._state is not State.PRIMARY or self._caller.leaves_unfinished:
            return
        if self._commit is None or self._turn.halted() is not None:
            return  # nothing was committed, or there is a newer notification
        from primary_backup.keepalived.state import Keepalived  # after the commit

        try:
            said = Keepalived(self._settings.keepalived, self._turn.check).refutation()
        except Halted:
            return  # the promotion has ended, whatever came meanwhile
        if said is not None:
            # Else keepalived's own promotion, when it comes, would be a second one.
            self._history.step_down()
            self._notes.append(f"{said}: run `ftfw-transition backup`")

    def _no_record(self, note: str, trouble: str) -> None:
        self._trouble.append(f"run directory {self._settings.run_dir}: {trouble}")
        self._notes.append(note)

    # -- the record -------------------------------------------------------------------------

    def ending(self) -> Ending:
        """Log and remember the final event."""
        verdict = self._early or conclude(self._state, self._steps, self._caller.signals)
        if verdict.outcome is Outcome.SUPERSEDED and not self._turn.superseded:
            verdict = verdict._replace(outcome=Outcome.FAILED)  # by a signal, by nobody newer
        if self._notes and verdict.outcome is Outcome.OK:
            verdict = verdict._replace(outcome=Outcome.DEGRADED)
        if verdict.outcome is Outcome.FAILED:
            self._trouble.append(verdict.reason)
        elif self._unread:
            self._trouble.append(self._unread)
        event: dict[str, Any] = {
            "transition": self._history.transition,
            "state": self._state.value,
            "cause": self._intent.cause,
            "outcome": verdict.outcome.value,
            "reason": "; ".join((verdict.reason, *self._notes)),
            "advice": advice(self._state, verdict),
            "seconds": round(boot_seconds() - self._turned, 3),
            "expected": self._commit.expected if self._commit else None,
            "recovered": self._commit.recovered if self._commit else 0,
            "kernel_entries": self._daemon.kernel().entries,
            "waited_seconds": round(self._turned - self._ticket.issued.seconds, 3),
            "steps": [step_fields(result) for result in self._steps],
        }
        self._ended = verdict.outcome
        line = self._emit("transition.finished", event)
        # A purge that is made up for is not all that a backup wants.
        whole = bool(self._steps) and self._intent.kind is not Kind.PURGE
        proven = verdict.outcome is Outcome.OK and whole
        self._history.finish(line, verdict.outcome, proven=proven)
        self._keep_conf(verdict.outcome)
        return Ending(verdict.outcome, event, line, tuple(self._trouble))

    def _keep_conf(self, outcome: Outcome) -> None:
        """Keep what the daemon was reached by, for the day that somebody spoils it."""
        reached = self._steps and not self._unread and outcome in (Outcome.OK, Outcome.DEGRADED)
        if self._run_dir is not None and reached:
            with contextlib.suppress(OSError):  # then the next one goes without
                self._run_dir.keep_conf(self._origin + read_file(self._settings.config))
