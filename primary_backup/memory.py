"""What one transition leaves for the next one, as values that no file or clock is read for.

``begun``, ``committing``, ``after``, ``ended`` and the like return the memory as each event changes
it. Times named ``boot`` are seconds on CLOCK_BOOTTIME.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from primary_backup.past import NOT_ANSWERED, Earlier, Past, Replica
from primary_backup.plan import PURGES, State, Step, StepName
from primary_backup.proof import ENDED, PURGE_MARGIN_SECONDS, Kernel, Left, Outcome
from primary_backup.result import StepResult
from primary_backup.system.proc import TICKS_PER_SECOND, Issued

_CANCEL_PURGE = frozenset(
    {StepName.COMMIT, StepName.FLUSH, StepName.FLUSH_INTERNAL, StepName.DISARM}
)

SocketIdentity = tuple[int, int, int]
"""Device, inode and change time (ns) of the daemon's UNIX socket: a new daemon binds a new one."""


class Last(NamedTuple):
    """The last transition that asked conntrackd for anything."""

    transition: str
    issued: Issued
    state: State
    began: float
    """Seconds of the wall clock, which is keepalived's."""
    outcome: Outcome | None = None
    """None while it is under way, or where its process was killed."""
    proven: float | None = None
    """When it had proven all of its steps (boot); None if it did not."""

    def is_proven_after(self, issued: Issued) -> bool:
        """Whether that was after a notification was issued, by whole ticks."""
        return self.proven is not None and int(self.proven * TICKS_PER_SECOND) > issued.ticks


class Promotion(NamedTuple):
    """The promotion after which this node has been primary: no other state came since."""

    transition: str
    committed: bool = False
    """Its commit was waited for to its end; or its entries were live already."""
    before: Kernel | None = None
    """The kernel's counters right before its commit; None where none was asked."""


class Purge(NamedTuple):
    """A purge that was asked for and may not have fired yet."""

    due: float
    """When it has certainly fired (boot)."""
    forced: bool = False
    """It was meant, whatever keepalived reports."""


