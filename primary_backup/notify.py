"""keepalived's words, from the arguments of its generic ``notify`` script (keepalived.conf(5))."""

from typing import NamedTuple

from primary_backup.plan import State

STATES = {
    "MASTER": State.PRIMARY,
    "BACKUP": State.BACKUP,
    "FAULT": State.FAULT,
    "STOP": State.STOP,
    "DELETED": State.STOP,
    "MASTER_RX_LOWER_PRI": State.PRIMARY,
}


class Notification(NamedTuple):
    """What keepalived says of one instance or sync group."""

    name: str
    state: State
    reassert: bool
    """A primary that heard a lower-priority one: its entries are live, nothing is committed."""


def read_arguments(words: tuple[str, ...]) -> Notification:
    """Read ``[GROUP|INSTANCE] NAME STATE [PRIORITY]``; raises ValueError with advice."""
    rest = words[1:] if len(words) > 2 and words[0] in ("GROUP", "INSTANCE") else words
    if not 2 <= len(rest) <= 3:
        raise ValueError("notify takes [GROUP|INSTANCE] NAME STATE [PRIORITY]")
    name, word = rest[:2]
    if word not in STATES:
        raise ValueError(f"{word!r} is no state of keepalived's: use {', '.join(STATES)}")
    return Notification(name, STATES[word], reassert=word == "MASTER_RX_LOWER_PRI")
