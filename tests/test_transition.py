"""transition.py and what it is made of, against a daemon, a kernel and a peer that are one object.

The world here answers at once, keeps a record of everything asked, and fails as it is told to.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primary_backup.conntrackd.client import Refused, Unanswered, Unreached
from primary_backup.conntrackd.start import Unstartable
from primary_backup.conntrackd.status import Status
from primary_backup.memory import Earlier, Past
from primary_backup.plan import Mode, Replication, State, Step, StepName, plan
from primary_backup.proof import (
    FLUSHABLE_PART,
    Commit,
    Kernel,
    Left,
    Outcome,
    StepResult,
    slack,
)
from primary_backup.requests import Requests
from primary_backup.rundir.turn import Halted
from primary_backup.transition import Transition

FTFW = Replication(Mode.FTFW)
NOTRACK = Replication(Mode.NOTRACK)
ALARM = Replication(Mode.ALARM)
DIRECT = Replication(Mode.FTFW, external_cache=False)
NO_INTERNAL = Replication(Mode.NOTRACK, internal_cache=False)
NO_CACHE = Replication(Mode.NOTRACK, internal_cache=False, external_cache=False)

LEFT = Left(copies=500)
"""What a promotion leaves that was not proven."""
PEER = 500
"""Connections that the peer holds."""


class World:
    """A conntrackd, its kernel, its peer and their time, which passes only in pauses."""

    def __init__(
        self,
        replication: Replication = FTFW,
        *,
        internal: int = 0,
        external: int = 0,
        entries: int = 0,
        peer: bool = True,
        holds: int = PEER,
        room: float = math.inf,
        counts: bool = True,
    ) -> None:
        """``holds``: what the peer sends when asked; ``room``: entries that the kernel takes;
        ``counts``: whether the kernel counts inserts.
        """
        self.replication = replication
        self.internal = internal
        self.external = external
        self.entries = entries
        self.inserted = 2**32 - 7  # it wraps in nearly every test
        self.now = 0.0
        self.peer = peer
        self.holds = holds
        self.room = room
        self.counts = counts
        self.replicated = 0
        self.sent = self.heard = self.unacked = 0
        self.born = 1
        self.asked: list[str] = []
        """Every request that changes something, as options in one string."""
        self.events = 0
        """How often anything at all was asked or looked at."""
        self.asked_at: list[int] = []
        """How many events came before each request."""
        self.unheard: list[str] = []
        self.unanswered: list[str] = []
        self.unanswered_at: dict[str, int] = {}
        """The requests that nobody heard, that nobody answered, and how many came until then."""
        self.looks = 0
        self.starts = 0
        self.purging = False
        self.fates: dict[str, list[Exception | Callable[[], None] | None]] = defaultdict(list)
        """What the next requests with these options come to, before or instead of their effect."""
        self.acts: dict[str, Callable[[Callable[[], bool]], None]] = {}
        """Another effect of a request than its ordinary one."""
        self.on_look: Callable[[], None] = lambda: None
        """Happens whenever the kernel's counters are looked at."""

    # -- the Daemon protocol ----------------------------------------------------------------

    def command(self, options: tuple[str, ...]) -> str:
        return " ".join(("conntrackd", *options))

    def request(
        self, options: tuple[str, ...], working: Callable[[], bool] = lambda: False
    ) -> bytes:
        name = " ".join(options)
        self.asked.append(name)
        self.asked_at.append(self.events)
        try:
            self._meet(name)
        except Unreached:
            self.unheard.append(name)
            raise
        except Unanswered:
            self.give_up(name)
            raise
        act = self.acts.get(name)
        if act is not None:
            act(working)
        else:
            self.do(name)
        return b""

    def status(self) -> Status:
        self.looks += 1
        self._meet("-s")
        return Status(
            internal=self.internal if self.replication.internal_cache else None,
            external=self.external if self.replication.external_cache else None,
            replicated=self.replicated,
            bytes_sent=self.sent,
            packets_received=self.heard,
            bytes_received=16 * self.heard,
        )

    def unacknowledged(self) -> int | None:
        self._meet("-s queue")
        return self.unacked if self.replication.mode is Mode.FTFW else None

    def flushing(self) -> bool:
        self._meet("-s process")
        return False

    def kernel(self) -> Kernel:
        self.events += 1
        self.on_look()
        return Kernel(self.inserted % 2**32 if self.counts else None, self.entries)

    def identity(self) -> object:
        return self.born

    def start(self) -> tuple[str, str]:
        self.starts += 1
        self._meet("start")
        self.revive()
        return "conntrackd -d", ""

    # -- what happens -----------------------------------------------------------------------

    def do(self, name: str) -> None:
        """The ordinary effect of a request."""
        if name == "-c":
            self.insert(self.external if self.replication.external_cache else 0)
        elif name == "-f" and self.replication.internal_cache:
            self.internal = self.external = 0
        elif name == "-f internal" and self.replication.internal_cache:
            self.internal = 0
        elif name in ("-f", "-f internal"):
            self.entries = 0
        elif name == "-f external":
            self.external = 0
        elif name == "-R":
            self.internal = self.entries
        elif name == "-B":
            self.sent += 100 * max(self.internal, 1)
            self.unacked = 0 if self.peer else self.internal
        elif name == "-n" and self.peer:
            self.replicated += self.holds
            self.external = max(self.external, self.holds)
        elif name == "-t":
            self.purging = True

    def give_up(self, name: str) -> None:
        """A request got no answer in time."""
        self.unanswered.append(name)
        self.unanswered_at[name] = len(self.asked)

    def insert(self, count: int) -> None:
        """The kernel takes as many entries as it has room for."""
        count = int(min(count, self.room))
        self.inserted += count
        self.entries += count

    def revive(self) -> None:
        """Another daemon, with empty caches."""
        self.born += 1
        self.external = self.replicated = self.sent = self.heard = 0
        self.internal = self.entries
        for name in ("-s", "-s queue", "-s process"):
            self.fates.pop(name, None)

    def clock(self) -> float:
        """The time, in seconds."""
        return self.now

    def pause(self, seconds: float) -> None:
        """Time passes, and a living peer is heard every second."""
        if self.peer:
            self.heard += int(self.now + seconds) - int(self.now)
        self.now += seconds

    def _meet(self, name: str) -> None:
        self.events += 1
        fates = self.fates[name]
        fate = fates.pop(0) if fates else None
        if isinstance(fate, Exception):
            raise fate
        if fate is not None:
            fate()


