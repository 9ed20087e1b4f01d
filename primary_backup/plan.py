"""Which steps each state asks of conntrackd, in order, for each replication mode.

A plan is data: nothing here runs anything. Each step names the exact client options, when it is
asked at all, why it is there, and what will prove that it did its work.
"""

from enum import Enum
from typing import NamedTuple


class State(Enum):
    """What this firewall is asked to be."""

    PRIMARY = "primary"
    BACKUP = "backup"
    FAULT = "fault"
    STOP = "stop"


STARTS_DAEMON = frozenset({State.PRIMARY, State.BACKUP})
"""The states that start a conntrackd that is down; a fault or a stop needs none."""

PURGES = frozenset({State.BACKUP, State.FAULT})
"""The states that may ask for a purge."""


class Mode(Enum):
    """How two conntrackd daemons replicate: the ``Mode`` block of conntrackd.conf(5)."""

    FTFW = "FTFW"
    NOTRACK = "NOTRACK"
    ALARM = "ALARM"


class Replication(NamedTuple):
    """The three settings of conntrackd.conf(5) that decide which requests are safe."""

    mode: Mode
    internal_cache: bool = True
    """False with ``DisableInternalCache On``: ``-f`` and ``-f internal`` flush the kernel table."""
    external_cache: bool = True
    """False with ``DisableExternalCache On``: the kernel table is the replica, ``-t`` wipes it."""

    @property
    def sends_bulks(self) -> bool:
        """Whether ``-B`` and ``-n`` do anything but harm.

        ALARM ignores both. FTFW without an internal cache (which a second Mode block can bring
        about) dies of them, SIGSEGV: of ``-B`` this daemon, of ``-n`` the peer's (seen, 1.4.7).
        """
        if self.mode is Mode.FTFW:
            return self.internal_cache
        return self.mode is Mode.NOTRACK


class StepName(Enum):
    """What a step does; the text is what an event and ``--dry-run`` call it."""

    START = "start"
    COMMIT = "commit"
    FLUSH = "flush"
    FLUSH_INTERNAL = "flush-internal"
    RESYNC = "resync"
    BULK_SEND = "bulk-send"
    DROP_UNCOMMITTED = "drop-uncommitted"
    REQUEST_RESYNC = "request-resync"
    PURGE = "purge"
    DISARM = "disarm"
    POLL = "poll"


class When(Enum):
    """When a step is asked; the text is what ``--dry-run`` prints."""

    ALWAYS = "always"
    COMMIT_PROVEN = "if the commit is proven"
    COMMIT_UNPROVEN = "if the commit is not proven"
    UNCOMMITTED = "if uncommitted copies are left"
    UNCOMMITTED_COVERED = "if uncommitted copies are left and the peer now holds our connections"
    PEER_COVERS = "if the peer is proven to hold our connections"
    PURGE_PENDING = "if a purge of ours is pending and the peer is not proven to hold them"
    PURGE_PENDING_EMPTY = "as before, if the external cache is empty"


class Step(NamedTuple):
    """One request to conntrackd: ``options`` are the client's, as in conntrackd(8)."""

    name: StepName
    options: tuple[str, ...]
    why: str
    proof: str
    when: When = When.ALWAYS

    @property
    def empties_internal(self) -> bool:
        """Whether it empties the internal cache; without one, the kernel table."""
        return self.options in (("-f",), ("-f", "internal"))


