"""One message of the pair channel: a value, to bytes and back, by nothing but a key.

======= ====== ================================================================================
offset  length content
======= ====== ================================================================================
0       4      ``FTFW``
4       1      the version of the body, 1
5       32     HMAC-SHA-256 over the five bytes before it, and the body
37      ≤1163  the body: a JSON object in UTF-8
======= ====== ================================================================================

Every version has the first 37 bytes, so that a newer peer is authenticated before it is named.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from primary_backup.pair.report import Report, read_count, read_report, read_text

VERSION = 1
LONGEST_BYTES = 1200
"""Of a datagram: no link splits it."""
_MAGIC = b"FTFW"
_HEAD = len(_MAGIC) + 1
_BODY = _HEAD + hashlib.sha256().digest_size


class Refused(Exception):
    """A datagram that is not believed; ``kind`` is what it is counted as."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class OtherVersion(Refused):
    """The peer's, by its key, in another version of this protocol."""

    def __init__(self, version: int) -> None:
        super().__init__("other version")
        self.version = version


class Message(NamedTuple):
    """A report, on its way from one process of one node to another node."""

    sender: str
    """Its address on the dedicated link."""
    receiver: str
    boot: str
    start: int
    """Of the sending process, in clock ticks since that boot."""
    number: int
    """Of the process's messages; it rises by one."""
    nonce: str
    """The sender's newest random number."""
    echo: str
    """The newest one that it received; empty where there is none."""
    report: Report


def encode(message: Message, key: bytes) -> bytes:
    """The datagram of a message, signed with a key."""
    head = _MAGIC + bytes([VERSION])
    body = json.dumps(
        {**message._asdict(), "report": message.report._asdict()},
        default=lambda name: name.value,
        separators=(",", ":"),
        allow_nan=False,
    ).encode()
    return head + _mac(key, head + body) + body


def decode(datagram: bytes, keys: Sequence[bytes]) -> Message:
    """The message of a datagram that one of the keys has signed; raises Refused for any other."""
    if len(datagram) > LONGEST_BYTES:
        raise Refused("oversized")
    head, mac, body = datagram[:_HEAD], datagram[_HEAD:_BODY], datagram[_BODY:]
    if not head.startswith(_MAGIC) or len(datagram) < _BODY:
        raise Refused("foreign")
    if not any(hmac.compare_digest(mac, _mac(key, head + body)) for key in keys):
        raise Refused("forged")
    if head[-1] != VERSION:
        raise OtherVersion(head[-1])
    try:
        return _message(json.loads(body, parse_constant=_no_number))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Refused("malformed") from error


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _message(body: Any) -> Message:
    """Unknown fields are passed over; raises ValueError, TypeError or KeyError."""
    fields = {name: read(body[name]) for name, read in _MESSAGE.items()}
    return Message(**fields)


_MESSAGE: dict[str, Callable[[Any], Any]] = {
    "sender": read_text,
    "receiver": read_text,
    "boot": read_text,
    "start": read_count,
    "number": read_count,
    "nonce": read_text,
    "echo": read_text,
    "report": read_report,
}
