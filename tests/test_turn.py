"""turn.py: whose turn it is, decided by starts, with real locks and real processes."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from primary_backup.plan import State
from primary_backup.rundir.directory import Memory, RunDir, Ticket
from primary_backup.rundir.turn import Caller, Halted, Turn
from primary_backup.system.proc import Issued, boot_id, own_start
from tests.fake.node import until


class Waiting:
    """One invocation's own run directory, ticket and turn."""

    def __init__(self, path: Path, issued: Issued, state: State) -> None:
        self.ticket = Ticket(issued, state)
        self.run_dir = RunDir(str(path / "run"))
        self.signals: list[str] = []
        self.turn = Turn(self.run_dir, self.ticket, Caller(issued, self.signals))

    def show(self) -> Waiting:
        self.run_dir.show(self.ticket)
        return self


@pytest.fixture
def younger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that was born after this one."""
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


def issued_of(process: subprocess.Popen[bytes]) -> Issued:
    """When a process was born, as proc(5) tells it."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return Issued(int(fields[19]), process.pid)


def after(issued: Issued) -> Issued:
    """A issued that is a little later."""
    return Issued(issued.ticks + 1, issued.pid)


def test_a_free_lock_is_taken_at_once(tmp_path: Path) -> None:
    """Nobody else is there."""
    one = Waiting(tmp_path, own_start(), State.PRIMARY).show()
    assert one.turn.take() is None
    assert not Waiting(tmp_path, own_start(), State.PRIMARY).run_dir.try_lock(one.ticket)


def test_a_lock_that_is_held_is_waited_for(tmp_path: Path) -> None:
    """Whoever waits gets it as soon as it is free."""
    holder = Waiting(tmp_path, own_start(), State.PRIMARY)
    holder.run_dir.try_lock(holder.ticket)
    waiting = Waiting(tmp_path, own_start(), State.PRIMARY).show()
    with ThreadPoolExecutor() as pool:
        taken = pool.submit(waiting.turn.take)
        with pytest.raises(TimeoutError):
            taken.result(timeout=0.1)
        holder.run_dir.withdraw()
        assert taken.result(timeout=5) is None


@pytest.mark.parametrize("state", [State.BACKUP, State.FAULT])
def test_a_younger_one_of_another_state_supersedes(
    tmp_path: Path, younger: subprocess.Popen[bytes], state: State
) -> None:
    """The newest notification wins, and its state is named."""
    older = Waiting(tmp_path, own_start(), State.PRIMARY).show()
    Waiting(tmp_path, issued_of(younger), state).show()
    with pytest.raises(Halted, match=state.value):
        older.turn.take()


def test_a_younger_one_of_the_same_state_waits(
    tmp_path: Path, younger: subprocess.Popen[bytes]
) -> None:
    """It asks for what the older one is about to do."""
    older = Waiting(tmp_path, own_start(), State.PRIMARY).show()
    Waiting(tmp_path, issued_of(younger), State.PRIMARY).show()
    assert older.turn.halted() is None


def test_an_older_one_supersedes_nobody(tmp_path: Path, younger: subprocess.Popen[bytes]) -> None:
    """Whatever it wants, it is late."""
    Waiting(tmp_path, own_start(), State.FAULT).show()
    newest = Waiting(tmp_path, issued_of(younger), State.PRIMARY).show()
    assert newest.turn.take() is None


def test_a_younger_one_that_was_killed_supersedes_nobody(
    tmp_path: Path, younger: subprocess.Popen[bytes]
) -> None:
    """It must not stop a live promotion."""
    older = Waiting(tmp_path, own_start(), State.PRIMARY).show()
    Waiting(tmp_path, issued_of(younger), State.BACKUP).show()
    assert older.turn.halted() is not None
    younger.kill()
    younger.wait()
    assert older.turn.halted() is None


def test_a_younger_one_that_acted_supersedes_even_when_it_has_ended(tmp_path: Path) -> None:
    """After its first request was sent, it counts for ever."""
    older = Waiting(tmp_path, own_start(), State.BACKUP).show()
    ticks, pid, _ = after(own_start())
    older.run_dir.memorise(Memory(boot=boot_id(), ticks=ticks, pid=pid, state="primary"))
    with pytest.raises(Halted, match="primary"):
        older.turn.take()