class Told(NamedTuple):
    """A transition that was carried out in a world."""

    results: list[StepResult]
    world: World

    @property
    def outcomes(self) -> dict[str, Outcome]:
        return {result.name.value: result.outcome for result in self.results}

    def reason(self, name: str) -> str:
        """Why the step of this name ended as it did."""
        return next(result.reason for result in self.results if result.name.value == name)

    @property
    def commit(self) -> Commit | None:
        """What was observed of its commit."""
        return next((result.commit for result in self.results if result.commit), None)

    @property
    def uncommitted(self) -> bool:
        """Whether it leaves anything that the caches do not tell."""
        return self.results[-1].left != Left()

    @property
    def purged(self) -> bool:
        """Whether it asked for a purge, and did not cancel it."""
        return self.results[-1].purged


def tell(
    world: World,
    state: State,
    *,
    past: Past = Past(),  # noqa: B008  # it is a tuple
    again: bool = False,
    halted: Callable[[], str | None] = lambda: None,
    about_to: Callable[[Step, Kernel | None], None] = lambda *_: None,
    deadline: float = math.inf,
) -> Told:
    """Carry out a state's plan in a world, to its end."""
    steps = plan(state, world.replication, again=again)
    requests = Requests(
        world,
        start=world.start if state in (State.PRIMARY, State.BACKUP) else None,
        check=lambda: halt(halted()),
        pause=world.pause,
        clock=world.clock,
        deadline=deadline,
    )
    transition = Transition(steps, requests, past, about_to=about_to)
    results = list(transition.results())
    names = [result.name for result in results if result.name is not StepName.START]
    assert names == [step.name for step in steps]
    return Told(results, world)


def halt(why: str | None) -> None:
    """Raise Halted where there is a reason."""
    if why is not None:
        raise Halted(why)


def unreached(times: int) -> list[Exception | Callable[[], None] | None]:
    """Nobody listens, so many times."""
    return [Unreached("conntrackd is not running") for _ in range(times)]


# -- a promotion --------------------------------------------------------------------------------


@pytest.mark.parametrize("replication", [FTFW, NOTRACK])
def test_a_promotion_recovers_what_the_peer_replicated(replication: Replication) -> None:
    """-c -f -R -B, each proven: 500 of 500 connections, and all outcomes ok."""
    told = tell(World(replication, external=500), State.PRIMARY)
    assert told.world.asked == ["-c", "-f", "-R", "-B"]
    assert told.commit is not None
    assert (told.commit.expected, told.commit.recovered) == (500, 500)
    assert set(told.outcomes.values()) == {Outcome.OK, Outcome.SKIPPED}


