"""Carry out a plan step by step, and prove every step before the next."""

from collections.abc import Callable, Iterator
from functools import partial

from primary_backup.commit import Committing
from primary_backup.conntrackd.client import Refused, Unanswered, Unreached
from primary_backup.conntrackd.start import Unstartable
from primary_backup.past import Past, Reported
from primary_backup.peer import Peer
from primary_backup.plan import Step, StepName, When
from primary_backup.proof import (
    Commit,
    Kernel,
    Left,
    Outcome,
    Verdict,
    covers,
    judge_flush,
    judge_resync,
    judge_uncommitted,
)
from primary_backup.purge import Purging
from primary_backup.requests import Requests
from primary_backup.result import StepResult
from primary_backup.rundir.turn import Halted


class Transition:
    """One plan on its way; iterate ``results()`` once."""

    def __init__(
        self,
        plan: tuple[Step, ...],
        requests: Requests,
        past: Past,
        *,
        about_to: Callable[[Step, Kernel | None], None] = lambda *_: None,
        objection: Callable[[int, bool], Verdict | None] = lambda *_: None,
        awaits_bulk: bool = False,
        purge_seconds: int = 60,
        reported: Callable[[], Reported | None] = lambda: None,
    ) -> None:
        """Take what decides; ``reported`` is Peer's.

        ``about_to`` is called before each step's request, a commit's with the kernel's counters.
        ``objection`` and ``awaits_bulk`` are Purging's, ``purge_seconds`` is the PurgeTimeout.
        """
        self._plan = plan
        self._requests = requests
        self._past = past
        self._about_to = about_to
        self._purge_seconds = purge_seconds
        self._peer = Peer(requests, reported)
        self._purging = Purging(requests, plan, self._peer, objection, awaits_bulk=awaits_bulk)
        self._commit: Commit | None = None
        self._is_proven = False  # that the commit brought back what there was
        self._is_lacking = False
        self._left = past.left

    def results(self) -> Iterator[StepResult]:
        """Carry out the steps; yields one result for each step of the plan, in order.

        A step that fails ends the transition, the rest is ``skipped``; once halted the rest is
        ``superseded``. Starting a dead daemon is reported as a step of its own.
        """
        ended: Verdict | None = None
        reported = 0
        for step in self._plan:
            result = self._not_asked(step, ended) if ended is not None else self._result(step)
            for start in self._requests.starts[reported:]:
                started = StepResult(StepName.START, start.command, Outcome.OK, start.reason)
                yield self._with_facts(started._replace(attempts=1, seconds=start.seconds))
            reported = len(self._requests.starts)
            yield result
            if ended is None and result.outcome is Outcome.FAILED:
                ended = Verdict(Outcome.SKIPPED, f"not asked: {step.name.value} failed")
            elif ended is None and result.outcome is Outcome.SUPERSEDED:
                ended = Verdict(Outcome.SUPERSEDED, result.reason)

    def _not_asked(self, step: Step, why: Verdict) -> StepResult:
        command = self._requests.daemon.command(step.options)
        return self._with_facts(StepResult(step.name, command, why.outcome, why.reason))

    def _result(self, step: Step) -> StepResult:
        began = self._requests.clock()
        self._requests.begin()
        try:
            verdict = self._verdict(step)
        except Halted as why:
            verdict = Verdict(Outcome.SUPERSEDED, str(why))
        except (Unreached, Unanswered, Refused, Unstartable) as error:
            verdict = Verdict(Outcome.FAILED, str(error))
        verdict = self._requests.judge(verdict)
        command = self._requests.daemon.command(step.options)
        seconds = round(self._requests.clock() - began, 4)
        commit = self._commit if step.name is StepName.COMMIT else None
        attempts = self._requests.attempts
        return self._with_facts(StepResult(step.name, command, *verdict, attempts, seconds, commit))

    def _with_facts(self, result: StepResult) -> StepResult:
        return result._replace(
            left=self._left,
            no_packets=self._peer.no_packets,
            purged=self._purging.purged,
            deferred=self._purging.deferred,
            lacking=self._is_lacking and result.commit is not None,
        )

    def _verdict(self, step: Step) -> Verdict:
        needless = self._needless(step)
        if needless is not None:
            return Verdict(Outcome.SKIPPED, needless)
        carry_out = {
            StepName.COMMIT: self._commit_external,
            StepName.FLUSH: self._flush,
            StepName.RESYNC: self._resync,
            StepName.BULK_SEND: self._bulk_send,
            StepName.DROP_UNCOMMITTED: self._drop_uncommitted,
            StepName.REQUEST_RESYNC: self._request_resync,
            StepName.PURGE: self._purge,
            StepName.POLL: self._poll,
        }.get(step.name, self._just_ask)
        return carry_out(step)

    def _needless(self, step: Step) -> str | None:
        """Why a step is not asked."""
        match step.when:
            case When.COMMIT_PROVEN if not self._is_proven:
                return "the commit is not proven: the external cache is the only copy"
            case When.COMMIT_UNPROVEN if self._is_proven:
                return "the commit is proven"
            case When.ALWAYS:
                return None
        pending = self._past.purge_pending and not self._purging.purged
        needless = self._past._replace(left=self._left, purge_pending=pending).needless(step)
        if needless is not None or step.when is not When.PURGE_PENDING_EMPTY:
            return needless
        occupied = "the external cache is not empty: a commit would replace live entries"
        return occupied if self._requests.status().external else None

    def _ask(self, step: Step) -> None:
        if step.empties_internal:
            if self._requests.status().internal is None:
                command = self._requests.daemon.command(step.options)
                raise Refused(
                    "conntrackd runs with DisableInternalCache On, but its file says Off: restart "
                    f"conntrackd first, `{command}` would flush the kernel table"
                )
            self._left = self._left._replace(rebuilding=True)
        self._requests.ask(step.options, about_to=partial(self._about_to, step, None))

    def _just_ask(self, step: Step) -> Verdict:
        self._ask(step)
        return Verdict(Outcome.OK)

    def _poll(self, step: Step) -> Verdict:
        self._ask(step)
        if not self._left.copies:
            return Verdict(Outcome.OK)
        verdict = judge_uncommitted(self._left.copies, self._requests.status().external)
        if verdict.outcome is Outcome.OK:
            self._left = self._left._replace(copies=0)
        return verdict

    # -- what a primary asks ----------------------------------------------------------------

    def _commit_external(self, step: Step) -> Verdict:
        # In ALARM the peer sends everything by itself, sooner or later.
        asks = any(each.name is StepName.BULK_SEND for each in self._plan)
        peer, about_to = self._peer if asks else None, partial(self._about_to, step)
        committing = Committing(self._requests, step.options, about_to, self._past, peer)
        try:
            verdict = committing.carry_out()
        finally:
            if self._requests.attempts or self._past.earlier is not None:
                self._commit = committing.seen
                # Until they are flushed: also where an error ends this.
                self._left = self._left._replace(copies=max(1, self._left.copies))
        self._is_proven = committing.proven
        self._left = self._left._replace(copies=committing.seen.expected or 0)
        self._is_lacking = committing.lacking
        return verdict

    def _flush(self, step: Step) -> Verdict:
        before = self._commit.expected if self._commit else None
        self._ask(step)
        external = self._requests.status().external
        return self._flushed(judge_flush(before, external), external)

    def _flushed(self, verdict: Verdict, external: int | None) -> Verdict:
        flushed = verdict.outcome is Outcome.OK
        self._left = self._left._replace(copies=0 if flushed else external or 0)
        return verdict

    def _resync(self, step: Step) -> Verdict:
        before = self._requests.status().refused
        self._ask(step)
        recovered = self._commit.recovered if self._commit else 0
        status = self._requests.status()
        verdict = judge_resync(recovered, status.internal, status.refused - before)
        if verdict.outcome is Outcome.OK:
            self._left = self._left._replace(rebuilding=False)
        return verdict

    def _bulk_send(self, step: Step) -> Verdict:
        return self._peer.send(self._requests.status(), partial(self._ask, step))

    # -- what a backup asks -----------------------------------------------------------------

    def _drop_uncommitted(self, step: Step) -> Verdict:
        """A peer that has just sent what this node holds is running and primary."""
        about_to = partial(self._about_to, step, None)
        answer = self._peer.fetch(partial(self._requests.ask, ("-n",), about_to=about_to))
        if answer is None:
            return self._peer.judge(answer)
        before, received = answer.before.external, answer.received
        ours = self._requests.ours(answer.before) or before or 0
        if received == 0 or not covers(received, ours):
            sent = f"the peer sent {received} of {ours} connections"
            return Verdict(Outcome.DEGRADED, f"the uncommitted copies stay: {sent}")
        self._ask(step)
        external = self._requests.status().external
        verdict = self._flushed(judge_flush(before, external), external)
        if verdict.outcome is Outcome.OK:
            self._left = Left()  # the peer has sent all of what is held here
        return verdict

    def _request_resync(self, step: Step) -> Verdict:
        return self._peer.judge(self._peer.fetch(partial(self._ask, step)))

    def _purge(self, step: Step) -> Verdict:
        return self._purging.carry_out(lambda: self._ask(step), self._left, self._purge_seconds)
