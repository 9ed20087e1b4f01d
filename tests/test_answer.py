"""The peer's answer to ``-n``: when it has ended, whether it was whole, and what is said of it."""

from __future__ import annotations

import pytest

from primary_backup.answer import REPEAT_SECONDS, SETTLED_SECONDS
from primary_backup.past import Reported
from primary_backup.peer import ARRIVING_SECONDS
from primary_backup.plan import State
from primary_backup.proof import Outcome
from tests.fake.world import World, carry_out


class Busy(World):
    """A world whose link carries connections all the time."""

    messages = 0.0
    """About connections that are here already, each second."""
    arriving = 0.0
    """Connections that arrive each second, until all that the peer holds are here."""

    def pause(self, seconds: float) -> None:
        super().pause(seconds)
        self.replicated += round(self.messages * seconds)
        more = min(round(self.arriving * seconds), self.holds - self.external)
        if self.arriving and "-n" in self.asked:
            self.external += more
            self.replicated += more

    def do(self, name: str) -> None:
        if name != "-n" or not self.arriving:
            super().do(name)


def refusing(world: World, request: str, count: int) -> World:
    """Let a request find no room for so many connections."""

    def fill(_: object) -> None:
        world.do(request)
        world.refused += count

    world.acts[request] = fill
    return world


def test_an_answer_ends_although_the_peer_has_traffic() -> None:
    """Far fewer messages come than at its height, and not all are connections of the answer's."""
    world = Busy(internal=4_400, holds=4_400)
    world.messages = 440.0
    done = carry_out(world, State.BACKUP)
    assert done.outcomes["request-resync"] is Outcome.OK
    assert done.reason("request-resync") == "4400 connections received from the peer"
    assert world.now < 2 * SETTLED_SECONDS + 1


class Growing(World):
    """A peer that has opened more connections after five seconds than it had before."""

    opened = 0.0
    """New connections each second."""

    def pause(self, seconds: float) -> None:
        super().pause(seconds)
        count = round(self.opened * seconds)
        self.holds += count
        self.external += count
        self.replicated += count


def test_an_answer_ends_although_the_peer_opens_as_many_connections_as_it_had() -> None:
    """It is asked once more, and sends all that it has opened meanwhile at once."""
    world = Growing(internal=300, holds=300)
    world.opened = 300.0
    done = carry_out(world, State.BACKUP)
    assert done.outcomes["request-resync"] is Outcome.OK
    assert world.asked.count("-n") == 2
    assert world.now < REPEAT_SECONDS + SETTLED_SECONDS + 1


@pytest.mark.parametrize("rate", [400.0, 800.0])
def test_a_repeated_answer_over_a_slow_link_is_waited_for(rate: float) -> None:
    """It brings no more at once than the link does; a large answer is not asked for again."""
    world = Busy(holds=20_000)
    world.arriving = rate
    done = carry_out(world, State.BACKUP)
    assert world.asked.count("-n") == 3  # and once at its end, as every answer
    assert world.external == 20_000
    assert done.outcomes["request-resync"] is Outcome.OK


@pytest.mark.parametrize("rate", [1_000.0, 4_000.0])
def test_an_answer_over_a_slow_link_is_waited_for_to_its_end(rate: float) -> None:
    """As long as it brings connections; 40,000 over 1 Mbit/s are some 40 s, 8 Mbit/s are 5."""
    world = Busy(holds=20_000)
    world.arriving = rate
    done = carry_out(world, State.BACKUP)
    assert done.outcomes["request-resync"] is Outcome.OK
    assert world.external == 20_000
    assert 20_000 / rate < world.now < ARRIVING_SECONDS


def test_what_a_new_daemon_was_sent_at_once_may_be_lost() -> None:
    """Its first packets empty the peer's resend queue: it is asked for a second time."""
    world = World(internal=500, holds=500)
    world.received = 0
    sent = iter([20, 500, 500])

    def send(_: object) -> None:
        count = next(sent)
        world.replicated += count
        world.external = max(world.external, count)

    world.acts["-n"] = send
    done = carry_out(world, State.BACKUP)
    assert world.asked[:2] == ["-n", "-n"]
    assert done.reason("request-resync") == "500 connections received from the peer"
    assert done.outcomes["request-resync"] is Outcome.OK


def test_an_answer_is_not_waited_for_without_end() -> None:
    """What is still to come is not here: it is not ok."""
    world = Busy(holds=10**9)
    world.arriving = 10_000.0
    done = carry_out(world, State.BACKUP)
    assert done.outcomes["request-resync"] is Outcome.DEGRADED
    assert "more are arriving" in done.reason("request-resync")
    assert ARRIVING_SECONDS < world.now < ARRIVING_SECONDS + 5


@pytest.mark.parametrize(
    ("reported", "outcome"), [(500, Outcome.OK), (505, Outcome.OK), (600, Outcome.DEGRADED)]
)
def test_an_answer_is_whole_where_it_holds_what_the_peer_reports(
    reported: int, outcome: Outcome
) -> None:
    """Its own follower counts what conntrackd's protocol does not show."""
    said = Reported("fw-1", reported, 1.0)
    done = carry_out(World(internal=500), State.BACKUP, reported=lambda: said)
    assert done.outcomes["request-resync"] is outcome
    if outcome is Outcome.DEGRADED:
        why = "fw-1 reported 600 connections 1.0 s before, 500 are here"
        assert done.reason("request-resync") == why


def test_an_answer_that_is_not_whole_is_asked_for_again() -> None:
    """The peer's count shows that more is to come, however long the link stands still."""
    wakes_at = 4.0

    class Late(Busy):
        def pause(self, seconds: float) -> None:
            super().pause(seconds)
            if self.now > wakes_at and self.external == 300:
                self.external, self.replicated = 500, self.replicated + 200

    world = Late(holds=300)
    done = carry_out(world, State.BACKUP, reported=lambda: Reported("fw-1", 500, 1.0))
    assert done.outcomes["request-resync"] is Outcome.OK
    assert world.external == 500
    assert world.now > wakes_at
    assert world.asked.count("-n") > 1


def test_an_answer_that_found_no_room_is_not_whole() -> None:
    """The cache is full (HashLimit): the same number on both sides shows nothing, nothing goes."""
    world = refusing(World(internal=400, holds=500), "-n", 70)
    done = carry_out(world, State.BACKUP)
    assert done.outcomes["request-resync"] is Outcome.DEGRADED
    assert "could not create 70 connections of the peer's" in done.reason("request-resync")
    assert done.outcomes["purge"] is not Outcome.OK
    assert "-t" not in world.asked


def test_an_internal_cache_without_room_is_not_rebuilt() -> None:
    """Whatever was recovered: the peer would never receive the rest."""
    done = carry_out(refusing(World(external=500), "-R", 30), State.PRIMARY)
    assert done.outcomes["resync"] is Outcome.DEGRADED
    assert "30 connections are not replicated" in done.reason("resync")


def test_what_was_refused_before_is_no_part_of_this() -> None:
    """A total since the daemon's start."""
    world = World(internal=500)
    world.refused = 1_000
    assert carry_out(world, State.BACKUP).outcomes["request-resync"] is Outcome.OK
