"""proof.py: verdicts from numbers alone, at their thresholds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primary_backup.proof import (
    Commit,
    Kernel,
    Left,
    Outcome,
    has_grown,
    has_made_all,
    is_committed,
    judge_commit,
    judge_flush,
    judge_resync,
    judge_uncommitted,
    uncovered,
)

COUNTS = st.integers(0, 10**6)


@pytest.mark.parametrize(
    ("expected", "recovered", "outcome", "may_flush"),
    [
        (0, 0, Outcome.OK, True),
        (1, 1, Outcome.OK, True),
        (1, 0, Outcome.DEGRADED, False),
        (2, 1, Outcome.OK, True),
        (2, 0, Outcome.DEGRADED, False),
        (10, 5, Outcome.OK, True),
        (10, 4, Outcome.DEGRADED, False),
        (11, 0, Outcome.DEGRADED, False),
        (20, 10, Outcome.OK, True),
        (20, 9, Outcome.DEGRADED, False),
        (500, 500, Outcome.OK, True),
        (500, 490, Outcome.OK, True),
        (500, 489, Outcome.DEGRADED, False),
        (1_000, 990, Outcome.OK, True),
        (1_000, 600, Outcome.DEGRADED, False),
        (5_000, 4_990, Outcome.OK, True),
        (5_000, 4_989, Outcome.DEGRADED, True),
        (5_000, 4_951, Outcome.DEGRADED, True),
        (5_000, 4_950, Outcome.DEGRADED, False),
        (100_000, 99_900, Outcome.OK, True),
        (100_000, 99_899, Outcome.DEGRADED, True),
        (100_000, 99_001, Outcome.DEGRADED, True),
        (100_000, 99_000, Outcome.DEGRADED, False),
        (500, 5_000, Outcome.OK, True),
    ],
)
def test_a_commit_is_judged_by_what_is_missing(
    expected: int, recovered: int, outcome: Outcome, *, may_flush: bool
) -> None:
    """ok: missing ≤ min(10, half) or 0.1 %. From 1 % on the cache is not flushed, below it is."""
    verdict, flush = judge_commit(Commit(expected, recovered, recovered))
    assert (verdict.outcome, flush) == (outcome, may_flush)


@pytest.mark.parametrize(
    ("count", "entries", "outcome"),
    [
        (1_000, 1_000, Outcome.OK),
        (1_000, 990, Outcome.OK),
        (1_000, 989, Outcome.DEGRADED),
        (20_000, 19_960, Outcome.OK),
        (20_000, 19_815, Outcome.DEGRADED),  # seen: what a purge has eaten of a commit
    ],
)
def test_entries_that_vanished_prove_no_commit(count: int, entries: int, outcome: Outcome) -> None:
    """The table's size is the second witness: what was inserted, less max(10, 0.2 %)."""
    verdict, may_flush = judge_commit(Commit(count, count, entries))
    assert (verdict.outcome, may_flush) == (outcome, outcome is Outcome.OK)


def test_a_kernel_that_does_not_count_leaves_the_table_s_size() -> None:
    """Without /proc/net/stat/nf_conntrack the size alone is judged, and the reason reports it."""
    verdict, may_flush = judge_commit(Commit(1_000, None, 1_200))
    assert (verdict.outcome, may_flush) == (Outcome.OK, True)
    assert "/proc/net/stat/nf_conntrack" in verdict.reason


def test_a_table_that_is_too_small_alone_proves_no_commit() -> None:
    """Without the counter, a table smaller than the external cache cannot hold all of it."""
    verdict, may_flush = judge_commit(Commit(1_000, None, 900))
    assert (verdict.outcome, may_flush) == (Outcome.DEGRADED, False)


def test_an_unproven_commit_reports_what_to_type_next() -> None:
    """After a degraded promotion the reader is reported what to do, with the command."""
    verdict, _ = judge_commit(Commit(1_000, 600, 600))
    assert "600 of 1000" in verdict.reason
    assert "conntrackd -c" in verdict.advice


@given(expected=COUNTS, inserted=st.none() | COUNTS, entries=COUNTS)
def test_a_cache_that_may_go_is_in_the_kernel(
    expected: int, inserted: int | None, entries: int
) -> None:
    """Whatever was observed: it may go only if less than 1 % (or 10) is missing."""
    commit = Commit(expected, inserted, entries)
    _, may_flush = judge_commit(commit)
    made = entries if inserted is None else inserted
    if may_flush:
        assert expected - made <= max(10, 0.01 * expected)
        assert inserted is None or entries >= 0.99 * inserted


@given(expected=st.none() | COUNTS, inserted=st.none() | COUNTS, entries=COUNTS)
def test_recovered_is_always_a_number(
    expected: int | None, inserted: int | None, entries: int
) -> None:
    """`expected` may be null, `recovered` never is."""
    assert Commit(expected, inserted, entries).recovered >= 0


@given(before=st.integers(0, 2**32 - 1), made=st.integers(0, 2**31))
def test_the_insert_counter_may_wrap(before: int, made: int) -> None:
    """The counter is one of 32 bits."""
    after = Kernel((before + made) % 2**32, 0)
    assert after.inserted_since(Kernel(before, 0)) == made


