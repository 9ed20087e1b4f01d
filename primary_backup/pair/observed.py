"""What a follower knows of the peer, as it leaves it each second for a promotion: values alone.

Times named ``boot`` are seconds on CLOCK_BOOTTIME.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from primary_backup.pair.report import Report, read_report
from primary_backup.past import Replica, Reported
from primary_backup.plan import State
from primary_backup.proof import covers

WATCHED_SECONDS = 3.0
"""A follower writes every second; older than this it is not running, or stands still."""
SILENCE_SECONDS = 3.0
"""A peer that dies is silent for the master-down interval, and at most this longer."""
CERTIFIED_SECONDS = 20.0
"""Two nodes that poll every 5 s are compared as often; so old may a comparison be."""
REPORTED_SECONDS = 15.0
"""Older than this a count is no expectation any more."""
FRESH_SECONDS = 2.5
"""A peer whose newest report is older does not report any more."""


class Seen(NamedTuple):
    """A fresh report of the peer."""

    report: Report
    boot: float
    """When it was made, at the earliest."""


class Counted(NamedTuple):
    """How many connections the peer had while it was primary."""

    boot: float
    """When they were counted, at the earliest."""
    node: str
    connections: int


class Certified(NamedTuple):
    """That this node's replica held what the peer had: a comparison of both counts."""

    boot: float
    daemon: tuple[int, int, int]
    """The identity of this node's conntrackd."""
    held: int
    reported: int


class Observed(NamedTuple):
    """What is known of the peer, and of the link to it."""

    watched: float
    """When that was so (boot)."""
    link: float | None = None
    """When something of the peer's was received last (boot); None where nothing was yet."""
    down_seconds: float | None = None
    """keepalived's master-down interval; None where it is not known."""
    seen: Seen | None = None
    """None where no report was fresh yet: without a key there never is one."""
    counted: Counted | None = None
    """The newest of a primary."""
    certified: Certified | None = None
    doubt: str = ""
    """Why the newest comparison certifies nothing."""

    def replica(
        self,
        issued: float,
        daemon: tuple[int, int, int] | None,
        wall_time: Callable[[float], str],
    ) -> Replica:
        """What this shows of the replica, for a promotion that was ``issued`` then (boot).

        ``wall_time`` is the time of day of a time on that clock.
        """
        if issued - self.watched > WATCHED_SECONDS:
            return Replica()
        reported, certified = self._reported(issued), self.certified
        if self.link is not None and self._is_silent(issued - self.link):
            return Replica(self._silence(issued, self.link, wall_time), reported, watched=True)
        if certified and certified.daemon == daemon:
            if issued - certified.boot <= CERTIFIED_SECONDS:
                return Replica("", reported, certified=True, watched=True)
        elif self.doubt:
            return Replica(self.doubt, reported, watched=True)
        return Replica("", reported, watched=True)

    def other_primary(self, since: float, now: float, ours: int) -> str | None:
        """Whether the peer is primary and holds ``ours`` connections: empty, or why that is not so.

        Only what it reports now, and has counted as a primary, shows that: after ``since``, when
        this node was known not to be primary (boot). None where nothing does.
        """
        if self.seen is None or now - self.seen.boot > FRESH_SECONDS or self.seen.boot <= since:
            return None
        report = self.seen.report
        if report.state is not State.PRIMARY:
            return f"{report.node} does not report that it is primary"
        polled = report.polled
        if polled is None or report.internal is None or polled > report.since:
            return None
        if self.seen.boot - polled <= since:
            return None
        if not covers(report.internal, ours):
            return f"{report.node} reports {report.internal} connections, this node holds {ours}"
        return ""

    def _is_silent(self, seconds: float) -> bool:
        """Whether a silence began before the peer can have died."""
        return self.down_seconds is not None and seconds > self.down_seconds + SILENCE_SECONDS

    def _silence(self, issued: float, link: float, wall_time: Callable[[float], str]) -> str:
        """Why what the peer opened last is not here."""
        return (
            f"nothing was received from {self.node} on the dedicated link since {wall_time(link)} "
            f"({issued - link:.0f} s before): connections that began after that are lost"
        )

    @property
    def node(self) -> str:
        """The peer's name."""
        return self.seen.report.node if self.seen else "the peer"

    def _reported(self, issued: float) -> Reported | None:
        """How many connections the last primary has reported, and how long before."""
        if self.counted is None or issued - self.counted.boot > REPORTED_SECONDS:
            return None
        before = max(0.0, issued - self.counted.boot)
        return Reported(self.counted.node, self.counted.connections, round(before, 1))


def to_json(observed: Observed, boot_id: str) -> str:
    """As it is stored, with the boot it belongs to."""
    stored = observed._asdict()
    if observed.seen is not None:
        stored["seen"] = [observed.seen.report._asdict(), observed.seen.boot]
    return json.dumps({"boot": boot_id, **stored}, default=lambda name: name.value)


def from_json(text: str, boot_id: str) -> Observed | None:
    """Read it back; None of another boot. Raises ValueError for anything else."""
    try:
        stored: dict[str, Any] = json.loads(text)
        if stored.pop("boot") != boot_id:
            return None
        seen, counted = stored.pop("seen"), stored.pop("counted")
        certified = stored.pop("certified")
        return Observed(
            **stored,
            seen=None if seen is None else Seen(read_report(seen[0]), seen[1]),
            counted=None if counted is None else Counted(*counted),
            certified=None if certified is None else _certified(*certified),
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not what a follower observed: {error}") from error


def _certified(boot: float, daemon: list[int], held: int, reported: int) -> Certified:
    device, inode, changed = daemon
    return Certified(boot, (device, inode, changed), held, reported)
