"""memory.py: what one transition leaves, and what the next one makes of it; values alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primary_backup.memory import (
    Last,
    Memory,
    Promotion,
    Purge,
    from_json,
    to_json,
)
from primary_backup.past import NOT_ANSWERED, Earlier, Past, Replica, Reported
from primary_backup.plan import (
    CHECK_UNCOMMITTED,
    COMMIT,
    DISARM,
    DISARM_BY_COMMIT,
    DROP_UNCOMMITTED,
    PURGE,
    Mode,
    Replication,
    State,
    Step,
    StepName,
    plan,
)
from primary_backup.proof import PURGE_MARGIN_SECONDS, Commit, Kernel, Left, Outcome
from primary_backup.result import StepResult
from primary_backup.system.proc import TICKS_PER_SECOND, Issued

DAEMON = (1, 2, 3)
BEFORE = Kernel(inserted=7, entries=5)
NOW = 1_000.0
"""Seconds since boot."""
PROMOTION = plan(State.PRIMARY, Replication(Mode.FTFW))
REASSERTION = plan(State.PRIMARY, Replication(Mode.FTFW), again=True)
STANDBY = plan(State.BACKUP, Replication(Mode.FTFW))


def last(state: State, transition: str = "one", outcome: Outcome | None = None) -> Last:
    """A transition that was issued at 10 s."""
    return Last(transition, Issued(10 * TICKS_PER_SECOND, 7), state, 0.0, outcome)


def begun(
    memory: Memory, state: State, transition: str, *, steps: tuple[Step, ...] | None = None
) -> Memory:
    """A transition has begun, by default that of its state's plan."""
    ordinary = PROMOTION if state is State.PRIMARY else STANDBY
    return memory.begun(last(state, transition), ordinary if steps is None else steps, live=False)


def result(name: StepName, outcome: Outcome = Outcome.OK, attempts: int = 1) -> StepResult:
    """One step that was asked."""
    return StepResult(name, "", outcome, attempts=attempts)


def promoted(outcome: Outcome = Outcome.OK) -> Memory:
    """A promotion has committed, and has ended like this."""
    memory = begun(Memory(daemon=DAEMON), State.PRIMARY, "one").committing(BEFORE)
    return memory.after(result(StepName.COMMIT, outcome)).ended(outcome, None)


# -- of which daemon ----------------------------------------------------------------------------


def test_the_same_daemon_s_memory_is_left() -> None:
    """It is known by its socket."""
    assert promoted().of(DAEMON) == promoted()


@pytest.mark.parametrize("daemon", [(1, 2, 4), None])
def test_another_daemon_has_nothing_of_it(daemon: tuple[int, int, int] | None) -> None:
    """A daemon that was restarted has lost its caches; one without a socket may have."""
    assert promoted().of(daemon) == Memory(daemon)


def test_nothing_is_known_of_a_daemon_without_a_socket() -> None:
    """No socket then and none now do not make the same daemon."""
    assert promoted()._replace(daemon=None).of(None) == Memory()


@pytest.mark.parametrize("state", [State.BACKUP, State.FAULT])
def test_another_daemon_lacks_what_a_standby_was_sent(state: State) -> None:
    """Its external cache is lost with the daemon, and the peer has not sent it again."""
    memory = begun(Memory(daemon=DAEMON), state, "one")
    assert memory.of((1, 2, 4)) == Memory((1, 2, 4), filled=False)
    assert memory._replace(filled=True).of(DAEMON).filled


def test_another_daemon_lacks_what_a_promotion_has_not_committed() -> None:
    """Nor is what the former one lacked in it."""
    assert begun(Memory(daemon=DAEMON), State.PRIMARY, "one").of((1, 2, 4)).filled is False
    assert promoted(Outcome.FAILED).of((1, 2, 4)).filled is False
    assert promoted().of((1, 2, 4)).filled is not False
    assert Memory(daemon=DAEMON, filled=False).of((1, 2, 4)).filled is False


