"""transition.py: a promotion step by step, against a world that is one object."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primary_backup.conntrackd.client import Unanswered
from primary_backup.conntrackd.start import Unstartable
from primary_backup.past import Earlier, Past, Replica, Reported
from primary_backup.plan import Mode, Replication, State, StepName
from primary_backup.proof import (
    Kernel,
    Outcome,
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

# -- a promotion --------------------------------------------------------------------------------


@pytest.mark.parametrize("replication", [FTFW, NOTRACK])
def test_a_promotion_recovers_what_the_peer_replicated(replication: Replication) -> None:
    """-c -f -R -B, each proven: 500 of 500 connections, and all outcomes ok."""
    done = carry_out(World(replication, external=500), State.PRIMARY)
    assert done.world.asked == ["-c", "-f", "-R", "-B"]
    assert done.commit is not None
    assert (done.commit.expected, done.commit.recovered) == (500, 500)
    assert set(done.outcomes.values()) == {Outcome.OK, Outcome.SKIPPED}


def test_a_first_boot_has_nothing_to_recover_and_is_ok() -> None:
    """Two empty tables: nothing to recover, nothing to send, nothing wrong."""
    done = carry_out(World(), State.PRIMARY)
    assert done.world.asked == ["-c", "-f", "-R", "-B"]
    assert set(done.outcomes.values()) == {Outcome.OK, Outcome.SKIPPED}


def test_entries_of_this_node_do_not_count_as_recovered() -> None:
    """What traffic made while the commit ran is not counted: only entries made through netlink."""
    world = World(external=500, entries=9_000)
    done = carry_out(world, State.PRIMARY)
    assert done.commit is not None
    assert done.commit.recovered == 500


def test_a_full_table_leaves_the_only_copy_alone() -> None:
    """600 of 1000 fit: degraded, and the external cache, this node's only copy, is not flushed."""
    done = carry_out(World(external=1_000, room=600), State.PRIMARY)
    assert done.world.asked == ["-c", "-f internal", "-R", "-B"]
    assert done.outcomes["commit"] is Outcome.DEGRADED
    assert done.world.external == 1_000


def test_a_full_table_is_remembered() -> None:
    """A cache that was kept must be known to the next transition."""
    assert carry_out(World(external=1_000, room=600), State.PRIMARY).uncommitted


def test_a_few_missing_entries_degrade_but_flush() -> None:
    """20 of 5000 missing, under 1 %: degraded, yet the copy may go."""
    done = carry_out(World(external=5_000, room=4_980), State.PRIMARY)
    assert done.world.asked == ["-c", "-f", "-R", "-B"]
    assert done.outcomes["commit"] is Outcome.DEGRADED
    assert not done.uncommitted


def test_a_kernel_that_counts_nothing_is_judged_by_its_size() -> None:
    """Without /proc/net/stat/nf_conntrack the table's size alone is judged; the reason has it."""
    done = carry_out(World(external=500, counts=False), State.PRIMARY)
    assert done.outcomes["commit"] is Outcome.OK
    assert "/proc/net/stat/nf_conntrack" in done.reason("commit")


def test_a_commit_that_a_purge_ate_is_asked_once_more() -> None:
    """A purge fired into the commit: wait until it is over, then commit all copies again."""
    world = World(external=1_000)

    def eat() -> None:
        world.insert(1_000)
        world.entries = 300
        del world.acts["-c"]

    world.acts["-c"] = lambda _: eat()
    done = carry_out(world, State.PRIMARY)
    assert world.asked == ["-c", "-c", "-f", "-R", "-B"]
    assert done.outcomes["commit"] is Outcome.OK


def test_a_commit_that_a_purge_ate_twice_is_not_asked_a_third_time() -> None:
    """Never more than once more: then it is not proven, and the copy is kept."""
    world = World(external=1_000)

    def eat() -> None:
        world.insert(1_000)
        world.entries = 300

    world.acts["-c"] = lambda _: eat()
    done = carry_out(world, State.PRIMARY)
    assert world.asked == ["-c", "-c", "-f internal", "-R", "-B"]
    assert done.uncommitted


