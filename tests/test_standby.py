"""transition.py: a backup and a fault step by step, and any transition over any fates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primary_backup.conntrackd.client import Refused, Unanswered, Unreached
from primary_backup.conntrackd.start import Unstartable
from primary_backup.past import Past
from primary_backup.peer import BULK_SECONDS
from primary_backup.plan import Mode, Replication, State, Step, StepName, plan
from primary_backup.proof import (
    FLUSHABLE_PART,
    Left,
    Outcome,
    Verdict,
    slack,
)
from tests.fake.world import (
    DIRECT,
    FTFW,
    LEFT,
    NO_INTERNAL,
    NOTRACK,
    Carried,
    World,
    carry_out,
    unreached,
)

ALARM = Replication(Mode.ALARM)
NO_CACHE = Replication(Mode.NOTRACK, internal_cache=False, external_cache=False)


# -- a backup -----------------------------------------------------------------------------------


def test_copies_that_the_peer_does_not_hold_any_more_are_reported() -> None:
    """It adds and never takes away: what ended while the link was down stays in the cache."""
    done = carry_out(World(external=500, holds=200), State.BACKUP)
    assert "200 connections received from the peer, beside 300 copies" in done.reason(
        "request-resync"
    )
    done = carry_out(World(external=210, holds=200), State.BACKUP)
    assert done.reason("request-resync") == "200 connections received from the peer"


def test_a_backup_purges_when_the_peer_has_it_all() -> None:
    """The peer sends and its copy covers ours: -n, and then -t."""
    done = carry_out(World(internal=500, holds=500), State.BACKUP)
    assert done.world.asked == ["-n", "-n", "-t"]
    assert done.outcomes["purge"] is Outcome.OK


def test_a_copy_that_does_not_cover_ours_stops_the_purge() -> None:
    """The peer holds 449 of 500: nothing is purged, and the reason reports it."""
    done = carry_out(World(internal=500, holds=449), State.BACKUP)
    assert done.world.asked == ["-n", "-n"]
    assert "449" in done.reason("purge")


def test_a_backup_that_hears_nobody_purges_nothing() -> None:
    """No peer on the dedicated link: degraded, and what is here stays here."""
    done = carry_out(World(internal=500, external=500, peer=False), State.BACKUP)
    assert "-t" not in done.world.asked
    assert done.outcomes["request-resync"] is Outcome.DEGRADED


def test_a_backup_without_an_internal_cache_counts_the_kernel_table() -> None:
    """DisableInternalCache: what this node holds, only the kernel can tell."""
    done = carry_out(World(NO_INTERNAL, entries=1_000, holds=500), State.BACKUP)
    assert done.world.asked == ["-n", "-n"]
    assert done.outcomes["purge"] is Outcome.SKIPPED


def test_a_live_peer_with_nothing_to_send_is_ok() -> None:
    """Peer alive, nothing to replicate: that is no fault."""
    done = carry_out(World(holds=0), State.BACKUP)
    assert done.outcomes["request-resync"] is Outcome.OK


def test_a_replica_that_was_full_already_is_ok() -> None:
    """What the peer sends again changes no size, and is as good."""
    done = carry_out(World(external=500, holds=500), State.BACKUP)
    assert done.outcomes["request-resync"] is Outcome.OK


def receiving_its_answer(world: World, accident: Callable[[World], None]) -> World:
    """A world where something happens once, after the first packets of the peer's answer."""

    def answer(_: Callable[[], bool]) -> None:
        world.received += 1
        world.do("-n")
        if world.asked.count("-n") == 1:
            world.fates["-s"] = [None, lambda: accident(world)]

    world.acts["-n"] = answer
    return world


def test_a_daemon_that_is_restarted_while_the_answer_arrives_is_asked_again() -> None:
    """What the former one was sent died with it; the count is the successor's alone."""
    world = receiving_its_answer(World(holds=500), World.revive)
    done = carry_out(world, State.BACKUP)
    assert done.world.asked == ["-n", "-n", "-n", "-t"]
    assert done.reason("request-resync") == "500 connections received from the peer"
    assert done.outcomes["request-resync"] is Outcome.OK
    assert world.external == 500


def test_a_counter_that_falls_is_a_restart_though_the_socket_is_not_known() -> None:
    """A file whose socket's path could not be read shows no identity."""

    def restarted(world: World) -> None:
        world.external = world.replicated = 0

    world = receiving_its_answer(World(holds=500), restarted)
    carry_out(world, State.BACKUP)
    assert world.asked[:2] == ["-n", "-n"]
    assert world.external == 500