@pytest.mark.parametrize(("filled", "lacks"), [(None, True), (False, True), (True, False)])
def test_a_backup_lacks_until_it_is_answered(filled: bool | None, *, lacks: bool) -> None:
    """A promotion that overtakes it asks the peer; one that was answered gets the rest."""
    begins = begun(Memory(daemon=DAEMON, filled=filled), State.BACKUP, "one")
    assert begins.past(State.PRIMARY, NOW).replica.lacking == NOT_ANSWERED * lacks
    assert begins.after(result(StepName.REQUEST_RESYNC)).filled is not False


def test_a_daemon_that_nothing_was_asked_of_lacks_nothing() -> None:
    """Nor does a fault ask it, nor a commit fill it."""
    assert begun(Memory(daemon=DAEMON), State.FAULT, "one", steps=()).filled is None
    assert promoted().filled is None


def test_a_primary_that_has_committed_lacks_nothing_where_its_daemon_is_started() -> None:
    """Its connections are in the kernel."""
    assert promoted().after(result(StepName.START)).filled is not False


# -- the promotion ------------------------------------------------------------------------------


def test_a_promotion_holds_from_its_beginning() -> None:
    """Its commit is not made yet."""
    memory = begun(Memory(), State.PRIMARY, "one")
    assert (memory.promotion, memory.has_committed) == (Promotion("one"), False)


def test_a_promotion_whose_commit_ended_has_committed() -> None:
    """Be it degraded; whoever began it."""
    assert promoted().has_committed
    assert promoted(Outcome.DEGRADED).has_committed
    assert not promoted(Outcome.FAILED).has_committed


@pytest.mark.parametrize("state", [State.BACKUP, State.FAULT])
def test_another_state_ends_a_promotion(state: State) -> None:
    """The next primary is a first one."""
    assert begun(promoted(), state, "two").promotion is None


def test_a_second_promotion_is_the_first_one_still() -> None:
    """It commits nothing, and its commit is judged no more."""
    memory = begun(promoted(), State.PRIMARY, "two", steps=REASSERTION)
    assert memory.promotion == Promotion("one", committed=True)


def test_a_promotion_that_commits_again_is_another_one() -> None:
    """Nothing is left to judge of the first."""
    assert begun(promoted(), State.PRIMARY, "two").promotion == Promotion("two")


@pytest.mark.parametrize("live", [True, False])
def test_who_only_brought_a_primary_back_in_sync_has_nothing_to_commit(*, live: bool) -> None:
    """A node that was primary already; a re-assertion has yet to be a promotion."""
    memory = Memory().begun(last(State.PRIMARY), REASSERTION, live=live)
    assert memory.has_committed is live


def test_a_promotion_of_entries_that_are_live_still_commits_if_asked() -> None:
    """Without an internal cache a commit is all that cancels a purge."""
    memory = Memory().begun(last(State.PRIMARY), PROMOTION, live=True)
    assert not memory.has_committed


# -- a commit whose process was killed ----------------------------------------------------------


def test_a_killed_promotion_leaves_the_counters_before_its_commit() -> None:
    """Killed while -c was asked: whether it did anything, these tell."""
    memory = begun(Memory(), State.PRIMARY, "one").committing(BEFORE)
    past = memory.past(State.PRIMARY, NOW)
    assert (past.earlier, past.left.copies) == (Earlier(BEFORE, ended=False), 1)


def test_a_commit_that_came_to_its_end_is_known_to_have() -> None:
    """Killed after -c."""
    memory = begun(Memory(), State.PRIMARY, "one").committing(BEFORE)
    past = memory.after(result(StepName.COMMIT)).past(State.PRIMARY, NOW)
    assert past.earlier == Earlier(BEFORE, ended=True)


def test_a_promotion_that_was_killed_twice_is_judged_from_its_beginning() -> None:
    """The counters of the second would hide what the first has made."""
    memory = begun(Memory(), State.PRIMARY, "one").committing(BEFORE)
    memory = begun(memory, State.PRIMARY, "two").committing(Kernel(1_000, 1_000))
    assert memory.past(State.PRIMARY, NOW).earlier == Earlier(BEFORE, ended=False)


