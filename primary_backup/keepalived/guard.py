"""Whether a purge may be asked for: only where another node is certainly master."""

from collections.abc import Callable

from primary_backup.keepalived.notify import Instance
from primary_backup.keepalived.state import Keepalived, Report
from primary_backup.plan import State
from primary_backup.proof import Outcome, Verdict

LONGEST_DOWN_SECONDS = 30.0
"""A longer master-down interval is not waited for: that of adverts every 10 s."""
_STEP_DOWN = "make keepalived step down, or add --force if you mean it"
_ASK_AGAIN = (
    "a follower asks again by itself; with hooks run the same command again once keepalived "
    "answers, or with --force if this node is not master"
)


def objection(
    keepalived: Keepalived, wait: Callable[[float], None] | None = None, *, bulk: bool = False
) -> Verdict | None:
    """Why nothing may be purged here; None where another node is certainly master.

    A backup receives adverts, or becomes master within its master-down interval: it is asked, that
    interval is waited, by ``wait``, and it is asked again. (Without ``wait`` it is asked once: that
    shows whether the rest is worth while.) A node in fault receives none: only a ``bulk`` that it
    did not ask for shows that the peer was promoted. A keepalived that cannot be asked may be
    master. Of several groups one is enough: a purge takes the connections of all of them. Where no
    keepalived runs, the command is believed.
    """
    first = keepalived.report()
    objecting = _objecting(first, bulk=bulk)
    if objecting is not None or wait is None or not _backups(first):
        return objecting
    seconds = max(each.down_seconds for each in _backups(first))
    if seconds > LONGEST_DOWN_SECONDS:
        reason = f"the master-down interval of {seconds:.0f} s is too long to be waited for"
        return Verdict(Outcome.SKIPPED, reason)
    wait(seconds)
    keepalived.interrupt()
    second = keepalived.report()
    objecting = _objecting(second, bulk=bulk)
    if objecting is None and _backups(second) != _backups(first):
        reason = "keepalived has changed its state meanwhile: another master is not certain"
        return Verdict(Outcome.SKIPPED, reason)
    return objecting


def _backups(report: Report) -> tuple[Instance, ...]:
    return tuple(each for each in report.instances if each.state is State.BACKUP)


def _objecting(report: Report, *, bulk: bool) -> Verdict | None:
    """Why nothing may be purged, by one report."""
    masters = [each.name for each in report.instances if each.state is State.PRIMARY]
    if masters:
        reason = f"keepalived reports that this node is master of {', '.join(masters)}"
        return Verdict(Outcome.DEGRADED, reason, _STEP_DOWN)
    if report.unknown:
        reason = f"keepalived does not answer ({'; '.join(report.unknown)})"
        return Verdict(Outcome.DEGRADED, reason, _ASK_AGAIN)
    faults = [each.name for each in report.instances if each.state is State.FAULT]
    if faults and not bulk:
        reason = f"keepalived is in fault with {', '.join(faults)}: another master is not certain"
        return Verdict(Outcome.SKIPPED, reason)
    return None