COMMIT = Step(
    StepName.COMMIT, ("-c",),
    why="insert the peer's connections into the kernel, and cancel a pending purge",
    proof="the kernel's insert counter rises by what the external cache holds",
)  # fmt: skip
COMMIT_NOTHING = COMMIT._replace(
    why="cancel a pending purge; the connections are in the kernel already",
    proof="the daemon answers; kernel_entries is the replica's size",
)
FLUSH = Step(
    StepName.FLUSH, ("-f",),
    why="drop the used external copy and an internal cache that a big commit left incomplete",
    proof="the external cache is nearly empty",
    when=When.COMMIT_PROVEN,
)  # fmt: skip
FLUSH_EXTERNAL = FLUSH._replace(
    options=("-f", "external"),
    why="drop the used external copy; a plain -f would flush the kernel table here",
)
FLUSH_INTERNAL = Step(
    StepName.FLUSH_INTERNAL, ("-f", "internal"),
    why="cancel a pending purge and drop the internal cache, keep the only external copy",
    proof="the resync after it",
    when=When.COMMIT_UNPROVEN,
)  # fmt: skip
FLUSH_INTERNAL_AGAIN = FLUSH_INTERNAL._replace(when=When.ALWAYS)
RESYNC = Step(
    StepName.RESYNC, ("-R",),
    why="rebuild the internal cache from the kernel table",
    proof="the internal cache holds what was recovered",
)  # fmt: skip
POLL = Step(
    StepName.POLL, ("-s",),
    why="start a conntrackd that is down; nothing else is to be asked",
    proof="the daemon answers",
)  # fmt: skip
CHECK_UNCOMMITTED = POLL._replace(
    why="report copies that an earlier promotion left: its connections may be missing here",
    proof="the external cache is nearly empty",
    when=When.UNCOMMITTED,
)
BULK_SEND = Step(
    StepName.BULK_SEND, ("-B",),
    why="push every connection to the peer",
    proof="FTFW: the peer acknowledges, the resend queue drains; NOTRACK: bytes are sent",
)  # fmt: skip
DROP_UNCOMMITTED = Step(
    StepName.DROP_UNCOMMITTED, ("-f", "external"),
    why="drop uncommitted copies, or dead connections come back",
    proof="the external cache is nearly empty",
    when=When.UNCOMMITTED_COVERED,
)  # fmt: skip
REQUEST_RESYNC = Step(
    StepName.REQUEST_RESYNC, ("-n",),
    why="ask the peer for everything it holds",
    proof="packets of the peer arrive, and the cache has settled",
)  # fmt: skip
PURGE = Step(
    StepName.PURGE, ("-t",),
    why="flush this kernel table after PurgeTimeout, so that dead connections do not stay",
    proof="none: conntrackd flushes the kernel table PurgeTimeout later",
    when=When.PEER_COVERS,
)  # fmt: skip
DISARM = Step(
    StepName.DISARM, ("-f", "internal"),
    why="cancel a purge that would destroy connections that the peer is not proven to hold",
    proof="the resync after it",
    when=When.PURGE_PENDING,
)  # fmt: skip
DISARM_RESYNC = RESYNC._replace(when=When.PURGE_PENDING)
DISARM_BY_COMMIT = Step(
    StepName.DISARM, ("-c",),
    why="cancel the purge; -f internal would flush the kernel table here",
    proof="the daemon answers",
    when=When.PURGE_PENDING_EMPTY,
)  # fmt: skip

UNREAD = {
    # conntrackd accepts its configuration but we cannot read it: only what is safe in every mode.
    State.PRIMARY: (COMMIT, RESYNC, BULK_SEND),
    State.BACKUP: (REQUEST_RESYNC,),
    State.FAULT: (),
}


def plan(state: State, replication: Replication | None, *, again: bool = False) -> tuple[Step, ...]:
    """The steps that ``state`` asks of a daemon that replicates like this.

    ``replication`` is None where the configuration could not be read. ``again`` is a primary that
    was one already: its live entries are newer than any copy, so that nothing is committed.
    """
    if state is State.PRIMARY and again:
        return _reassert(replication)
    if replication is None:
        return UNREAD[state]
    if state is State.PRIMARY:
        return _promote(replication)
    if state is State.BACKUP:
        drop = (DROP_UNCOMMITTED,) if replication.external_cache else ()
        ask = (*drop, REQUEST_RESYNC) if replication.sends_bulks else ()
        return (*ask, *_purge(replication))
    if state is State.FAULT:
        return _purge(replication)
    return ()


def _promote(replication: Replication) -> tuple[Step, ...]:
    commit = COMMIT if replication.external_cache else COMMIT_NOTHING
    if not replication.internal_cache:
        flush = (FLUSH_EXTERNAL,) if replication.external_cache else ()
        return (commit, *flush, *_bulk_send(replication))
    return (commit, FLUSH, FLUSH_INTERNAL, RESYNC, *_bulk_send(replication))


def _reassert(replication: Replication | None) -> tuple[Step, ...]:
    rebuild = (FLUSH_INTERNAL_AGAIN,) if replication and replication.internal_cache else ()
    return (*rebuild, *_resend(replication))


def _resend(replication: Replication | None) -> tuple[Step, ...]:
    """What brings the peer everything from a primary whose entries are live."""
    if replication is None:
        return (RESYNC, BULK_SEND, CHECK_UNCOMMITTED)
    resync = (RESYNC,) if replication.internal_cache else ()
    check = (CHECK_UNCOMMITTED,) if replication.external_cache else ()
    return (*resync, *_bulk_send(replication), *check)


def _bulk_send(replication: Replication) -> tuple[Step, ...]:
    return (BULK_SEND,) if replication.sends_bulks else ()


def _purge(replication: Replication) -> tuple[Step, ...]:
    if not replication.external_cache:
        return ()
    if not replication.internal_cache:
        return (PURGE, DISARM_BY_COMMIT)
    return (PURGE, DISARM, DISARM_RESYNC)


def refresh(state: State, replication: Replication | None) -> tuple[Step, ...]:
    """What brings a node in that state back in sync, when its daemon or its peer came back.

    A primary commits and flushes nothing: the entries are live. A backup asks for everything again,
    and so does a node in fault: the next notification may promote it.
    """
    if state is not State.PRIMARY:
        return plan(State.BACKUP, replication) or (POLL,)
    steps = _resend(replication)
    return steps if any(step.when is When.ALWAYS for step in steps) else (POLL, *steps)
