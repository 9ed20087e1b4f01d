"""What a node reports of itself: a value, and read back from JSON."""

from collections.abc import Callable
from typing import Any, NamedTuple

from primary_backup.plan import State
from primary_backup.proof import Outcome


class Certificate(NamedTuple):
    """That a replica held what its primary had."""

    age: float
    """Seconds since it was compared."""
    held: int
    reported: int
    """Connections that the primary reported."""


class Report(NamedTuple):
    """What a node knows of itself. Ages are seconds; what is not known is None."""

    node: str
    """Its host name."""
    program: str
    """The version of this program."""
    state: State | None
    """Of the newest notification."""
    since: float
    """The age of that notification."""
    mode: str | None
    """How its conntrackd replicates: the ``Mode`` block, with ``direct`` behind it where it is."""
    daemon: tuple[int, int, int] | None
    """What distinguishes its conntrackd from the next one."""
    internal: int | None
    """Entries of the internal cache."""
    external: int | None
    """Entries of the external cache."""
    refused: int | None
    """Connections that either cache could not create, since its conntrackd started."""
    kernel: int
    """Entries of the kernel table."""
    limit: int | None
    """How many it may hold (nf_conntrack_max)."""
    polled: float | None
    """The age of the caches' numbers."""
    certificate: Certificate | None
    outcome: Outcome | None
    """How its last transition ended."""


def read_report(found: Any) -> Report:
    """The report in a parsed body; raises ValueError, TypeError or KeyError."""
    return Report(**{name: read(found[name]) for name, read in _REPORT.items()})


def read_text(value: Any) -> str:
    """A text of at most 64 characters; raises ValueError."""
    if not isinstance(value, str) or len(value) > 64:
        raise ValueError(f"{value!r} is not a short text")
    return value


def read_count(value: Any) -> int:
    """A whole number of at most 64 bits; raises ValueError."""
    if type(value) is not int or not 0 <= value < 2**64:
        raise ValueError(f"{value!r} is not a count")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 2**40:
        raise ValueError(f"{value!r} is not an age")
    return float(value)


def _perhaps(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def _daemon(value: Any) -> tuple[int, int, int]:
    device, inode, changed = value
    return read_count(device), read_count(inode), read_count(changed)


def _certificate(value: Any) -> Certificate:
    age, held, reported = value
    return Certificate(_seconds(age), read_count(held), read_count(reported))


_REPORT: dict[str, Callable[[Any], Any]] = {
    "node": read_text,
    "program": read_text,
    "state": _perhaps(State),
    "since": _seconds,
    "mode": _perhaps(read_text),
    "daemon": _perhaps(_daemon),
    "internal": _perhaps(read_count),
    "external": _perhaps(read_count),
    "refused": _perhaps(read_count),
    "kernel": read_count,
    "limit": _perhaps(read_count),
    "polled": _perhaps(_seconds),
    "certificate": _perhaps(_certificate),
    "outcome": _perhaps(Outcome),
}
