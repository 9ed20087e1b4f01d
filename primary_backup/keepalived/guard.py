"""Whether a purge may be asked for: only where another node is certainly master."""

from collections.abc import Callable

from primary_backup.keepalived.notify import Instance
from primary_backup.keepalived.state import Keepalived, Report
from primary_backup.plan import State
from primary_backup.proof import Outcome, Verdict

LONGEST_DOWN_SECONDS = 30.0
"""A longer master-down interval is not waited for: that of adverts every 10 s."""
_POLL_SECONDS = 0.2
"""Between two looks at what the peer has reported, which it does every second."""
_STEP_DOWN = "make keepalived step down, or add --force if you mean it"
_ASK_AGAIN = (
    "a follower asks again by itself; with hooks run the same command again once keepalived "
    "answers, or with --force if this node is not master"
)


def objection(
    keepalived: Keepalived,
    wait: Callable[[float], None] | None = None,
    other_primary: Callable[[], str | None] = lambda: None,
    *,
    bulk: bool = False,
) -> Verdict | None:
    """Why nothing may be purged here; None where another node is certainly master.

    ``other_primary`` is what the peer's own reports show: empty where it is primary and holds what
    is held here, else why that is not so; None where they show neither. Without them a backup
    receives adverts, or becomes master within its master-down interval: it is asked, that interval
    is waited, by ``wait``, and it is asked again. (Without ``wait`` it is asked once: that shows
    whether the rest is worth while.) A node in fault receives none: only a ``bulk`` that it did not
    ask for shows that the peer was promoted. A keepalived that cannot be asked may be master. Of
    several groups one is enough: a purge takes the connections of all of them. Where no keepalived
    runs, the command is believed.
    """
    first = keepalived.report()
    is_shown = other_primary() == ""
    objecting = _objecting(first, bulk=bulk or is_shown)
    if objecting is None and wait is not None and _backups(first) and not is_shown:
        objecting = _objecting_later(keepalived, first, wait, other_primary)
    why = other_primary()
    return Verdict(Outcome.SKIPPED, why) if objecting is None and why else objecting


def _objecting_later(
    keepalived: Keepalived,
    first: Report,
    wait: Callable[[float], None],
    other_primary: Callable[[], str | None],
) -> Verdict | None:
    """The same of a backup, one master-down interval after the ``first`` report of its state.

    It is no longer waited for than until the peer is shown to be primary.
    """
    left = max(each.down_seconds for each in _backups(first))
    if left > LONGEST_DOWN_SECONDS:
        reason = f"the master-down interval of {left:.0f} s is too long to be waited for"
        return Verdict(Outcome.SKIPPED, reason)
    while left > 0 and other_primary() != "":
        wait(min(left, _POLL_SECONDS))
        left -= _POLL_SECONDS
    keepalived.interrupt()
    second = keepalived.report()
    objecting = _objecting(second, bulk=False)
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