def test_a_cache_that_grew_under_the_commit_is_committed_once_more() -> None:
    """A bulk was still arriving: wait until it is in, then commit all of it."""
    world = World(external=400)

    def grow(working: Callable[[], bool]) -> None:
        working()  # a slow client: the engine looks at the cache while it waits
        world.insert(400)
        world.external = 1_000
        del world.acts["-c"]

    world.acts["-c"] = grow
    done = carry_out(world, State.PRIMARY)
    assert world.asked[:2] == ["-c", "-c"]
    assert world.asked[2:] == ["-f", "-R", "-B"]
    assert done.outcomes["commit"] is Outcome.OK


def test_a_running_commit_is_watched_and_not_repeated() -> None:
    """A -c that returns at once while the counter moves met a running one: only look, then."""
    world = World(external=1_000)
    world.acts["-c"] = lambda _: None

    def run_on() -> None:
        if "-c" in world.asked and world.entries < world.external:
            world.insert(50)

    world.on_look = run_on
    done = carry_out(world, State.PRIMARY)
    assert world.asked == ["-c", "-f", "-R", "-B"]
    assert done.outcomes["commit"] is Outcome.OK


def test_an_unanswered_commit_is_never_asked_again() -> None:
    """Reached, no answer in time: the commit may still run, only its counters are watched."""
    world = World(external=1_000)

    def outlive(_: Callable[[], bool]) -> None:
        world.insert(1_000)
        raise Unanswered("conntrackd did not answer -c in time")

    world.acts["-c"] = outlive
    carry_out(world, State.PRIMARY)
    assert world.asked.count("-c") == 1


def test_an_unanswered_commit_that_did_nothing_flushes_nothing() -> None:
    """No answer and no entries: the external cache is the only copy, and stays."""
    world = World(external=1_000)
    world.fates["-c"] = [Unanswered("conntrackd did not answer -c in time")]
    done = carry_out(world, State.PRIMARY)
    assert world.asked == ["-c", "-f internal", "-R", "-B"]
    assert done.outcomes["commit"] is Outcome.DEGRADED
    assert done.uncommitted


def test_an_unanswered_commit_that_a_purge_ate_is_not_asked_again() -> None:
    """Nobody knows whether it still runs: whatever became of it, it is not asked for again."""
    world = World(external=1_000)

    def outlive(_: Callable[[], bool]) -> None:
        world.insert(1_000)
        world.entries = 300
        raise Unanswered("conntrackd did not answer -c in time")

    world.acts["-c"] = outlive
    done = carry_out(world, State.PRIMARY)
    assert world.asked.count("-c") == 1
    assert done.uncommitted


def test_a_slow_commit_is_working_while_it_makes_entries() -> None:
    """-c is waited for as long as entries keep growing, and no longer."""
    world = World(external=1_000)
    seen: list[bool] = []

    def slowly(working: Callable[[], bool]) -> None:
        for _ in range(10):
            world.insert(100)
            seen.append(working())
        seen.append(working())

    world.acts["-c"] = slowly
    carry_out(world, State.PRIMARY)
    assert seen == [True] * 10 + [False]


@pytest.mark.parametrize("counts", [True, False])
def test_traffic_does_not_make_a_hung_commit_poll_alive(*, counts: bool) -> None:
    """Connections come and go: only growth is a commit's work, or no deadline would ever come."""
    world = World(external=1_000, entries=500, counts=counts)
    seen: list[bool] = []

    def come_and_go() -> None:
        world.entries += 1 if world.entries % 2 else -1

    def hang(working: Callable[[], bool]) -> None:
        world.on_look = come_and_go
        seen.extend(working() for _ in range(20))
        world.on_look = lambda: None
        raise Unanswered("conntrackd did not answer -c in time")

    world.acts["-c"] = hang
    carry_out(world, State.PRIMARY)
    assert not any(seen[2:])  # the first look may find anything


