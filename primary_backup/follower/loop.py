"""The resident mode: carry out the newest notification, and stay in sync when there is none.

One thread, no queue: the pipe is the queue and select(2) the wait, so that a new notification ends
any pause at once.
"""

import contextlib
import importlib
import math
import select
import time
from collections.abc import Callable

from primary_backup.conntrackd.conf import ConfError, read_conf
from primary_backup.controller import Emit, enter
from primary_backup.follower.backoff import Backoff
from primary_backup.follower.inbox import Inbox, Queued
from primary_backup.follower.known_peer import KnownPeer
from primary_backup.follower.leftovers import disarm, store, unfinished
from primary_backup.follower.reconcile import Reconciler
from primary_backup.follower.signals import Signals
from primary_backup.follower.upkeep import Upkeep
from primary_backup.intent import Intent, Kind
from primary_backup.keepalived.fifo import Fifo
from primary_backup.keepalived.notify import Followed
from primary_backup.plan import State
from primary_backup.proof import Outcome
from primary_backup.rundir.directory import RunDir, Unusable
from primary_backup.rundir.turn import Caller, Halted
from primary_backup.settings import Settings
from primary_backup.system.systemd import Service

FIFO_SECONDS = 0.25
"""How long it takes to notice that keepalived has re-created its FIFO."""
_ON_DEMAND = ("json", "resource", "shlex", "socket", "tenacity")
"""Imported now: later it would delay a failover, or load a version installed by an upgrade."""
LONGEST_LOSS_SECONDS = 10.0
"""A promotion may be among the notifications that found the FIFO full."""
STOP_SECONDS = 0.2
"""keepalived signals a follower that it started first, and then writes its STOP lines."""


