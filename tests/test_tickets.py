"""rundir/tickets.py: who waits or carries out something, and who died over it."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primary_backup.plan import State
from primary_backup.rundir.directory import RunDir
from primary_backup.rundir.tickets import Ticket, show, take_unfinished, under_way
from primary_backup.system.proc import Issued, own_start
from tests.fake.node import later
from tests.fake.processes import issued_of, running
from tests.waiting import until

MINE = Ticket(own_start(), State.BACKUP)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run"))


def newest(run_dir: RunDir) -> Ticket | None:
    """The newest ticket whose process is running."""
    return max(under_way(run_dir), default=None)


def test_nothing_is_the_newest_of_none(run_dir: RunDir) -> None:
    """An empty directory has no tickets."""
    assert newest(run_dir) is None


def test_the_newest_is_the_one_issued_last(tmp_path: Path, run_dir: RunDir) -> None:
    """Whatever the order in which they were shown."""
    with ExitStack() as stack:
        older = stack.enter_context(running())
        later()
        newer = stack.enter_context(running())
        tickets = [
            Ticket(issued_of(newer), State.PRIMARY),
            Ticket(issued_of(older), State.FAULT),
            MINE,
        ]
        for ticket in tickets:
            show(RunDir(str(tmp_path / "run")), ticket)
        assert newest(run_dir) == tickets[0]


def test_the_ticket_of_a_dead_process_does_not_count(tmp_path: Path, run_dir: RunDir) -> None:
    """One that was killed supersedes nothing; a question removes nothing."""
    with running() as process:
        show(run_dir, Ticket(issued_of(process), State.PRIMARY))
    assert newest(run_dir) is None
    assert list((tmp_path / "run").glob("ticket.*"))


def test_the_newest_unfinished_one_is_taken_once(tmp_path: Path, run_dir: RunDir) -> None:
    """All tickets of dead processes are removed, and those that a process of ours has left."""
    left = Ticket(Issued(MINE.issued.ticks, MINE.issued.pid, 7), State.FAULT, MINE.issued.ticks)
    with running() as process, running() as alive:
        dead, other = (Ticket(issued_of(each), State.PRIMARY) for each in (process, alive))
        for ticket in (MINE, left, dead, other):
            show(run_dir, ticket)
        process.kill()
        process.wait()
        assert take_unfinished(run_dir, MINE) == max(dead, left)
        assert sorted(os.listdir(tmp_path / "run")) == sorted(["lock", MINE.name, other.name])
        assert take_unfinished(run_dir, MINE) is None


def test_the_ticket_of_a_zombie_does_not_count(run_dir: RunDir) -> None:
    """It has died, although its parent has not asked for its status yet."""
    with running() as process:
        show(run_dir, Ticket(issued_of(process), State.PRIMARY))
        process.kill()
        until(
            lambda: (
                Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            ),
            "it is a zombie",
        )
        assert newest(run_dir) is None


def test_another_process_with_the_same_pid_is_another(run_dir: RunDir) -> None:
    """Process ids are used again: the start shows them apart."""
    issued = own_start()
    show(run_dir, Ticket(Issued(issued.ticks - 1, issued.pid), State.PRIMARY))
    assert newest(run_dir) is None


def test_a_process_may_have_any_name(tmp_path: Path, run_dir: RunDir) -> None:
    """proc(5) puts the name in the middle of the line, parentheses and blanks included."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    program = shutil.copy(sleep, tmp_path / "a) Z 1 (b")
    with running(str(program)) as process:
        until(lambda: "Z 1" in Path(f"/proc/{process.pid}/comm").read_text(), "it has its name")
        ticket = Ticket(issued_of(process), State.PRIMARY)
        show(run_dir, ticket)
        assert newest(run_dir) == ticket


def test_a_ticket_that_was_withdrawn_is_gone(run_dir: RunDir) -> None:
    """Its process waits for nothing any more."""
    show(run_dir, MINE)
    assert newest(run_dir) == MINE
    run_dir.remove(MINE.name)
    assert newest(run_dir) is None


@pytest.mark.parametrize("name", ["ticket", "ticket.", "ticket.1.2.other", "ticket.a.b.primary"])
def test_a_file_that_is_no_ticket_is_passed_over(
    tmp_path: Path, run_dir: RunDir, name: str
) -> None:
    """What another version or a person left is no reason to stop."""
    (tmp_path / "run" / name).touch()
    show(run_dir, MINE)
    assert newest(run_dir) == MINE


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 2**22)), min_size=2, max_size=2))
def test_notifications_are_ordered_by_start_and_then_by_pid(starts: list[tuple[int, int]]) -> None:
    """keepalived forks its hooks from one thread: within a tick, pids rise."""
    first, second = (Issued(*issued) for issued in starts)
    assert (first < second) == (
        first.ticks < second.ticks or (first.ticks == second.ticks and first.pid < second.pid)
    )
