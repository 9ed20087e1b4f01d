"""keepalived's notifications: a line of its FIFO, a notify script's arguments; its JSON dump."""

import re
from typing import Any, NamedTuple

from primary_backup.plan import State

STATES = {
    "MASTER": State.PRIMARY,
    "BACKUP": State.BACKUP,
    "FAULT": State.FAULT,
    "STOP": State.STOP,
    "DELETED": State.STOP,
    "MASTER_RX_LOWER_PRI": State.PRIMARY,
}
_REASSERT = "MASTER_RX_LOWER_PRI"
_LINE = re.compile(r'(GROUP|INSTANCE) "([^"]+)" ([A-Z_]+) [0-9]+', re.ASCII)
UNREPORTED_DOWN_SECONDS = 4.0
"""A master-down interval longer than that of the protocol's default, an advert a second."""
_LONGEST_DOWN_SECONDS = 1000.0
"""More than three times an advert of 255 s."""
_STATE_NUMBERS = {1: State.BACKUP, 2: State.PRIMARY, 3: State.FAULT}
"""The ``state`` of keepalived's JSON dump; 0 is INIT (vrrp.h)."""


class Notification(NamedTuple):
    """What keepalived reports of one instance or sync group."""

    name: str
    state: State
    reassert: bool
    """A primary that received a lower-priority advert: its entries are live, none is committed."""


def sender(line: bytes) -> str | None:
    """The group or instance that a line of the FIFO is of; None where it is not keepalived's."""
    match = _LINE.fullmatch(line.decode(errors="surrogateescape"))
    return f'{match[1]} "{match[2]}"' if match else None


class Followed(NamedTuple):
    """Whose notifications count: a sync group's or an instance's."""

    kind: str
    """``GROUP`` or ``INSTANCE``."""
    name: str

    def __str__(self) -> str:
        """As keepalived writes it."""
        return f'{self.kind} "{self.name}"'

    def read_line(self, line: bytes) -> Notification | None:
        """The notification in a line of the FIFO, without its newline.

        None for another group or instance, a priority, an unknown state and garbage. A sync group's
        MASTER_RX_LOWER_PRI comes from its instances alone (vrrp_notify.c).
        """
        match = _LINE.fullmatch(line.decode(errors="surrogateescape"))
        if match is None or match[3] not in STATES:
            return None
        ours = match.group(1, 2) == self
        reassert = match[3] == _REASSERT
        if not ours and not (reassert and (self.kind, match[1]) == ("GROUP", "INSTANCE")):
            return None
        return Notification(match[2], STATES[match[3]], reassert)


class Instance(NamedTuple):
    """What keepalived reports, when it is asked, of one VRRP instance."""

    name: str
    state: State | None
    """None before its first one."""
    since: float
    """Of its last transition, or of keepalived's last reload: seconds of the wall clock."""
    promotions: int
    """How often this keepalived has made it master; a reload does not change it."""
    addresses: tuple[str, ...] = ()
    """Those that it has as a master: without a prefix length."""
    down_seconds: float = UNREPORTED_DOWN_SECONDS
    """How long no advert of a master comes before a backup takes over (RFC 5798, 6.1)."""


def read_dump(dump: Any) -> tuple[Instance, ...]:
    """Read keepalived's JSON dump, of either version; raises ValueError where it is none."""
    if isinstance(dump, dict):
        dump = dump.get("vrrp")  # json_version 2
    try:
        return tuple(
            Instance(
                str(each["data"]["iname"]),
                _STATE_NUMBERS.get(each["data"]["state"]),
                float(each["data"]["last_transition"]),
                int(each["stats"]["become_master"]),
                _addresses(each["data"]),
                _down_seconds(each["data"]),
            )
            for each in dump
        )
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError("not a dump of keepalived's instances") from error


def _addresses(data: dict[str, Any]) -> tuple[str, ...]:
    """The first field of each: ``10.10.0.1 dev eth1 scope global``, or with its prefix length."""
    listed = [each for name in ("vips", "evips") for each in _list(data.get(name))]
    return tuple(each.split()[0].partition("/")[0] for each in listed if each.strip())


def _list(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _down_seconds(data: dict[str, Any]) -> float:
    """Three adverts of the master's and a skew, which version 2 counts in seconds (RFC 3768)."""
    try:
        advert, skew = float(data["master_adver_int"]), 1 - int(data["effective_priority"]) / 256
        seconds = 3 * advert + (skew if data["version"] == 2 else skew * advert)
    except (KeyError, TypeError, ValueError, OverflowError):
        return UNREPORTED_DOWN_SECONDS
    return seconds if 0 < seconds < _LONGEST_DOWN_SECONDS else UNREPORTED_DOWN_SECONDS


def read_arguments(arguments: tuple[str, ...]) -> Notification:
    """Read ``[GROUP|INSTANCE] NAME STATE [PRIORITY]``; raises ValueError with advice."""
    typed = len(arguments) > 2 and arguments[0] in ("GROUP", "INSTANCE")
    rest = arguments[1:] if typed else arguments
    if not 2 <= len(rest) <= 3:
        raise ValueError("notify takes [GROUP|INSTANCE] NAME STATE [PRIORITY]")
    name, state = rest[:2]
    if state not in STATES:
        raise ValueError(f"{state!r} is no state of keepalived's: use {', '.join(STATES)}")
    return Notification(name, STATES[state], reassert=state == _REASSERT)
