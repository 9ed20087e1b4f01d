"""What a step must have changed, and the verdict when it did not.

conntrackd's client exits 0 once four bytes were sent, whatever the daemon then does or refuses.
So that every verdict here rests on an observed change: the kernel's counters and ``-s``.
"""

from enum import Enum
from typing import NamedTuple

from primary_backup.conntrackd.status import Status


class Outcome(Enum):
    """How a step or a transition ended; a transition never ends ``skipped``."""

    OK = "ok"
    DEGRADED = "degraded"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    SKIPPED = "skipped"


ENDED = frozenset({Outcome.OK.value, Outcome.DEGRADED.value})
"""How a transition ends that leaves nothing to be done again, as it is remembered."""


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
        """Entries made through netlink between two looks; None where nothing counts them."""
        if self.inserted is None or before.inserted is None:
            return None
        return (self.inserted - before.inserted) % 2**32


class Commit(NamedTuple):
    """What was seen of one commit, in entries."""

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
    def complete(self) -> bool:
        """Whether what is missing is no more than entries that expired meanwhile."""
        return self.missing <= max(10, 0.001 * (self.expected or 0))

    @property
    def eaten(self) -> bool:
        """Whether entries vanished after they were made: a purge fired into the commit."""
        if self.inserted is None:
            return False
        return self.inserted - self.entries > max(10, 0.002 * self.inserted)


def judge_commit(commit: Commit) -> tuple[Verdict, bool]:
    """The verdict on a commit from a living external cache, and whether that cache may go."""
    seen = f"{commit.recovered} of {commit.expected} connections recovered"
    if commit.inserted is None:
        seen += " (counted from the table's size alone: no /proc/net/stat/nf_conntrack)"
    if commit.eaten:
        return Verdict(
            Outcome.DEGRADED,
            f"{seen}, but the kernel table holds only {commit.entries}: a purge fired meanwhile",
            "run `conntrackd -c` to insert the kept copies again",
        ), False
    if commit.complete:
        return Verdict(Outcome.OK, seen if commit.expected else "nothing to recover"), True
    why = f"{seen}; the daemon's log names those that the kernel refused"
    if commit.missing < 0.01 * (commit.expected or 0):
        return Verdict(Outcome.DEGRADED, why), True
    return Verdict(
        Outcome.DEGRADED,
        f"{why}; the external cache is kept",
        "mend the cause (nf_conntrack_max?), then `conntrackd -c` inserts the kept copies again",
    ), False


def few_copies(external: int | None, ours: int) -> bool:
    """Whether an external cache is only what a backup itself opens, beside ``ours`` connections."""
    return (external or 0) <= max(100, 0.1 * ours)


def judge_flush(before: int | None, after: Status) -> Verdict:
    """Whether the external cache went; a peer that sends meanwhile refills it a little."""
    if before is None or after.external is None:
        return Verdict(Outcome.OK, "no external cache to drop")
    if few_copies(after.external, before):
        return Verdict(Outcome.OK, f"external cache {before} → {after.external}")
    return Verdict(
        Outcome.DEGRADED,
        f"the daemon refused the flush, {after.external} stale copies are left: "
        "HashSize is 8192 or less, or a commit is still running",
        "set HashSize above 8192 and restart conntrackd on the backup first",
    )


def judge_resync(recovered: int, after: Status) -> Verdict:
    """Whether the internal cache, which is what the peer gets, holds what was recovered."""
    if after.internal is None:
        return Verdict(Outcome.OK, "no internal cache to rebuild")
    if after.internal >= 0.95 * recovered:
        return Verdict(Outcome.OK, f"internal cache holds {after.internal}")
    return Verdict(
        Outcome.DEGRADED,
        f"internal cache holds only {after.internal} of {recovered} recovered connections",
        "run `conntrackd -R`, then `conntrackd -B`",
    )


def uncovered(status: Status, ours: int, *, heard: bool, kept: bool) -> str | None:
    """Why the peer's copy does not cover the ``ours`` connections held here; None if it does."""
    if not heard:
        return "no peer is heard on the dedicated link"
    if kept:
        return "the last promotion here did not flush its external cache"
    if status.external is None:
        return "without an external cache the kernel table is the replica"
    if status.external < 0.9 * ours:
        return f"the peer's copy holds {status.external}, this node {ours} connections"
    return None
