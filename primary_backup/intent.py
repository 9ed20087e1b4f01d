"""What this firewall is asked to be, and who asked for it."""

from enum import Enum
from typing import NamedTuple

from primary_backup.plan import State


class Kind(Enum):
    """Which of a state's steps are wanted."""

    BECOME = "become"
    """All of them; a primary that is one already commits nothing."""
    REASSERT = "reassert"
    """Those of a primary whose entries are live, whatever is remembered."""
    RESUME = "resume"
    """None if this state was reached already; else all of them."""
    REFRESH = "refresh"
    """Those that bring a node back in sync which is in this state already."""
    PURGE = "purge"
    """The purge that was deferred."""
    DISARM = "disarm"
    """Those that cancel a pending purge."""

    @property
    def is_of_the_purge_alone(self) -> bool:
        """Whether it is not all of a state's steps."""
        return self in (Kind.PURGE, Kind.DISARM)


class Intent(NamedTuple):
    """What this firewall is asked to be, and who asked for it."""

    state: State
    cause: str
    kind: Kind = Kind.BECOME
    since: float = 0.0
    """For RESUME: since when keepalived is in that state, in seconds of the wall clock."""
    stepped_down: bool = False
    """Another state came in between that was not carried out: a promotion is a first one."""
    force: bool = False
    """Purge even where keepalived reports that this node is master."""

    @property
    def ends_promotion(self) -> bool:
        """Whether the next ``primary`` commits, whatever becomes of this transition."""
        return self.stepped_down or self.state is not State.PRIMARY