def test_a_first_boot_has_nothing_to_recover_and_is_ok() -> None:
    """Two empty tables: nothing to recover, nothing to send, nothing wrong."""
    told = tell(World(), State.PRIMARY)
    assert told.world.asked == ["-c", "-f", "-R", "-B"]
    assert set(told.outcomes.values()) == {Outcome.OK, Outcome.SKIPPED}


def test_entries_of_this_node_do_not_count_as_recovered() -> None:
    """What traffic made while the commit ran is not counted: only entries made through netlink."""
    world = World(external=500, entries=9_000)
    told = tell(world, State.PRIMARY)
    assert told.commit is not None
    assert told.commit.recovered == 500


def test_a_full_table_leaves_the_only_copy_alone() -> None:
    """600 of 1000 fit: degraded, and the external cache, this node's only copy, is not flushed."""
    told = tell(World(external=1_000, room=600), State.PRIMARY)
    assert told.world.asked == ["-c", "-f internal", "-R", "-B"]
    assert told.outcomes["commit"] is Outcome.DEGRADED
    assert told.world.external == 1_000


def test_a_full_table_is_remembered() -> None:
    """A cache that was kept must be known to the next transition."""
    assert tell(World(external=1_000, room=600), State.PRIMARY).uncommitted


def test_a_few_missing_entries_degrade_but_flush() -> None:
    """20 of 5000 missing, under 1 %: degraded, yet the copy may go."""
    told = tell(World(external=5_000, room=4_980), State.PRIMARY)
    assert told.world.asked == ["-c", "-f", "-R", "-B"]
    assert told.outcomes["commit"] is Outcome.DEGRADED
    assert not told.uncommitted


def test_a_kernel_that_counts_nothing_is_judged_by_its_size() -> None:
    """Without /proc/net/stat/nf_conntrack the table's size alone is the witness, and it says so."""
    told = tell(World(external=500, counts=False), State.PRIMARY)
    assert told.outcomes["commit"] is Outcome.OK
    assert "/proc/net/stat/nf_conntrack" in told.reason("commit")


def test_a_commit_that_a_purge_ate_is_asked_once_more() -> None:
    """A purge fired into the commit: wait until it is over, then commit all copies again."""
    world = World(external=1_000)

    def eat() -> None:
        world.insert(1_000)
        world.entries = 300
        del world.acts["-c"]

    world.acts["-c"] = lambda _: eat()
    told = tell(world, State.PRIMARY)
    assert world.asked == ["-c", "-c", "-f", "-R", "-B"]
    assert told.outcomes["commit"] is Outcome.OK


def test_a_commit_that_a_purge_ate_twice_is_not_asked_a_third_time() -> None:
    """Never more than once more: then it is not proven, and the copy is kept."""
    world = World(external=1_000)

    def eat() -> None:
        world.insert(1_000)
        world.entries = 300

    world.acts["-c"] = lambda _: eat()
    told = tell(world, State.PRIMARY)
    assert world.asked == ["-c", "-c", "-f internal", "-R", "-B"]
    assert told.uncommitted


def test_a_cache_that_grew_under_the_commit_is_committed_once_more() -> None:
    """A bulk was still arriving: wait until it is in, then commit all of it."""
    world = World(external=400)

    def grow(working: Callable[[], bool]) -> None:
        working()  # a slow client: the engine looks at the cache while it waits
        world.insert(400)
        world.external = 1_000
        del world.acts["-c"]

    world.acts["-c"] = grow
    told = tell(world, State.PRIMARY)
    assert world.asked[:2] == ["-c", "-c"]
    assert world.asked[2:] == ["-f", "-R", "-B"]
    assert told.outcomes["commit"] is Outcome.OK


def test_a_running_commit_is_watched_and_not_repeated() -> None:
    """A -c that returns at once while the counter moves met a running one: only look, then."""
    world = World(external=1_000)
    world.acts["-c"] = lambda _: None

    def run_on() -> None:
        if "-c" in world.asked and world.entries < world.external:
            world.insert(50)

    world.on_look = run_on
    told = tell(world, State.PRIMARY)
    assert world.asked == ["-c", "-f", "-R", "-B"]
    assert told.outcomes["commit"] is Outcome.OK


def test_an_unanswered_commit_is_never_asked_again() -> None:
    """Reached, no answer in time: the commit may still run, only its counters are watched."""
    world = World(external=1_000)

    def outlive(_: Callable[[], bool]) -> None:
        world.insert(1_000)
        raise Unanswered("conntrackd did not answer -c in time")

    world.acts["-c"] = outlive
    tell(world, State.PRIMARY)
    assert world.asked.count("-c") == 1