class Memory(NamedTuple):
    """What earlier transitions of this boot asked of one daemon; all absent where none did."""

    daemon: SocketIdentity | None = None
    """None where there was no daemon."""
    last: Last | None = None
    promotion: Promotion | None = None
    purge: Purge | None = None
    left: Left = Left()
    no_packets: bool = False
    """The last transition waited for packets of the peer, and none came."""
    filled: bool | None = None
    """Whether the peer has answered this daemon; None where it was to ask nothing."""
    asked: float | None = None
    """When the transition was issued that has asked the peer last (boot)."""
    deferred: bool = False
    """A purge was not asked for, because it was not safe yet."""

    def of(self, daemon: SocketIdentity | None) -> "Memory":
        """What is left of it for this daemon: another one has lost everything but what it lacks."""
        if daemon is not None and daemon == self.daemon:
            return self
        lacks = self.filled is False or self.stands_by or self.owes_commit
        return Memory(daemon, filled=False if lacks else None)

    @property
    def transition(self) -> str:
        """The last transition; empty where there was none."""
        return self.last.transition if self.last is not None else ""

    @property
    def stands_by(self) -> bool:
        """Whether the last state was backup or fault."""
        return self.last is not None and self.last.state in PURGES

    @property
    def owes_commit(self) -> bool:
        """Whether this node is to be primary, and no commit came to its end."""
        return self.promotion is not None and not self.promotion.committed

    @property
    def has_committed(self) -> bool:
        """Whether this node is primary, and its commit ended."""
        return self.promotion is not None and self.promotion.committed

    def is_promoted_by(self, transition: str) -> bool:
        """Whether that is the promotion after which this node has been primary."""
        return self.promotion is not None and self.promotion.transition == transition

    def has_pending_purge(self, boot: float) -> bool:
        """Whether a purge of ours may not have fired yet."""
        return self.purge is not None and boot < self.purge.due

    def has_unforced_purge(self, boot: float) -> bool:
        """The same, of one that keepalived's report still forbids."""
        return self.has_pending_purge(boot) and not (self.purge and self.purge.forced)

    def knowing(self, replica: Replica) -> "Memory":
        """What the follower knows of the replica replaces what is remembered of it."""
        if replica.lacking:
            return self._replace(filled=False)
        return self._replace(filled=True) if replica.certified else self

    def past(self, state: State, boot: float, replica: Replica = Replica()) -> Past:  # noqa: B008  # a value
        """What a transition to that state has to reckon with."""
        earlier = self._earlier() if state is State.PRIMARY else None
        if self.filled is False and not replica.lacking and not replica.certified:
            replica = replica._replace(lacking=NOT_ANSWERED)
        elif self.filled and not replica.watched:
            replica = replica._replace(answered=self.asked)
        return Past(self.left, self.has_pending_purge(boot), earlier, replica)

    def _earlier(self) -> Earlier | None:
        """The commit of the promotion that holds, if it was not judged yet."""
        is_judged = self.last is not None and self.last.outcome in ENDED
        if self.promotion is None or self.promotion.before is None or is_judged:
            return None
        return Earlier(self.promotion.before, self.promotion.committed)

    def begun(self, last: Last, steps: tuple[Step, ...], *, live: bool) -> "Memory":
        """A transition is about to ask these steps.

        ``live``: this node has been what it is to be, so that a primary has nothing to commit.
        """
        asks = any(step.name is StepName.REQUEST_RESYNC for step in steps)
        return self._replace(
            last=last,
            filled=bool(self.filled) if asks else self.filled,
            asked=last.issued.seconds if asks else self.asked,
            promotion=self._promoted(last.transition, steps, live=live)
            if last.state is State.PRIMARY
            else None,
            no_packets=False,
            deferred=self.deferred and last.state in PURGES,
        )

    def _promoted(self, transition: str, steps: tuple[Step, ...], *, live: bool) -> Promotion:
        commits = any(step.name is StepName.COMMIT for step in steps)
        if self.promotion is None or (commits and self._earlier() is None):
            return Promotion(transition, committed=live and not commits)
        if not commits and self.promotion.committed:
            # The entries are live: whatever becomes of this, there is no commit left to judge.
            return self.promotion._replace(before=None)
        return self.promotion

    def committing(self, kernel: Kernel) -> "Memory":
        """A commit is about to be asked: its copies are uncommitted until it is proven."""
        copies = max(1, self.left.copies)  # how many is not known yet
        memory = self._replace(left=self.left._replace(copies=copies))
        if self.promotion is None or self.promotion.before is not None:
            return memory
        return memory._replace(promotion=self.promotion._replace(before=kernel))

    def purging(self, due: float, *, forced: bool) -> "Memory":
        """A purge is about to be asked, which is ``due`` then (boot)."""
        return self._replace(purge=Purge(due + PURGE_MARGIN_SECONDS, forced))

    def after(self, result: StepResult) -> "Memory":
        """A step has come to its result."""
        asked = result.attempts > 0 and result.outcome is not Outcome.FAILED
        cancelled = result.name is StepName.PURGE and not result.purged
        committed = result.name is StepName.COMMIT and result.outcome in ENDED
        answered = result.name is StepName.REQUEST_RESYNC and result.outcome is Outcome.OK
        lost = result.name is StepName.START and not self.has_committed
        if self.filled is False and committed:
            answered = not result.lacking  # the commit has asked a peer that could send it
        filled = answered or (self.filled if not lost and not result.lacking else False)
        memory = self._replace(left=result.left, no_packets=result.no_packets, filled=filled)
        if asked and (result.name in _CANCEL_PURGE or cancelled):
            memory = memory._replace(purge=None)
        if committed and self.promotion is not None:
            memory = memory._replace(promotion=self.promotion._replace(committed=True))
        disarmed = asked and result.name is StepName.DISARM
        if not disarmed and result.name not in (StepName.PURGE, StepName.COMMIT):
            return memory
        return memory._replace(deferred=disarmed or result.deferred)

    def ended(self, outcome: Outcome, proven: float | None) -> "Memory":
        """The transition has ended; ``proven``: when all steps of its state were proven (boot)."""
        if self.last is None:
            return self
        return self._replace(last=self.last._replace(outcome=outcome, proven=proven))

    def confirmed(self, issued: Issued) -> "Memory":
        """A newer notification found nothing to ask: an older one still yields to it."""
        return self if self.last is None else self._replace(last=self.last._replace(issued=issued))


def to_json(memory: Memory, boot_id: str) -> str:
    """A memory as it is stored, with the boot it belongs to; a record is an array."""
    return json.dumps({"boot": boot_id, **memory._asdict()}, default=lambda name: name.value)


def from_json(text: str, boot_id: str) -> Memory:
    """Read it back; another boot's is blank. Raises ValueError for anything else."""
    try:
        stored = json.loads(text)
        if stored["boot"] != boot_id:
            return Memory()
        return Memory(
            daemon=_each(stored["daemon"], lambda found: (found[0], found[1], found[2])),
            last=_each(stored["last"], _last),
            promotion=_each(stored["promotion"], _promotion),
            purge=_each(stored["purge"], lambda purge: Purge(*purge)),
            left=Left(*stored["left"]),
            no_packets=stored["no_packets"],
            filled=stored["filled"],
            asked=stored["asked"],
            deferred=stored["deferred"],
        )
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"not a memory: {error}") from error


def _each(stored: Any, read: Callable[[list[Any]], Any]) -> Any:
    return None if stored is None else read(stored)


def _last(stored: list[Any]) -> Last:
    transition, issued, state, began, outcome, proven = stored
    return Last(transition, Issued(*issued), State(state), began, _each(outcome, Outcome), proven)


def _promotion(stored: list[Any]) -> Promotion:
    transition, committed, before = stored
    return Promotion(transition, committed, _each(before, lambda counters: Kernel(*counters)))
