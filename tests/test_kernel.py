"""kernel.py: the counters of /proc/net/stat/nf_conntrack and of the table itself."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primary_backup.proof import Kernel
from primary_backup.system.kernel import observe, parse_inserted

# Linux 6.1 and before called the second column `searched`, and has no `clashres`.
OLDER = """\
entries  searched found new invalid ignore delete delete_list insert insert_failed drop early_drop \
icmp_error  expect_new expect_create expect_delete search_restart
{rows}"""
NEWER = """\
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop \
icmp_error  expect_new expect_create expect_delete search_restart
{rows}"""
REORDERED = "insert entries\n{rows}"


def row(insert: int) -> str:
    """One CPU's line, every other column with a number of its own."""
    return " ".join(f"{value:08x}" for value in [*range(101, 109), insert, *range(110, 118)])


@pytest.mark.parametrize("layout", [OLDER, NEWER])
def test_the_insert_column_is_summed_over_all_cpus(layout: str) -> None:
    """Every CPU has a row, in hexadecimal."""
    text = layout.format(rows=f"{row(0x1F4)}\n{row(0)}\n{row(0x10)}\n")
    assert parse_inserted(text) == 500 + 16


def test_the_header_decides_where_the_column_stands() -> None:
    """Kernels add and move columns."""
    assert parse_inserted(REORDERED.format(rows="0000000a 00000007\n")) == 10


@pytest.mark.parametrize("text", ["", "\n", "entries found\n00000001 00000002\n"])
def test_a_kernel_that_does_not_count_is_not_a_count_of_zero(text: str) -> None:
    """Without the column nothing is known, and 0 would be a lie."""
    assert parse_inserted(text) is None


def test_the_sum_wraps_as_the_counters_do() -> None:
    """Each CPU's counter wraps at 2^32, so that only the sum modulo 2^32 means anything."""
    text = NEWER.format(rows=f"{row(2**32 - 1)}\n{row(3)}\n")
    assert parse_inserted(text) == 2


@given(
    before=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8),
    data=st.data(),
)
def test_an_increase_is_reported_across_any_wrap(before: list[int], data: st.DataObject) -> None:
    """Whichever CPUs made entries and whichever wrapped, the increase is exact."""
    made = [data.draw(st.integers(0, 10**6)) for _ in before]
    after = [(count + more) % 2**32 for count, more in zip(before, made, strict=True)]
    first, second = (
        Kernel(parse_inserted(NEWER.format(rows="\n".join(map(row, counts)))), 0)
        for counts in (before, after)
    )
    assert second.inserted_since(first) == sum(made)


def test_both_counters_are_observed(tmp_path: Path) -> None:
    """The insert counter and the table's size are read from their files."""
    (tmp_path / "stat").write_text(NEWER.format(rows=row(7) + "\n"))
    (tmp_path / "count").write_text("262144\n")
    assert observe(str(tmp_path / "stat"), str(tmp_path / "count")) == Kernel(7, 262144)


def test_a_kernel_without_conntrack_is_no_error(tmp_path: Path) -> None:
    """Where the files do not exist nothing is known, and nothing breaks."""
    assert observe(str(tmp_path / "stat"), str(tmp_path / "count")) == Kernel(None, 0)