def test_an_unanswered_commit_that_did_nothing_flushes_nothing() -> None:
    """No answer and no entries: the external cache is the only copy, and stays."""
    world = World(external=1_000)
    world.fates["-c"] = [Unanswered("conntrackd did not answer -c in time")]
    told = tell(world, State.PRIMARY)
    assert world.asked == ["-c", "-f internal", "-R", "-B"]
    assert told.outcomes["commit"] is Outcome.DEGRADED
    assert told.uncommitted


def test_an_unanswered_commit_that_a_purge_ate_is_not_asked_again() -> None:
    """Nobody knows whether it still runs: whatever became of it, it is not asked for again."""
    world = World(external=1_000)

    def outlive(_: Callable[[], bool]) -> None:
        world.insert(1_000)
        world.entries = 300
        raise Unanswered("conntrackd did not answer -c in time")

    world.acts["-c"] = outlive
    told = tell(world, State.PRIMARY)
    assert world.asked.count("-c") == 1
    assert told.uncommitted


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
    tell(world, State.PRIMARY)
    assert seen == [True] * 10 + [False]


@pytest.mark.parametrize("counts", [True, False])
def test_traffic_does_not_make_a_hung_commit_look_alive(*, counts: bool) -> None:
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
    tell(world, State.PRIMARY)
    assert not any(seen[2:])  # the first look may find anything


def test_a_request_that_nobody_heard_is_made_again() -> None:
    """Never reached the daemon: asked again until somebody listens, without starting another."""
    world = World(external=500)
    world.fates["-c"] = unreached(2)
    told = tell(world, State.PRIMARY)
    assert told.results[0].attempts == 3
    assert told.results[0].outcome is Outcome.OK
    assert world.starts == 0


def test_asking_again_is_capped() -> None:
    """A daemon that stays away: a handful of attempts, a few seconds, then it is over."""
    world = World(external=500)
    world.fates["-c"] = unreached(1_000)
    world.fates["start"] = [Unstartable("conntrackd does not start")]
    told = tell(world, State.PRIMARY)
    assert told.outcomes["commit"] is Outcome.FAILED
    assert 2 <= told.results[0].attempts <= 10
    assert world.now < 5


def test_a_dead_daemon_is_started_once_and_its_loss_is_told() -> None:
    """Its external cache died with it: expected is unknown, recovered 0, degraded, and carry on."""
    world = World(external=500, entries=40, peer=False)
    world.fates["-c"] = unreached(5)
    told = tell(world, State.PRIMARY)
    assert told.results[0].name is StepName.START
    assert world.starts == 1
    assert told.commit is not None
    assert (told.commit.expected, told.commit.recovered) == (None, 0)
    assert told.outcomes["commit"] is Outcome.DEGRADED
    assert world.asked[-2:] == ["-R", "-B"]


@pytest.mark.parametrize("holds", [3, 500])
def test_what_a_dead_daemon_has_lost_comes_from_a_peer_that_lives(holds: int) -> None:
    """Asked once it is known to be lost, and committed; degraded, because somebody has to look."""
    world = World(external=500, entries=40, holds=holds)
    world.fates["-c"] = unreached(5)
    told = tell(world, State.PRIMARY)
    assert told.commit is not None
    assert (told.commit.expected, told.commit.recovered) == (holds, holds)
    assert told.outcomes["commit"] is Outcome.DEGRADED
    assert f"the peer has sent {holds} connections" in told.reason("commit")
    assert [asked for asked in world.asked if asked in ("-n", "-c")][-2:] == ["-n", "-c"]


def test_a_dead_daemon_in_direct_mode_lost_nothing() -> None:
    """The kernel table is the replica: the daemon's death took no connection with it."""
    world = World(DIRECT, entries=500)
    world.fates["-c"] = unreached(5)
    told = tell(world, State.PRIMARY)
    assert "nothing was lost" in told.reason("commit")


def test_a_daemon_that_dies_while_committing_proves_nothing() -> None:
    """The client exits 0 at EOF: another daemon answers now, and what came before is told."""
    world = World(external=1_000)

    def die(_: Callable[[], bool]) -> None:
        world.insert(450)
        world.revive()

    world.acts["-c"] = die
    told = tell(world, State.PRIMARY)
    assert told.outcomes["commit"] is Outcome.DEGRADED
    assert told.commit is not None
    assert (told.commit.expected, told.commit.recovered) == (None, 450)
    assert "-f" not in world.asked


