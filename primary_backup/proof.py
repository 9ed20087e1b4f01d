"""What a step must have changed, and the verdict when it did not.

conntrackd's client exits 0 once four bytes were sent, whatever the daemon then does or refuses.
So that every verdict here rests on an observed change: the kernel's counters and ``-s``.
"""

from enum import Enum
from typing import NamedTuple

SLACK_ENTRIES = 10
"""Entries that may expire while a commit runs. A table of ten may lose five at most, see slack."""
SLACK_PART = 0.001
"""The same in a large table."""
EATEN_PART = 0.002
"""Of the entries that a commit made, so many may have ended by themselves."""
FLUSHABLE_PART = 0.01
"""Under this part missing, the copies are stale before a person has fixed the cause."""
FEW_ENTRIES = 100
FEW_PART = 0.1
"""An external cache of no more than this is what the peer itself opens as a backup."""
REBUILT_PART = 0.95
"""What an internal cache must hold of what was recovered: connections end meanwhile."""
REPLICA_PART = 0.01
"""What a replica may lack of what the peer counted a little earlier."""
ENDED_PART = 0.3
"""Of the messages that an answer brought at its height, what the peer's traffic may be."""
COVERED_PART = 0.9
"""What the peer must hold of this node's connections before they are purged here."""

MORE_ROOM = "raise HashLimit on both nodes, restart conntrackd, on the backup first"
MORE_QUEUE = "raise ResendQueueSize on both nodes, restart conntrackd, on the backup first"
PURGE_MARGIN_SECONDS = 5.0
"""A purge that is late is still pending."""


class Outcome(Enum):
    """How a step or a transition ended; a transition never ends ``skipped``."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    SKIPPED = "skipped"


ENDED = frozenset({Outcome.OK, Outcome.DEGRADED})
"""How a transition ends that leaves nothing to be done again."""


class Verdict(NamedTuple):
    """An outcome, why, and what a person should do about it (empty: nothing)."""

    outcome: Outcome
    reason: str = ""
    advice: str = ""


class Kernel(NamedTuple):
    """The kernel's connection tracking of this network namespace."""

    inserted: int | None
    """Entries ever made through netlink, replacements included: the ``insert`` column of
    /proc/net/stat/nf_conntrack, summed over CPUs, each modulo 2^32; None where there is none."""
    entries: int
    """Entries in the table now: /proc/sys/net/netfilter/nf_conntrack_count."""

    def inserted_since(self, before: "Kernel") -> int | None:
        """Entries made through netlink between two observations; None where nothing counts them."""
        if self.inserted is None or before.inserted is None:
            return None
        return (self.inserted - before.inserted) % 2**32


class Commit(NamedTuple):
    """What was observed of one commit, in entries."""

    expected: int | None
    """What the external cache held right after it; None where it died or there is none."""
    inserted: int | None
    """How far the kernel's insert counter rose; None where the kernel does not count."""
    entries: int
    """What the kernel table held right after it."""

    @property
    def recovered(self) -> int:
        """Entries that the commit made; where nothing counts them, what the table can hold."""
        if self.inserted is not None:
            return self.inserted
        return min(self.entries, self.expected or 0)

    @property
    def missing(self) -> int:
        """Entries of the external cache that the commit did not make."""
        return max(0, (self.expected or 0) - self.recovered)

    @property
    def is_complete(self) -> bool:
        """Whether what is missing is no more than entries that expired meanwhile."""
        return self.missing <= slack(self.expected or 0)

    @property
    def is_eaten(self) -> bool:
        """Whether entries vanished after they were made: a purge fired into the commit."""
        if self.inserted is None:
            return False
        return self.inserted - self.entries > max(SLACK_ENTRIES, EATEN_PART * self.inserted)


class Left(NamedTuple):
    """What a transition leaves in this daemon that its caches do not show."""

    copies: int = 0
    """Uncommitted copies: entries of an external cache that a promotion could not prove to have
    committed, or could not flush."""
    rebuilding: bool = False
    """The internal cache was emptied, and is not proven to be rebuilt."""