def test_a_promotion_that_was_killed_before_its_commit_left_nothing() -> None:
    """Nothing was asked: the next one is a first one."""
    memory = begun(Memory(), State.PRIMARY, "one")
    assert memory.past(State.PRIMARY, NOW).earlier is None


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.DEGRADED])
def test_a_promotion_that_ended_left_nothing_to_judge(outcome: Outcome) -> None:
    """It has judged its commit itself."""
    assert promoted(outcome).past(State.PRIMARY, NOW).earlier is None


def test_a_re_assertion_leaves_no_old_commit_to_judge() -> None:
    """Hours after the promotion its counters mean nothing any more."""
    memory = begun(promoted(), State.PRIMARY, "two", steps=REASSERTION)
    assert memory.ended(Outcome.FAILED, None).past(State.PRIMARY, NOW).earlier is None


@pytest.mark.parametrize("state", [State.BACKUP, State.FAULT])
def test_no_other_state_finishes_a_commit(state: State) -> None:
    """A killed promotion is not for it to judge; its copies are uncommitted."""
    past = begun(Memory(), State.PRIMARY, "one").committing(BEFORE).past(state, NOW)
    assert (past.earlier, past.left.copies) == (None, 1)


# -- a purge ------------------------------------------------------------------------------------


def test_a_purge_is_pending_until_it_has_certainly_fired() -> None:
    """It may be late by some seconds."""
    memory = Memory().purging(NOW + 60, forced=True)
    assert memory.purge == Purge(NOW + 60 + PURGE_MARGIN_SECONDS, forced=True)
    assert memory.has_pending_purge(NOW + 60)
    assert not memory.has_pending_purge(NOW + 60 + PURGE_MARGIN_SECONDS)
    assert memory.past(State.FAULT, NOW).purge_pending
    assert not Memory().has_pending_purge(NOW)


@pytest.mark.parametrize(("forced", "after"), [(False, 0), (True, 0), (False, 61)])
def test_a_purge_that_was_forced_or_has_fired_is_not_cancelled(*, forced: bool, after: int) -> None:
    """A follower cancels those that keepalived's report forbids, while they are pending."""
    memory = Memory().purging(NOW + 60 - PURGE_MARGIN_SECONDS, forced=forced)
    assert memory.has_unforced_purge(NOW + after) is (not forced and after == 0)


@pytest.mark.parametrize(
    "name", [StepName.COMMIT, StepName.FLUSH, StepName.FLUSH_INTERNAL, StepName.DISARM]
)
def test_what_cancels_a_purge_cancels_it(name: StepName) -> None:
    """conntrackd(8) names neither: local.c does."""
    pending = Memory().purging(NOW + 60, forced=False)
    assert pending.after(result(name)).purge is None
    assert pending.after(result(name, Outcome.FAILED)).purge == pending.purge
    assert pending.after(result(name, Outcome.SKIPPED, attempts=0)).purge == pending.purge


@pytest.mark.parametrize("purged", [True, False])
def test_a_purge_that_was_cancelled_again_is_not_pending(*, purged: bool) -> None:
    """A newer notification came while it was sent."""
    pending = Memory().purging(NOW + 60, forced=False)
    after = pending.after(result(StepName.PURGE)._replace(purged=purged))
    assert after.has_pending_purge(NOW) is purged


def test_a_deferred_purge_is_remembered_by_a_standby_alone() -> None:
    """What a backup has deferred would empty the live table of a primary."""
    deferred = Memory().after(
        result(StepName.PURGE, Outcome.SKIPPED, attempts=0)._replace(deferred=True)
    )
    assert deferred.deferred
    assert begun(deferred, State.FAULT, "two").deferred
    assert not begun(deferred, State.PRIMARY, "two").deferred
    assert not deferred.after(result(StepName.PURGE)._replace(purged=True)).deferred