def test_a_request_that_nobody_received_is_made_again() -> None:
    """Never reached the daemon: asked again until somebody listens, without starting another."""
    world = World(external=500)
    world.fates["-c"] = unreached(2)
    done = carry_out(world, State.PRIMARY)
    assert done.results[0].attempts == 3
    assert done.results[0].outcome is Outcome.OK
    assert world.starts == 0


def test_asking_again_is_capped() -> None:
    """A daemon that stays away: a handful of attempts, a few seconds, then it is over."""
    world = World(external=500)
    world.fates["-c"] = unreached(1_000)
    world.fates["start"] = [Unstartable("conntrackd does not start")]
    done = carry_out(world, State.PRIMARY)
    assert done.outcomes["commit"] is Outcome.FAILED
    assert 2 <= done.results[0].attempts <= 10
    assert world.now < 5


def test_a_dead_daemon_is_started_once_and_its_loss_is_reported() -> None:
    """Its external cache died with it: expected is unknown, recovered 0, degraded, and carry on."""
    world = World(external=500, entries=40, peer=False)
    world.fates["-c"] = unreached(5)
    done = carry_out(world, State.PRIMARY)
    assert done.results[0].name is StepName.START
    assert world.starts == 1
    assert done.commit is not None
    assert (done.commit.expected, done.commit.recovered) == (None, 0)
    assert done.outcomes["commit"] is Outcome.DEGRADED
    assert world.asked[-2:] == ["-R", "-B"]


@pytest.mark.parametrize("holds", [3, 500])
def test_what_a_dead_daemon_has_lost_comes_from_a_peer_that_lives(holds: int) -> None:
    """Asked once it is known to be lost, and committed; degraded, because somebody has to look."""
    world = World(external=500, entries=40, holds=holds)
    world.fates["-c"] = unreached(5)
    done = carry_out(world, State.PRIMARY)
    assert done.commit is not None
    assert (done.commit.expected, done.commit.recovered) == (holds, holds)
    assert done.outcomes["commit"] is Outcome.DEGRADED
    assert f"the peer has sent {holds} connections" in done.reason("commit")
    assert [asked for asked in world.asked if asked in ("-n", "-c")][-2:] == ["-n", "-c"]


def test_a_dead_daemon_in_direct_mode_lost_nothing() -> None:
    """The kernel table is the replica: the daemon's death took no connection with it."""
    world = World(DIRECT, entries=500)
    world.fates["-c"] = unreached(5)
    done = carry_out(world, State.PRIMARY)
    assert "nothing was lost" in done.reason("commit")


def test_a_daemon_that_dies_while_committing_proves_nothing() -> None:
    """The client exits 0 at EOF: another daemon answers now, and what came before is done."""
    world = World(external=1_000)

    def die(_: Callable[[], bool]) -> None:
        world.insert(450)
        world.revive()

    world.acts["-c"] = die
    done = carry_out(world, State.PRIMARY)
    assert done.outcomes["commit"] is Outcome.DEGRADED
    assert done.commit is not None
    assert (done.commit.expected, done.commit.recovered) == (None, 450)
    assert "-f" not in world.asked


def test_what_died_with_a_committing_daemon_comes_from_a_peer_that_lives() -> None:
    """systemd has started another daemon: the peer is asked, and its answer is committed."""
    world = World(external=1_000, holds=1_000)

    def die(_: Callable[[], bool]) -> None:
        world.insert(450)
        world.revive()
        del world.acts["-c"]

    world.acts["-c"] = die
    done = carry_out(world, State.PRIMARY)
    assert done.outcomes["commit"] is Outcome.DEGRADED
    assert "1000 of 1000 connections recovered" in done.reason("commit")
    assert world.asked[:4] == ["-c", "-n", "-n", "-c"]


