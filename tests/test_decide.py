"""decide.py: the table of what is asked, from an intent, a memory and what was observed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primary_backup.decide import Caches, Decision, Observed, asks_caches, decide, has_missed
from primary_backup.intent import Intent, Kind
from primary_backup.memory import Last, Memory, Promotion, Purge
from primary_backup.plan import (
    Mode,
    Replication,
    State,
    Step,
    StepName,
    plan,
    refresh,
)
from primary_backup.proof import Kernel, Outcome
from primary_backup.system.proc import TICKS_PER_SECOND, Issued

FTFW = Replication(Mode.FTFW)
NO_INTERNAL = Replication(Mode.NOTRACK, internal_cache=False)
EVERY = [
    *(Replication(*each) for each in itertools.product(Mode, (True, False), (True, False))),
    None,
]
NOW = 1_000.0
"""Seconds since boot."""
BEGAN = 5_000.0
"""Seconds of the wall clock."""
ISSUED = Issued(int(NOW * TICKS_PER_SECOND), 7)
OBSERVED = Observed(ISSUED, NOW)
FIRST = plan(State.PRIMARY, FTFW)
SECOND = plan(State.PRIMARY, FTFW, again=True)
BEFORE = Kernel(7, 5)


def left(
    state: State,
    outcome: Outcome | None = Outcome.OK,
    *,
    proven: float | None = None,
    promotion: Promotion | None = None,
) -> Memory:
    """What a transition to that state has left; a primary's promotion holds, and has committed."""
    if state is State.PRIMARY and promotion is None:
        promotion = Promotion("one", committed=True, before=BEFORE)
    last = Last("one", Issued(100, 7), state, BEGAN, outcome, proven)
    return Memory(daemon=(1, 2, 3), last=last, promotion=promotion)


def pending(memory: Memory) -> Memory:
    """The same, with a purge that has not fired yet."""
    return memory._replace(purge=Purge(NOW + 1))


def intended(state: State, kind: Kind = Kind.BECOME, since: float = 0.0) -> Intent:
    """An intent as a follower or a person has it."""
    return Intent(state, "test", kind, since)


def asked(intent: Intent, memory: Memory, observed: Observed = OBSERVED) -> tuple[Step, ...]:
    """The steps that are decided on, in FTFW."""
    return decide(intent, memory, FTFW, observed).steps


@pytest.mark.parametrize("before", [None, State.PRIMARY, State.BACKUP, State.FAULT])
def test_only_a_primary_that_is_in_fault_awaits_a_bulk(before: State | None) -> None:
    """A backup has asked for one itself, and what it receives may be the answer."""
    memory = left(before) if before is not None else Memory()
    decided = decide(intended(State.FAULT), memory, FTFW, OBSERVED)
    assert decided.awaits_bulk is (before is State.PRIMARY)


@pytest.mark.parametrize("state", [State.BACKUP, State.FAULT])
def test_a_follower_that_ends_asks_for_no_purge_and_cancels_one(state: State) -> None:
    """Only what cancels it, under its conditions."""
    steps = asked(intended(state, Kind.DISARM), pending(left(state)))
    assert [step.name.value for step in steps] == ["disarm", "resync"]


FAILED = left(State.PRIMARY, Outcome.FAILED)
UNCOMMITTED = Promotion("one", committed=False, before=BEFORE)
LIVE = Promotion("one", committed=True)

