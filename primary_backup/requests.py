"""One request to the daemon: ask again what never arrived, start what is dead, no more."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from primary_backup.conntrackd.client import Unanswered, Unreached
from primary_backup.conntrackd.status import Queue, Status
from primary_backup.memory import SocketIdentity
from primary_backup.proof import Kernel, Outcome, Verdict
from primary_backup.rundir.turn import Halted

T = TypeVar("T")

STEP_SECONDS = 150.0
"""When a step gives up, and with it the transition."""
_RESTARTED = "conntrackd was restarted meanwhile: what the former one has done is not proven"
_REPEAT = "a follower makes up for it by itself; without one run the same command again"


class Daemon(Protocol):
    """What a transition asks of conntrackd and of the kernel."""

    def command(self, options: tuple[str, ...]) -> str:
        """The exact command of a request."""

    def request(self, options: tuple[str, ...], working: Callable[[], bool] = ...) -> bytes:
        """Ask one thing; raises Unreached, Unanswered or Refused."""

    def status(self) -> Status:
        """The caches and the traffic with the peer; raises as ``request``."""

    def queue(self) -> Queue | None:
        """What waits for the peer's acknowledgement; raises as ``request``."""

    def flushing(self) -> bool:
        """Whether a flush of the kernel table is running; raises as ``request``."""

    @property
    def kernel(self) -> Callable[[], Kernel]:
        """Observes the kernel's counters."""

    def identity(self) -> SocketIdentity | None:
        """What distinguishes this daemon from the next one."""


class Start(NamedTuple):
    """The daemon was down and has been started: how, and how long it took in seconds."""

    command: str
    reason: str
    seconds: float


class Requests:
    """The requests of one transition, which stop as soon as it is halted."""

    def __init__(
        self,
        daemon: Daemon,
        *,
        identity: SocketIdentity | None,
        start: Callable[[], tuple[str, str]] | None,
        check: Callable[[], None],
        pause: Callable[[float], None],
        step_seconds: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what decides: the daemon, and what may be done with it.

        ``identity`` is the daemon's that the steps were chosen for. ``start`` starts a dead
        daemon, once, and returns the command and what had to be done first; None where that is not
        ours. ``check`` raises Halted where nothing more may be asked; ``pause`` waits so many
        seconds, or until halted. ``step_seconds``: how long one step may take, on the ``clock``
        (monotonic seconds); the time in which a commit makes entries does not count.
        """
        self.daemon = daemon
        self.identity = identity
        """The daemon that is asked: what is proven is true of it alone."""
        self.pause = pause
        self.clock = clock
        self.attempts = 0
        self.starts: list[Start] = []
        self.first: tuple[float, Status] | None = None
        """The first status of this daemon and when (monotonic seconds)."""
        self._check = check
        self._start = start
        self._step_seconds = step_seconds
        self._deadline = math.inf

    def begin(self) -> None:
        """A step begins: nothing was asked for it yet."""
        self.attempts = 0
        self._deadline = self.clock() + self._step_seconds

    def ask(
        self,
        options: tuple[str, ...],
        working: Callable[[], bool] = lambda: False,
        about_to: Callable[[], None] = lambda: None,
    ) -> None:
        """Make one request.

        ``working`` is whether a slow one still makes progress; ``about_to`` is called right
        before it is sent: what must not be forgotten.
        """

        def request() -> None:
            self.check()
            about_to()
            self.attempts += 1
            began = self.clock()
            try:
                self.daemon.request(options, working)
            finally:
                self._deadline += self.clock() - began  # a slow commit does not count

        self.reach(request)

    def status(self) -> Status:
        """The daemon's caches; a dead daemon is started."""
        return self.reach(self.glance)

    def glance(self) -> Status:
        """The same, but nothing is started or retried."""
        status = self.daemon.status()
        self.first = self.first or (self.clock(), status)
        return status

    def ours(self, status: Status) -> int:
        """Connections held here; without an internal cache only the kernel counts them."""
        return self.daemon.kernel().entries if status.internal is None else status.internal

    def reach(self, call: Callable[[], T]) -> T:
        """Call, and again while no daemon listens; then start it once, where that is ours."""
        try:
            return call()
        except Unreached:
            pass
        try:
            return self._retry(call)
        except Unreached:
            if self._start is None or self.starts:
                raise
        self.check()
        began = self.clock()
        command, reason = self._start()
        self.starts.append(Start(command, reason, round(self.clock() - began, 4)))
        self.first = None
        self.adopt()
        return self._retry(call)

    def adopt(self) -> None:
        """Go on with the daemon that is there now."""
        self.identity = self.daemon.identity()

    def was_restarted(self) -> bool:
        """Whether the daemon that was asked has ended, and not by us: its caches are gone."""
        return self.daemon.identity() != self.identity

    def judge(self, verdict: Verdict) -> Verdict:
        """The verdict, if the daemon that was asked is still there: else nothing shows it."""
        if verdict.outcome is not Outcome.OK or not self.was_restarted():
            return verdict
        reason = "; ".join(filter(None, (_RESTARTED, verdict.reason)))
        return Verdict(Outcome.DEGRADED, reason, _REPEAT)

    def check(self) -> None:
        """Raise Halted where nothing more may be asked, Unanswered past the deadline."""
        self._check()
        if self.clock() > self._deadline:
            raise Unanswered(f"the step has taken more than {self._step_seconds:.0f} s")

    def halted(self) -> str | None:
        """Why nothing more may be asked; None where something may."""
        try:
            self._check()
        except Halted as why:
            return str(why)
        return None

    def _retry(self, call: Callable[[], T]) -> T:
        import tenacity  # only here: importing it takes longer than a client call

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unreached),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(4),
                tenacity.stop_after_delay(2.0),
            ),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=0.5),
            sleep=self.pause,
            reraise=True,
        )(call)
