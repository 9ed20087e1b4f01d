"""follower/backoff.py: how often something is done again, over any needs."""

from __future__ import annotations

from itertools import accumulate, pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from primary_backup.follower.backoff import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    QUIET_SECONDS,
    Backoff,
)

HOUR = 3600
MOST = 28
"""Six, at 0, 5, 15 … 155 s, then ten minutes of quiet, and so on; steadily it is 17."""


def met(waits: list[float], backoff: Backoff) -> list[float]:
    """When the needs were met that came after these waits, each from the one before it."""
    taken = []
    for seconds in accumulate(waits, initial=1000.0):
        if backoff.allows(seconds):
            backoff.take(seconds)
            taken.append(seconds)
    return taken


WAITS = st.lists(
    st.floats(0, HOUR)
    | st.floats(0, LONGEST_PAUSE_SECONDS)
    | st.sampled_from([1.0, FIRST_PAUSE_SECONDS, QUIET_SECONDS + 1]),
    max_size=200,
)


@given(WAITS)
@example([1.0] * HOUR)
@example([5, 10, 20, 40, 80, 160 + QUIET_SECONDS + 1] * 5)
@example([5, 10, 20, 40, 80, 160 + QUIET_SECONDS / 2] * 9)
def test_over_any_needs_no_hour_has_many_acts(waits: list[float]) -> None:
    """A link that flaps, at whatever backoff, causes no storm of bulks."""
    taken = met(waits, Backoff())
    for start in taken:
        assert sum(start <= seconds <= start + HOUR for seconds in taken) <= MOST


def test_a_need_that_stays_is_met_ever_more_seldom() -> None:
    """5 s after the first time, then twice as long each time, at last every 5 minutes."""
    taken = met([1.0] * HOUR, Backoff())
    pauses = [after - before for before, after in pairwise(taken)]
    assert pauses[:7] == [5, 10, 20, 40, 80, 160, 300]
    assert set(pauses[7:]) == {300}


@given(WAITS)
def test_after_any_needs_and_a_quiet_time_the_next_one_is_met_at_once(waits: list[float]) -> None:
    """And the one after it after the first pause again."""
    backoff = Backoff()
    met(waits, backoff)
    quiet = 1000 + sum(waits) + LONGEST_PAUSE_SECONDS + QUIET_SECONDS + 1
    assert backoff.allows(quiet)
    backoff.take(quiet)
    assert not backoff.allows(quiet + FIRST_PAUSE_SECONDS / 2)
    assert backoff.allows(quiet + FIRST_PAUSE_SECONDS)
