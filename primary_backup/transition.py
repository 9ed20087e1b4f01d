"""Carry out a plan step by step, and prove every step before the next."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from primary_backup.commit import Committing, Earlier, Refill
from primary_backup.conntrackd.client import Refused, Unanswered, Unreached
from primary_backup.conntrackd.start import Unstartable
from primary_backup.conntrackd.status import Status
from primary_backup.peer import Peer
from primary_backup.plan import Step, When
from primary_backup.proof import (
    Commit,
    Outcome,
    Verdict,
    few_copies,
    judge_flush,
    judge_resync,
    uncovered,
)
from primary_backup.requests import Requests
from primary_backup.rundir.turn import Halted

_EMPTY_INTERNAL = frozenset({("-f",), ("-f", "internal")})
"""What empties the internal cache, and the kernel table where the daemon has no such cache."""


class Past(NamedTuple):
    """What earlier transitions left in this same daemon."""

    kept: bool = False
    """The external cache still holds what a promotion committed, or could not prove to have."""
    purge_pending: bool = False
    """A purge that this tool asked for has not fired yet."""
    earlier: Earlier | None = None
    """What a killed process of this same promotion has committed."""
    lacking: bool = False
    """What a former daemon's external cache held was not sent to this one."""


class StepResult(NamedTuple):
    """How one step ended; ``attempts`` is 0 where it was not asked."""

    name: str
    command: str
    outcome: Outcome
    reason: str = ""
    advice: str = ""
    attempts: int = 0
    seconds: float = 0.0


