"""tenure.py: a reload of keepalived dates its states anew, and is no word that was missed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from primary_backup.follower.continuity import Tenure
from primary_backup.keepalived.state import Standing
from primary_backup.plan import State
from primary_backup.rundir.directory import Memory

RELOADED = 1e9
"""The date that keepalived gives, seconds of the wall clock."""
PRIMARY = Memory(state="primary", transition="2")
NOTED = Memory(transition="1")
"""What was remembered when something was noted."""


def said(state: State, promotions: int, issued: int = 7) -> Standing:
    """What keepalived says after a reload."""
    return Standing(state, RELOADED, (issued,), {"VI_1": promotions, "VI_2": promotions})


@pytest.fixture
def tenure(tmp_path: Path) -> Tenure:
    return Tenure(str(tmp_path / "run"))


@pytest.mark.parametrize("state", [State.PRIMARY, State.BACKUP, State.FAULT])
def test_what_was_noted_and_is_unchanged_was_never_left(tenure: Tenure, state: State) -> None:
    """Whatever the date: nothing was missed."""
    tenure.keep(said(state, 1), NOTED)
    assert tenure.is_unbroken(said(state, 1))
    assert tenure.since(said(state, 1), Memory(state=state.value)) == 0


@pytest.mark.parametrize(
    "now",
    [
        pytest.param(said(State.PRIMARY, 2), id="left, and entered again"),
        pytest.param(said(State.PRIMARY, 1, issued=8), id="another keepalived"),
        pytest.param(said(State.BACKUP, 1), id="another state"),
    ],
)
def test_what_was_left_in_between_counts_by_its_date(tenure: Tenure, now: Standing) -> None:
    """A promotion that nobody has read about is still to be committed."""
    tenure.keep(said(State.PRIMARY, 1), NOTED)
    assert not tenure.is_unbroken(now)
    assert tenure.since(now, PRIMARY) == RELOADED


@pytest.mark.parametrize("now", [said(State.PRIMARY, 2), said(State.BACKUP, 1)])
def test_what_changed_since_the_noted_transition_was_missed(tenure: Tenure, now: Standing) -> None:
    """Nobody has acted since, so that no date of a clock that was set meanwhile is asked."""
    tenure.keep(said(State.PRIMARY, 1), NOTED)
    assert tenure.since(now, NOTED) == math.inf


def test_a_promotion_that_was_killed_before_it_was_noted_is_the_remembered_one(
    tenure: Tenure,
) -> None:
    """Its process began, and nobody else was promoted since the backup that was noted."""
    tenure.keep(said(State.BACKUP, 0), NOTED)
    assert tenure.since(said(State.PRIMARY, 1), PRIMARY) == 0


@pytest.mark.parametrize(
    ("now", "memory"),
    [
        pytest.param(said(State.PRIMARY, 2), PRIMARY, id="two promotions"),
        pytest.param(said(State.PRIMARY, 1), Memory(state="backup"), id="none remembered"),
        pytest.param(said(State.PRIMARY, 1, issued=8), PRIMARY, id="another keepalived"),
    ],
)
def test_a_promotion_that_may_be_another_counts_by_its_date(
    tenure: Tenure, now: Standing, memory: Memory
) -> None:
    """In doubt it is committed."""
    tenure.keep(said(State.BACKUP, 0), NOTED)
    assert tenure.since(now, memory) == RELOADED


def test_without_a_note_the_date_counts(tenure: Tenure) -> None:
    """Nothing was noted, or it cannot be read."""
    assert tenure.since(said(State.PRIMARY, 1), PRIMARY) == RELOADED


def test_where_nothing_can_be_written_nothing_is_noted(tmp_path: Path) -> None:
    """A run directory that others may write is no place for it, and no reason to fail."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    tenure = Tenure(str(tmp_path / "run"))
    tenure.keep(said(State.PRIMARY, 1), NOTED)
    assert not tenure.is_unbroken(said(State.PRIMARY, 1))