def test_a_daemon_that_keeps_dying_is_not_refilled() -> None:
    """Lost, asked for, and lost again: the record says so, and nothing is flushed."""
    world = World(external=1_000, holds=1_000)
    for request in ("-c", "-n"):
        world.acts[request] = lambda _: world.revive()
    done = carry_out(world, State.PRIMARY)
    assert done.outcomes["commit"] is Outcome.DEGRADED
    assert "restarted again and again" in done.reason("commit")
    assert "-f" not in world.asked


SILENT = Replica("nothing was received since 12:00:00")
REPORTED = Replica(reported=Reported("fw-1", 1_000, 2.0))


@pytest.mark.parametrize("replica", [SILENT, REPORTED])
def test_what_a_replica_lacks_comes_from_a_peer_that_lives(replica: Replica) -> None:
    """It is asked behind the commit, and its answer is committed as well."""
    world = World(external=900, holds=1_000)
    done = carry_out(world, State.PRIMARY, past=Past(replica=replica))
    assert world.asked[:4] == ["-c", "-n", "-n", "-c"]
    assert done.outcomes["commit"] is Outcome.OK
    assert "the peer has sent 1000 connections" in done.reason("commit")
    assert not any(step.lacking for step in done.results)


@pytest.mark.parametrize(
    ("replica", "why"),
    [
        (SILENT, "nothing was received since 12:00:00"),
        (REPORTED, "fw-1 reported 1000 connections 2.0 s before; this node held 100 connections l"),
    ],
)
def test_what_a_replica_lacks_is_named_where_no_peer_sends_it(replica: Replica, why: str) -> None:
    """All that is here is recovered; that is not all that there was."""
    world = World(external=900, peer=False)
    done = carry_out(world, State.PRIMARY, past=Past(replica=replica))
    assert done.outcomes["commit"] is Outcome.DEGRADED
    assert f"900 of 900 connections recovered; {why}" in done.reason("commit")
    assert done.results[0].lacking
    assert done.outcomes["flush"] is Outcome.OK


def test_what_a_replica_lacks_is_named_where_no_peer_can_be_asked() -> None:
    """In ALARM the peer sends everything by itself, sooner or later."""
    world = World(Replication(Mode.ALARM), external=900)
    done = carry_out(world, State.PRIMARY, past=Past(replica=SILENT))
    assert done.outcomes["commit"] is Outcome.DEGRADED
    assert SILENT.lacking in done.reason("commit")
    assert "-n" not in world.asked


@pytest.mark.parametrize("expected", [1_000, 1_010])
def test_a_replica_that_holds_what_was_reported_is_whole(expected: int) -> None:
    """The peer's own count stands beside the one of the external cache."""
    world = World(external=1_000, peer=False)
    replica = Replica(reported=Reported("fw-1", expected, 0.6))
    done = carry_out(world, State.PRIMARY, past=Past(replica=replica))
    assert done.outcomes["commit"] is Outcome.OK
    assert done.reason("commit") == (
        f"1000 of 1000 connections recovered; fw-1 reported {expected} connections 0.6 s before"
    )


def test_a_refused_flush_degrades() -> None:
    """HashSize ≤ 8192: the daemon ignores the flush and exits 0; the cache's size shows."""
    world = World(external=1_000)
    world.acts["-f"] = lambda _: None
    done = carry_out(world, State.PRIMARY)
    assert done.outcomes["flush"] is Outcome.DEGRADED
    assert done.uncommitted


def test_an_unanswered_flush_leaves_a_copy_to_be_dropped() -> None:
    """Nobody knows whether the flush was done: the next backup must not purge on a stale copy."""
    world = World(external=1_000)
    world.fates["-f"] = [Unanswered("conntrackd did not answer -f in time")]
    assert carry_out(world, State.PRIMARY).uncommitted


