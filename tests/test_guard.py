"""keepalived/guard.py against real keepalived: a purge wants another certain master."""

from __future__ import annotations

import time

import pytest

from primary_backup.keepalived.guard import LONGEST_DOWN_SECONDS, objection
from primary_backup.plan import State
from primary_backup.proof import Outcome, Verdict
from tests.fake.keepalived import BACKUP, INSTALLED, VI_1, Place

FAULT = {"VI_1": State.FAULT}
SOON = 0.5
"""Seconds between two adverts: a backup that receives none is master after 1.8 s."""


def objecting(
    place: Place, *, waits: bool = True, bulk: bool = False, shown: str | None = None
) -> Verdict | None:
    """Why nothing may be purged; on a busy machine keepalived is asked again."""
    for _ in range(20):
        with place.network():
            wait = time.sleep if waits else None
            verdict = objection(INSTALLED, wait, lambda: shown, bulk=bulk)
        if verdict is None or "wrote no dump" not in verdict.reason:
            break
    return verdict


def in_state(place: Place, states: dict[str, State], advert: float = 40) -> None:
    """A keepalived that is in these states."""
    place.keepalived(states, advert=advert)
    place.awaits(lambda: place.asked(VI_1).state is states["VI_1"])


def test_a_backup_that_receives_no_advert_is_no_reason_to_purge(place: Place) -> None:
    """Within its master-down interval it may still become master, and does."""
    in_state(place, BACKUP, SOON)

    verdict = objecting(place)

    assert verdict is not None
    assert "master of VI_1" in verdict.reason


def test_a_backup_is_asked_once_where_nothing_is_to_be_purged_yet(place: Place) -> None:
    """Whether it is worth while to begin a transition."""
    in_state(place, BACKUP)

    assert objecting(place, waits=False) is None


def test_an_interval_that_is_too_long_is_not_waited_for(place: Place) -> None:
    """A transition has a deadline: the old entries stay until they time out."""
    in_state(place, BACKUP)

    verdict = objecting(place)

    assert verdict is not None
    assert f"{3 * 40 + 40 * 156 / 256:.0f} s is too long" in verdict.reason
    assert LONGEST_DOWN_SECONDS < 3 * 40


@pytest.mark.parametrize("bulk", [False, True])
def test_in_fault_only_a_bulk_shows_another_master(place: Place, *, bulk: bool) -> None:
    """No advert is received there."""
    in_state(place, FAULT)

    verdict = objecting(place, bulk=bulk)

    if bulk:
        assert verdict is None
    else:
        assert verdict is not None
        assert verdict.outcome is Outcome.SKIPPED
        assert "in fault with VI_1" in verdict.reason


@pytest.mark.parametrize("states", [BACKUP, FAULT], ids=["backup", "fault"])
def test_a_peer_that_is_shown_to_be_primary_is_enough(
    place: Place, states: dict[str, State]
) -> None:
    """No interval is waited for, however long it is."""
    in_state(place, states)

    assert objecting(place, shown="") is None


def test_a_peer_that_is_shown_to_be_primary_does_not_make_this_node_a_backup(place: Place) -> None:
    """Both are: what this node has is live."""
    in_state(place, {"VI_1": State.PRIMARY})

    verdict = objecting(place, shown="")

    assert verdict is not None
    assert "master of VI_1" in verdict.reason


@pytest.mark.parametrize("waits", [True, False])
def test_a_bulk_of_a_peer_that_is_shown_not_to_be_primary_is_not_enough(
    place: Place, *, waits: bool
) -> None:
    """It may be what this node asked for; no other has the connections."""
    in_state(place, FAULT)

    verdict = objecting(place, waits=waits, bulk=True, shown="fw-1 is none")

    assert verdict == Verdict(Outcome.SKIPPED, "fw-1 is none")