def slack(expected: int, part: float = SLACK_PART) -> float:
    """How many of ``expected`` entries may be missing, because they expired meanwhile.

    Of a small table half must be there: 0 recovered of anything is no proof at all.
    """
    return max(min(SLACK_ENTRIES, expected // 2), part * expected)


def has_made_all(commit: Commit) -> bool:
    """Whether nothing is left for a second commit: stricter than complete, it would cost little."""
    return commit.recovered > 0 and commit.missing <= SLACK_PART * (commit.expected or 0)


def has_grown(before: int, after: int) -> bool:
    """Whether an external cache grew under its commit: a bulk of the peer's was arriving."""
    return after > before + max(SLACK_ENTRIES, SLACK_PART * after)


def judge_commit(commit: Commit) -> tuple[Verdict, bool]:
    """The verdict on a commit from a running external cache, and whether that cache may go."""
    seen = f"{commit.recovered} of {commit.expected} connections recovered"
    if commit.inserted is None:
        seen += " (counted from the table's size alone: no /proc/net/stat/nf_conntrack)"
    if commit.is_eaten:
        return Verdict(
            Outcome.DEGRADED,
            f"{seen}, but the kernel table holds only {commit.entries}: a purge fired meanwhile",
            "run `conntrackd -c` to insert the uncommitted copies again",
        ), False
    if commit.is_complete:
        return Verdict(Outcome.OK, seen if commit.expected else "nothing to recover"), True
    why = f"{seen}; the daemon's log names those that the kernel refused"
    if commit.missing < FLUSHABLE_PART * (commit.expected or 0):
        return Verdict(Outcome.DEGRADED, why), True
    return Verdict(
        Outcome.DEGRADED,
        f"{why}; the external cache is not flushed",
        "fix the cause (nf_conntrack_max?), then `conntrackd -c` inserts the uncommitted copies",
    ), False


def judge_uncommitted(copies: int, external: int | None) -> Verdict:
    """Whether the ``copies`` that an earlier promotion left are gone from the external cache."""
    if external is None or external <= FEW_PART * copies:
        return Verdict(Outcome.OK, "the uncommitted copies of an earlier promotion are gone")
    return Verdict(
        Outcome.DEGRADED,
        f"the external cache holds {external} connections: an earlier promotion left {copies} "
        "uncommitted copies",
        "fix the cause, then `conntrackd -c` inserts them and `conntrackd -f external` drops "
        "the copies",
    )


def few_copies(external: int | None, ours: int) -> bool:
    """Whether an external cache is only what a backup itself opens, beside ``ours`` connections."""
    return (external or 0) <= max(FEW_ENTRIES, FEW_PART * ours)


def is_committed(external: int | None, entries: int) -> bool:
    """Whether an external cache is so small beside the kernel table that it was committed."""
    return (external or 0) <= FEW_PART * entries


def judge_flush(before: int | None, external: int | None) -> Verdict:
    """Whether the external cache went; a peer that sends meanwhile refills it a little."""
    if before is None or external is None:
        return Verdict(Outcome.OK, "no external cache to drop")
    if few_copies(external, before):
        return Verdict(Outcome.OK, f"external cache {before} → {external}")
    return Verdict(
        Outcome.DEGRADED,
        f"the daemon refused the flush, {external} stale copies are left: "
        "HashSize is 8192 or less, or a commit is still running",
        "set HashSize above 8192 and restart conntrackd on the backup first",
    )


def judge_resync(recovered: int, internal: int | None, refused: int = 0) -> Verdict:
    """Whether the internal cache, which is what the peer gets, holds what was recovered."""
    if internal is None:
        return Verdict(Outcome.OK, "no internal cache to rebuild")
    if refused > 0:
        reason = f"the internal cache is full: {refused} connections are not replicated"
        return Verdict(Outcome.DEGRADED, reason, MORE_ROOM)
    if internal >= REBUILT_PART * recovered:
        return Verdict(Outcome.OK, f"internal cache holds {internal}")
    return Verdict(
        Outcome.DEGRADED,
        f"internal cache holds only {internal} of {recovered} recovered connections",
        "run `conntrackd -R`, then `conntrackd -B`",
    )


def covers(copies: int, ours: int) -> bool:
    """Whether so many connections of the peer's are all of ``ours``, but what ended meanwhile."""
    return copies >= COVERED_PART * ours


def uncovered(external: int | None, ours: int, *, receiving: bool, left: Left) -> str | None:
    """Why the peer's copy does not cover the ``ours`` connections held here; None if it does."""
    if not receiving:
        return "no packets from the peer on the dedicated link"
    if left.copies:
        return "the last promotion here did not flush its external cache"
    if left.rebuilding:
        return "the internal cache was emptied here and not rebuilt"
    if external is None:
        return "without an external cache the kernel table is the replica"
    if not covers(external, ours):
        return f"the peer's copy holds {external}, this node {ours} connections"
    return None
