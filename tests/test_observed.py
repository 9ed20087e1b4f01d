"""What a follower leaves about the peer for a promotion, and what follows from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primary_backup.pair.observed import (
    CERTIFIED_SECONDS,
    FRESH_SECONDS,
    REPORTED_SECONDS,
    SILENCE_SECONDS,
    WATCHED_SECONDS,
    Certified,
    Counted,
    Observed,
    Seen,
    from_json,
    to_json,
)
from primary_backup.past import Replica, Reported
from primary_backup.plan import State
from tests.test_pair import REPORT

NOW, DAEMON, DOWN = 1000.0, (1, 2, 3), 3.4
WHOLE = Observed(
    watched=NOW - 0.5,
    link=NOW - 1,
    down_seconds=DOWN,
    seen=Seen(REPORT, NOW - 1),
    counted=Counted(NOW - 2.04, "fw-1", 500),
    certified=Certified(NOW - 5, DAEMON, 500, 500),
)
REPORTED = Reported("fw-1", 500, 2.0)


def replica(**changed: Any) -> Replica:
    """What a promotion finds now, of this daemon."""
    return WHOLE._replace(**changed).replica(NOW, DAEMON, lambda boot: f"{boot:.0f} of the clock")


def test_a_replica_that_was_compared_just_before_is_whole() -> None:
    """However many connections have ended since the peer's last count."""
    assert replica() == Replica("", REPORTED, certified=True, watched=True)
    assert replica().lacks(3) == ""


@pytest.mark.parametrize(
    "changed",
    [
        {"certified": None},
        {"certified": Certified(NOW - CERTIFIED_SECONDS - 1, DAEMON, 500, 500)},
        {"certified": Certified(NOW - 5, (9, 9, 9), 500, 500)},
    ],
)
def test_without_a_comparison_the_peer_s_last_count_is_expected(changed: Any) -> None:
    """Within 1 %, and 10 connections that are on their way."""
    assert replica(**changed) == Replica("", REPORTED, watched=True)
    assert replica(**changed).lacks(490) == ""
    assert replica(**changed).lacks(None) == ""
    assert replica(**changed).lacks(489) == "this node held 11 connections less"


def test_a_count_of_the_peer_s_is_named_with_its_age() -> None:
    """A person sees what there was, beside what was recovered."""
    assert str(REPORTED) == "fw-1 reported 500 connections 2.0 s before"


@pytest.mark.parametrize("seconds", [REPORTED_SECONDS + 1, 100.0])
def test_an_old_count_is_no_expectation(seconds: float) -> None:
    """Connections begin and end."""
    assert replica(certified=None, counted=Counted(NOW - seconds, "fw-1", 500)) == Replica(
        watched=True
    )
    assert replica(certified=None, counted=None).lacks(0) == ""


@pytest.mark.parametrize(
    ("silent", "down", "lacking"),
    [
        (DOWN + SILENCE_SECONDS - 0.1, DOWN, False),
        (DOWN + SILENCE_SECONDS + 0.1, DOWN, True),
        (12.0, 9.6, False),
        (15.0, 0.8, True),
        (15.0, None, False),
    ],
)
def test_a_link_that_was_silent_before_the_peer_died_has_lost_connections(
    silent: float, down: float | None, *, lacking: bool
) -> None:
    """A peer that is powered off silences everything at once, at whatever advert interval."""
    found = replica(link=NOW - silent, down_seconds=down)

    assert bool(found.lacking) is lacking
    if lacking:
        assert found.lacking.startswith("nothing was received from fw-2 on the dedicated link ")
        assert f"since {NOW - silent:.0f} of the clock ({silent:.0f} s before)" in found.lacking
        assert found.lacks(500) == found.lacking


def test_a_peer_without_reports_has_no_name() -> None:
    """conntrackd's packets alone date a silence too."""
    assert "from the peer on" in replica(link=NOW - 60, seen=None).lacking
    assert replica(link=None).lacking == ""


def test_a_doubt_stands_until_a_comparison_has_ended_it() -> None:
    """It is the newest one's reason."""
    assert replica(certified=None, doubt="refused").lacking == "refused"
    assert replica(doubt="of an earlier daemon").lacking == ""


def test_a_follower_that_is_not_running_shows_nothing() -> None:
    """What it left may be true no more."""
    assert replica(watched=NOW - WATCHED_SECONDS - 1, link=NOW - 60) == Replica()


@pytest.mark.parametrize("observed", [WHOLE, Observed(NOW)])
def test_what_is_stored_is_read_back(observed: Observed) -> None:
    """Of this boot, and of no other."""
    assert from_json(to_json(observed, "boot"), "boot") == observed
    assert from_json(to_json(observed, "boot"), "another") is None


@given(
    st.sampled_from(sorted(json.loads(to_json(WHOLE, "boot")))),
    st.none() | st.integers() | st.text() | st.lists(st.integers()),
)
def test_a_file_that_is_something_else_is_no_traceback(field: str, value: Any) -> None:
    """It is read, or it is a ValueError."""
    stored = json.loads(to_json(WHOLE, "boot"))
    stored[field] = value
    try:
        from_json(json.dumps(stored), "boot")
    except ValueError:
        stored.pop(field)
    stored.pop(field, None)
    with pytest.raises(ValueError, match="not what a follower observed"):
        from_json(json.dumps({**stored, "more": 1}), "boot")


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "7"])
def test_no_object_is_no_traceback(text: str) -> None:
    """A file of another program's."""
    with pytest.raises(ValueError, match=r"not what a follower|Expecting"):
        from_json(text, "boot")


ISSUED, OURS = NOW - 2, 500
MASTER = REPORT._replace(state=State.PRIMARY, internal=OURS, polled=0.5)


def shown(made: float = NOW - 0.2, **changed: Any) -> str | None:
    """Whether another primary is shown, by a report of the peer's that was made then."""
    seen = Seen(MASTER._replace(**changed), made)
    return WHOLE._replace(seen=seen).other_primary(ISSUED, NOW, OURS)


@pytest.mark.parametrize("internal", [OURS, 0.9 * OURS, 10 * OURS])
def test_a_peer_that_is_primary_and_holds_ours_is_shown(internal: int) -> None:
    """Some have ended meanwhile, others began."""
    assert shown(internal=internal) == ""


@pytest.mark.parametrize(
    ("made", "changed"),
    [
        (NOW - FRESH_SECONDS - 1, {}),
        (ISSUED, {}),
        (NOW - 0.2, {"polled": NOW - ISSUED}),
        (NOW - 0.2, {"polled": 1.0, "since": 0.5}),
        (NOW - 0.2, {"polled": None}),
        (NOW - 0.2, {"internal": None}),
    ],
    ids=["old", "before", "counted before", "as no primary", "not counted", "no cache"],
)
def test_what_a_peer_found_before_the_demotion_shows_nothing(made: float, changed: Any) -> None:
    """Neither that it is primary nor that it is not."""
    assert shown(made, **changed) is None


def test_without_a_report_nothing_is_shown() -> None:
    """There is no key, or no peer."""
    assert WHOLE._replace(seen=None).other_primary(ISSUED, NOW, OURS) is None


@pytest.mark.parametrize("state", [None, State.BACKUP, State.FAULT, State.STOP])
def test_a_peer_in_another_state_is_no_primary(state: State | None) -> None:
    """However many connections it holds."""
    assert shown(state=state) == "fw-2 does not report that it is primary"


def test_a_primary_that_holds_a_part_is_not_enough() -> None:
    """The rest is here alone."""
    assert shown(internal=8) == "fw-2 reports 8 connections, this node holds 500"