def test_a_daemon_that_is_restarted_again_and_again_holds_no_replica() -> None:
    """It is asked twice at most, and what it holds is not known: degraded."""
    world = World(holds=500)
    world.acts["-n"] = lambda _: world.revive()
    done = carry_out(world, State.BACKUP)
    assert world.asked.count("-n") == 2
    assert done.outcomes["request-resync"] is Outcome.DEGRADED
    assert "restarted again and again" in done.reason("request-resync")


def test_a_left_copy_stays_where_the_daemon_is_restarted_again_and_again() -> None:
    """Nothing shows that the peer holds what is here: it is not dropped."""
    world = World(internal=500, external=900, holds=500)
    world.acts["-n"] = lambda _: world.revive()
    done = carry_out(world, State.BACKUP, past=Past(LEFT))
    assert "-f external" not in world.asked
    assert done.outcomes["drop-uncommitted"] is Outcome.DEGRADED
    assert done.uncommitted


@pytest.mark.parametrize("request_", ["-f", "-R", "-B"])
def test_a_step_whose_daemon_was_restarted_is_not_proven(request_: str) -> None:
    """Its successor's caches look the same, and nothing of it was shown."""
    world = World(external=500, peer=False)
    world.acts[request_] = lambda _: world.revive()
    done = carry_out(world, State.PRIMARY)
    (found,) = (each for each in done.results if each.command.endswith(request_))
    assert found.outcome is Outcome.DEGRADED
    assert "conntrackd was restarted meanwhile" in found.reason


def test_a_left_copy_stops_the_purge() -> None:
    """The last promotion did not flush: the copy is ours, old, and covers nothing."""
    done = carry_out(World(internal=500, external=500, holds=0), State.BACKUP, past=Past(LEFT))
    assert "-t" not in done.world.asked
    assert done.uncommitted


def test_a_left_copy_is_dropped_once_the_peer_has_sent_it_all() -> None:
    """Or dead connections come back months later: -f external, and then a whole answer to -n."""
    world = World(internal=500, external=900, holds=500)
    done = carry_out(world, State.BACKUP, past=Past(LEFT))
    dropped = world.asked.index("-f external")
    assert "-n" in world.asked[dropped + 1 :]
    assert world.external == 500
    assert not done.uncommitted


def test_a_left_copy_stays_while_the_peer_has_less() -> None:
    """A peer that does not hold what is here is not proven primary: the copy is the only one."""
    world = World(internal=500, external=900, holds=100)
    done = carry_out(world, State.BACKUP, past=Past(LEFT))
    assert "-f external" not in world.asked
    assert done.uncommitted


@pytest.mark.parametrize("state", [State.PRIMARY, State.BACKUP, State.FAULT])
@pytest.mark.parametrize("kept", [False, True])
def test_the_intent_is_written_down_before_the_first_request(state: State, *, kept: bool) -> None:
    """One that is killed right after its first request must not leave an older one's memory."""
    world = World(internal=500, external=600, holds=500)
    written: list[int] = []
    carry_out(
        world,
        state,
        past=Past(Left(copies=int(kept))),
        about_to=lambda *_: written.append(len(world.asked)),
    )
    assert not world.asked or written[:1] == [0]


def test_an_alarm_backup_asks_for_no_resync() -> None:
    """-n is a no-op in ALARM: only the purge, if the peer sends."""
    done = carry_out(World(ALARM, internal=500, external=500), State.BACKUP)
    assert done.world.asked == ["-t"]


# -- a fault ------------------------------------------------------------------------------------


def test_a_fault_purges_when_the_peer_has_it_all() -> None:
    """The peer sends and its copy covers ours."""
    done = carry_out(World(internal=500, external=500), State.FAULT)
    assert done.world.asked == ["-t"]


def in_fault(_: int, bulk: bool) -> Verdict | None:  # as the transition calls it
    """keepalived objects, until a bulk shows that the peer was promoted."""
    return None if bulk else Verdict(Outcome.SKIPPED, "in fault")


def bulk(world: World) -> Callable[[], None]:
    """What a new primary sends by itself: all that this node holds, as new copies."""

    def arrives() -> None:
        world.replicated += world.internal
        world.external = world.internal

    return arrives


