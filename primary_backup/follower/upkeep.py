"""In sync afterwards: look at an idle daemon, and say what is to be done about it."""

import contextlib
from collections.abc import Callable

from primary_backup.conntrackd.client import Daemon, Refused, Unanswered, Unreached
from primary_backup.conntrackd.conf import ConfError, read_conf, replication
from primary_backup.follower.needs import Look, Need, Pace, Past, Watch
from primary_backup.intent import Intent, Kind
from primary_backup.keepalived.state import Keepalived
from primary_backup.plan import State
from primary_backup.proof import ENDED, Outcome
from primary_backup.rundir.directory import Memory, RunDir, Unusable
from primary_backup.rundir.turn import Halted
from primary_backup.settings import Settings
from primary_backup.system.proc import boot_seconds

LOOK_SECONDS = 5.0
"""Between two looks; a living peer says something every second."""
_KINDS = {Need.UNFINISHED: Kind.BECOME, Need.PURGE: Kind.PURGE}
_FINISHED = ENDED | {Outcome.SUPERSEDED.value}
"""What nobody has to finish: a superseded transition has a younger one."""


class Upkeep:
    """What the looks at the daemon have told so far, and how often something was done about it."""

    def __init__(
        self,
        settings: Settings,
        event: Callable[[str, Outcome, str], None],
        interrupt: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._event = event
        self._interrupt = interrupt
        self._paces = {need: Pace() for need in Need}
        self._since = ""
        self._watch: Watch | None = None
        self._flushes: int | None = None
        self._unseen = ""

    def look(self) -> Intent | None:
        """Look once; what is to be done now, for the state that the last transition brought."""
        try:
            with contextlib.closing(RunDir(self._settings.run_dir)) as run_dir:
                memory, busy = run_dir.recall(), run_dir.youngest() is not None
        except Unusable:
            return None  # every transition says so
        if not memory.state or busy:
            return None  # nothing to keep up, or somebody is at it
        try:
            need = self._need(memory)
        except (Unanswered, Refused, ConfError) as error:
            if self._unseen != str(error):
                self._event("conntrackd.unseen", Outcome.DEGRADED, str(error))
            self._unseen = str(error)
            return None
        except Halted:
            return None
        self._unseen = ""
        now = boot_seconds()
        if need is None or not self._paces[need].allows(now):
            return None
        self._paces[need].take(now)
        outcome = Outcome.OK if need is Need.PURGE else Outcome.DEGRADED
        self._event("sync.lost", outcome, need.value)
        return Intent(State(memory.state), need.value, _KINDS.get(need, Kind.REFRESH))

    def _need(self, memory: Memory) -> Need | None:
        conf = read_conf(self._settings.config)
        replicated = replication(conf)
        if self._watch is None or self._since != memory.transition:
            self._since = memory.transition
            self._flushes = None
            self._watch = Watch(
                Past(
                    tuple(memory.daemon) if memory.daemon is not None else None,
                    finished=memory.ended in _FINISHED,
                    silent=memory.silent,
                    held=memory.held and memory.stands_by,
                    kept=memory.kept,
                    answers=replicated is not None and replicated.sends_bulks,
                )
            )
        daemon = Daemon(self._settings.conntrackd, self._settings.config, conf, self._interrupt)
        try:
            self._watch_purge(daemon, memory)
            status = daemon.status()
        except Unreached:
            status = None
        entries = daemon.kernel().entries
        held = status.internal if status is not None else None
        ours = entries if held is None else held
        need = self._watch.see(Look(boot_seconds(), daemon.identity(), status, ours))
        if need is Need.PURGE and self._paces[need].allows(boot_seconds()):
            # The transition would ask keepalived too, and log a degraded end each time.
            keepalived = Keepalived(self._settings.keepalived, self._interrupt)
            return need if keepalived.objection() is None else None
        return need

    def _watch_purge(self, daemon: Daemon, memory: Memory) -> None:
        """Log a purge of ours that has fired: the daemon itself tells nobody."""
        if boot_seconds() > memory.purge_due + LOOK_SECONDS:
            return
        before, self._flushes = self._flushes, daemon.flushes()
        if before is not None and self._flushes is not None and self._flushes > before:
            left = daemon.kernel().entries
            self._event("purge.fired", Outcome.OK, f"{left} entries are left in the kernel table")
