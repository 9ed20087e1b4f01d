"""plan.py: the table of states and replication modes, written down once more and compared."""

import itertools

import pytest

from primary_backup.plan import (
    STARTS_DAEMON,
    Mode,
    Replication,
    State,
    Step,
    StepName,
    When,
    plan,
    refresh,
)

FTFW = Replication(Mode.FTFW)
NOTRACK = Replication(Mode.NOTRACK)
ALARM = Replication(Mode.ALARM)
FTFW_DIRECT = Replication(Mode.FTFW, external_cache=False)
NOTRACK_DIRECT = Replication(Mode.NOTRACK, external_cache=False)
NO_INTERNAL = Replication(Mode.NOTRACK, internal_cache=False)
NO_CACHE = Replication(Mode.NOTRACK, internal_cache=False, external_cache=False)
# No grammar gives FTFW this in one Mode block; two blocks do.
FTFW_NO_INTERNAL = Replication(Mode.FTFW, internal_cache=False)
UNREAD = None

EVERY = (
    FTFW, NOTRACK, ALARM, FTFW_DIRECT, NOTRACK_DIRECT, NO_INTERNAL, NO_CACHE, FTFW_NO_INTERNAL,
    UNREAD,
)  # fmt: skip
EVERY_PLAN = [
    pytest.param(plan(state, replication, again=again), state, replication, id=f"{state.value}-{n}")
    for n, (state, replication, again) in enumerate(
        itertools.product(State, EVERY, (False, True)),
    )
    if (replication is not UNREAD or state is not State.STOP)
    and (state is State.PRIMARY or not again)
]

PURGE = ("-t", When.PEER_COVERS)
DISARM = (("-f internal", When.PURGE_PENDING), ("-R", When.PURGE_PENDING))
DISARM_BY_COMMIT = ("-c", When.PURGE_PENDING_EMPTY)
ASK = (("-f external", When.UNCOMMITTED_COVERED), ("-n", When.ALWAYS))
PROMOTE = (
    ("-c", When.ALWAYS),
    ("-f", When.COMMIT_PROVEN),
    ("-f internal", When.COMMIT_UNPROVEN),
    ("-R", When.ALWAYS),
)
SEND = ("-B", When.ALWAYS)

TABLE = [
    (State.PRIMARY, FTFW, (*PROMOTE, SEND)),
    (State.PRIMARY, NOTRACK, (*PROMOTE, SEND)),
    (State.PRIMARY, FTFW_DIRECT, (*PROMOTE, SEND)),
    (State.PRIMARY, NOTRACK_DIRECT, (*PROMOTE, SEND)),
    (
        State.PRIMARY,
        NO_INTERNAL,
        (("-c", When.ALWAYS), ("-f external", When.COMMIT_PROVEN), SEND),
    ),
    (State.PRIMARY, NO_CACHE, (("-c", When.ALWAYS), SEND)),
    (
        State.PRIMARY,
        FTFW_NO_INTERNAL,
        (("-c", When.ALWAYS), ("-f external", When.COMMIT_PROVEN)),
    ),
    (State.PRIMARY, ALARM, PROMOTE),
    (State.PRIMARY, UNREAD, (("-c", When.ALWAYS), ("-R", When.ALWAYS), SEND)),
    (State.BACKUP, FTFW, (*ASK, PURGE, *DISARM)),
    (State.BACKUP, NOTRACK, (*ASK, PURGE, *DISARM)),
    (State.BACKUP, FTFW_DIRECT, (("-n", When.ALWAYS),)),
    (State.BACKUP, NOTRACK_DIRECT, (("-n", When.ALWAYS),)),
    (State.BACKUP, NO_INTERNAL, (*ASK, PURGE, DISARM_BY_COMMIT)),
    (State.BACKUP, NO_CACHE, (("-n", When.ALWAYS),)),
    (State.BACKUP, FTFW_NO_INTERNAL, (PURGE, DISARM_BY_COMMIT)),
    (State.BACKUP, ALARM, (PURGE, *DISARM)),
    (State.BACKUP, UNREAD, (("-n", When.ALWAYS),)),
    (State.FAULT, FTFW, (PURGE, *DISARM)),
    (State.FAULT, NOTRACK, (PURGE, *DISARM)),
    (State.FAULT, FTFW_DIRECT, ()),
    (State.FAULT, NOTRACK_DIRECT, ()),
    (State.FAULT, NO_INTERNAL, (PURGE, DISARM_BY_COMMIT)),
    (State.FAULT, NO_CACHE, ()),
    (State.FAULT, FTFW_NO_INTERNAL, (PURGE, DISARM_BY_COMMIT)),
    (State.FAULT, ALARM, (PURGE, *DISARM)),
    (State.FAULT, UNREAD, ()),
]


