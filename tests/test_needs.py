"""follower/needs.py: what an idle node needs, from any polls of its daemon."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primary_backup.conntrackd.status import Status
from primary_backup.follower.needs import Need, Needs, Past, Poll
from primary_backup.proof import Left

DAEMON = (1, 2, 3)
WELL = Past(DAEMON, finished=True, no_packets=False, deferred=False, left=Left(), sends=True)
"""How a transition ends that leaves nothing to do."""


def at(
    seconds: float,
    packets: int,
    *,
    daemon: tuple[int, int, int] | None = DAEMON,
    external: int | None = 100,
    ours: int = 100,
) -> Poll:
    """One poll of a daemon that has received so many packets."""
    return Poll(seconds, daemon, Status(100, external, 0, 0, packets, 0), ours)


def dead(seconds: float) -> Poll:
    """One poll where no daemon listens."""
    return Poll(seconds, None, None, 100)


def needs(past: Past, *polls: Poll) -> list[Need | None]:
    """What each poll finds."""
    found = Needs(past)
    return [found.after(poll) for poll in polls]


# -- the daemon ---------------------------------------------------------------------------------


def test_a_node_in_sync_needs_nothing() -> None:
    """As long as its own daemon receives packets of the peer."""
    assert needs(WELL, at(0, 7), at(5, 12), at(10, 17)) == [None] * 3


def test_a_daemon_that_is_dead_is_started_and_then_known_for_a_new_one() -> None:
    """At each poll, until a transition has met it."""
    seen = needs(WELL, dead(0), dead(5), at(10, 0, daemon=(1, 2, 4)), at(15, 5, daemon=(1, 2, 4)))
    assert seen == [Need.START, Need.START, Need.RESTARTED, Need.RESTARTED]


@pytest.mark.parametrize("before", [(1, 2, 4), None])
def test_another_daemon_than_the_last_transition_s_has_new_caches(
    before: tuple[int, int, int] | None,
) -> None:
    """Also where the last transition found none at all."""
    assert needs(WELL._replace(daemon=before), at(0, 7)) == [Need.RESTARTED]


def test_a_daemon_whose_identity_cannot_be_reported_is_not_taken_for_another() -> None:
    """Its socket may be gone for the moment of a poll; it answers."""
    assert needs(WELL, at(0, 7, daemon=None), at(5, 12)) == [None, None]


def test_what_was_not_finished_stays_to_be_finished() -> None:
    """Whatever else is observed of a daemon that is running."""
    past = WELL._replace(finished=False, no_packets=True, deferred=True)
    assert needs(past, at(0, 7), at(5, 12), at(10, 12)) == [Need.UNFINISHED] * 3


# -- the peer -----------------------------------------------------------------------------------


def test_a_peer_whose_packets_arrive_again_is_asked_again() -> None:
    """What it sent meanwhile is lost; one poll that finds it is enough."""
    polls = at(0, 7), at(5, 7), at(10, 8), at(15, 8), at(20, 9)
    assert needs(WELL, *polls) == [None, None, Need.PEER, Need.PEER, Need.PEER]


def test_a_peer_that_sent_nothing_during_the_transition_is_awaited() -> None:
    """The first poll is what the next ones are compared with."""
    past = WELL._replace(no_packets=True)
    assert needs(past, at(0, 7), at(1, 7), at(2, 8)) == [None, None, Need.PEER]


def test_a_peer_between_two_packets_is_not_missed() -> None:
    """It sends every second: two polls may fall into one of its pauses."""
    assert needs(WELL, at(0, 7), at(0.5, 7), at(1.5, 7), at(1.9, 8)) == [None] * 4


def test_a_peer_that_need_not_send_anything_is_not_missed() -> None:
    """Without a keep-alive, as in NOTRACK, no packets mean nothing."""
    past = WELL._replace(no_packets=True, sends=False)
    assert needs(past, at(0, 7), at(100, 7), at(200, 8)) == [None] * 3


# -- a purge that was deferred ---------------------------------------------------------------------

DEFERRED = WELL._replace(deferred=True)


def test_a_deferred_purge_is_due_once_the_peer_covers_it() -> None:
    """It sends, and has a copy of what is held here: then this node's own are stale."""
    polls = at(0, 7), at(5, 8, external=89), at(10, 9, external=90), at(15, 9, external=90)
    assert needs(DEFERRED, *polls) == [None, None, Need.PURGE, None]


@pytest.mark.parametrize(
    ("past", "external"),
    [(DEFERRED._replace(left=Left(copies=1)), 100), (DEFERRED, None), (DEFERRED, 0), (WELL, 100)],
    ids=["its copies are older", "no external cache", "no copies", "none was deferred"],
)
def test_in_doubt_nothing_is_purged(past: Past, external: int | None) -> None:
    """A stale entry costs little, a connection cannot be brought back."""
    polls = [at(5 * poll, poll, external=external) for poll in range(5)]
    assert needs(past, *polls) == [None] * 5


POLLS = st.lists(
    st.tuples(st.floats(0.01, 10), st.integers(0, 1), st.integers(0, 120) | st.none()),
    max_size=20,
)
PASTS = st.builds(
    Past,
    st.just(DAEMON),
    finished=st.booleans(),
    no_packets=st.booleans(),
    deferred=st.booleans(),
    left=st.builds(Left, st.integers(0, 1), st.booleans()),
    sends=st.booleans(),
)


@given(past=PASTS, polls=POLLS)
def test_over_any_polls_a_purge_needs_a_peer_that_just_sent_and_covers(
    past: Past, polls: list[tuple[float, int, int | None]]
) -> None:
    """Whatever the past, and however the link flaps."""
    times = accumulate(seconds for seconds, _, _ in polls)
    packets = list(accumulate(more for _, more, _ in polls))
    polled = [
        at(seconds, received, external=external)
        for seconds, received, (_, _, external) in zip(times, packets, polls, strict=True)
    ]
    found = needs(past, *polled)
    sent = [False, *(after != before for before, after in pairwise(packets))]
    for need, poll, (_, _, external), just in zip(found, polled, polls, sent, strict=False):
        assert need is not Need.PURGE or (
            past.deferred and past.left == Left() and just and (external or 0) >= 0.9 * poll.ours
        )
        assert need is not Need.PEER or (past.sends and past.finished)


# -- an answer that was not whole -----------------------------------------------------------------

LACKING = WELL._replace(lacking=True)


def test_an_answer_that_was_not_whole_is_asked_for_again() -> None:
    """Once the peer sends: the first poll is what the next ones are compared with."""
    assert needs(LACKING, at(0, 7), at(5, 7), at(10, 8)) == [None, None, Need.PEER]
    assert needs(LACKING, at(0, 7), at(1, 8), at(2, 9)) == [None, Need.LACKING, Need.LACKING]
    assert needs(LACKING._replace(sends=False), at(0, 7), at(1, 8)) == [None, None]
    assert needs(LACKING._replace(finished=False), at(0, 7), at(1, 8)) == [Need.UNFINISHED] * 2
