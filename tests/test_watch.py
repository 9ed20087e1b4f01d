"""watch.py: what an idle node needs, from any looks at its daemon; and how often it is met."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from primary_backup.conntrackd.status import Status
from primary_backup.follower.needs import (
    CALM_SECONDS,
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    Look,
    Need,
    Pace,
    Past,
    Watch,
)

DAEMON = (1, 2, 3)
WELL = Past(DAEMON, finished=True, silent=False, held=False, kept=False, answers=True)
"""How a transition ends that leaves nothing to do."""


def at(
    seconds: float,
    packets: int,
    *,
    daemon: tuple[int, ...] | None = DAEMON,
    external: int | None = 100,
    ours: int = 100,
) -> Look:
    """One look at a daemon that has heard so many packets."""
    return Look(seconds, daemon, Status(100, external, 0, 0, packets, 0), ours)


def dead(seconds: float) -> Look:
    """One look where nobody listens."""
    return Look(seconds, None, None, 100)


def needs(past: Past, *looks: Look) -> list[Need | None]:
    """What each look tells."""
    watch = Watch(past)
    return [watch.see(look) for look in looks]


# -- the daemon ---------------------------------------------------------------------------------


def test_a_node_in_sync_needs_nothing() -> None:
    """As long as its own daemon hears the peer."""
    assert needs(WELL, at(0, 7), at(5, 12), at(10, 17)) == [None] * 3


def test_a_daemon_that_is_dead_is_started_and_then_known_for_a_new_one() -> None:
    """As often as one looks, until a transition has seen to it."""
    seen = needs(WELL, dead(0), dead(5), at(10, 0, daemon=(1, 2, 4)), at(15, 5, daemon=(1, 2, 4)))
    assert seen == [Need.START, Need.START, Need.RESTARTED, Need.RESTARTED]


@pytest.mark.parametrize("before", [(1, 2, 4), None])
def test_another_daemon_than_the_last_transition_s_has_new_caches(
    before: tuple[int, ...] | None,
) -> None:
    """Also where the last transition found none at all."""
    assert needs(WELL._replace(daemon=before), at(0, 7)) == [Need.RESTARTED]


def test_a_daemon_whose_identity_cannot_be_told_is_not_taken_for_another() -> None:
    """Its socket may be gone for the moment of a look; it answers."""
    assert needs(WELL, at(0, 7, daemon=None), at(5, 12)) == [None, None]


def test_what_was_not_finished_stays_to_be_finished() -> None:
    """Whatever else is seen of a daemon that lives."""
    past = WELL._replace(finished=False, silent=True, held=True)
    assert needs(past, at(0, 7), at(5, 12), at(10, 12)) == [Need.UNFINISHED] * 3


# -- the peer -----------------------------------------------------------------------------------


def test_a_peer_that_is_heard_again_is_asked_again() -> None:
    """Its words of meanwhile are lost; one look that finds it is enough."""
    looks = at(0, 7), at(5, 7), at(10, 8), at(15, 8), at(20, 9)
    assert needs(WELL, *looks) == [None, None, Need.PEER, Need.PEER, Need.PEER]


def test_a_peer_that_was_silent_during_the_transition_is_awaited() -> None:
    """The first look is what the next ones are compared with."""
    past = WELL._replace(silent=True)
    assert needs(past, at(0, 7), at(1, 7), at(2, 8)) == [None, None, Need.PEER]


def test_a_peer_between_two_words_is_not_silent() -> None:
    """It says something every second: two looks may fall into one of its pauses."""
    assert needs(WELL, at(0, 7), at(0.5, 7), at(1.5, 7), at(1.9, 8)) == [None] * 4


def test_a_peer_that_need_not_say_anything_is_not_missed() -> None:
    """Without a second's word, as in NOTRACK, silence means nothing."""
    past = WELL._replace(silent=True, answers=False)
    assert needs(past, at(0, 7), at(100, 7), at(200, 8)) == [None] * 3


# -- a purge that was held back -----------------------------------------------------------------

HELD = WELL._replace(held=True)


