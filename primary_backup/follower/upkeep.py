"""In sync afterwards: poll an idle daemon, and find what is to be done about it."""

import contextlib
from collections.abc import Callable

from primary_backup.conntrackd.accepted import replication
from primary_backup.conntrackd.client import Daemon, Refused, Unanswered, Unreached
from primary_backup.conntrackd.conf import ConfError, read_conf
from primary_backup.follower.backoff import Backoff
from primary_backup.follower.needs import Need, Needs, Past, Poll
from primary_backup.intent import Intent, Kind
from primary_backup.keepalived.guard import objection
from primary_backup.keepalived.state import Keepalived
from primary_backup.memory import Last, Memory
from primary_backup.pair.observed import Observed
from primary_backup.proof import ENDED, Outcome, few_copies
from primary_backup.rundir.directory import RunDir, Unusable
from primary_backup.rundir.observed import recall
from primary_backup.rundir.tickets import under_way
from primary_backup.rundir.turn import Halted
from primary_backup.settings import Settings
from primary_backup.system.proc import boot_seconds, wall_time

POLL_SECONDS = 5.0
"""Between two polls; a running peer sends something every second."""
_KINDS = {Need.UNFINISHED: Kind.BECOME, Need.PURGE: Kind.PURGE}
_FINISHED = ENDED | {Outcome.SUPERSEDED}
"""What is left as it is: a superseded transition has a newer one."""


class Upkeep:
    """What the polls have found so far, and how often something was done about it."""

    def __init__(
        self,
        settings: Settings,
        event: Callable[[str, Outcome, str], None],
        interrupt: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._event = event
        self._interrupt = interrupt
        self._backoffs = {need: Backoff() for need in Need}
        self._since = ""
        self._needs: Needs | None = None
        self._flushes: int | None = None
        self._unreadable = ""
        self._late = self._named_late = 0
        self.polled: Poll | None = None
        """What the last poll found of a daemon that was running."""

    def poll(self) -> Intent | None:
        """Poll once; what is to be done now, for the state that the last transition brought."""
        try:
            with contextlib.closing(RunDir(self._settings.run_dir)) as run_dir:
                memory, busy = run_dir.recall(), bool(under_way(run_dir))
                observed = recall(run_dir)
        except Unusable:
            return None  # every transition reports it
        if memory.last is None or busy:
            return None  # there is nothing to keep up, or a transition is under way
        try:
            need = self._need(memory, memory.last, observed or Observed(0.0))
        except (Unanswered, Refused, ConfError) as error:
            if self._unreadable != str(error):
                self._event("conntrackd.unreadable", Outcome.DEGRADED, str(error))
            self._unreadable = str(error)
            return None
        except Halted:
            return None
        self._unreadable = ""
        now = boot_seconds()
        if need is None or not self._backoffs[need].allows(now):
            return None
        self._backoffs[need].take(now)
        if need is Need.PURGE:
            self._event("purge.resumed", Outcome.OK, need.value)
        else:
            self._event("sync.lost", Outcome.DEGRADED, need.value)
        # A promotion is still owed, whatever has become of its daemon.
        kind = Kind.BECOME if memory.owes_commit else _KINDS.get(need, Kind.REFRESH)
        return Intent(memory.last.state, need.value, kind)

    def _need(self, memory: Memory, last: Last, observed: Observed) -> Need | None:
        conf = read_conf(self._settings.config)
        replicated = replication(conf)
        if self._needs is None or self._since != last.transition:
            self._since = last.transition
            self._flushes = None
            certified = observed.replica(boot_seconds(), memory.daemon, wall_time).certified
            past = Past(
                memory.daemon,
                finished=last.outcome in _FINISHED,
                no_packets=memory.no_packets,
                deferred=memory.deferred and memory.stands_by,
                left=memory.left,
                sends=replicated is not None and replicated.sends_bulks,
                lacking=memory.filled is False and memory.stands_by and not certified,
            )
            self._needs = Needs(past)
        daemon = Daemon(
            self._settings.conntrackd, self._settings.config, conf, interrupt=self._interrupt
        )
        poll = self._poll(daemon, memory)
        self._name_late(memory, poll)
        need = self._needs.after(poll)
        if need is Need.PURGE and self._backoffs[need].allows(boot_seconds()):
            # The transition would ask keepalived too, and log a degraded end each time.
            keepalived = Keepalived(self._settings.keepalived, self._interrupt)
            shown = observed.other_primary(last.issued.seconds, boot_seconds(), poll.ours)
            safe = objection(keepalived, other_primary=lambda: shown) is None
            return need if safe else None
        return need

    def _poll(self, daemon: Daemon, memory: Memory) -> Poll:
        try:
            self._watch_purge(daemon, memory)
            status = daemon.status()
        except Unreached:
            status = None
        internal = status.internal if status is not None else None
        ours = daemon.kernel().entries if internal is None else internal
        poll = Poll(boot_seconds(), daemon.identity(), status, ours)
        self.polled = poll if status is not None else self.polled
        return poll

    def _name_late(self, memory: Memory, poll: Poll) -> None:
        """Report, once, copies that came after the commit, or that nothing here will commit."""
        external = poll.status.external if poll.status is not None else None
        is_primary = memory.has_committed and not memory.left.copies
        late = external or 0 if is_primary and not few_copies(external, poll.ours) else 0
        before, self._late = self._late, late
        self._named_late = self._named_late if late else 0
        if late and late == before != self._named_late:  # else more are arriving
            why = (
                f"the external cache of this primary holds {late} connections that it has not "
                "committed: they came after its commit, or are of another group or instance; "
                "`conntrackd -c` inserts them, over entries that are live here"
            )
            self._event("copies.late", Outcome.DEGRADED, why)
            self._named_late = late

    def _watch_purge(self, daemon: Daemon, memory: Memory) -> None:
        """Log a purge of ours that has fired: conntrackd itself logs nothing."""
        due = memory.purge.due if memory.purge is not None else 0.0
        if boot_seconds() > due + POLL_SECONDS:
            return
        before, self._flushes = self._flushes, daemon.flushes()
        if before is not None and self._flushes is not None and self._flushes > before:
            left = daemon.kernel().entries
            self._event("purge.fired", Outcome.OK, f"{left} entries are left in the kernel table")
