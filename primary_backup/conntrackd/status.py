"""What ``conntrackd -s`` prints, as numbers.

The formats are those of conntrack-tools 1.4.5 and later (cache.c, external_inject.c,
internal_bypass.c, udp.c); a line that is not there is None, never 0.
"""

import re
from typing import NamedTuple

# A number has at most 20 digits: 64 bits.
_ACTIVE = rb"current active connections:\s+(\d{1,20})"
_SENT = rb"connections (?:created|updated):\s+(\d{1,20})"
_REFUSED = rb"connections created:\s+\d+\s+failed:\s+(\d{1,20})"
_BYTES = rb"(\d{1,20}) Bytes sent\s+(\d{1,20}) Bytes recv"
_PACKETS = rb"(\d{1,20}) Pckts sent\s+(\d{1,20}) Pckts recv"
_FLUSHES = rb"flush kernel table:\s+(\d{1,20})"
_QUEUED = rb"queue (txqueue|rsqueue):\s+current elements:\s+(\d{1,20})"
_NO_ROOM = (
    rb"queue rsqueue:\s+current elements:\s+\d+\s+maximum elements:\s+\d+\s+"
    rb"not enough space errors:\s+(\d{1,20})"
)


class Status(NamedTuple):
    """One answer to ``-s``. Entries, packets and bytes; counters start with the daemon."""

    internal: int | None
    """Entries of the internal cache; None with ``DisableInternalCache On``."""
    external: int | None
    """Entries of the external cache; None with ``DisableExternalCache On``."""
    replicated: int
    """Entries that the peer has sent since the daemon's start. (One that was there already counts
    as destroyed and created again.)"""
    bytes_sent: int
    packets_received: int
    bytes_received: int
    refused: int = 0
    """Entries that a cache, or the kernel table, could not create: it was full."""


class Queue(NamedTuple):
    """What FTFW has for the peer, in messages."""

    unacknowledged: int
    """Not sent, or not acknowledged yet."""
    dropped: int
    """Since the daemon's start dropped before they were acknowledged: ResendQueueSize is too small.
    The peer asks for them in vain, if it has lost them."""


def parse(text: bytes) -> Status | None:
    """Read the output of ``-s``; None where no daemon that synchronises printed it."""
    head, separator, theirs = text.partition(b"cache external:")
    if not separator:
        head, separator, theirs = text.partition(b"external inject:")
    if not separator:
        return None
    sent, received = _pair(_BYTES, text)
    return Status(
        internal=_number(_ACTIVE, head),
        external=_number(_ACTIVE, theirs),
        replicated=sum(int(count) for count in re.findall(_SENT, theirs)),
        bytes_sent=sent,
        packets_received=_pair(_PACKETS, text)[1],
        bytes_received=received,
        refused=sum(int(count) for count in re.findall(_REFUSED, text)),
    )


def parse_queue(text: bytes) -> Queue | None:
    """Read the output of ``-s queue``; None outside FTFW."""
    queued = {name: int(length) for name, length in re.findall(_QUEUED, text)}
    if b"rsqueue" not in queued:
        return None
    return Queue(sum(queued.values()), _number(_NO_ROOM, text) or 0)


def parse_flushing(text: bytes) -> bool:
    """Whether ``-s process`` lists a flush of the kernel table that is running."""
    return b"type=flush" in text


def parse_flushes(text: bytes) -> int | None:
    """How often the daemon has flushed the kernel table, from ``-s runtime``."""
    return _number(_FLUSHES, text)


def _number(pattern: bytes, text: bytes) -> int | None:
    match = re.search(pattern, text)
    return int(match[1]) if match else None


def _pair(pattern: bytes, text: bytes) -> tuple[int, int]:
    match = re.search(pattern, text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
