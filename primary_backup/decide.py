"""Which steps are asked now, or why none: from values, without a file, a clock or a daemon."""

from typing import NamedTuple

from primary_backup.intent import Intent, Kind
from primary_backup.memory import Memory
from primary_backup.plan import Replication, State, Step, StepName, plan, refresh
from primary_backup.proof import ENDED, Outcome, is_committed
from primary_backup.system.proc import Issued


class Caches(NamedTuple):
    """What a node holds of which nothing is remembered, in entries."""

    external: int | None
    entries: int
    """Those of the kernel table."""


class Observed(NamedTuple):
    """What a decision depends on beside the intent and the memory."""

    issued: Issued
    """When the notification or command was issued."""
    boot: float
    """Now, in seconds on CLOCK_BOOTTIME."""
    other_states: bool = False
    """Another process has a notification for another state to carry out."""
    caches: Caches | None = None
    """None where they are not asked for, or the daemon does not answer."""


class Decision(NamedTuple):
    """The steps, or the reason for none."""

    steps: tuple[Step, ...] = ()
    nothing: str | None = None
    """Why nothing is to be asked; None where something is."""
    forget_promotion: bool = False
    """keepalived has left this state since the last promotion: the next one is a first one."""
    awaits_bulk: bool = False
    """This node was primary until now: a peer that is promoted sends it everything, unasked."""
    live: bool = False
    """This node has been in that state: a primary's entries are not to be committed."""

    @property
    def commits(self) -> bool:
        """Whether it is a promotion that brings connections back."""
        return any(step.name is StepName.COMMIT for step in self.steps)


def decide(
    intent: Intent, memory: Memory, replication: Replication | None, observed: Observed
) -> Decision:
    """Decide what an intent asks of the daemon that ``memory`` and ``replication`` are of."""
    state, last = intent.state, memory.last
    if _is_done(state, memory, observed.issued) and last is not None:
        return Decision(nothing=f"already done by transition {last.transition}")
    match intent.kind:
        case Kind.PURGE | Kind.DISARM:
            return Decision(_purge(intent.kind, replication))
        case Kind.REFRESH if state is State.PRIMARY and memory.filled is False:
            again = False  # the peer can be asked for it now
        case Kind.REFRESH if not _must_cancel(state, memory, observed.boot):
            return Decision(refresh(state, replication), live=True)
        case Kind.REFRESH:
            # Without an internal cache a commit is all that cancels a purge.
            cancels = replication is not None and replication.internal_cache
            again = cancels or _is_second(memory, observed)
        case Kind.REASSERT:
            again = not _lacks_commit(memory)
        case Kind.RESUME if _was_reached(intent, memory):
            return Decision(nothing=f"already {state.value}, nothing is asked")
        case Kind.RESUME if has_missed(memory, intent.since) and state is State.PRIMARY:
            return Decision(plan(state, replication), forget_promotion=True, live=True)
        case Kind.RESUME if last is None:
            # How this node became primary is not known: a full cache was never committed.
            found = observed.caches
            again = found is not None and is_committed(found.external, found.entries)
        case _:
            again = _is_second(memory, observed) and memory.filled is not False
    steps = plan(state, replication, again=again and state is State.PRIMARY)
    awaits_bulk = state is State.FAULT and last is not None and last.state is State.PRIMARY
    return Decision(steps, awaits_bulk=awaits_bulk, live=intent.kind in (Kind.REFRESH, Kind.RESUME))


def _purge(kind: Kind, replication: Replication | None) -> tuple[Step, ...]:
    """What asks for a purge, as guarded as that of a fault, or only what cancels it."""
    steps = plan(State.FAULT, replication)
    if kind is Kind.PURGE:
        return steps
    return tuple(step for step in steps if step.name is not StepName.PURGE)


def asks_caches(intent: Intent, memory: Memory) -> bool:
    """Whether the decision depends on what the caches hold."""
    return intent.kind is Kind.RESUME and intent.state is State.PRIMARY and memory.last is None


def has_missed(memory: Memory, since: float) -> bool:
    """Whether keepalived has changed its state since the last transition began (wall clock)."""
    return memory.last is not None and memory.last.began < since


def _is_done(state: State, memory: Memory, issued: Issued) -> bool:
    """Whether this state was reached, proven, after our notification was issued."""
    if memory.last is None or memory.last.state is not state:
        return False
    if state is State.PRIMARY and not memory.has_committed:
        return False
    return memory.last.is_proven_after(issued)


def _must_cancel(state: State, memory: Memory, boot: float) -> bool:
    return state is State.PRIMARY and memory.has_pending_purge(boot)


def _is_second(memory: Memory, observed: Observed) -> bool:
    """Whether this daemon's last request was a primary's, whose entries are live by now."""
    last, promotion = memory.last, memory.promotion
    if last is None or promotion is None or not promotion.committed or observed.other_states:
        return False
    return last.state is State.PRIMARY and (last.outcome in ENDED or promotion.before is None)


def _lacks_commit(memory: Memory) -> bool:
    """Whether the last state was primary, and its commit did not come to its end."""
    last = memory.last
    return last is not None and last.state is State.PRIMARY and not memory.has_committed


def _was_reached(intent: Intent, memory: Memory) -> bool:
    """Whether the state in which keepalived still is was brought to its end.

    A backup that received nothing is not at its end, and a primary that left that state is none.
    """
    last, state = memory.last, intent.state
    if last is None or last.state is not state or has_missed(memory, intent.since):
        return False
    if state is State.BACKUP:
        return last.outcome is Outcome.OK
    return last.outcome in ENDED and (state is not State.PRIMARY or memory.promotion is not None)