def test_a_fault_purges_when_a_new_primary_has_sent_it_all() -> None:
    """A bulk that this node did not ask for shows that the peer was promoted."""
    world = World(internal=500)
    world.fates["-s"] = [*[None] * 20, bulk(world)]
    done = carry_out(world, State.FAULT, objection=in_fault, awaits_bulk=True)
    assert done.world.asked == ["-t"]


def test_a_fault_whose_peer_holds_as_much_as_ever_purges_nothing() -> None:
    """A peer that was stopped holds its own old connections: a count shows no new primary."""
    world = World(internal=500, external=500)
    done = carry_out(world, State.FAULT, objection=in_fault, awaits_bulk=True)
    assert world.asked == []
    assert done.reason("purge") == "nothing purged: in fault"
    assert BULK_SECONDS < world.now < BULK_SECONDS + 3


def test_a_fault_after_a_backup_takes_no_answer_for_a_bulk() -> None:
    """What arrives may be what that backup has asked for."""
    world = World(internal=500)
    world.fates["-s"] = [*[None] * 2, bulk(world)]
    done = carry_out(world, State.FAULT, objection=in_fault)
    assert world.asked == []
    assert done.outcomes["purge"] is Outcome.SKIPPED


def test_a_fault_that_may_be_master_awaits_no_bulk() -> None:
    """keepalived's own report comes first."""
    master = Verdict(Outcome.DEGRADED, "this node is master")
    world = World(internal=500)
    done = carry_out(world, State.FAULT, objection=lambda *_: master, awaits_bulk=True)
    assert done.outcomes["purge"] is Outcome.DEGRADED
    assert world.now < BULK_SECONDS


def test_a_fault_that_holds_nothing_awaits_no_bulk() -> None:
    """There is nothing to be purged."""
    world = World(internal=0)
    carry_out(world, State.FAULT, objection=in_fault, awaits_bulk=True)
    assert world.now < BULK_SECONDS


def test_a_fault_disarms_a_purge_that_is_pending() -> None:
    """The peer does not cover ours: the purge would destroy the only copy, -f internal stops it."""
    world = World(internal=500, external=100, entries=500)
    carry_out(world, State.FAULT, past=Past(purge_pending=True))
    assert world.asked == ["-f internal", "-R"]
    assert world.internal == 500


def test_a_fault_that_armed_nothing_asks_nothing() -> None:
    """Nothing to purge safely, nothing to cancel."""
    done = carry_out(World(internal=500, external=100), State.FAULT)
    assert done.world.asked == []
    assert set(done.outcomes.values()) == {Outcome.SKIPPED}


def test_a_fault_whose_daemon_is_down_asks_nothing() -> None:
    """A fault starts no daemon; a purge died with it."""
    world = World(internal=500)
    world.fates["-s"] = unreached(1_000)
    done = carry_out(world, State.FAULT)
    assert (world.asked, world.starts) == ([], 0)
    assert done.outcomes["purge"] in (Outcome.DEGRADED, Outcome.SKIPPED)


def test_without_an_internal_cache_a_commit_of_nothing_disarms() -> None:
    """DisableInternalCache: -f internal would flush the kernel, a -c over no copies does not."""
    world = World(NO_INTERNAL, external=0, entries=500)
    carry_out(world, State.FAULT, past=Past(purge_pending=True))
    assert world.asked == ["-c"]


def test_without_an_internal_cache_no_copy_is_committed_to_disarm() -> None:
    """A -c over a filled cache would replace live entries: nothing is asked, then."""
    world = World(NO_INTERNAL, external=100, entries=500)
    done = carry_out(world, State.FAULT, past=Past(purge_pending=True))
    assert world.asked == []
    assert "not empty" in done.reason("disarm")


@pytest.mark.parametrize("state", [State.BACKUP, State.FAULT])
def test_a_fault_in_direct_mode_purges_nothing(state: State) -> None:
    """The kernel table is the replica."""
    world = World(DIRECT, internal=500, entries=500)
    carry_out(world, state, past=Past(purge_pending=True))
    assert "-t" not in world.asked


def test_a_purge_that_was_overtaken_is_taken_back() -> None:
    """A primary came while -t was on its way: it must not hit the new primary."""
    world = World(internal=500, external=500, entries=500)
    done = carry_out(
        world, State.FAULT, halted=lambda: "superseded by a primary" if world.purging else None
    )
    assert world.asked == ["-t", "-f internal", "-R"]
    assert done.outcomes["purge"] is Outcome.SUPERSEDED