TABLE = [
    # A person, or a line of keepalived's.
    ("nothing is known", Kind.BECOME, State.PRIMARY, Memory(), FIRST),
    ("after a backup", Kind.BECOME, State.PRIMARY, left(State.BACKUP), FIRST),
    ("after a promotion", Kind.BECOME, State.PRIMARY, left(State.PRIMARY), SECOND),
    (
        "after a degraded one",
        Kind.BECOME,
        State.PRIMARY,
        left(State.PRIMARY, Outcome.DEGRADED),
        SECOND,
    ),
    ("after one that failed", Kind.BECOME, State.PRIMARY, FAILED, FIRST),
    ("after one that was killed", Kind.BECOME, State.PRIMARY, left(State.PRIMARY, None), FIRST),
    (
        "after one without a commit that failed",
        Kind.BECOME,
        State.PRIMARY,
        left(State.PRIMARY, Outcome.FAILED, promotion=LIVE),
        SECOND,
    ),
    (
        "after one that another state ended",
        Kind.BECOME,
        State.PRIMARY,
        left(State.PRIMARY)._replace(promotion=None),
        FIRST,
    ),
    ("a backup again", Kind.BECOME, State.BACKUP, left(State.BACKUP), plan(State.BACKUP, FTFW)),
    ("a fault", Kind.BECOME, State.FAULT, left(State.PRIMARY), plan(State.FAULT, FTFW)),
    # A rival advertises with a lower priority.
    ("re-asserted", Kind.REASSERT, State.PRIMARY, left(State.PRIMARY), SECOND),
    ("re-asserted, nothing known", Kind.REASSERT, State.PRIMARY, Memory(), SECOND),
    ("re-asserted after a backup", Kind.REASSERT, State.PRIMARY, left(State.BACKUP), SECOND),
    (
        "re-asserted, but not committed",
        Kind.REASSERT,
        State.PRIMARY,
        left(State.PRIMARY, None, promotion=UNCOMMITTED),
        FIRST,
    ),
    # A daemon or a peer came back.
    ("refreshed", Kind.REFRESH, State.PRIMARY, left(State.PRIMARY), refresh(State.PRIMARY, FTFW)),
    ("refreshed, lacking", Kind.REFRESH, State.PRIMARY,
     left(State.PRIMARY)._replace(filled=False), FIRST),
    ("a second one, lacking", Kind.BECOME, State.PRIMARY,
     left(State.PRIMARY)._replace(filled=False), FIRST),
    ("refreshed backup, lacking", Kind.REFRESH, State.BACKUP,
     Memory(filled=False), refresh(State.BACKUP, FTFW)),
    ("refreshed backup", Kind.REFRESH, State.BACKUP, Memory(), refresh(State.BACKUP, FTFW)),
    ("refreshed, purge pending", Kind.REFRESH, State.PRIMARY, pending(left(State.BACKUP)), SECOND),
    (
        "refreshed backup, purge pending",
        Kind.REFRESH,
        State.BACKUP,
        pending(left(State.BACKUP)),
        refresh(State.BACKUP, FTFW),
    ),
    # A purge that was deferred.
    ("purged", Kind.PURGE, State.BACKUP, left(State.BACKUP), plan(State.FAULT, FTFW)),
    # What keepalived reports when it is asked.
    ("resumed backup, degraded", Kind.RESUME, State.BACKUP,
     left(State.BACKUP, Outcome.DEGRADED), plan(State.BACKUP, FTFW)),
    ("resumed fault, failed", Kind.RESUME, State.FAULT,
     left(State.FAULT, Outcome.FAILED), plan(State.FAULT, FTFW)),
    ("resumed primary, killed", Kind.RESUME, State.PRIMARY,
     left(State.PRIMARY, None), FIRST),
    ("resumed after another state", Kind.RESUME, State.PRIMARY, left(State.BACKUP), FIRST),
    ("resumed after a stop", Kind.RESUME, State.PRIMARY,
     left(State.PRIMARY)._replace(promotion=None), FIRST),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "state", "memory", "steps"),
    [pytest.param(*row[1:], id=row[0]) for row in TABLE],
)
def test_each_intent_asks_what_the_table_has(
    kind: Kind, state: State, memory: Memory, steps: tuple[Step, ...]
) -> None:
    """By what is remembered of this same daemon."""
    assert asked(intended(state, kind), memory) == steps