class Follower:
    """A process that stays, until SIGTERM."""

    def __init__(
        self,
        fifo: Fifo,
        followed: Followed,
        settings: Settings,
        emit: Emit,
        show: Callable[[], None],
        *,
        key: str,
    ) -> None:
        """Take what is followed; ``show`` writes out the events that ``emit`` has buffered."""
        for module in _ON_DEMAND:
            importlib.import_module(module)
        self._inbox = Inbox(fifo, followed)
        self._settings = settings
        self._emit = emit
        self._show = show
        self._service = Service()
        self._signals = Signals()
        self._reconciler = Reconciler(self._inbox, followed, settings, self._event, self._interrupt)
        self._upkeep = Upkeep(settings, self._event, self._interrupt_poll)
        self._peer = KnownPeer(
            settings, self._inbox, self._upkeep, self._reconciler, key=key, event=self._event
        )
        self._refused: Intent | None = None
        self._rival: Intent | None = None
        self._retries = Backoff()
        self._rivals = Backoff()
        self._losses = Backoff(LONGEST_LOSS_SECONDS)
        self._polled = -math.inf

    # -- the loop ---------------------------------------------------------------------------

    def run(self) -> None:
        """Follow until SIGTERM or SIGINT; raises NoFifo where the FIFO is taken away."""
        self._service.notify(READY="1", STATUS=f"following {self._inbox.fifo.path}")
        self._event("follow.started", Outcome.OK, f"following {self._inbox.fifo.path}")
        issued, left = self._inbox.issued(), unfinished(self._settings.run_dir)
        if not self._reconciler.ask("the follower has started") and left is not None:
            self._inbox.propose(left, issued)
        while not self._signals.received:
            self._service.pet_watchdog()
            if self._signals.take_hangup():
                self._read_again()
            if self._inbox.fifo.is_replaced():
                self._reopen()
            self._inbox.read()
            if self._inbox.lost and self._losses.allows(time.monotonic()):
                self._losses.take(time.monotonic())
                why, self._inbox.lost = self._inbox.lost, ""
                self._reconciler.ask(why, lost=True)
            taken = self._inbox.take()
            if taken is not None and not self._is_too_often(taken.intent):
                self._act(taken)
            elif time.monotonic() >= self._polled + self._peer.poll_seconds:
                self._polled = time.monotonic()
                self._poll()
            if self._inbox.waiting is None:
                self._show()
                self._wait(max(0.0, min(FIFO_SECONDS, self._left())))
        self._end()

    def _left(self) -> float:
        """Seconds until there is something to do, even without a notification."""
        until_poll = self._polled + self._peer.poll_seconds - time.monotonic()
        return min(until_poll, self._service.patience_seconds)

    def _wait(self, seconds: float) -> None:
        """Sleep until there is something in the FIFO, or of the peer's, or a signal."""
        self._tend()
        sources = [self._inbox.fifo.fileno(), self._signals.fileno(), *self._peer.filenos()]
        ready, _, _ = select.select(sources, [], [], seconds)
        if self._signals.fileno() in ready:
            self._signals.drain()

    def _tend(self) -> None:
        """What goes on whatever is under way: the watchdog, and the reports of both nodes."""
        self._service.pet_watchdog()
        self._peer.tend()

    def _is_too_often(self, intent: Intent) -> bool:
        """Whether a rival sends all the time: keepalived writes a line for each of its adverts."""
        if intent.kind is not Kind.REASSERT or intent is self._rival:
            return False
        now = time.monotonic()
        if self._rivals.allows(now):
            self._rivals.take(now)
            return False
        self._rival = intent
        return True

    def _end(self) -> None:
        """Read STOP, if keepalived ends as well; what else is there is left to the next one."""
        self._service.notify(STOPPING="1")
        until = time.monotonic() + STOP_SECONDS
        while True:
            # When the time is up as well: on a machine that stood still it was not used.
            waiting = self._inbox.read()
            left = until - time.monotonic()
            if left <= 0 or (waiting is not None and waiting.intent.state is State.STOP):
                break
            self._wait(left)
        taken = self._inbox.take()
        if taken is not None:
            self._act(taken)
        disarm(self._settings, self._emit, self._inbox.issued())
        self._event("follow.ended", Outcome.OK, f"received {self._signals.received[0]}")

    def _reopen(self) -> None:
        self._inbox.read()
        path = self._inbox.fifo.path
        self._inbox.fifo.close()
        with contextlib.suppress(Unusable):  # every transition reports it
            RunDir(self._settings.run_dir).close()  # the FIFO may have gone with it
        self._inbox.fifo = Fifo(path)
        self._reconciler.ask(f"{path} was re-created: notifications may have been lost")

    def _read_again(self) -> None:
        """Check conntrackd.conf, which is read for each notification anyway."""
        try:
            read_conf(self._settings.config)
        except ConfError as error:
            self._event("conf.read", Outcome.DEGRADED, str(error))
        else:
            why = f"{self._settings.config} is valid, and used from the next notification on"
            self._event("conf.read", Outcome.OK, why)

    def _poll(self) -> None:
        """With nothing else to do: poll keepalived, then the daemon; try a refused intent again."""
        issued, now = self._inbox.issued(), time.monotonic()
        self._reconciler.poll()
        if self._inbox.waiting is not None or not self._record():
            return
        intent: Intent | None = None
        if self._refused is not None and self._retries.allows(now):
            intent = self._refused
        elif self._reconciler.stopped:
            return
        elif self._rival is not None and self._rivals.allows(now):
            self._rivals.take(now)
            intent = self._rival
        else:
            intent = self._upkeep.poll()
        if intent is not None:
            self._inbox.propose(intent, issued)

    def _record(self) -> bool:
        """Store what could not be stored; False while the record is of an older transition."""
        memory = self._reconciler.unrecorded
        if memory is not None and store(self._settings.run_dir, memory):
            self._reconciler.unrecorded = None
            self._event("record.stored", Outcome.OK, "the last transition's record is stored now")
        return self._reconciler.unrecorded is None

    # -- notifications ----------------------------------------------------------------------

    def _act(self, taken: Queued) -> None:
        running = taken.intent

        def newer() -> str | None:
            self._service.pet_watchdog()  # and no reports: it is asked right before a commit
            return self._inbox.supersedes(running)

        caller = Caller(
            taken.issued,
            self._signals.received,
            started=self._inbox.started,
            newer=newer,
            wait=self._wait,
            interrupt=self._interrupt,
            leaves_unfinished=True,
        )
        ending = enter(running, self._settings, self._emit, caller)
        event = ending.event
        self._show()
        superseded = ending.outcome is Outcome.SUPERSEDED and self._inbox.waiting is None
        if superseded and self._inbox.fifo.is_replaced():
            self._inbox.propose(running, self._inbox.issued())  # until the new one has a line
        begun = event["steps"] or self._signals.received
        self._reconciler.unrecorded = ending.unrecorded
        self._refused = running if ending.outcome is Outcome.FAILED and not begun else None
        if self._refused is not None:
            self._retries.take(time.monotonic())
        self._rival = None
        self._service.notify(STATUS=f"{event['state']}: {event['outcome']} – {event['reason']}")
        self._reconciler.stopped = running.state is State.STOP
        self._polled = -math.inf  # the first poll is what the next ones are compared with

    def _interrupt(self) -> None:
        """End a wait for a client: a commit goes on without it, and is judged by the next one."""
        self._tend()
        if self._signals.received:
            raise Halted(f"received {self._signals.received[0]}")

    def _interrupt_poll(self) -> None:
        """A poll of the daemon ends with a new notification."""
        self._interrupt()
        if self._inbox.read() is not None:
            raise Halted("there is a newer notification")

    def _event(self, name: str, outcome: Outcome, reason: str) -> None:
        self._emit(name, {"outcome": outcome.value, "reason": reason})
        self._show()
