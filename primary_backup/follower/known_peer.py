"""What the follower knows of the peer: reported as it happens, and left for a promotion."""

import contextlib
import math
from collections.abc import Callable

from primary_backup.conntrackd.accepted import replication
from primary_backup.conntrackd.conf import ConfError, Conntrackd, read_conf
from primary_backup.follower.inbox import Inbox
from primary_backup.follower.own import Known, own_report
from primary_backup.follower.pairing import Pairing, version
from primary_backup.follower.reconcile import Reconciler
from primary_backup.follower.upkeep import POLL_SECONDS, Upkeep
from primary_backup.memory import Memory
from primary_backup.pair.compare import Comparison, Ours, Theirs
from primary_backup.pair.differences import differences
from primary_backup.pair.exchange import Fresh
from primary_backup.pair.observed import Certified, Counted, Observed, Seen
from primary_backup.pair.report import Report
from primary_backup.pair.watch import ALONE, LinkWatch
from primary_backup.plan import State
from primary_backup.proof import Outcome
from primary_backup.rundir.directory import RunDir, Unusable
from primary_backup.rundir.observed import store
from primary_backup.settings import Settings
from primary_backup.system.kernel import received_packets
from primary_backup.system.proc import boot_seconds, wall_time

EVERY_SECONDS = 1.0
"""Between two reports with nothing new in them."""
SILENT_SECONDS = 5.0
"""A bulk may fill the link for less."""
BACK_SECONDS = 2.0
"""A running peer sends more often than this."""
FORGOTTEN_SECONDS = 60.0
"""What a peer has reported that does not report any more shows nothing of the present."""