def test_a_refused_flush_degrades() -> None:
    """HashSize ≤ 8192: the daemon ignores the flush and exits 0; the cache's size tells."""
    world = World(external=1_000)
    world.acts["-f"] = lambda _: None
    told = tell(world, State.PRIMARY)
    assert told.outcomes["flush"] is Outcome.DEGRADED
    assert told.uncommitted


def test_an_unanswered_flush_leaves_a_copy_to_be_dropped() -> None:
    """Nobody knows whether the flush was done: the next backup must not purge on a stale copy."""
    world = World(external=1_000)
    world.fates["-f"] = [Unanswered("conntrackd did not answer -f in time")]
    assert tell(world, State.PRIMARY).uncommitted


def test_a_promotion_that_ended_before_its_flush_leaves_a_copy_to_be_dropped() -> None:
    """A purge is safe only if the last promotion here flushed its external cache."""
    world = World(external=1_000)
    told = tell(
        world, State.PRIMARY, halted=lambda: "superseded by a backup" if world.asked else None
    )
    assert world.asked == ["-c"]
    assert told.uncommitted


def test_a_resync_that_misses_entries_degrades() -> None:
    """The internal cache is what the peer gets: 95 % of what was recovered, or it says so."""
    world = World(external=1_000)
    world.acts["-R"] = lambda _: setattr(world, "internal", 900)
    assert tell(world, State.PRIMARY).outcomes["resync"] is Outcome.DEGRADED


@pytest.mark.parametrize("replication", [FTFW, NOTRACK])
def test_a_dead_peer_degrades_no_promotion(replication: Replication) -> None:
    """The peer has just died, that is the ordinary case: sent, and nobody listens."""
    told = tell(World(replication, external=500, peer=False), State.PRIMARY)
    assert told.outcomes["bulk-send"] is Outcome.OK
    assert "no packets from the peer" in told.reason("bulk-send")


def test_a_bulk_that_the_peer_acknowledged_is_proven() -> None:
    """FTFW: the resend queue drains, the peer has it all."""
    told = tell(World(external=500), State.PRIMARY)
    assert "acknowledged" in told.reason("bulk-send")


def test_a_promotion_in_direct_mode_names_the_size_of_the_replica() -> None:
    """There is no external cache: expected is unknown, the kernel's entries tell the size."""
    told = tell(World(DIRECT, entries=500), State.PRIMARY)
    assert told.world.asked == ["-c", "-f", "-R", "-B"]
    assert told.commit is not None
    assert told.commit.expected is None
    assert told.commit.entries == 500
    assert told.outcomes["commit"] is Outcome.OK


@pytest.mark.parametrize("room", [math.inf, 0])
def test_no_promotion_flushes_a_kernel_table(room: float) -> None:
    """DisableInternalCache: -f and -f internal would destroy everything, proven or not."""
    told = tell(World(NO_INTERNAL, external=500, entries=40, room=room), State.PRIMARY)
    assert told.world.entries >= 40
    assert not {"-f", "-f internal"} & set(told.world.asked)


def test_a_second_primary_commits_nothing_over_live_entries() -> None:
    """A primary that is one already: -f internal, -R, -B, whatever the external cache holds."""
    world = World(external=500, entries=300, internal=300)
    told = tell(world, State.PRIMARY, again=True)
    assert world.asked == ["-f internal", "-R", "-B"]
    assert (world.entries, world.external) == (300, 500)
    assert told.commit is None


def test_a_hung_daemon_ends_a_promotion() -> None:
    """Nothing answers: the commit fails, and nothing more is asked."""
    world = World(external=500)
    hung = Unanswered("conntrackd did not answer in time")
    world.fates["-c"] = [hung]
    world.fates["-s"] = [hung] * 100
    told = tell(world, State.PRIMARY)
    assert world.asked == ["-c"]
    assert told.outcomes["commit"] is Outcome.FAILED
    assert told.uncommitted


def test_a_whole_transition_has_a_deadline() -> None:
    """A transition that takes too long asks nothing more."""
    told = tell(World(external=500), State.PRIMARY, deadline=-1)
    assert told.world.asked == []
    assert told.outcomes["commit"] is Outcome.FAILED


# -- a promotion whose process was killed -------------------------------------------------------


def resumed(world: World, *, ended: bool, made: int) -> Told:
    """A promotion after a killed one, whose commit has made so many entries in this world."""
    before = Kernel(world.inserted % 2**32, world.entries)
    world.insert(made)
    return tell(world, State.PRIMARY, past=Past(LEFT, earlier=Earlier(before, ended=ended)))