def test_a_promotion_that_ended_before_its_flush_leaves_a_copy_to_be_dropped() -> None:
    """A purge is safe only if the last promotion here flushed its external cache."""
    world = World(external=1_000)
    done = carry_out(
        world, State.PRIMARY, halted=lambda: "superseded by a backup" if world.asked else None
    )
    assert world.asked == ["-c"]
    assert done.uncommitted


def test_a_resync_that_misses_entries_degrades() -> None:
    """The internal cache is what the peer gets: 95 % of what was recovered, or degraded."""
    world = World(external=1_000)
    world.acts["-R"] = lambda _: setattr(world, "internal", 900)
    assert carry_out(world, State.PRIMARY).outcomes["resync"] is Outcome.DEGRADED


@pytest.mark.parametrize("replication", [FTFW, NOTRACK])
def test_a_dead_peer_degrades_no_promotion(replication: Replication) -> None:
    """The peer has just died, that is the ordinary case: sent, and nobody listens."""
    done = carry_out(World(replication, external=500, peer=False), State.PRIMARY)
    assert done.outcomes["bulk-send"] is Outcome.OK
    assert "no packets from the peer" in done.reason("bulk-send")


def test_a_bulk_that_the_peer_acknowledged_is_proven() -> None:
    """FTFW: the resend queue drains, the peer has it all."""
    done = carry_out(World(external=500), State.PRIMARY)
    assert "acknowledged" in done.reason("bulk-send")


@pytest.mark.parametrize(
    ("peer", "outcome"), [(True, Outcome.DEGRADED), (False, Outcome.OK)], ids=["alive", "dead"]
)
def test_a_bulk_larger_than_the_resend_queue_is_not_whole(peer: bool, outcome: Outcome) -> None:
    """What was dropped of it cannot be sent again to a peer that lost it; a dead one asks anew."""
    world = World(external=500, peer=peer)

    def send(_: Callable[[], bool]) -> None:
        world.do("-B")
        world.dropped += 300

    world.acts["-B"] = send
    world.dropped = 7  # by an earlier bulk
    done = carry_out(world, State.PRIMARY)
    assert done.outcomes["bulk-send"] is outcome
    assert ("300 messages found no room" in done.reason("bulk-send")) == peer


def test_a_promotion_in_direct_mode_names_the_size_of_the_replica() -> None:
    """There is no external cache: expected is unknown, the kernel's entries tell the size."""
    done = carry_out(World(DIRECT, entries=500), State.PRIMARY)
    assert done.world.asked == ["-c", "-f", "-R", "-B"]
    assert done.commit is not None
    assert done.commit.expected is None
    assert done.commit.entries == 500
    assert done.outcomes["commit"] is Outcome.OK


@pytest.mark.parametrize("room", [math.inf, 0])
def test_no_promotion_flushes_a_kernel_table(room: float) -> None:
    """DisableInternalCache: -f and -f internal would destroy everything, proven or not."""
    done = carry_out(World(NO_INTERNAL, external=500, entries=40, room=room), State.PRIMARY)
    assert done.world.entries >= 40
    assert not {"-f", "-f internal"} & set(done.world.asked)


def test_a_second_primary_commits_nothing_over_live_entries() -> None:
    """A primary that is one already: -f internal, -R, -B, whatever the external cache holds."""
    world = World(external=500, entries=300, internal=300)
    done = carry_out(world, State.PRIMARY, again=True)
    assert world.asked == ["-f internal", "-R", "-B"]
    assert (world.entries, world.external) == (300, 500)
    assert done.commit is None


def test_a_hung_daemon_ends_a_promotion() -> None:
    """Nothing answers: the commit fails, and nothing more is asked."""
    world = World(external=500)
    hung = Unanswered("conntrackd did not answer in time")
    world.fates["-c"] = [hung]
    world.fates["-s"] = [hung] * 100
    done = carry_out(world, State.PRIMARY)
    assert world.asked == ["-c"]
    assert done.outcomes["commit"] is Outcome.FAILED
    assert done.uncommitted