class KnownPeer:
    """The peer, by its reports and by what is received from it at all."""

    def __init__(
        self,
        settings: Settings,
        inbox: Inbox,
        upkeep: Upkeep,
        reconciler: Reconciler,
        *,
        key: str,
        event: Callable[[str, Outcome, str], None],
    ) -> None:
        """Take what is known of this node; ``key`` is the path of the key file."""
        self._settings = settings
        self._inbox = inbox
        self._upkeep = upkeep
        self._reconciler = reconciler
        self._event = event
        self._pairing = Pairing(key, event)
        self._conf: Conntrackd | None = None
        self._conf_version: object = None
        self._watch = LinkWatch()
        self._comparison = Comparison()
        self._observed = Observed(0.0)
        self._memory = Memory()
        self._own: Report | None = None
        self._fresh: Fresh | None = None
        self._polled: object = None
        self._next = -math.inf
        self._announced: object = None
        self._silent: float | None = None
        self._alone = False
        self._began = boot_seconds()
        self._topics: dict[str, str] = {}

    def filenos(self) -> list[int]:
        """The socket, where there is one: for select(2)."""
        number = self._pairing.fileno()
        return [] if number is None else [number]

    @property
    def poll_seconds(self) -> float:
        """How often conntrackd is polled: more often while only that dates a silence."""
        if self._fresh is None or self._silent is not None:
            return POLL_SECONDS
        late = boot_seconds() - self._fresh.received
        return EVERY_SECONDS if BACK_SECONDS < late < 2 * SILENT_SECONDS else POLL_SECONDS

    def tend(self) -> None:
        """Take what has arrived; each second, and at each notification, report and remember."""
        now = boot_seconds()
        self._pairing.receive(self._report, now)
        self._take_fresh(now)
        if now >= self._next or self._inbox.newest is not self._announced:
            self._next, self._announced = now + EVERY_SECONDS, self._inbox.newest
            self._memory, self._own = self._reconciler.memory(), None
            self._read_conf()
            self._pairing.open(self._conf)
            self._pairing.send(self._report, now)
            self._observe(now)
            self._name_silence(now)
            self._name_topics(now)

    def _read_conf(self) -> None:
        found = version(self._settings.config)
        if found != self._conf_version:
            self._conf_version = found
            with contextlib.suppress(ConfError):  # every transition reports it
                self._conf = read_conf(self._settings.config)

    def _report(self) -> Report:
        """This node, as it was at most a second ago."""
        if self._own is None:
            known = Known(
                self._inbox.newest,
                self._memory,
                self._conf,
                self._upkeep.polled,
                self._observed.certified,
            )
            self._own = own_report(known)
        return self._own

    # -- what is received -------------------------------------------------------------------

    def _take_fresh(self, now: float) -> None:
        exchange = self._pairing.exchange
        fresh, before = exchange.fresh if exchange is not None else None, self._fresh
        if fresh is None or fresh is before:
            return
        self._fresh = fresh
        self._watch.received(now)
        report = fresh.message.report
        if before is not None and before.message.boot != fresh.message.boot:
            self._event("peer.rebooted", Outcome.OK, f"{report.node} was rebooted")
        self._observed = self._observed._replace(seen=Seen(report, fresh.made))
        if report.state is not State.PRIMARY or report.polled is None or report.internal is None:
            return
        if report.polled > report.since:
            return  # what it held before it became primary
        theirs = Theirs(
            fresh.made - report.polled,
            fresh.received - report.polled,
            report.internal,
            report.refused,
            report.daemon,
            fresh.received - report.since,
        )
        counted = Counted(theirs.earliest, report.node, report.internal)
        self._observed = self._observed._replace(counted=counted)
        match = self._comparison.after(theirs, report.node)
        if match is None or match.ours.daemon is None:
            return
        ours = match.ours
        certified = Certified(ours.at, match.ours.daemon, ours.connections, match.reported)
        self._observed = self._observed._replace(
            certified=None if match.doubt else certified, doubt=match.doubt
        )

    def _observe(self, now: float) -> None:
        """Leave what is known now to a promotion, of whichever process."""
        link = self._conf.links[0] if self._conf is not None and self._conf.links else None
        self._watch.counted(now, received_packets(link.interface) if link is not None else None)
        polled = self._upkeep.polled
        if polled is not None and polled is not self._polled and polled.status is not None:
            self._polled, status = polled, polled.status
            if self._sends():
                self._watch.polled(polled.seconds, status.packets_received)
            if status.external is not None:
                ours = Ours(polled.seconds, status.external, status.refused, polled.daemon)
                self._comparison.count(ours)
        is_over = now - self._last_fresh > FORGOTTEN_SECONDS
        if is_over or _is_primary(self._memory):
            self._comparison = Comparison()
            self._observed = self._observed._replace(counted=None, certified=None, doubt="")
        self._observed = self._observed._replace(
            watched=now, link=self._watch.last(now), down_seconds=self._reconciler.down_seconds
        )
        with (
            contextlib.suppress(Unusable, OSError),  # every transition reports it
            contextlib.closing(RunDir(self._settings.run_dir)) as run_dir,
        ):
            store(run_dir, self._observed)

    def _sends(self) -> bool:
        """Whether a peer in this mode sends every second."""
        replicated = replication(self._conf) if self._conf is not None else None
        return replicated is not None and replicated.sends_bulks

    # -- what is reported -------------------------------------------------------------------

    def _name_silence(self, now: float) -> None:
        """Report that nothing is received of the peer any more, and that something is again."""
        last, node = self._observed.link, self._observed.node
        was_alone, self._alone = self._alone, self._watch.is_alone(now)
        if self._alone and not was_alone:
            self._event("peer.alone", Outcome.OK, ALONE)
        elif was_alone and not self._alone:
            self._event("peer.back", Outcome.OK, f"{node} sends: this node is not alone any more")
        if self._silent is not None:
            if last is not None and now - last < BACK_SECONDS:
                seconds = f"{last - self._silent:.0f} s"
                self._event("peer.back", Outcome.OK, f"{node} sends again after {seconds}")
                self._silent = None
        elif last is not None and now - last >= SILENT_SECONDS:
            self._silent = last
            why = f"nothing was received from {node} since {wall_time(last)}: no report, no packet"
            self._event("peer.silent", Outcome.DEGRADED, why)

    def _name_topics(self, now: float) -> None:
        """Report what both nodes differ in, once, and that they do not any more."""
        before, fresh, exchange = self._topics, self._fresh, self._pairing.exchange
        topics = dict(before)
        if fresh is not None and now - fresh.received < BACK_SECONDS:
            topics = differences(self._report(), fresh.message.report)
        elif exchange is not None and exchange.stale is not None:
            received, report = exchange.stale
            if now - received < BACK_SECONDS and now - self._last_fresh >= SILENT_SECONDS:
                topics["receives"] = (
                    f"{report.node} does not receive this node: its reports arrive and answer none "
                    f"of this node's; check the dedicated link from here to {report.node}"
                )
        if self._pairing.other_version is not None:
            topics["version"] = (
                f"the peer's reports have version {self._pairing.other_version}, which is unknown "
                "here: upgrade ftfw-transition on this node"
            )
        self._topics = topics
        for topic in topics.keys() - before.keys():
            self._event("peer.differs", Outcome.DEGRADED, topics[topic])
        for topic in before.keys() - topics.keys():
            self._event("peer.agrees", Outcome.OK, f"not any more: {before[topic]}")

    @property
    def _last_fresh(self) -> float:
        """When the last report was received (boot); before the first, when this follower began."""
        return self._fresh.received if self._fresh is not None else self._began


def _is_primary(memory: Memory) -> bool:
    return memory.last is not None and memory.last.state is State.PRIMARY
