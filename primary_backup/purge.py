"""The purge: the one request that destroys, what must be true before it, and cancelling it.

``-t`` makes conntrackd flush the whole kernel table PurgeTimeout later.
"""

from collections.abc import Callable

from primary_backup.conntrackd.client import Unreached
from primary_backup.conntrackd.status import Status
from primary_backup.peer import Peer
from primary_backup.plan import Step, When
from primary_backup.proof import Left, Outcome, Verdict, few_copies, uncovered
from primary_backup.requests import Requests


class Purging:
    """One purge on its way."""

    def __init__(
        self,
        requests: Requests,
        plan: tuple[Step, ...],
        peer: Peer,
        objection: Callable[[int, bool], Verdict | None],
        *,
        awaits_bulk: bool,
    ) -> None:
        """Take what decides.

        ``plan`` has the steps that cancel a purge. ``objection`` is the guard's, or None, given
        how many connections are held here, and whether a bulk came that this node did not ask for;
        ``awaits_bulk``: one may come.
        """
        self._requests = requests
        self._plan = plan
        self._peer = peer
        self._objection = objection
        self._awaits_bulk = awaits_bulk
        self.purged = False
        """Whether a purge was asked for, and not cancelled again."""
        self.deferred = False
        """Whether it was not asked for, because the peer does not cover it, or keepalived objects.
        """

    def carry_out(self, ask: Callable[[], None], left: Left, purge_seconds: int) -> Verdict:
        """Ask for the purge if it is safe, by ``ask``; raises what a request raises."""
        try:
            status = self._requests.status()
        except Unreached:
            return Verdict(Outcome.DEGRADED, "conntrackd is not running: nothing purged")
        refusal = self._refusal(status, left)
        if refusal is not None:
            self.deferred = True
            return refusal._replace(reason=f"nothing purged: {refusal.reason}")
        try:
            ask()
        finally:
            self.purged = self._requests.attempts > 0
            halted = self._requests.halted()
            if self.purged and halted is not None:
                self._cancel()
        if halted is None:
            flushes = f"conntrackd flushes the kernel table in {purge_seconds} s"
            return Verdict(Outcome.OK, f"purge scheduled: {flushes}")
        end = "is left to the newer notification" if self.purged else "was cancelled"
        return Verdict(Outcome.SUPERSEDED, f"{halted}: the purge {end}")

    def _refusal(self, status: Status, left: Left) -> Verdict | None:
        """Why a purge is not safe; None if it is."""
        ours, bulk = self._requests.ours(status), False
        refusal = self._objection(ours, bulk) if self._awaits_bulk else None
        if refusal is not None and refusal.outcome is Outcome.SKIPPED:
            status, bulk = self._peer.await_bulk(status)
            ours = self._requests.ours(status)
        elif refusal is not None:
            return refusal
        reason = uncovered(status.external, ours, receiving=True, left=left)
        if reason is None:  # only now: a keep-alive of the peer's may take a second
            receiving = self._peer.await_packet(status)
            reason = uncovered(status.external, ours, receiving=receiving, left=left)
        if self._peer.refused > 0:
            reason = f"{self._peer.refused} connections of the peer's found no room here"
        if reason is not None:
            return Verdict(Outcome.SKIPPED, reason)
        return self._objection(ours, bulk)

    def _cancel(self) -> None:
        """A newer notification came while the purge was sent: it must not hit a new primary.

        A commit, which is all that cancels without an internal cache, would replace live entries:
        not over copies that cover them, which the newer notification's own plan deals with.
        """
        daemon = self._requests.daemon
        status = daemon.status()
        few = few_copies(status.external, self._requests.ours(status))
        for step in self._plan:
            if status.internal is None and step.empties_internal:
                return  # the running daemon differs from its file: that would be a flush
            if step.when is When.PURGE_PENDING or (step.when is When.PURGE_PENDING_EMPTY and few):
                daemon.request(step.options)
                self.purged = False
