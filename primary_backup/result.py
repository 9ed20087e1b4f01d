"""How one step ended, and what it leaves."""

from typing import NamedTuple

from primary_backup.plan import StepName
from primary_backup.proof import Commit, Left, Outcome


class StepResult(NamedTuple):
    """How one step ended; ``attempts`` is 0 where it was not asked."""

    name: StepName
    command: str
    outcome: Outcome
    reason: str = ""
    advice: str = ""
    attempts: int = 0
    seconds: float = 0.0
    commit: Commit | None = None
    """What was observed of a commit."""
    left: Left = Left()
    """What is left after this step."""
    no_packets: bool = False
    """Packets of the peer were waited for, and none came."""
    purged: bool = False
    """A purge was asked for, and not cancelled again."""
    deferred: bool = False
    """A purge was not asked for, because it is not safe yet."""
    lacking: bool = False
    """The peer may hold what a commit did not bring back."""