class Transition:
    """One plan on its way, and what it has seen so far; iterate ``results()`` once."""

    def __init__(
        self,
        plan: tuple[Step, ...],
        requests: Requests,
        past: Past,
        about_to: Callable[[Step], None] = lambda _: None,
        objection: Callable[[], Verdict | None] = lambda: None,
    ) -> None:
        """Take what decides.

        ``about_to`` is called before each step's request: what must not be forgotten.
        ``objection`` is the verdict where nothing may be purged here, whatever the peer holds.
        """
        self._plan = plan
        self._requests = requests
        self._daemon = requests.daemon
        self._past = past
        self._about_to = about_to
        self._objection = objection
        self.proven = False
        """Whether the commit brought back what there was."""
        self._peer = Peer(requests)
        self._copies = past.kept
        self._rebuilding = False
        self.commit: Commit | None = None
        self.purged = False
        """Whether a purge was asked for, and not taken back."""
        self.held = False
        """Whether a purge was deferred: the peer's copy did not cover this node's connections, or
        keepalived forbade it."""

    @property
    def silent(self) -> bool:
        """Whether the peer was listened for, and not heard."""
        return self._peer.silent

    @property
    def kept(self) -> bool:
        """Whether the caches do not tell what only this node holds.

        A promotion's copies were not flushed, or the internal cache was emptied and not rebuilt.
        """
        return self._copies or self._rebuilding

    def results(self) -> Iterator[StepResult]:
        """Carry out the steps; yields one result for each step of the plan, in order.

        A step that fails ends the transition, the rest is ``skipped``; once halted the rest is
        ``superseded``. Starting a dead daemon is reported as a step of its own.
        """
        ended: tuple[Outcome, str] | None = None
        reported = 0
        for step in self._plan:
            command = self._daemon.command(step.options)
            if ended is not None:
                yield StepResult(step.name, command, *ended)
                continue
            result = self._result(step, command)
            for start in self._requests.starts[reported:]:
                yield StepResult(
                    "start",
                    start.command,
                    Outcome.OK,
                    start.reason,
                    attempts=1,
                    seconds=start.seconds,
                )
            reported = len(self._requests.starts)
            yield result
            if result.outcome is Outcome.FAILED:
                ended = Outcome.SKIPPED, f"not asked: {step.name} failed"
            elif result.outcome is Outcome.SUPERSEDED:
                ended = Outcome.SUPERSEDED, result.reason

    def _result(self, step: Step, command: str) -> StepResult:
        began = self._requests.clock()
        self._requests.attempts = 0
        try:
            self._requests.check()
            verdict = self._verdict(step)
        except Halted as why:
            verdict = Verdict(Outcome.SUPERSEDED, str(why))
        except (Unreached, Unanswered, Refused, Unstartable) as error:
            verdict = Verdict(Outcome.FAILED, str(error))
        seconds = round(self._requests.clock() - began, 4)
        return StepResult(
            step.name,
            command,
            verdict.outcome,
            verdict.reason,
            verdict.advice,
            self._requests.attempts,
            seconds,
        )

    def _verdict(self, step: Step) -> Verdict:
        needless = self._needless(step)
        if needless is not None:
            return Verdict(Outcome.SKIPPED, needless)
        carry_out = {
            "commit": self._commit,
            "flush": self._flush,
            "resync": self._resync,
            "bulk-send": self._bulk_send,
            "drop-kept": self._drop_kept,
            "request-resync": self._request_resync,
            "purge": self._purge,
        }.get(step.name, self._just_ask)
        return carry_out(step)

    def _needless(self, step: Step) -> str | None:
        """Why a step is not asked, where that is known before anything is asked."""
        if step.when is When.COMMIT_PROVEN and not self.proven:
            return "the commit is not proven: the external cache is the only copy"
        if step.when is When.COMMIT_UNPROVEN and self.proven:
            return "the commit is proven"
        if step.when is When.CACHE_KEPT and not self.kept:
            return "no earlier promotion kept its cache"
        if step.when in (When.PURGE_PENDING, When.PURGE_PENDING_EMPTY) and (
            self.purged or not self._past.purge_pending
        ):
            return "no purge to cancel"
        if step.when is When.PURGE_PENDING_EMPTY and self._requests.status().external:
            return "the external cache is not empty: a commit would replace live entries"
        return None

    def _ask(self, step: Step) -> None:
        if step.options in _EMPTY_INTERNAL:
            if self._requests.status().internal is None:
                raise Refused(
                    "the running conntrackd has no internal cache, though its file says so: "
                    "this would flush the kernel table; restart conntrackd with that file"
                )
            self._rebuilding = True
        self._about_to(step)
        self._requests.ask(step.options)

    def _just_ask(self, step: Step) -> Verdict:
        self._ask(step)
        return Verdict(Outcome.OK)

    # -- what a primary asks ----------------------------------------------------------------

    def _commit(self, step: Step) -> Verdict:
        self._about_to(step)
        # In ALARM the peer sends everything by itself, sooner or later.
        asks = any(each.name == "bulk-send" for each in self._plan)
        refill = Refill(self._peer, self._past.lacking) if asks else None
        committing = Committing(self._requests, step.options, self._past.earlier, refill)
        self._copies = True  # until it is flushed: also where an error ends this
        try:
            verdict = committing.carry_out()
        finally:
            self.commit = committing.seen
        self.proven = committing.proven
        self._copies = bool(self.commit.expected)
        return verdict

    def _flush(self, step: Step) -> Verdict:
        before = self.commit.expected if self.commit else None
        self._ask(step)
        verdict = judge_flush(before, self._requests.status())
        self._copies = verdict.outcome is not Outcome.OK
        return verdict

    def _resync(self, step: Step) -> Verdict:
        self._ask(step)
        recovered = self.commit.recovered if self.commit else 0
        verdict = judge_resync(recovered, self._requests.status())
        self._rebuilding = self._rebuilding and verdict.outcome is not Outcome.OK
        return verdict

    def _bulk_send(self, step: Step) -> Verdict:
        """A peer's absence degrades no promotion: it has just died, that is the ordinary case."""
        before = self._requests.status()
        self._ask(step)
        if before.internal == 0:
            return Verdict(Outcome.OK, "nothing to send")
        return Verdict(Outcome.OK, self._peer.taken(before))

    # -- what a backup asks -----------------------------------------------------------------

    def _drop_kept(self, step: Step) -> Verdict:
        """A peer that has just sent what this node holds is alive and primary."""
        before = self._requests.status()
        self._about_to(step)
        self._requests.ask(("-n",))
        after = self._peer.answer(before)
        ours = self._ours(before) or before.external or 0
        received = after.replicated - before.replicated
        if received == 0 or received < 0.9 * ours:
            return Verdict(
                Outcome.DEGRADED,
                f"the kept cache stays: the peer sent {received} of {ours} connections",
            )
        self._ask(step)
        verdict = judge_flush(before.external, self._requests.status())
        self._copies = verdict.outcome is not Outcome.OK
        return verdict

    def _request_resync(self, step: Step) -> Verdict:
        before = self._requests.status()
        self._ask(step)
        after = self._peer.answer(before)
        if not self._peer.heard:
            return Verdict(
                Outcome.DEGRADED,
                "no peer on the dedicated link: this node holds no fresh copy",
                "when the peer is back, a follower asks again by itself; without one run "
                "`ftfw-transition backup`",
            )
        received = after.replicated - before.replicated
        if received == 0:
            return Verdict(Outcome.OK, "peer alive, nothing to replicate")
        told = f"{received} connections received from the peer"
        older = (after.external or 0) - received
        if not few_copies(older, received):
            told += f", beside {older} copies that it did not send: it may have ended them unheard"
        return Verdict(Outcome.OK, told)

    def _purge(self, step: Step) -> Verdict:
        try:
            status = self._requests.status()
        except Unreached:
            return Verdict(Outcome.DEGRADED, "conntrackd is not running: nothing purged")
        ours = self._ours(status)
        reason = uncovered(status, ours, heard=True, kept=self.kept)
        if reason is None:
            # Only now: hearing a keep-alive takes a second.
            reason = uncovered(status, ours, heard=self._peer.listen(status), kept=self.kept)
        if reason is not None:
            self.held = True
            return Verdict(Outcome.SKIPPED, f"nothing purged: {reason}")
        objection = self._objection()
        if objection is not None:
            self.held = True
            return objection._replace(reason=f"nothing purged: {objection.reason}")
        try:
            self._ask(step)
        finally:
            self.purged = self._requests.attempts > 0
            if self.purged and self._requests.halted() is not None:
                self._take_back()
        if self._requests.halted() is None:
            return Verdict(Outcome.OK, "sent; it fires after PurgeTimeout, not provable now")
        told = "is left to the newer notification" if self.purged else "was taken back"
        return Verdict(Outcome.SUPERSEDED, f"{self._requests.halted()}: the purge {told}")

    def _take_back(self) -> None:
        """A newer notification came while the purge was sent: it must not hit a new primary.

        A commit, which is all that disarms without an internal cache, would replace live entries:
        not over copies that cover them, which the newer notification's own plan deals with.
        """
        status = self._daemon.status()
        few = few_copies(status.external, self._ours(status))
        for step in self._plan:
            if status.internal is None and step.options in _EMPTY_INTERNAL:
                return  # the running daemon is not what its file says: that would be a flush
            if step.when is When.PURGE_PENDING or (step.when is When.PURGE_PENDING_EMPTY and few):
                self._daemon.request(step.options)
                self.purged = False

    def _ours(self, status: Status) -> int:
        """Connections held here; without an internal cache only the kernel can tell."""
        return self._daemon.kernel().entries if status.internal is None else status.internal