@pytest.mark.parametrize("state", [State.PRIMARY, State.BACKUP, State.FAULT])
@pytest.mark.parametrize("kind", Kind)
def test_what_was_proven_after_it_was_issued_is_done(state: State, kind: Kind) -> None:
    """Who waited for the same finds it done, and nothing is asked."""
    memory = left(state, proven=NOW + 1)
    decision = decide(intended(state, kind), memory, FTFW, OBSERVED)
    assert (decision.steps, decision.nothing) == ((), "already done by transition one")


@pytest.mark.parametrize(
    ("state", "memory"),
    [
        (State.BACKUP, left(State.BACKUP, proven=NOW)),
        (State.BACKUP, left(State.BACKUP)),
        (State.FAULT, left(State.BACKUP, proven=NOW + 1)),
        (State.PRIMARY, left(State.PRIMARY, proven=NOW + 1)._replace(promotion=None)),
        (State.PRIMARY, left(State.PRIMARY, proven=NOW + 1, promotion=UNCOMMITTED)),
    ],
    ids=["in the same tick", "not proven", "another state", "another state came", "no commit"],
)
def test_anything_else_is_not_done(state: State, memory: Memory) -> None:
    """What was proven before it was issued may not hold any more."""
    assert decide(intended(state), memory, FTFW, OBSERVED).nothing is None


def test_a_primary_is_a_first_one_where_another_state_waits() -> None:
    """Its entries are not live any more once that state is carried out."""
    others = OBSERVED._replace(other_states=True)
    assert asked(intended(State.PRIMARY), left(State.PRIMARY), others) == FIRST


@pytest.mark.parametrize(
    ("state", "outcome", "reached"),
    [
        (State.PRIMARY, Outcome.OK, True),
        (State.PRIMARY, Outcome.DEGRADED, True),
        (State.BACKUP, Outcome.OK, True),
        (State.BACKUP, Outcome.DEGRADED, False),
        (State.FAULT, Outcome.OK, True),
        (State.FAULT, Outcome.DEGRADED, True),
        *itertools.product(
            (State.PRIMARY, State.BACKUP, State.FAULT),
            (Outcome.FAILED, Outcome.SUPERSEDED, None),
            (False,),
        ),
    ],
)
def test_a_state_that_keepalived_still_has_is_not_asked_for_again(
    state: State, outcome: Outcome | None, *, reached: bool
) -> None:
    """If it was brought to its end: a degraded backup may hold no copy."""
    decision = decide(intended(state, Kind.RESUME, BEGAN), left(state, outcome), FTFW, OBSERVED)
    assert (decision.nothing is not None) is reached
    assert bool(decision.steps) is not reached


@pytest.mark.parametrize("state", [State.PRIMARY, State.BACKUP, State.FAULT])
def test_a_state_that_keepalived_has_left_since_is_carried_out(state: State) -> None:
    """It has changed its state since the last transition began, and is in the same one again."""
    intent = intended(state, Kind.RESUME, BEGAN + 1)
    decision = decide(intent, left(state), FTFW, OBSERVED)
    assert decision.steps == plan(state, FTFW)
    assert decision.forget_promotion is (state is State.PRIMARY)
    assert decision.live


@pytest.mark.parametrize(
    ("caches", "steps"),
    [
        (None, FIRST),
        (Caches(11, 100), FIRST),
        (Caches(10, 100), SECOND),
        (Caches(None, 100), SECOND),
        (Caches(0, 0), SECOND),
    ],
)
def test_of_a_primary_of_which_nothing_is_known_the_caches_decide(
    caches: Caches | None, steps: tuple[Step, ...]
) -> None:
    """A full external cache was never committed; a daemon that does not answer may have one."""
    intent = intended(State.PRIMARY, Kind.RESUME)
    assert asks_caches(intent, Memory())
    assert asked(intent, Memory(), OBSERVED._replace(caches=caches)) == steps


