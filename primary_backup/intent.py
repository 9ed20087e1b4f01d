"""What is to become of this node, and by whose word."""

from enum import Enum
from typing import NamedTuple

from primary_backup.plan import State


class Kind(Enum):
    """Which of a state's steps are wanted."""

    BECOME = "become"
    """All of them; a primary that is one already commits nothing."""
    REASSERT = "reassert"
    """Those of a primary whose entries are live, whatever is remembered."""
    RECALL = "recall"
    """None if this state stands already; what a primary does then, its caches tell."""
    REFRESH = "refresh"
    """Those that bring a node back in sync which is in this state already."""
    PURGE = "purge"
    """The purge that was held back."""


class Intent(NamedTuple):
    """What is to become of this node, and by whose word."""

    state: State
    cause: str
    kind: Kind = Kind.BECOME
    since: float = 0.0
    """For RECALL: since when keepalived is in that state, in seconds of the wall clock."""
    stepped_down: bool = False
    """It was something else in between, which nobody has acted upon: a promotion is a first one."""
    force: bool = False
    """Purge even where keepalived says that this node is master."""