@pytest.mark.parametrize("ended", [True, False])
def test_a_commit_that_was_done_is_not_asked_again(*, ended: bool) -> None:
    """The counter shows every entry: asking again would replace live ones by their copies."""
    told = resumed(World(external=500, entries=20), ended=ended, made=500)
    assert told.world.asked == ["-f", "-R", "-B"]
    assert told.outcomes["commit"] is Outcome.OK
    assert told.commit is not None
    assert (told.commit.expected, told.commit.recovered) == (500, 500)


def test_a_commit_that_did_nothing_is_asked_again() -> None:
    """The process was killed before its client asked."""
    told = resumed(World(external=500), ended=False, made=0)
    assert told.world.asked == ["-c", "-f", "-R", "-B"]
    assert told.commit is not None
    assert told.commit.recovered == 500


def test_a_commit_that_did_half_is_asked_again() -> None:
    """It came to rest without its other half: nobody knows whether the kernel refused it."""
    told = resumed(World(external=500), ended=False, made=200)
    assert told.world.asked == ["-c", "-f", "-R", "-B"]


def test_a_commit_that_came_to_its_end_is_not_asked_again_for_what_is_missing() -> None:
    """The kernel has refused the rest: the copies are kept, as they would have been."""
    told = resumed(World(external=1_000, room=600), ended=True, made=1_000)
    assert told.world.asked == ["-f internal", "-R", "-B"]
    assert told.outcomes["commit"] is Outcome.DEGRADED
    assert told.uncommitted


def test_a_commit_that_still_runs_is_waited_for() -> None:
    """Its client died with the process that was killed, the daemon goes on."""
    world = World(external=500)

    def go_on() -> None:
        if world.looks == 0 and world.entries < 500:
            world.insert(50)

    world.on_look = go_on
    told = resumed(world, ended=False, made=0)
    assert told.world.asked == ["-f", "-R", "-B"]
    assert told.commit is not None
    assert told.commit.recovered == 500


def test_a_commit_whose_daemon_has_died_since_is_not_asked_again() -> None:
    """Its successor holds nothing to commit: degraded, and its loss is told."""
    world = World(external=500, peer=False)
    world.fates["-s"] = unreached(5)
    told = resumed(world, ended=False, made=200)
    assert world.starts == 1
    assert "-c" not in world.asked
    assert told.outcomes["commit"] is Outcome.DEGRADED


@pytest.mark.parametrize("ended", [True, False])
def test_a_killed_promotion_in_direct_mode_is_finished(*, ended: bool) -> None:
    """The kernel table is the replica: nothing is missing, all the rest is asked."""
    told = resumed(World(DIRECT, entries=500), ended=ended, made=0)
    assert told.world.asked[-2:] == ["-R", "-B"]
    assert set(told.outcomes.values()) == {Outcome.OK, Outcome.SKIPPED}


@given(st.integers(0, 600), st.booleans())
def test_whatever_a_killed_commit_has_done_no_unproven_copy_is_flushed(
    made: int, ended: bool
) -> None:
    """Any number of entries made before: the copies go once all but a few are in the kernel."""
    told = resumed(World(external=500, room=520), ended=ended, made=made)
    assert told.world.asked.count("-c") <= (2 if not ended else 0)
    if "-f" in told.world.asked:
        assert told.world.entries >= 490


# -- a backup -----------------------------------------------------------------------------------


def test_copies_that_the_peer_does_not_hold_any_more_are_told() -> None:
    """It adds and never takes away: what ended while the link was down stays in the cache."""
    told = tell(World(external=500, holds=200), State.BACKUP)
    assert "200 connections received from the peer, beside 300 copies" in told.reason(
        "request-resync"
    )
    told = tell(World(external=210, holds=200), State.BACKUP)
    assert told.reason("request-resync") == "200 connections received from the peer"


def test_a_backup_purges_when_the_peer_has_it_all() -> None:
    """The peer is heard and its copy covers ours: -n, and then -t."""
    told = tell(World(internal=500, holds=500), State.BACKUP)
    assert told.world.asked == ["-n", "-t"]
    assert told.outcomes["purge"] is Outcome.OK


def test_a_copy_that_does_not_cover_ours_stops_the_purge() -> None:
    """The peer holds 449 of 500: nothing is purged, and the reason says so."""
    told = tell(World(internal=500, holds=449), State.BACKUP)
    assert told.world.asked == ["-n"]
    assert "449" in told.reason("purge")


def test_a_backup_that_hears_nobody_purges_nothing() -> None:
    """No peer on the dedicated link: degraded, and what is here stays here."""
    told = tell(World(internal=500, external=500, peer=False), State.BACKUP)
    assert "-t" not in told.world.asked
    assert told.outcomes["request-resync"] is Outcome.DEGRADED