@pytest.mark.parametrize(
    ("step", "past", "needless"),
    [
        (CHECK_UNCOMMITTED, Past(), True),
        (CHECK_UNCOMMITTED, Past(Left(copies=1)), False),
        (DROP_UNCOMMITTED, Past(), True),
        (DROP_UNCOMMITTED, Past(Left(rebuilding=True)), False),
        (DISARM, Past(), True),
        (DISARM, Past(purge_pending=True), False),
        (DISARM_BY_COMMIT, Past(), True),
        (DISARM_BY_COMMIT, Past(purge_pending=True), False),
        (PURGE, Past(), False),
        (COMMIT, Past(), False),
    ],
)
def test_a_step_is_needless_where_nothing_was_left(
    step: Step, past: Past, *, needless: bool
) -> None:
    """That is known before anything is asked."""
    assert (past.needless(step) is not None) is needless


# -- what a step changes ------------------------------------------------------------------------


def test_what_a_step_leaves_is_remembered() -> None:
    """The last one counts."""
    left = result(StepName.FLUSH)._replace(left=Left(3, rebuilding=True), no_packets=True)
    memory = Memory().after(left)
    assert (memory.left, memory.no_packets) == (Left(3, rebuilding=True), True)
    assert not begun(memory, State.BACKUP, "two").no_packets


@pytest.mark.parametrize(
    ("answer", "lacking"),
    [
        (result(StepName.REQUEST_RESYNC), False),
        (result(StepName.REQUEST_RESYNC, Outcome.DEGRADED), True),
        (result(StepName.COMMIT, Outcome.DEGRADED), False),
        (result(StepName.COMMIT, Outcome.DEGRADED)._replace(lacking=True), True),
        (result(StepName.COMMIT, Outcome.FAILED), True),
        (result(StepName.RESYNC), True),
    ],
)
def test_a_started_daemon_lacks_until_the_peer_answers_or_it_commits(
    answer: StepResult, *, lacking: bool
) -> None:
    """Its external cache is new."""
    memory = Memory().after(result(StepName.START))
    assert memory.filled is False
    assert (memory.after(answer).filled is False) is lacking


def test_a_blank_memory_has_no_end_and_no_order() -> None:
    """There is nothing to end, nor to confirm."""
    assert Memory().ended(Outcome.OK, NOW) == Memory()
    assert Memory().confirmed(Issued(1, 2)) == Memory()


def test_a_notification_that_asks_nothing_is_the_newest_all_the_same() -> None:
    """An older one yields to it."""
    newest = Issued(99, 7)
    confirmed = promoted().confirmed(newest).last
    assert confirmed is not None
    assert confirmed.issued == newest


@pytest.mark.parametrize(("ticks", "after"), [(-1, True), (0, False), (1, False)])
def test_what_was_proven_in_the_same_tick_may_have_been_before(ticks: int, *, after: bool) -> None:
    """A notification is dated in ticks, and may well have come after the work within its own."""
    proven = last(State.BACKUP)._replace(proven=NOW + 0.5 / TICKS_PER_SECOND)
    assert proven.is_proven_after(Issued(int(NOW * TICKS_PER_SECOND) + ticks, 7)) is after


def test_what_was_not_proven_was_proven_after_nothing() -> None:
    """Only an ok is a proof."""
    assert not last(State.BACKUP).is_proven_after(Issued(0, 0))


# -- as it is stored ----------------------------------------------------------------------------

TIMES = st.floats(0, 1e10)
COUNTS = st.integers(0, 2**40)
KERNELS = st.builds(Kernel, st.none() | COUNTS, COUNTS)
LASTS = st.builds(
    Last,
    st.text(),
    st.builds(Issued, COUNTS, COUNTS, COUNTS),
    st.sampled_from(State),
    TIMES,
    st.none() | st.sampled_from(Outcome),
    st.none() | TIMES,
)
MEMORIES = st.builds(
    Memory,
    daemon=st.none() | st.tuples(COUNTS, COUNTS, COUNTS),
    last=st.none() | LASTS,
    promotion=st.none() | st.builds(Promotion, st.text(), st.booleans(), st.none() | KERNELS),
    purge=st.none() | st.builds(Purge, TIMES, st.booleans()),
    left=st.builds(Left, COUNTS, st.booleans()),
    no_packets=st.booleans(),
    filled=st.none() | st.booleans(),
    asked=st.none() | TIMES,
    deferred=st.booleans(),
)


