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


class When(Enum):
    """When a step is asked; the text is what ``--dry-run`` prints."""

    ALWAYS = "always"
    COMMIT_PROVEN = "if the commit is proven"
    COMMIT_UNPROVEN = "if the commit is not proven"
    CACHE_KEPT = "if an earlier promotion kept its cache and the peer now holds our connections"
    PEER_COVERS = "if the peer is proven to hold our connections"
    PURGE_PENDING = "if a purge we armed is pending and the peer is not proven to hold them"
    PURGE_PENDING_EMPTY = "as before, and the external cache is empty"


class Step(NamedTuple):
    """One request to conntrackd: ``options`` are the client's, as in conntrackd(8)."""

    name: str
    options: tuple[str, ...]
    why: str
    proof: str
    when: When = When.ALWAYS


COMMIT = Step(
    "commit", ("-c",),
    why="insert the peer's connections into the kernel, and disarm a pending purge",
    proof="the kernel's insert counter rises by what the external cache holds",
)  # fmt: skip
COMMIT_NOTHING = Step(
    "commit", ("-c",),
    why="disarm a pending purge; the connections are in the kernel already",
    proof="the daemon answers; kernel_entries tells the replica's size",
)  # fmt: skip
FLUSH = Step(
    "flush", ("-f",),
    why="drop the used external copy and an internal cache that a big commit left incomplete",
    proof="the external cache is nearly empty",
    when=When.COMMIT_PROVEN,
)  # fmt: skip
FLUSH_EXTERNAL = Step(
    "flush", ("-f", "external"),
    why="drop the used external copy; a plain -f would flush the kernel table here",
    proof="the external cache is nearly empty",
    when=When.COMMIT_PROVEN,
)  # fmt: skip
REBUILD = Step(
    "flush-internal", ("-f", "internal"),
    why="disarm a pending purge and drop the internal cache, keep the only external copy",
    proof="the resync after it",
    when=When.COMMIT_UNPROVEN,
)  # fmt: skip
RESYNC = Step(
    "resync", ("-R",),
    why="rebuild the internal cache from the kernel table",
    proof="the internal cache holds what was recovered",
)  # fmt: skip
BULK_SEND = Step(
    "bulk-send", ("-B",),
    why="push every connection to the peer",
    proof="FTFW: the peer acknowledges, the resend queue drains; NOTRACK: bytes are sent",
)  # fmt: skip
DROP_KEPT = Step(
    "drop-kept", ("-f", "external"),
    why="drop a copy that an unproven commit kept, or dead connections come back",
    proof="the external cache is nearly empty",
    when=When.CACHE_KEPT,
)  # fmt: skip
REQUEST_RESYNC = Step(
    "request-resync", ("-n",),
    why="ask the peer for everything it holds",
    proof="the peer is heard, and the cache has settled",
)  # fmt: skip
PURGE = Step(
    "purge", ("-t",),
    why="flush this kernel table after PurgeTimeout, so that dead connections do not stay",
    proof="none at the time: it fires later",
    when=When.PEER_COVERS,
)  # fmt: skip
DISARM = Step(
    "disarm", ("-f", "internal"),
    why="cancel a purge that would destroy connections nobody else is proven to hold",
    proof="the resync after it",
    when=When.PURGE_PENDING,
)  # fmt: skip
DISARM_RESYNC = Step(
    "resync", ("-R",),
    why=RESYNC.why,
    proof=RESYNC.proof,
    when=When.PURGE_PENDING,
)  # fmt: skip
DISARM_BY_COMMIT = Step(
    "disarm", ("-c",),
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
    if replication is None:
        return tuple(step for step in UNREAD[state] if not (again and step is COMMIT))
    if state is State.PRIMARY:
        return _reassert(replication) if again else _promote(replication)
    if state is State.BACKUP:
        drop = (DROP_KEPT,) if replication.external_cache else ()
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
    return (commit, FLUSH, REBUILD, RESYNC, *_bulk_send(replication))


def _reassert(replication: Replication) -> tuple[Step, ...]:
    if not replication.internal_cache:
        return _bulk_send(replication)
    rebuild = Step(REBUILD.name, REBUILD.options, why=REBUILD.why, proof=REBUILD.proof)
    return (rebuild, RESYNC, *_bulk_send(replication))


def _bulk_send(replication: Replication) -> tuple[Step, ...]:
    return (BULK_SEND,) if replication.sends_bulks else ()


def _purge(replication: Replication) -> tuple[Step, ...]:
    if not replication.external_cache:
        return ()
    if not replication.internal_cache:
        return (PURGE, DISARM_BY_COMMIT)
    return (PURGE, DISARM, DISARM_RESYNC)


LOOK = Step(
    "look", ("-s",),
    why="nothing else is to be asked: conntrackd was down",
    proof="the daemon answers",
)  # fmt: skip


def refresh(state: State, replication: Replication | None) -> tuple[Step, ...]:
    """What brings a node in that state back in sync, when its daemon or its peer came back.

    A primary commits and flushes nothing: the entries are live. A backup asks for everything anew,
    and so does a node in fault: nobody knows which word comes next.
    """
    if state is State.PRIMARY:
        again = plan(state, replication, again=True)
        return tuple(step for step in again if step in (RESYNC, BULK_SEND)) or (LOOK,)
    return plan(State.BACKUP, replication) or (LOOK,)


def purge(replication: Replication | None) -> tuple[Step, ...]:
    """What purges a node that held its purge back, now that it is safe."""
    return plan(State.FAULT, replication)
