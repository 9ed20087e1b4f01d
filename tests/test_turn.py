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

from primary_backup.memory import Last, Memory, Promotion
from primary_backup.plan import State
from primary_backup.rundir.directory import RunDir
from primary_backup.rundir.tickets import show
from primary_backup.rundir.turn import Caller, Halted, Taken, Turn
from primary_backup.system.proc import Issued, boot_id, own_start
from tests.fake.processes import issued_of, running
from tests.waiting import until

BLANK = Taken(Memory(), other_states=False)


class Waiting:
    """One invocation's own run directory and turn."""

    def __init__(self, path: Path, issued: Issued, state: State) -> None:
        self.signals: list[str] = []
        self.turn = Turn(str(path / "run"), state, Caller(issued, self.signals))
        assert self.turn.run_dir is not None
        self.run_dir: RunDir = self.turn.run_dir

    def show(self) -> Waiting:
        show(self.run_dir, self.turn.ticket)
        return self

    def lock(self, pid: int | None = None) -> bool:
        """Take the lock, be it in another process's name."""
        state = self.turn.ticket.state.value
        return self.run_dir.try_lock(pid or self.turn.ticket.issued.pid, state)


@pytest.fixture
def newer() -> Iterator[subprocess.Popen[bytes]]:
    """A process that was started after this one."""
    with running() as process:
        yield process


def after(issued: Issued) -> Issued:
    """A moment that is a little later."""
    return Issued(issued.ticks + 1, issued.pid)


def test_a_free_lock_is_taken_at_once(tmp_path: Path) -> None:
    """Nobody else is there."""
    one = Waiting(tmp_path, own_start(), State.PRIMARY).show()
    assert one.turn.take() == BLANK
    assert not Waiting(tmp_path, own_start(), State.PRIMARY).lock()


def test_a_lock_that_is_held_is_waited_for(tmp_path: Path) -> None:
    """Whoever waits gets it as soon as it is free."""
    holder = Waiting(tmp_path, own_start(), State.PRIMARY)
    holder.lock()
    waiting = Waiting(tmp_path, own_start(), State.PRIMARY).show()
    with ThreadPoolExecutor() as pool:
        taken = pool.submit(waiting.turn.take)
        with pytest.raises(TimeoutError):
            taken.result(timeout=0.1)
        holder.run_dir.close()
        assert taken.result(timeout=5) == BLANK


@pytest.mark.parametrize("state", [State.BACKUP, State.FAULT])
def test_a_newer_one_of_another_state_supersedes(
    tmp_path: Path, newer: subprocess.Popen[bytes], state: State
) -> None:
    """The newest notification wins, and its state is named."""
    older = Waiting(tmp_path, own_start(), State.PRIMARY).show()
    Waiting(tmp_path, issued_of(newer), state).show()
    with pytest.raises(Halted, match=state.value):
        older.turn.take()


def test_a_newer_one_of_the_same_state_waits(
    tmp_path: Path, newer: subprocess.Popen[bytes]
) -> None:
    """It asks for what the older one is about to do."""
    older = Waiting(tmp_path, own_start(), State.PRIMARY).show()
    Waiting(tmp_path, issued_of(newer), State.PRIMARY).show()
    assert older.turn.halted() is None


def test_an_older_one_supersedes_nobody(tmp_path: Path, newer: subprocess.Popen[bytes]) -> None:
    """Whatever it wants, it is late."""
    Waiting(tmp_path, own_start(), State.FAULT).show()
    newest = Waiting(tmp_path, issued_of(newer), State.PRIMARY).show()
    assert newest.turn.take().memory == Memory()


def test_a_newer_one_that_was_killed_supersedes_nobody(
    tmp_path: Path, newer: subprocess.Popen[bytes]
) -> None:
    """It must not stop a live promotion."""
    older = Waiting(tmp_path, own_start(), State.PRIMARY).show()
    Waiting(tmp_path, issued_of(newer), State.BACKUP).show()
    assert older.turn.halted() is not None
    newer.kill()
    newer.wait()
    assert older.turn.halted() is None


def test_a_newer_one_that_acted_supersedes_even_when_it_has_ended(tmp_path: Path) -> None:
    """After its first request was sent, it counts for ever."""
    older = Waiting(tmp_path, own_start(), State.BACKUP).show()
    acted = Last("two", after(own_start()), State.PRIMARY, 0.0)
    RunDir(str(tmp_path / "run")).memorise(Memory(last=acted))
    with pytest.raises(Halted, match="primary"):
        older.turn.take()


def test_one_that_acted_in_another_boot_supersedes_nobody(tmp_path: Path) -> None:
    """Starts of another boot cannot be compared."""
    one = Waiting(tmp_path, own_start(), State.BACKUP).show()
    acted = Last("two", after(own_start()), State.PRIMARY, 0.0)
    one.run_dir.memorise(Memory(last=acted))
    path = tmp_path / "run" / "memory.json"
    path.write_text(path.read_text().replace(boot_id(), "another"))
    assert one.turn.take() == BLANK