def test_a_purge_that_is_not_taken_back_is_not_called_so() -> None:
    """DisableInternalCache over a filled cache: nothing safe cancels it; the record has it."""
    world = World(NO_INTERNAL, external=500, entries=500)
    done = carry_out(
        world, State.FAULT, halted=lambda: "superseded by a primary" if world.purging else None
    )
    assert world.asked == ["-t"]
    assert "taken back" not in done.reason("purge")
    assert done.purged


def test_a_signal_while_purging_is_named() -> None:
    """The final event names the signal that ended it, not a notification that never came."""
    world = World(internal=500, external=500, entries=500)
    done = carry_out(
        world, State.FAULT, halted=lambda: "ended by SIGTERM" if world.purging else None
    )
    assert "SIGTERM" in done.reason("purge")


def test_a_newer_notification_stops_a_purge() -> None:
    """No purge while a newer notification waits."""
    world = World(internal=500, external=500)
    carry_out(world, State.FAULT, halted=lambda: "superseded by a primary" if world.looks else None)
    assert world.asked == []


# -- any fates ----------------------------------------------------------------------------------


MODES = st.sampled_from([FTFW, NOTRACK, ALARM, DIRECT, NO_INTERNAL, NO_CACHE])
SIZES = st.sampled_from([0, 5, 500, 10_000])
FATES = st.sampled_from(
    ["done", "done", "done", "ignored", "late", "unreached", "unanswered", "refused"]
)
RAISED = {"unreached": Unreached, "unanswered": Unanswered, "refused": Refused}
REQUESTS = ("-c", "-f", "-f internal", "-f external", "-R", "-B", "-n", "-t")


def late(world: World, name: str) -> Callable[[Callable[[], bool]], None]:
    """A request that is carried out, and never answered."""

    def act(_: Callable[[], bool]) -> None:
        world.do(name)
        world.give_up(name)
        raise Unanswered(name)

    return act


class Case(NamedTuple):
    """Any world, in which requests meet any fates, and which is halted at any time."""

    world: World
    again: bool
    halt_at: int

    def promote(self) -> Carried:
        """Promote: halted from the n-th event on, whatever that event is."""
        return carry_out(
            self.world,
            State.PRIMARY,
            again=self.again,
            halted=lambda: "superseded" if self.world.events >= self.halt_at else None,
        )

    @property
    def late(self) -> list[str]:
        """What was asked when it was halted already."""
        events = zip(self.world.asked, self.world.asked_at, strict=True)
        return [request for request, at in events if at >= self.halt_at]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw any promotion."""
    world = World(
        draw(MODES),
        internal=draw(SIZES),
        external=draw(SIZES),
        entries=draw(SIZES),
        room=draw(st.sampled_from([math.inf, 0, 300])),
        counts=draw(st.booleans()),
    )
    meet(draw, world)
    never = 1_000_000
    return Case(world, draw(st.booleans()), draw(st.just(never) | st.integers(0, 40)))


def meet(draw: st.DrawFn, world: World) -> None:
    """Draw what becomes of the requests."""
    for name in (*REQUESTS, "-s"):
        fates = draw(st.lists(FATES, max_size=3))
        world.fates[name] = [RAISED[fate](name) if fate in RAISED else None for fate in fates]
        if "ignored" in fates and name != "-s":
            world.acts[name] = lambda _: None
        if "late" in fates and name != "-s":
            world.acts[name] = late(world, name)
    if draw(st.booleans()):
        world.fates["start"] = [Unstartable("it does not start")]


def follows(asked: list[str], steps: tuple[Step, ...]) -> bool:
    """Whether requests follow the plan: each the same as the last one, or that of a later step."""
    at = 0
    names = [" ".join(step.options) for step in steps]
    for request in asked:
        if request not in names[at:]:
            return False
        at = names.index(request, at)
    return True


any_case = settings(deadline=None, max_examples=2 * settings().max_examples)


@any_case
@given(cases())
def test_results_name_the_plan_s_steps_all_in_order(case: Case) -> None:
    """Whatever becomes of the requests: one result for each step of the plan, in its order."""
    done = case.promote()
    steps = plan(State.PRIMARY, case.world.replication, again=case.again)
    assert [r.name for r in done.results if r.name is not StepName.START] == [
        step.name for step in steps
    ]


@any_case
@given(cases())
def test_nothing_is_asked_out_of_order(case: Case) -> None:
    """Whatever becomes of the requests, they follow the plan."""
    case.promote()
    assert follows(case.world.asked, plan(State.PRIMARY, case.world.replication, again=case.again))


@any_case
@given(cases())
def test_no_flush_without_a_proven_commit(case: Case) -> None:
    """Whatever becomes of the commit: the external cache is flushed only after it was proven."""
    done = case.promote()
    if {"-f", "-f external"} & set(case.world.asked):
        commit = done.commit
        assert commit is not None
        assert commit.missing <= slack(commit.expected or 0) or (
            commit.missing < FLUSHABLE_PART * (commit.expected or 0)
        )


@any_case
@given(cases())
def test_a_copy_that_was_not_flushed_is_remembered(case: Case) -> None:
    """Whatever becomes of the requests: what this daemon's cache may still hold is known."""
    done = case.promote()
    world = case.world
    if "-c" in world.asked and world.starts == 0 and world.replication.external_cache:
        assert done.uncommitted or world.external <= 1_000  # a tenth of the largest


