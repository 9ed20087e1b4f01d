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
_STATE_NUMBERS = {1: State.BACKUP, 2: State.PRIMARY, 3: State.FAULT}
"""The ``state`` of keepalived's JSON dump; 0 is INIT (vrrp.h)."""


class Notification(NamedTuple):
    """What keepalived reports of one instance or sync group."""

    name: str
    state: State
    reassert: bool
    """A primary that received a lower-priority advert: its entries are live, none is committed."""


class Followed(NamedTuple):
    """Whose notifications count: a sync group's or an instance's."""

    kind: str
    """``GROUP`` or ``INSTANCE``."""
    name: str

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
            )
            for each in dump
        )
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError("not a dump of keepalived's instances") from error


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