@pytest.mark.parametrize("pair", [(None, 5), (5, None), (None, None)])
def test_an_uncounted_increase_is_unknown(pair: tuple[int | None, int | None]) -> None:
    """Where the kernel did not count at either look, the increase is not known."""
    before, after = pair
    assert Kernel(after, 0).inserted_since(Kernel(before, 0)) is None


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (500, 0, Outcome.OK),
        (500, 100, Outcome.OK),
        (500, 101, Outcome.DEGRADED),
        (5_000, 500, Outcome.OK),
        (5_000, 501, Outcome.DEGRADED),
        (50, 50, Outcome.OK),
    ],
)
def test_a_flush_leaves_a_tenth_or_a_hundred(before: int, after: int, outcome: Outcome) -> None:
    """A sending peer refills the cache a little; more than that, and the daemon refused."""
    assert judge_flush(before, after).outcome is outcome


def test_a_refused_flush_names_the_hash_size() -> None:
    """HashSize ≤ 8192 makes the daemon ignore the flush; it reports nothing, so that we do."""
    assert "8192" in judge_flush(5_000, 5_000).reason


def test_there_is_nothing_to_flush_without_an_external_cache() -> None:
    """In direct mode no flush can be refused."""
    assert judge_flush(None, None).outcome is Outcome.OK


@pytest.mark.parametrize(
    ("recovered", "internal", "outcome"),
    [
        (1_000, 1_000, Outcome.OK),
        (1_000, 950, Outcome.OK),
        (1_000, 949, Outcome.DEGRADED),
        (0, 0, Outcome.OK),
        (1_000, None, Outcome.OK),
    ],
)
def test_a_resync_holds_what_was_recovered(
    recovered: int, internal: int | None, outcome: Outcome
) -> None:
    """The internal cache, which is what the peer gets, holds 95 % of what was recovered."""
    assert judge_resync(recovered, internal).outcome is outcome


@pytest.mark.parametrize(
    ("external", "ours", "covered"),
    [(0, 0, True), (90, 100, True), (89, 100, False), (0, 1, False), (500, 100, True)],
)
def test_a_copy_covers_from_nine_tenths_on(external: int, ours: int, *, covered: bool) -> None:
    """The external cache holds at least 90 % of what the internal cache holds."""
    assert (uncovered(external, ours, receiving=True, left=Left()) is None) == covered


@given(
    external=st.none() | COUNTS,
    ours=COUNTS,
    receiving=st.booleans(),
    left=st.builds(Left, st.integers(0, 1), st.booleans()),
)
def test_in_doubt_nothing_is_covered(
    external: int | None, ours: int, *, receiving: bool, left: Left
) -> None:
    """No packets, uncommitted copies, or no copy at all: there is a reason, at any sizes."""
    why = uncovered(external, ours, receiving=receiving, left=left)
    if not receiving or left != Left() or external is None:
        assert why


@given(expected=st.integers(1, 10**6), inserted=st.booleans(), entries=COUNTS)
def test_nothing_recovered_of_anything_is_never_ok(
    expected: int, *, inserted: bool, entries: int
) -> None:
    """However small the table: 0 is no proof of any connection."""
    commit = Commit(expected, 0, entries) if inserted else Commit(expected, None, 0)
    verdict, may_flush = judge_commit(commit)
    assert (verdict.outcome, may_flush) == (Outcome.DEGRADED, False)


@pytest.mark.parametrize(
    ("copies", "external", "outcome"),
    [
        (1_000, 1_000, Outcome.DEGRADED),
        (1_000, 101, Outcome.DEGRADED),
        (1_000, 100, Outcome.OK),
        (1_000, 0, Outcome.OK),
        (1_000, None, Outcome.OK),
        (3, 1, Outcome.DEGRADED),
        (1, 1, Outcome.DEGRADED),
        (1, 0, Outcome.OK),
    ],
)
def test_uncommitted_copies_degrade_until_they_are_gone(
    copies: int, external: int | None, outcome: Outcome
) -> None:
    """A tenth of them may be what a backup opens meanwhile; the advice reports how to end it."""
    verdict = judge_uncommitted(copies, external)
    assert (verdict.outcome, bool(verdict.advice)) == (outcome, outcome is Outcome.DEGRADED)


@pytest.mark.parametrize(
    ("commit", "done"),
    [
        (Commit(1_000, 999, 999), True),
        (Commit(1_000, 998, 998), False),
        (Commit(1, 1, 1), True),
        (Commit(0, 0, 0), False),
        (Commit(None, 0, 0), False),
    ],
)
def test_a_commit_has_made_all_if_a_thousandth_is_missing(commit: Commit, *, done: bool) -> None:
    """Then it is not repeated; one that made nothing may never have been asked."""
    assert has_made_all(commit) is done


@pytest.mark.parametrize(
    ("before", "after", "grown"),
    [(100, 110, False), (100, 111, True), (100_000, 100_100, False), (100_000, 100_101, True)],
)
def test_a_cache_has_grown_by_more_than_what_packets_open(
    before: int, after: int, *, grown: bool
) -> None:
    """A bulk was arriving under the commit."""
    assert has_grown(before, after) is grown


@pytest.mark.parametrize(
    ("external", "entries", "committed"),
    [(None, 0, True), (0, 0, True), (10, 100, True), (11, 100, False), (1, 0, False)],
)
def test_a_small_cache_beside_a_big_table_was_committed(
    external: int | None, entries: int, *, committed: bool
) -> None:
    """A full one never was."""
    assert is_committed(external, entries) is committed