def asked(steps: tuple[Step, ...]) -> tuple[tuple[str, When], ...]:
    """What the steps ask, and when."""
    return tuple((" ".join(step.options), step.when) for step in steps)


def always(*requests: str) -> tuple[tuple[str, When], ...]:
    """These requests, whatever was observed; but a check only where copies were left."""
    return tuple((each, When.UNCOMMITTED if each == "-s" else When.ALWAYS) for each in requests)


@pytest.mark.parametrize(("state", "replication", "expected"), TABLE)
def test_each_state_asks_what_the_table_reports(
    state: State, replication: Replication | None, expected: tuple[tuple[str, When], ...]
) -> None:
    """Each state asks these requests of conntrackd, in this order, in each replication mode."""
    assert asked(plan(state, replication)) == expected


@pytest.mark.parametrize(
    ("replication", "expected"),
    [
        (FTFW, ("-f internal", "-R", "-B", "-s")),
        (NOTRACK, ("-f internal", "-R", "-B", "-s")),
        (FTFW_DIRECT, ("-f internal", "-R", "-B")),
        (ALARM, ("-f internal", "-R", "-s")),
        (NO_INTERNAL, ("-B", "-s")),
        (NO_CACHE, ("-B",)),
        (FTFW_NO_INTERNAL, ("-s",)),
        (UNREAD, ("-R", "-B", "-s")),
    ],
)
def test_a_second_primary_rebuilds_and_sends(
    replication: Replication | None, expected: tuple[str, ...]
) -> None:
    """A second primary asks -f internal (which cancels a purge), -R and -B, whatever is pending.

    Where there is an external cache, it reports copies that an earlier promotion left there.
    """
    assert asked(plan(State.PRIMARY, replication, again=True)) == always(*expected)


@pytest.mark.parametrize("replication", EVERY)
def test_a_second_primary_commits_nothing(replication: Replication | None) -> None:
    """Live entries are newer than any copy: no -c over them, in no mode, and not unread either."""
    assert "-c" not in dict(asked(plan(State.PRIMARY, replication, again=True)))


@pytest.mark.parametrize("replication", EVERY)
def test_a_promotion_commits_first(replication: Replication | None) -> None:
    """Nothing stands between a promotion and its commit, which also cancels a pending purge."""
    assert asked(plan(State.PRIMARY, replication))[0] == ("-c", When.ALWAYS)


@pytest.mark.parametrize("replication", [NO_INTERNAL, NO_CACHE, FTFW_NO_INTERNAL])
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("again", [False, True])
def test_nothing_flushes_the_kernel_table(
    state: State, replication: Replication, *, again: bool
) -> None:
    """With DisableInternalCache On, -f and -f internal flush the kernel table: never asked."""
    flushes = {("-f",), ("-f", "internal")}
    assert not flushes & {step.options for step in plan(state, replication, again=again)}


@pytest.mark.parametrize(
    ("state", "replication"),
    list(itertools.product(State, [FTFW_DIRECT, NOTRACK_DIRECT, NO_CACHE])),
)
def test_a_replica_in_the_kernel_is_never_purged(state: State, replication: Replication) -> None:
    """Without an external cache the kernel table is the replica, and -t would wipe it."""
    assert ("-t",) not in {step.options for step in plan(state, replication)}