def test_a_purge_that_was_held_back_is_due_once_the_peer_covers_it() -> None:
    """Heard, and with a copy of what is held here: then this node's own are garbage."""
    looks = at(0, 7), at(5, 8, external=89), at(10, 9, external=90), at(15, 9, external=90)
    assert needs(HELD, *looks) == [None, None, Need.PURGE, None]


@pytest.mark.parametrize(
    ("past", "external"),
    [(HELD._replace(kept=True), 100), (HELD, None), (HELD, 0), (WELL, 100)],
    ids=["its copies are older", "no external cache", "no copies", "none was held back"],
)
def test_in_doubt_nothing_is_purged(past: Past, external: int | None) -> None:
    """Garbage costs little, a connection cannot be brought back."""
    looks = [at(5 * look, look, external=external) for look in range(5)]
    assert needs(past, *looks) == [None] * 5


LOOKS = st.lists(
    st.tuples(st.floats(0.01, 10), st.integers(0, 1), st.integers(0, 120) | st.none()),
    max_size=20,
)


@given(past=st.builds(Past, st.just(DAEMON), *[st.booleans()] * 5), looks=LOOKS)
def test_over_any_looks_a_purge_needs_a_peer_that_was_just_heard_and_covers(
    past: Past, looks: list[tuple[float, int, int | None]]
) -> None:
    """Whatever the past, and however the link flaps."""
    times = accumulate(seconds for seconds, _, _ in looks)
    packets = list(accumulate(more for _, more, _ in looks))
    seen = [
        at(seconds, heard, external=external)
        for seconds, heard, (_, _, external) in zip(times, packets, looks, strict=True)
    ]
    told = needs(past, *seen)
    heard = [False, *(after != before for before, after in pairwise(packets))]
    for need, look, (_, _, external), spoke in zip(told, seen, looks, heard, strict=False):
        assert need is not Need.PURGE or (
            past.held and not past.kept and spoke and (external or 0) >= 0.9 * look.ours
        )
        assert need is not Need.PEER or (past.answers and past.finished)


# -- the pace -----------------------------------------------------------------------------------

HOUR = 3600
MOST = 28
"""Six, at 0, 5, 15 … 155 s, then ten minutes of calm, and so on; steadily it is 17."""


def met(waits: list[float], pace: Pace) -> list[float]:
    """When the needs were met that came after these waits, each from the one before it."""
    taken = []
    for seconds in accumulate(waits, initial=1000.0):
        if pace.allows(seconds):
            pace.take(seconds)
            taken.append(seconds)
    return taken


WAITS = st.lists(
    st.floats(0, HOUR)
    | st.floats(0, LONGEST_PAUSE_SECONDS)
    | st.sampled_from([1.0, FIRST_PAUSE_SECONDS, CALM_SECONDS + 1]),
    max_size=200,
)


@given(WAITS)
@example([1.0] * HOUR)
@example([5, 10, 20, 40, 80, 160 + CALM_SECONDS + 1] * 5)
@example([5, 10, 20, 40, 80, 160 + CALM_SECONDS / 2] * 9)
def test_over_any_needs_no_hour_has_many_acts(waits: list[float]) -> None:
    """A link that flaps, at whatever pace, causes no storm of bulks."""
    taken = met(waits, Pace())
    for start in taken:
        assert sum(start <= seconds <= start + HOUR for seconds in taken) <= MOST


def test_a_need_that_stays_is_met_ever_more_seldom() -> None:
    """5 s after the first time, then twice as long each time, at last every 5 minutes."""
    taken = met([1.0] * HOUR, Pace())
    pauses = [after - before for before, after in pairwise(taken)]
    assert pauses[:7] == [5, 10, 20, 40, 80, 160, 300]
    assert set(pauses[7:]) == {300}


@given(WAITS)
def test_after_any_needs_and_a_calm_the_next_one_is_met_at_once(waits: list[float]) -> None:
    """And the one after it after the first pause again."""
    pace = Pace()
    met(waits, pace)
    calm = 1000 + sum(waits) + LONGEST_PAUSE_SECONDS + CALM_SECONDS + 1
    assert pace.allows(calm)
    pace.take(calm)
    assert not pace.allows(calm + FIRST_PAUSE_SECONDS / 2)
    assert pace.allows(calm + FIRST_PAUSE_SECONDS)
