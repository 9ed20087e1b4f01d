"""What this node reports of itself to its peer."""

import os
from importlib.metadata import version
from typing import NamedTuple

from primary_backup.conntrackd.accepted import replication
from primary_backup.conntrackd.conf import Conntrackd
from primary_backup.follower.inbox import Queued
from primary_backup.follower.needs import Poll
from primary_backup.memory import Memory
from primary_backup.pair.observed import Certified
from primary_backup.pair.report import Certificate, Report
from primary_backup.system.kernel import limit, observe
from primary_backup.system.proc import boot_seconds

_NODE = os.uname().nodename
_PROGRAM = version("ftfw-transition")


class Known(NamedTuple):
    """What a report is made of, beside the kernel's own counters."""

    newest: Queued | None
    """The newest notification, carried out or not."""
    memory: Memory
    conf: Conntrackd | None
    polled: Poll | None
    certified: Certified | None


def own_report(known: Known) -> Report:
    """This node as it is now."""
    now, newest = boot_seconds(), known.newest
    last, polled, certified = known.memory.last, known.polled, known.certified
    status = polled.status if polled is not None else None
    state, since = last.state if last else None, last.issued.seconds if last else now
    if newest is not None:
        state, since = newest.intent.state, newest.issued.seconds
    return Report(
        node=_NODE[:64],
        program=_PROGRAM,
        state=state,
        since=_age(now, since),
        mode=_mode(known.conf),
        daemon=polled.daemon if polled else None,
        internal=status.internal if status else None,
        external=status.external if status else None,
        refused=status.refused if status else None,
        kernel=observe().entries,
        limit=limit(),
        polled=_age(now, polled.seconds) if polled else None,
        certificate=Certificate(
            _age(now, certified.boot),
            certified.held,
            certified.reported,
        )
        if certified
        else None,
        outcome=last.outcome if last else None,
    )


def _age(now: float, then: float) -> float:
    return round(max(0.0, now - then), 2)


def _mode(conf: Conntrackd | None) -> str | None:
    replicated = replication(conf) if conf is not None else None
    if replicated is None:
        return None
    return replicated.mode.value + ("" if replicated.external_cache else " direct")
