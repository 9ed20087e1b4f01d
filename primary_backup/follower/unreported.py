"""Why no line in the FIFO reported a state that keepalived is in, and what to write where."""

from typing import NamedTuple

from primary_backup.keepalived.notify import Followed
from primary_backup.plan import State


class Silence(NamedTuple):
    """What is known of a FIFO whose lines did not report a state."""

    followed: Followed
    path: str
    """The FIFO's."""
    others: tuple[str, ...]
    """The groups and instances of its lines that are not followed, the newest last."""
    readers: tuple[str, ...]
    """The other processes that have it open, but for keepalived."""
    writes: bool
    """Whether keepalived has it open."""


def explain(reported: State, ours: State | None, silence: Silence) -> str:
    """One sentence that names both sides, and one with what to do."""
    here = f"this node was made {ours.value}" if ours else "this node was made nothing yet"
    both = f"keepalived reports {reported.value}, but {here}: no line of {silence.followed}"
    return f"{both} reported it; {_advice(silence)}"


def _advice(silence: Silence) -> str:
    followed, path = silence.followed, silence.path
    if silence.readers:
        return f"{', '.join(silence.readers)} reads {path} too, and takes lines away: end it"
    same = [other for other in silence.others if other.startswith(f"{followed.kind} ")]
    found = same or silence.others
    if found:
        kind, _, name = found[-1].partition(" ")
        # Some versions drop a sync group of one member, and write lines of its instance alone.
        why = " alone" if not same and followed.kind == "GROUP" else ""
        return (
            f"the lines are of {', '.join(found)}{why}: follow --{kind.lower()} {name} "
            f"(/etc/default/ftfw-transition), or name {followed} in keepalived.conf"
        )
    if silence.writes:
        return f"compare the names in keepalived.conf with {followed}"
    return f"name {path} in vrrp_notify_fifo, and reload keepalived"