def test_a_backup_without_an_internal_cache_counts_the_kernel_table() -> None:
    """DisableInternalCache: what this node holds, only the kernel can tell."""
    told = tell(World(NO_INTERNAL, entries=1_000, holds=500), State.BACKUP)
    assert told.world.asked == ["-n"]
    assert told.outcomes["purge"] is Outcome.SKIPPED


def test_a_live_peer_with_nothing_to_send_is_ok() -> None:
    """Peer alive, nothing to replicate: that is no fault."""
    told = tell(World(holds=0), State.BACKUP)
    assert told.outcomes["request-resync"] is Outcome.OK


def test_a_replica_that_was_full_already_is_ok() -> None:
    """What the peer sends again changes no size, and is as good."""
    told = tell(World(external=500, holds=500), State.BACKUP)
    assert told.outcomes["request-resync"] is Outcome.OK


def test_a_kept_copy_stops_the_purge() -> None:
    """The last promotion did not flush: the copy is ours, old, and covers nothing."""
    told = tell(World(internal=500, external=500, holds=0), State.BACKUP, past=Past(LEFT))
    assert "-t" not in told.world.asked
    assert told.uncommitted


def test_a_kept_copy_is_dropped_once_the_peer_has_sent_it_all() -> None:
    """Or dead connections come back months later: -f external, and then a whole answer to -n."""
    world = World(internal=500, external=900, holds=500)
    told = tell(world, State.BACKUP, past=Past(LEFT))
    dropped = world.asked.index("-f external")
    assert "-n" in world.asked[dropped + 1 :]
    assert world.external == 500
    assert not told.uncommitted


def test_a_kept_copy_stays_while_the_peer_has_less() -> None:
    """A peer that does not hold what is here is not proven primary: the copy is the only one."""
    world = World(internal=500, external=900, holds=100)
    told = tell(world, State.BACKUP, past=Past(LEFT))
    assert "-f external" not in world.asked
    assert told.uncommitted


@pytest.mark.parametrize("state", [State.PRIMARY, State.BACKUP, State.FAULT])
@pytest.mark.parametrize("kept", [False, True])
def test_the_intent_is_written_down_before_the_first_request(state: State, *, kept: bool) -> None:
    """One that is killed right after its first request must not leave an older one's memory."""
    world = World(internal=500, external=600, holds=500)
    written: list[int] = []
    tell(
        world,
        state,
        past=Past(Left(copies=int(kept))),
        about_to=lambda *_: written.append(len(world.asked)),
    )
    assert not world.asked or written[:1] == [0]


def test_an_alarm_backup_asks_for_no_resync() -> None:
    """-n is a no-op in ALARM: only the purge, if the peer is heard."""
    told = tell(World(ALARM, internal=500, external=500), State.BACKUP)
    assert told.world.asked == ["-t"]


# -- a fault ------------------------------------------------------------------------------------


def test_a_fault_purges_when_the_peer_has_it_all() -> None:
    """The peer is heard and its copy covers ours."""
    told = tell(World(internal=500, external=500), State.FAULT)
    assert told.world.asked == ["-t"]


def test_a_fault_disarms_a_purge_that_is_pending() -> None:
    """The peer does not cover ours: the purge would destroy the only copy, -f internal stops it."""
    world = World(internal=500, external=100, entries=500)
    tell(world, State.FAULT, past=Past(purge_pending=True))
    assert world.asked == ["-f internal", "-R"]
    assert world.internal == 500


def test_a_fault_that_armed_nothing_asks_nothing() -> None:
    """Nothing to purge safely, nothing to cancel."""
    told = tell(World(internal=500, external=100), State.FAULT)
    assert told.world.asked == []
    assert set(told.outcomes.values()) == {Outcome.SKIPPED}


def test_a_fault_whose_daemon_is_down_asks_nothing() -> None:
    """A fault starts no daemon; a purge died with it."""
    world = World(internal=500)
    world.fates["-s"] = unreached(1_000)
    told = tell(world, State.FAULT)
    assert (world.asked, world.starts) == ([], 0)
    assert told.outcomes["purge"] in (Outcome.DEGRADED, Outcome.SKIPPED)


def test_without_an_internal_cache_a_commit_of_nothing_disarms() -> None:
    """DisableInternalCache: -f internal would flush the kernel, a -c over no copies does not."""
    world = World(NO_INTERNAL, external=0, entries=500)
    tell(world, State.FAULT, past=Past(purge_pending=True))
    assert world.asked == ["-c"]