@pytest.mark.parametrize(
    ("kind", "state", "memory"),
    [
        (Kind.BECOME, State.PRIMARY, Memory()),
        (Kind.RESUME, State.BACKUP, Memory()),
        (Kind.RESUME, State.PRIMARY, left(State.BACKUP)),
    ],
)
def test_otherwise_they_are_not_asked_for(kind: Kind, state: State, memory: Memory) -> None:
    """A promotion does not wait for them."""
    assert not asks_caches(intended(state, kind), memory)


def test_a_pending_purge_is_cancelled_by_a_commit_where_nothing_else_does() -> None:
    """Without an internal cache: -c, over entries that are live."""
    intent = intended(State.PRIMARY, Kind.REFRESH)
    decision = decide(intent, pending(left(State.BACKUP)), NO_INTERNAL, OBSERVED)
    assert decision.steps == plan(State.PRIMARY, NO_INTERNAL)
    second = decide(intent, pending(left(State.PRIMARY)), NO_INTERNAL, OBSERVED)
    assert second.steps == plan(State.PRIMARY, NO_INTERNAL, again=True)


@pytest.mark.parametrize(
    ("intent", "ends"),
    [
        (intended(State.PRIMARY), False),
        (intended(State.PRIMARY)._replace(stepped_down=True), True),
        (intended(State.BACKUP), True),
        (intended(State.FAULT), True),
        (intended(State.STOP), True),
    ],
)
def test_the_next_primary_commits_after_any_other_state(intent: Intent, *, ends: bool) -> None:
    """Also after one that was read, but not carried out."""
    assert intent.ends_promotion is ends


def test_who_knows_nothing_has_missed_nothing() -> None:
    """There is no transition to compare a date with."""
    assert not has_missed(Memory(), BEGAN)


MEMORIES = st.builds(
    left,
    st.sampled_from([State.PRIMARY, State.BACKUP, State.FAULT]),
    st.none() | st.sampled_from(Outcome),
    proven=st.none() | st.floats(0, 2 * NOW),
    promotion=st.none() | st.builds(Promotion, st.just("one"), st.booleans()),
) | st.just(Memory())
INTENTS = st.builds(
    intended,
    st.sampled_from([State.PRIMARY, State.BACKUP, State.FAULT]),
    st.sampled_from(Kind),
    st.floats(0, 2 * BEGAN),
)
OBSERVATIONS = st.builds(
    Observed,
    st.just(ISSUED),
    st.just(NOW),
    st.booleans(),
    st.none() | st.builds(Caches, st.none() | st.integers(0, 200), st.integers(0, 200)),
)


@given(INTENTS, MEMORIES, st.sampled_from(EVERY), OBSERVATIONS)
def test_any_decision_has_steps_or_a_reason_and_no_other_state_commits(
    intent: Intent, memory: Memory, replication: Replication | None, observed: Observed
) -> None:
    """Whatever is known: a standby commits nothing into its kernel table."""
    decision = decide(intent, memory, replication, observed)
    assert decision.nothing is None or decision == Decision(nothing=decision.nothing)
    names = {step.name for step in decision.steps}
    assert StepName.COMMIT not in names or intent.state is State.PRIMARY
    assert (
        StepName.PURGE not in names
        or intent.state is not State.PRIMARY
        or (intent.kind is Kind.PURGE)
    )
    assert not decision.forget_promotion or intent.state is State.PRIMARY


@pytest.mark.parametrize("kind", Kind)
def test_what_is_of_the_purge_alone_proves_no_state(kind: Kind) -> None:
    """A deferred purge, and what cancels one, are not all of a backup's steps."""
    assert kind.is_of_the_purge_alone is (kind.value in ("purge", "disarm"))


def test_a_promotion_commits_and_nothing_else_does() -> None:
    """What is known of the peer matters to it alone."""
    assert Decision(FIRST).commits
    assert not Decision(SECOND).commits
    assert not Decision(plan(State.BACKUP, FTFW)).commits
    assert not Decision().commits