@pytest.mark.parametrize(("steps", "state", "replication"), EVERY_PLAN)
def test_every_purge_waits_for_a_proven_peer(
    steps: tuple[Step, ...], state: State, replication: Replication | None
) -> None:
    """-t is a delayed flush of the whole kernel table: only where the peer's copy covers ours."""
    purges = [step for step in steps if step.options == ("-t",)]
    assert all(step.when is When.PEER_COVERS for step in purges)


@pytest.mark.parametrize(("steps", "state", "replication"), EVERY_PLAN)
def test_the_only_copy_is_dropped_only_after_a_proof(
    steps: tuple[Step, ...], state: State, replication: Replication | None
) -> None:
    """No flush of the external cache without a proven commit, or a peer that holds it all."""
    drops = [step for step in steps if step.options in (("-f",), ("-f", "external"))]
    assert all(step.when in (When.COMMIT_PROVEN, When.UNCOMMITTED_COVERED) for step in drops)


@pytest.mark.parametrize(("steps", "state", "replication"), EVERY_PLAN)
def test_every_step_reports_why_and_what_proves_it(
    steps: tuple[Step, ...], state: State, replication: Replication | None
) -> None:
    """A dry run prints why each step is there, and what will prove it."""
    assert all(step.why and step.proof for step in steps)


@pytest.mark.parametrize("replication", [FTFW, NOTRACK, NO_INTERNAL, FTFW_DIRECT, NO_CACHE])
def test_a_backup_asks_for_a_resync_before_it_purges(replication: Replication) -> None:
    """The peer's copy is made whole first, and only then it is compared."""
    names = [step.name for step in plan(State.BACKUP, replication)]
    asks = names.index(StepName.REQUEST_RESYNC)
    assert asks < [*names, StepName.PURGE].index(StepName.PURGE)


def test_nothing_that_kills_a_daemon_is_asked() -> None:
    """FTFW without an internal cache dies of -B, and its peer of an answer to -n."""
    asked_of_it = {step.options for state in State for step in plan(state, FTFW_NO_INTERNAL)}
    assert not {("-B",), ("-n",)} & asked_of_it


@pytest.mark.parametrize("replication", EVERY[:-1])
def test_a_stop_asks_nothing(replication: Replication) -> None:
    """keepalived kills notify_stop after a second, when no peer can have proven itself."""
    assert plan(State.STOP, replication) == ()


def test_a_fault_and_a_stop_start_no_daemon() -> None:
    """A daemon that is down is started by a primary and a backup, never by a fault or a stop."""
    assert {State.PRIMARY, State.BACKUP} == STARTS_DAEMON


@pytest.mark.parametrize(
    ("replication", "expected"),
    [
        (FTFW, always("-R", "-B", "-s")),
        (NOTRACK_DIRECT, always("-R", "-B")),
        (ALARM, always("-R", "-s")),
        (NO_CACHE, always("-B")),
        (FTFW_NO_INTERNAL, (("-s", When.ALWAYS), *always("-s"))),
        (UNREAD, always("-R", "-B", "-s")),
    ],
)
def test_a_primary_that_is_to_be_in_sync_again_only_sends(
    replication: Replication | None, expected: tuple[tuple[str, When], ...]
) -> None:
    """It commits and flushes nothing, because its entries are live; it always asks something."""
    assert asked(refresh(State.PRIMARY, replication)) == expected


@pytest.mark.parametrize("state", [State.BACKUP, State.FAULT])
@pytest.mark.parametrize("replication", EVERY)
def test_any_other_node_is_in_sync_again_as_a_backup(
    state: State, replication: Replication | None
) -> None:
    """A node in fault may be promoted next, and needs the peer's connections then."""
    steps = refresh(state, replication)
    assert asked(steps) == (asked(plan(State.BACKUP, replication)) or (("-s", When.ALWAYS),))
