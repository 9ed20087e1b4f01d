"""The commit: the one request that brings connections back, proven by the kernel's own counter."""

from collections.abc import Callable
from functools import partial

from primary_backup.conntrackd.client import Refused, Unanswered, Unreached
from primary_backup.past import Earlier, Past
from primary_backup.peer import RESTARTED, Peer
from primary_backup.proof import (
    Commit,
    Kernel,
    Outcome,
    Verdict,
    has_grown,
    has_made_all,
    judge_commit,
)
from primary_backup.requests import Requests
from primary_backup.system.proc import wall_time

POLL_SECONDS = 0.1
STILL_SECONDS = 0.5
"""A running commit makes entries without a pause longer than this."""
OVER_SECONDS = 10.0
"""How long a purge or a bulk may go on before the commit is repeated all the same."""
_ASKED_LATER = "a follower asks once packets of the peer arrive; without one run this again then"
_WHY_DEAD = "find out why it died: its log, `journalctl -u conntrackd`, `dmesg`"


class Committing:
    """One commit on its way; ``seen`` is what came of it, even where it ends in an error."""

    def __init__(
        self,
        requests: Requests,
        options: tuple[str, ...],
        about_to: Callable[[Kernel], None],
        past: Past,
        peer: Peer | None,
    ) -> None:
        """Take what decides; ``peer`` is None where it cannot be asked for what is lacking."""
        self._requests = requests
        self._peer = peer
        self._replica = past.replica
        self._daemon = requests.daemon
        self._options = options
        self._about_to = about_to
        self._earlier = past.earlier
        self._before = self._last = self._daemon.kernel()
        self._early: int | None = None
        self._polled_early = False
        self._answered = True
        self._died = False
        self._most = self._before.entries
        self.seen = Commit(None, 0, self._before.entries)
        self.proven = False
        """Whether the external cache may be dropped."""
        self.lacking = False
        """Whether the peer may hold what was not committed."""

    def carry_out(self) -> Verdict:
        """Commit, prove it, and return the verdict; raises what a request raises.

        A purge that fired meanwhile, or a bulk that was still arriving, is waited for, and the
        commit asked once more: all copies are seconds old then. The same where the peer sends what
        this daemon lacks. What an earlier commit has done is not done again: it would replace live
        entries by their copies.
        """
        verdict = self._commit()
        why = self._replica.lacks(self.seen.expected)
        source = self._replica.source(wall_time)
        parts = (verdict.reason, source, "" if self._has_died else why)
        verdict = verdict._replace(reason="; ".join(filter(None, parts)))
        if not why and not self._has_died:
            return verdict
        if self._peer is None:
            return verdict._replace(outcome=Outcome.DEGRADED) if why else verdict
        self.lacking = True
        return self._refilled(self._peer, verdict)

    @property
    def _has_died(self) -> bool:
        """Whether the daemon that was asked first has ended, whoever started another one."""
        return self._died or bool(self._requests.starts)

    def _commit(self) -> Verdict:
        if self._earlier is not None:
            verdict = self._finish(self._earlier)
            if self._earlier.ended or self._is_done():
                return verdict
            self.proven = False
            verdict = self._attempt_again()
        else:
            verdict = self._attempt()
        if self._answered and self._disturbed():
            self._wait_until_over()
            verdict = self._attempt_again()
        return verdict

    def _attempt_again(self) -> Verdict:
        self._before = self._last = self._daemon.kernel()
        return self._attempt()

    def _refilled(self, peer: Peer, verdict: Verdict) -> Verdict:
        """Ask the peer for what was lost: it is not dead where its keepalived or a link is."""
        why = verdict.reason
        if not peer.await_packet(self._requests.status()):
            return Verdict(
                Outcome.DEGRADED,
                f"{why}; no packets from a peer that could send what it held",
                _WHY_DEAD if self._has_died else _ASKED_LATER,
            )
        answer = peer.fetch(partial(self._requests.ask, ("-n",)))
        if answer is None:
            return Verdict(Outcome.DEGRADED, f"{why}; {RESTARTED}", _WHY_DEAD)
        self.lacking = False
        why = f"{why}; the peer has sent {answer.received} connections"
        if (answer.after.external or 0) <= (self.seen.expected or 0):
            return verdict._replace(reason=why)  # they were all there
        again = self._attempt_again()
        if verdict.outcome is Outcome.DEGRADED and again.outcome is Outcome.OK:
            return verdict._replace(reason=f"{why}; {again.reason}")
        return again._replace(reason=f"{why}; {again.reason}")

    def _finish(self, earlier: Earlier) -> Verdict:
        """Judge a commit that goes on without its client, once it has come to rest."""
        self._before = earlier.before
        starts = len(self._requests.starts)
        self._wait_until_still()
        status = self._requests.status()
        self._observe(status.external)
        if len(self._requests.starts) > starts:
            return self._was_dead(replica=status.external is None)
        if status.external is None:
            self.proven = earlier.ended
            return Verdict(Outcome.OK)  # there is nothing to repeat: asking again disarms a purge
        verdict, self.proven = judge_commit(self.seen)
        reason = f"{verdict.reason}, by a commit that an earlier process asked for"
        return verdict._replace(reason=reason)

    def _is_done(self) -> bool:
        """Whether an earlier commit, that may never have been asked, has made its entries."""
        if self._requests.starts:
            return True  # its daemon has died, there is nothing left to commit
        return self.proven and has_made_all(self.seen)

    def _attempt(self) -> Verdict:
        starts = len(self._requests.starts)
        try:
            before = partial(self._about_to, self._before)
            self._requests.ask(self._options, self._working, before)
        except Unanswered:
            self._answered = False
        was_dead = len(self._requests.starts) > starts
        if was_dead:
            starts = len(self._requests.starts)
        self._observe(None)  # what the table got is known, even if the daemon answers no more
        status = self._requests.status()
        if was_dead:
            return self._was_dead(replica=status.external is None)
        if len(self._requests.starts) > starts or self._requests.was_restarted():
            self._requests.adopt()
            self._died = True
            self._observe(None)
            return Verdict(
                Outcome.DEGRADED,
                f"conntrackd died while committing: {self.seen.recovered} connections recovered, "
                "the rest was lost with its external cache",
                _WHY_DEAD,
            )
        self._observe(status.external)
        if not self._answered or not self.seen.is_complete:
            self._wait_until_still()
            self._observe(self._requests.status().external)
        if status.external is None:
            self.proven = True
            entries = self.seen.entries
            return Verdict(Outcome.OK, f"the kernel table is the replica: {entries} entries")
        verdict, self.proven = judge_commit(self.seen)
        if self.proven or self._answered:
            return verdict
        return Verdict(
            Outcome.DEGRADED, f"the commit did not end in time: {verdict.reason}", verdict.advice
        )

    def _was_dead(self, *, replica: bool) -> Verdict:
        self.proven = True  # its successor's cache holds nothing that could be lost
        if replica:
            return Verdict(
                Outcome.DEGRADED,
                "conntrackd was not running; nothing was lost, but the kernel table misses what "
                "the peer opened since it died",
                _WHY_DEAD,
            )
        return Verdict(
            Outcome.DEGRADED,
            "conntrackd was not running: its external cache was lost",
            _WHY_DEAD,
        )

    def _observe(self, expected: int | None) -> None:
        now = self._daemon.kernel()
        self.seen = Commit(expected, now.inserted_since(self._before), now.entries)

    def _working(self) -> bool:
        """Whether entries were made since the last call, while the client waits for its answer."""
        if not self._polled_early:
            self._polled_early = True
            try:
                self._early = self._requests.glance().external
            except (Unreached, Unanswered, Refused):
                self._early = None  # the commit's own result will show it
        return self._moved()

    def _wait_until_still(self) -> None:
        """A commit of another program, or one that outlived its client, may still run."""
        still_since = self._requests.clock()
        while self._requests.clock() - still_since < STILL_SECONDS:
            self._requests.check()
            self._requests.pause(POLL_SECONDS)
            if self._moved():
                still_since = self._requests.clock()

    def _moved(self) -> bool:
        """Whether entries were made since the last call; packets make and end entries too."""
        last, self._last = self._last, self._daemon.kernel()
        grown, self._most = self._last.entries > self._most, max(self._most, self._last.entries)
        return grown if self._last.inserted is None else last.inserted != self._last.inserted

    def _disturbed(self) -> bool:
        """Whether a purge ate the commit, or the external cache grew under it."""
        expected = self.seen.expected
        if expected is None:
            return False
        if self.seen.is_eaten:
            return True
        if self.seen.is_complete:
            return False
        early = expected if self._early is None else self._early
        return has_grown(early, max(expected, self._requests.status().external or 0))

    def _wait_until_over(self) -> None:
        deadline = self._requests.clock() + OVER_SECONDS
        size = None
        while self._requests.clock() < deadline:
            self._requests.check()
            last, size = size, self._requests.status().external
            if size == last and not self._requests.reach(self._daemon.flushing):
                return
            self._requests.pause(2 * POLL_SECONDS)