def test_one_that_acted_in_another_boot_supersedes_nobody(tmp_path: Path) -> None:
    """Births of another boot cannot be compared."""
    one = Waiting(tmp_path, own_start(), State.BACKUP).show()
    ticks, pid, _ = after(own_start())
    one.run_dir.memorise(Memory(boot="another", ticks=ticks, pid=pid, state="primary"))
    assert one.turn.take() is None


def test_a_superseded_one_stops_waiting(tmp_path: Path, younger: subprocess.Popen[bytes]) -> None:
    """A younger one that comes while the lock is held ends the wait at once."""
    holder = Waiting(tmp_path, own_start(), State.BACKUP)
    holder.run_dir.try_lock(holder.ticket)
    waiting = Waiting(tmp_path, own_start(), State.BACKUP).show()
    with ThreadPoolExecutor() as pool:
        taken = pool.submit(waiting.turn.take)
        Waiting(tmp_path, issued_of(younger), State.PRIMARY).show()
        with pytest.raises(Halted):
            taken.result(timeout=5)


def test_a_signal_halts_and_is_named(tmp_path: Path) -> None:
    """keepalived dies: nothing more is asked."""
    one = Waiting(tmp_path, own_start(), State.BACKUP)
    one.signals.append("SIGTERM")
    assert "SIGTERM" in (one.turn.halted() or "")


def test_a_signal_ends_a_pause(tmp_path: Path) -> None:
    """No pause is slept to its end once there is nothing to wait for."""
    one = Waiting(tmp_path, own_start(), State.BACKUP)
    timer = threading.Timer(0.05, one.signals.append, ["SIGTERM"])
    timer.start()
    began = time.monotonic()
    one.turn.pause(30)
    timer.join()
    assert time.monotonic() - began < 5


def test_a_pause_lasts_as_long_as_it_should(tmp_path: Path) -> None:
    """Where nothing happens."""
    began = time.monotonic()
    Waiting(tmp_path, own_start(), State.BACKUP).turn.pause(0.12)
    assert time.monotonic() - began >= 0.12


def test_without_a_run_directory_nobody_is_waited_for() -> None:
    """There is no order then, only signals."""
    signals: list[str] = []
    turn = Turn(None, Ticket(own_start(), State.PRIMARY), Caller(own_start(), signals))
    assert (turn.take(), turn.halted()) == (None, None)
    signals.append("SIGTERM")
    assert turn.halted() is not None


def test_a_promotion_does_not_wait_for_a_stopped_holder(
    tmp_path: Path, younger: subprocess.Popen[bytes]
) -> None:
    """A process that is stopped must not stand between a promotion and its commit."""
    holder = Waiting(tmp_path, issued_of(younger), State.BACKUP)
    younger.send_signal(signal.SIGSTOP)
    holder.run_dir.try_lock(holder.ticket)
    until(lambda: (found := holder.run_dir.holder()) and found.stopped, "it is stopped")
    promotion = Waiting(tmp_path, after(issued_of(younger)), State.PRIMARY)
    began = time.monotonic()
    assert "without the lock" in (promotion.turn.take() or "")
    assert time.monotonic() - began < 3


@pytest.fixture(scope="module", autouse=True)
def overtaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[str | None]]:
    """A promotion that waits for a backup which does not let go; begun before all other tests."""
    path = tmp_path_factory.mktemp("overtaking")
    holder = Waiting(path, own_start(), State.BACKUP)
    holder.run_dir.try_lock(holder.ticket)
    promotion = Waiting(path, after(own_start()), State.PRIMARY)
    with ThreadPoolExecutor() as pool:
        yield pool.submit(promotion.turn.take)
        promotion.signals.append("SIGTERM")


def test_a_promotion_overtakes_a_backup_that_does_not_halt(
    overtaking: Future[str | None],
) -> None:
    """A backup halts within one call's deadline; one that does not is not waited for."""
    assert "without the lock" in (overtaking.result(timeout=15) or "")