@any_case
@given(cases())
def test_nothing_is_asked_once_superseded(case: Case) -> None:
    """From the moment a newer invocation is there, no promotion asks anything more."""
    case.promote()
    assert case.late == []


@pytest.mark.parametrize("replication", [FTFW, NOTRACK, ALARM, DIRECT, NO_INTERNAL, NO_CACHE])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("unheard", [0, 1])
def test_a_promotion_halts_at_any_moment(
    replication: Replication, *, again: bool, unheard: int
) -> None:
    """Wherever it is superseded, between any two looks: nothing more is asked from there on."""

    def case(halt_at: int) -> Case:
        world = World(replication, internal=500, external=500, entries=500)
        for name in REQUESTS:
            world.fates[name] = unreached(unheard)
        return Case(world, again, halt_at)

    undisturbed = case(1_000_000)
    undisturbed.promote()
    for moment in range(undisturbed.world.events):
        halted = case(moment)
        halted.promote()
        assert halted.late == []


@any_case
@given(cases())
def test_an_unanswered_request_is_never_repeated(case: Case) -> None:
    """What may still be running in the daemon is not asked for again."""
    case.promote()
    for name in case.world.unanswered:
        assert case.world.unanswered.count(name) == 1
        assert name not in case.world.asked[case.world.unanswered_at[name] :]


@any_case
@given(cases())
def test_a_commit_is_asked_at_most_twice(case: Case) -> None:
    """Once, and once more where a purge or a bulk disturbed it; unheard attempts do not count."""
    case.promote()
    assert case.world.asked.count("-c") - case.world.unreached.count("-c") <= 2


@st.composite
def standbys(draw: st.DrawFn) -> tuple[World, State, Past]:
    """Draw any backup or fault."""
    world = World(
        draw(MODES),
        internal=draw(SIZES),
        external=draw(SIZES),
        entries=draw(SIZES),
        peer=draw(st.booleans()),
        holds=draw(SIZES),
    )
    meet(draw, world)
    past = Past(draw(st.sampled_from([Left(), LEFT])), draw(st.booleans()))
    return world, draw(st.sampled_from([State.BACKUP, State.FAULT])), past


@any_case
@given(standbys())
def test_whatever_happens_a_purge_is_covered(case: tuple[World, State, Past]) -> None:
    """-t only where a peer sent that holds 90 % of what is here, and no copy was kept."""
    world, state, past = case
    covered: list[bool] = []
    purge = world.acts.get("-t")

    def witness(working: Callable[[], bool]) -> None:
        ours = world.internal if world.replication.internal_cache else world.entries
        covered.append(world.peer and world.received > 0 and world.external >= 0.9 * ours)
        if purge is not None:
            purge(working)

    world.acts["-t"] = witness
    done = carry_out(world, state, past=past)
    assert all(covered)
    if "-t" in world.asked:
        assert world.replication.external_cache
        assert not done.uncommitted


@any_case
@given(standbys())
def test_whatever_happens_a_standby_commits_no_copy(case: tuple[World, State, Past]) -> None:
    """A backup or a fault asks -c only to disarm, over an external cache that is empty."""
    world, state, past = case
    copies: list[int] = []
    world.acts["-c"] = lambda _: copies.append(world.external)
    carry_out(world, state, past=past)
    assert not any(copies)


@any_case
@given(standbys())
def test_whatever_happens_a_standby_flushes_no_kernel_table(
    case: tuple[World, State, Past],
) -> None:
    """What is in the kernel table stays there, unless a purge that is covered fires later."""
    world, state, past = case
    before = world.entries
    carry_out(world, state, past=past)
    assert world.entries >= before
