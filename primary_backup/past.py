"""What a transition has to reckon with: of earlier ones, and of the peer."""

from collections.abc import Callable
from typing import NamedTuple

from primary_backup.plan import Step, When
from primary_backup.proof import REPLICA_PART, Kernel, Left, slack

NOT_ANSWERED = "the peer had not answered this conntrackd yet"


class Earlier(NamedTuple):
    """A commit of this same promotion, whose process was killed before it could judge it."""

    before: Kernel
    """The counters right before it."""
    ended: bool
    """The commit was seen to end; whatever is still missing was refused by the kernel."""


class Reported(NamedTuple):
    """How many connections a peer that was primary has reported."""

    node: str
    connections: int
    seconds: float
    """How long before the promotion they were counted."""

    def exceeds(self, held: int) -> bool:
        """Whether the peer had more than the ``held`` connections, and what may end meanwhile."""
        return self.connections - held > slack(self.connections, REPLICA_PART)

    def __str__(self) -> str:
        return f"{self.node} reported {self.connections} connections {self.seconds:.1f} s before"


class Replica(NamedTuple):
    """What a follower knows of this node's replica as a promotion begins."""

    lacking: str = ""
    """Why the peer may have had more; empty where nothing shows that."""
    reported: Reported | None = None
    certified: bool = False
    """Both nodes' counts were compared just before, and agreed."""
    watched: bool = False
    """A follower has watched the link until now."""
    answered: float | None = None
    """When the peer's last answer was asked for (CLOCK_BOOTTIME), where nothing is known since."""

    def source(self, wall_time: Callable[[float], str]) -> str:
        """What is known of it: the peer's own count, or how old it is; empty where nothing is.

        ``wall_time`` is the time of day of a time on CLOCK_BOOTTIME.
        """
        if self.reported is not None:
            return str(self.reported)
        if self.answered is None:
            return ""
        return f"replica of {wall_time(self.answered)}, the link was not watched since"

    def lacks(self, held: int | None) -> str:
        """Why the peer may have had more than the ``held`` connections; empty where it had not."""
        if self.lacking or self.certified or self.reported is None or held is None:
            return self.lacking
        if not self.reported.exceeds(held):
            return ""
        return f"this node held {self.reported.connections - held} connections less"


class Past(NamedTuple):
    """What a transition has to reckon with, of the earlier ones of this same daemon."""

    left: Left = Left()
    purge_pending: bool = False
    earlier: Earlier | None = None
    replica: Replica = Replica()

    def needless(self, step: Step) -> str | None:
        """Why a step is not asked, where that is known before anything is asked."""
        match step.when:
            case When.UNCOMMITTED | When.UNCOMMITTED_COVERED if self.left == Left():
                return "no uncommitted copies"
            case When.PURGE_PENDING | When.PURGE_PENDING_EMPTY if not self.purge_pending:
                return "no purge to cancel"
        return None