def test_without_an_internal_cache_no_copy_is_committed_to_disarm() -> None:
    """A -c over a filled cache would replace live entries: nothing is asked, then."""
    world = World(NO_INTERNAL, external=100, entries=500)
    told = tell(world, State.FAULT, past=Past(purge_pending=True))
    assert world.asked == []
    assert "not empty" in told.reason("disarm")


@pytest.mark.parametrize("state", [State.BACKUP, State.FAULT])
def test_a_fault_in_direct_mode_purges_nothing(state: State) -> None:
    """The kernel table is the replica."""
    world = World(DIRECT, internal=500, entries=500)
    tell(world, state, past=Past(purge_pending=True))
    assert "-t" not in world.asked


def test_a_purge_that_was_overtaken_is_taken_back() -> None:
    """A primary came while -t was on its way: it must not hit the new primary."""
    world = World(internal=500, external=500, entries=500)
    told = tell(
        world, State.FAULT, halted=lambda: "superseded by a primary" if world.purging else None
    )
    assert world.asked == ["-t", "-f internal", "-R"]
    assert told.outcomes["purge"] is Outcome.SUPERSEDED


def test_a_purge_that_is_not_taken_back_is_not_called_so() -> None:
    """DisableInternalCache over a filled cache: nothing safe cancels it, and the record says so."""
    world = World(NO_INTERNAL, external=500, entries=500)
    told = tell(
        world, State.FAULT, halted=lambda: "superseded by a primary" if world.purging else None
    )
    assert world.asked == ["-t"]
    assert "taken back" not in told.reason("purge")
    assert told.purged


def test_a_signal_while_purging_is_named() -> None:
    """The final event names the signal that ended it, not a notification that never came."""
    world = World(internal=500, external=500, entries=500)
    told = tell(world, State.FAULT, halted=lambda: "ended by SIGTERM" if world.purging else None)
    assert "SIGTERM" in told.reason("purge")


def test_a_newer_notification_stops_a_purge() -> None:
    """No purge while a newer notification waits."""
    world = World(internal=500, external=500)
    tell(world, State.FAULT, halted=lambda: "superseded by a primary" if world.looks else None)
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

    def promote(self) -> Told:
        """Promote: halted from the n-th event on, whatever that event is."""
        return tell(
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
    told = case.promote()
    steps = plan(State.PRIMARY, case.world.replication, again=case.again)
    assert [r.name for r in told.results if r.name is not StepName.START] == [
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
    told = case.promote()
    if {"-f", "-f external"} & set(case.world.asked):
        commit = told.commit
        assert commit is not None
        assert commit.missing <= slack(commit.expected or 0) or (
            commit.missing < FLUSHABLE_PART * (commit.expected or 0)
        )


@any_case
@given(cases())
def test_a_copy_that_was_not_flushed_is_remembered(case: Case) -> None:
    """Whatever becomes of the requests: what this daemon's cache may still hold is known."""
    told = case.promote()
    world = case.world
    if "-c" in world.asked and world.starts == 0 and world.replication.external_cache:
        assert told.uncommitted or world.external <= 1_000  # a tenth of the largest


@any_case
@given(cases())
def test_nothing_is_asked_once_superseded(case: Case) -> None:
    """From the moment a younger invocation is there, no promotion asks anything more."""
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
    assert case.world.asked.count("-c") - case.world.unheard.count("-c") <= 2


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
    """-t only where a peer was heard that holds 90 % of what is here, and no copy was kept."""
    world, state, past = case
    covered: list[bool] = []
    purge = world.acts.get("-t")

    def witness(working: Callable[[], bool]) -> None:
        ours = world.internal if world.replication.internal_cache else world.entries
        covered.append(world.peer and world.heard > 0 and world.external >= 0.9 * ours)
        if purge is not None:
            purge(working)

    world.acts["-t"] = witness
    told = tell(world, state, past=past)
    assert all(covered)
    if "-t" in world.asked:
        assert world.replication.external_cache
        assert not told.uncommitted


@any_case
@given(standbys())
def test_whatever_happens_a_standby_commits_no_copy(case: tuple[World, State, Past]) -> None:
    """A backup or a fault asks -c only to disarm, over an external cache that is empty."""
    world, state, past = case
    copies: list[int] = []
    world.acts["-c"] = lambda _: copies.append(world.external)
    tell(world, state, past=past)
    assert not any(copies)


@any_case
@given(standbys())
def test_whatever_happens_a_standby_flushes_no_kernel_table(
    case: tuple[World, State, Past],
) -> None:
    """What is in the kernel table stays there, unless a purge that is covered fires later."""
    world, state, past = case
    before = world.entries
    tell(world, state, past=past)
    assert world.entries >= before