def test_each_step_has_a_deadline() -> None:
    """One that takes too long ends the transition, which asks nothing more."""
    done = carry_out(World(external=500), State.PRIMARY, step_seconds=-1)
    assert done.world.asked == []
    assert done.outcomes["commit"] is Outcome.FAILED


# -- a promotion whose process was killed -------------------------------------------------------


def resumed(world: World, *, ended: bool, made: int) -> Carried:
    """A promotion after a killed one, whose commit has made so many entries in this world."""
    before = Kernel(world.inserted % 2**32, world.entries)
    world.insert(made)
    return carry_out(world, State.PRIMARY, past=Past(LEFT, earlier=Earlier(before, ended=ended)))


@pytest.mark.parametrize("ended", [True, False])
def test_a_commit_that_was_done_is_not_asked_again(*, ended: bool) -> None:
    """The counter shows every entry: asking again would replace live ones by their copies."""
    done = resumed(World(external=500, entries=20), ended=ended, made=500)
    assert done.world.asked == ["-f", "-R", "-B"]
    assert done.outcomes["commit"] is Outcome.OK
    assert done.commit is not None
    assert (done.commit.expected, done.commit.recovered) == (500, 500)


def test_a_commit_that_did_nothing_is_asked_again() -> None:
    """The process was killed before its client asked."""
    done = resumed(World(external=500), ended=False, made=0)
    assert done.world.asked == ["-c", "-f", "-R", "-B"]
    assert done.commit is not None
    assert done.commit.recovered == 500


def test_a_commit_that_did_half_is_asked_again() -> None:
    """It came to rest without its other half: nobody knows whether the kernel refused it."""
    done = resumed(World(external=500), ended=False, made=200)
    assert done.world.asked == ["-c", "-f", "-R", "-B"]


def test_a_commit_that_came_to_its_end_is_not_asked_again_for_what_is_missing() -> None:
    """The kernel has refused the rest: the copies are kept, as they would have been."""
    done = resumed(World(external=1_000, room=600), ended=True, made=1_000)
    assert done.world.asked == ["-f internal", "-R", "-B"]
    assert done.outcomes["commit"] is Outcome.DEGRADED
    assert done.uncommitted


def test_a_commit_that_still_runs_is_waited_for() -> None:
    """Its client died with the process that was killed, the daemon goes on."""
    world = World(external=500)

    def go_on() -> None:
        if world.looks == 0 and world.entries < 500:
            world.insert(50)

    world.on_look = go_on
    done = resumed(world, ended=False, made=0)
    assert done.world.asked == ["-f", "-R", "-B"]
    assert done.commit is not None
    assert done.commit.recovered == 500


def test_a_commit_whose_daemon_has_died_since_is_not_asked_again() -> None:
    """Its successor holds nothing to commit: degraded, and its loss is done."""
    world = World(external=500, peer=False)
    world.fates["-s"] = unreached(5)
    done = resumed(world, ended=False, made=200)
    assert world.starts == 1
    assert "-c" not in world.asked
    assert done.outcomes["commit"] is Outcome.DEGRADED


@pytest.mark.parametrize("ended", [True, False])
def test_a_killed_promotion_in_direct_mode_is_finished(*, ended: bool) -> None:
    """The kernel table is the replica: nothing is missing, all the rest is asked."""
    done = resumed(World(DIRECT, entries=500), ended=ended, made=0)
    assert done.world.asked[-2:] == ["-R", "-B"]
    assert set(done.outcomes.values()) == {Outcome.OK, Outcome.SKIPPED}


@given(st.integers(0, 600), st.booleans())
def test_whatever_a_killed_commit_has_done_no_unproven_copy_is_flushed(
    made: int, ended: bool
) -> None:
    """Any number of entries made before: the copies go once all but a few are in the kernel."""
    done = resumed(World(external=500, room=520), ended=ended, made=made)
    assert done.world.asked.count("-c") <= (2 if not ended else 0)
    if "-f" in done.world.asked:
        assert done.world.entries >= 490
