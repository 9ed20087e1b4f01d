"""follower/continuity.py: a reload dates keepalived's states again, and nothing was missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from primary_backup.follower.continuity import SURE, Continuity
from primary_backup.keepalived.state import VrrpState
from primary_backup.memory import Last, Memory
from primary_backup.plan import State
from primary_backup.system.proc import Issued

RELOADED = 1e9
"""The date that keepalived gives, seconds of the wall clock."""


def remembered(state: State, transition: str = "2") -> Memory:
    """What a transition has left."""
    return Memory(last=Last(transition, Issued(100, 7), state, 0.0))


PRIMARY = remembered(State.PRIMARY)
NOTED = remembered(State.FAULT, "1")
"""What was remembered when something was noted."""


def reported(state: State, promotions: int, start: int = 7) -> VrrpState:
    """What keepalived reports after a reload."""
    return VrrpState(state, RELOADED, (start,), {"VI_1": promotions, "VI_2": promotions})


@pytest.fixture
def continuity(tmp_path: Path) -> Continuity:
    return Continuity(str(tmp_path / "run"))


@pytest.mark.parametrize("state", [State.PRIMARY, State.BACKUP, State.FAULT])
def test_what_was_noted_and_is_unchanged_was_never_left(
    continuity: Continuity, state: State
) -> None:
    """Whatever the date: nothing was missed."""
    continuity.note(reported(state, 1), NOTED)
    assert continuity.is_unbroken(reported(state, 1))
    assert continuity.since(reported(state, 1), remembered(state)) == 0


@pytest.mark.parametrize(
    "now",
    [
        pytest.param(reported(State.PRIMARY, 2), id="left, and entered again"),
        pytest.param(reported(State.PRIMARY, 1, start=8), id="another keepalived"),
        pytest.param(reported(State.BACKUP, 1), id="another state"),
    ],
)
def test_what_was_left_in_between_counts_by_its_date(
    continuity: Continuity, now: VrrpState
) -> None:
    """A promotion of which no line was read is still to be committed."""
    continuity.note(reported(State.PRIMARY, 1), NOTED)
    assert not continuity.is_unbroken(now)
    assert continuity.since(now, PRIMARY) == RELOADED


@pytest.mark.parametrize("now", [reported(State.PRIMARY, 2), reported(State.BACKUP, 1)])
def test_what_changed_since_the_noted_transition_was_missed(
    continuity: Continuity, now: VrrpState
) -> None:
    """Nothing was carried out since: no date of a clock that was set meanwhile counts."""
    continuity.note(reported(State.PRIMARY, 1), NOTED)
    assert continuity.since(now, NOTED) == SURE


def test_a_promotion_that_was_killed_before_it_was_noted_is_the_remembered_one(
    continuity: Continuity,
) -> None:
    """Its process began, and there was no other promotion since the backup that was noted."""
    continuity.note(reported(State.BACKUP, 0), NOTED)
    assert continuity.since(reported(State.PRIMARY, 1), PRIMARY) == 0


@pytest.mark.parametrize(
    ("now", "memory"),
    [
        pytest.param(reported(State.PRIMARY, 2), PRIMARY, id="two promotions"),
        pytest.param(reported(State.PRIMARY, 1), remembered(State.BACKUP), id="none remembered"),
        pytest.param(reported(State.PRIMARY, 1, start=8), PRIMARY, id="another keepalived"),
    ],
)
def test_a_promotion_that_may_be_another_counts_by_its_date(
    continuity: Continuity, now: VrrpState, memory: Memory
) -> None:
    """In doubt it is committed."""
    continuity.note(reported(State.BACKUP, 0), NOTED)
    assert continuity.since(now, memory) == RELOADED


def test_without_a_note_the_date_counts(continuity: Continuity) -> None:
    """Nothing was noted, or it cannot be read."""
    assert continuity.since(reported(State.PRIMARY, 1), PRIMARY) == RELOADED


def test_where_nothing_can_be_written_nothing_is_noted(tmp_path: Path) -> None:
    """A run directory that others may write is no place for it, and no reason to fail."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    continuity = Continuity(str(tmp_path / "run"))
    continuity.note(reported(State.PRIMARY, 1), NOTED)
    assert not continuity.is_unbroken(reported(State.PRIMARY, 1))