def test_a_superseded_one_stops_waiting(tmp_path: Path, newer: subprocess.Popen[bytes]) -> None:
    """A newer one that comes while the lock is held ends the wait at once."""
    holder = Waiting(tmp_path, own_start(), State.BACKUP)
    holder.lock()
    waiting = Waiting(tmp_path, own_start(), State.BACKUP).show()
    with ThreadPoolExecutor() as pool:
        taken = pool.submit(waiting.turn.take)
        Waiting(tmp_path, issued_of(newer), State.PRIMARY).show()
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


def test_without_a_run_directory_nothing_is_waited_for(tmp_path: Path) -> None:
    """There is no order then, only signals; nothing is remembered, and a person is to know it."""
    (tmp_path / "run").touch()
    signals: list[str] = []
    turn = Turn(str(tmp_path / "run"), State.PRIMARY, Caller(own_start(), signals))
    assert (turn.take(), turn.halted()) == (BLANK, None)
    assert (turn.records, len(turn.notes), len(turn.trouble)) == (False, 1, 1)
    turn.forget_promotion()
    turn.write(Memory())
    turn.remember("{}")
    turn.leave(unfinished=True)
    signals.append("SIGTERM")
    assert turn.halted() is not None


def test_what_is_written_over_a_newer_transition_s_is_left_out(tmp_path: Path) -> None:
    """A slow process has been overtaken: the newer record stays, its promotion too."""
    slow = Waiting(tmp_path, own_start(), State.BACKUP)
    acted = Memory(last=Last("two", after(own_start()), State.PRIMARY, 0.0))
    RunDir(str(tmp_path / "run")).memorise(acted)
    slow.turn.write(Memory(last=Last("one", own_start(), State.BACKUP, 0.0)))
    assert slow.run_dir.recall() == acted


def test_one_that_is_older_ends_no_promotion(tmp_path: Path) -> None:
    """A stop that is late must not undo a newer promotion."""
    late = Waiting(tmp_path, own_start(), State.STOP)
    newest = Waiting(tmp_path, after(own_start()), State.PRIMARY)
    last = Last("two", after(own_start()), State.PRIMARY, 0.0)
    newest.turn.write(Memory(last=last, promotion=Promotion("two")), promotes=True)
    late.turn.forget_promotion()
    assert newest.run_dir.recall().promotion == Promotion("two")
    newest.turn.forget_promotion()
    assert newest.run_dir.recall().promotion is None


def test_another_state_that_waits_is_found(tmp_path: Path) -> None:
    """A primary after which a backup waits is a first one, however the backup ends."""
    with running() as older, running() as newest:
        Waiting(tmp_path, issued_of(older), State.FAULT).show()
        assert Waiting(tmp_path, issued_of(newest), State.PRIMARY).show().turn.take().other_states


def test_one_that_was_superseded_stays_so(tmp_path: Path, newer: subprocess.Popen[bytes]) -> None:
    """The newer one may have been killed since."""
    older = Waiting(tmp_path, own_start(), State.PRIMARY).show()
    Waiting(tmp_path, issued_of(newer), State.BACKUP).show()
    with pytest.raises(Halted):
        older.turn.check()
    newer.kill()
    newer.wait()
    assert (older.turn.halted(), older.turn.is_superseded()) == (None, True)


def test_a_promotion_does_not_wait_for_a_stopped_holder(
    tmp_path: Path, newer: subprocess.Popen[bytes]
) -> None:
    """A process that is stopped must not stand between a promotion and its commit."""
    holder = Waiting(tmp_path, issued_of(newer), State.BACKUP)
    newer.send_signal(signal.SIGSTOP)
    holder.lock()
    until(lambda: (found := holder.run_dir.holder()) and found.stopped, "it is stopped")
    promotion = Waiting(tmp_path, after(issued_of(newer)), State.PRIMARY)
    began = time.monotonic()
    promotion.turn.take()
    assert "did not wait for the lock" in promotion.turn.notes[0]
    assert time.monotonic() - began < 3


@pytest.fixture(scope="module", autouse=True)
def overtaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Turn, Future[Taken]]]:
    """A promotion that waits for a backup which does not let go; begun before all other tests."""
    path = tmp_path_factory.mktemp("overtaking")
    holder = Waiting(path, own_start(), State.BACKUP)
    holder.lock()
    promotion = Waiting(path, after(own_start()), State.PRIMARY)
    with ThreadPoolExecutor() as pool:
        yield promotion.turn, pool.submit(promotion.turn.take)
        promotion.signals.append("SIGTERM")


def test_a_promotion_overtakes_a_backup_that_does_not_halt(
    overtaking: tuple[Turn, Future[Taken]],
) -> None:
    """A backup halts within one call's deadline; one that does not is not waited for."""
    turn, taken = overtaking
    taken.result(timeout=15)
    assert "did not wait for the lock any longer" in turn.notes[0]