@given(MEMORIES)
def test_any_memory_is_read_as_it_was_stored(memory: Memory) -> None:
    """Whatever it is, the next transition knows it: every value, and every type."""
    read = from_json(to_json(memory, "boot"), "boot")
    assert read == memory
    assert type(read.left) is Left
    assert read.last is None or type(read.last.issued) is Issued


def test_another_boot_s_memory_is_blank() -> None:
    """Pids, starts and daemons of another boot mean nothing."""
    assert from_json(to_json(promoted(), "yesterday"), "today") == Memory()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"x"',
        "{}",
        '{"boot": "today"}',
        to_json(promoted(), "today").replace('"primary"', '"unknown"'),
        to_json(promoted(), "today").replace("[1, 2, 3]", "[1, 2]"),
        to_json(Memory(), "today").replace('"last": null', '"last": []'),
    ],
)
def test_anything_else_is_no_memory(text: str) -> None:
    """Another version's, or a torn file's."""
    with pytest.raises(ValueError, match=r"."):
        from_json(text, "today")


def test_a_commit_s_figures_change_no_memory() -> None:
    """They are for the event alone."""
    seen = result(StepName.COMMIT)._replace(commit=Commit(3, 2, 1))
    assert promoted().after(seen) == promoted().after(result(StepName.COMMIT))


@pytest.mark.parametrize(
    ("replica", "filled"),
    [
        (Replica(), None),
        (Replica("silent"), False),
        (Replica(certified=True), True),
    ],
)
def test_what_the_follower_knows_replaces_what_is_remembered(
    replica: Replica, *, filled: bool | None
) -> None:
    """A replica that lacks something is asked for later; one that was compared lacks nothing."""
    memory = Memory(daemon=DAEMON)
    assert memory.knowing(replica).filled is filled
    unanswered = memory._replace(filled=False)
    assert unanswered.knowing(replica).filled is bool(filled)
    expected = "" if filled else (replica.lacking or NOT_ANSWERED)
    assert unanswered.past(State.PRIMARY, NOW, replica).replica.lacking == expected


def test_a_commit_that_lacks_something_is_remembered() -> None:
    """Until one has asked a peer that could send it."""
    lacking = result(StepName.COMMIT, Outcome.DEGRADED)._replace(lacking=True)
    memory = Memory(daemon=DAEMON, filled=True).after(lacking)
    assert memory.filled is False
    assert memory.after(result(StepName.COMMIT)).filled is True


def test_the_last_transition_and_its_promotion_have_a_name() -> None:
    """Both are empty where there was none."""
    assert Memory().transition == ""
    assert not Memory().is_promoted_by("one")
    memory = begun(Memory(daemon=DAEMON), State.PRIMARY, "one")
    assert memory.transition == "one"
    assert memory.is_promoted_by("one")
    assert not memory.is_promoted_by("two")


def test_a_replica_that_no_follower_watches_has_an_age() -> None:
    """That of the request that the peer has answered."""
    asked = begun(Memory(daemon=DAEMON), State.BACKUP, "one")
    answered = asked.after(result(StepName.REQUEST_RESYNC))
    assert asked.last is not None
    since = asked.last.issued.seconds
    assert answered.past(State.PRIMARY, NOW).replica == Replica(answered=since)
    watched = Replica(watched=True)
    assert answered.past(State.PRIMARY, NOW, watched).replica == watched
    assert asked.past(State.PRIMARY, NOW).replica.answered is None


def test_a_replica_s_source_is_the_peer_s_count_or_its_age() -> None:
    """The count where a follower has one."""

    def clock(boot: float) -> str:
        return f"{boot:.0f} of the clock"

    reported = Reported("fw-1", 500, 0.6)
    assert Replica().source(clock) == ""
    assert Replica(reported=reported, answered=7).source(clock) == str(reported)
    dated = "replica of 7 of the clock, the link was not watched since"
    assert Replica(answered=7).source(clock) == dated
