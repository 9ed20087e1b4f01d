"""proc.py: who runs, since when, and in which network namespace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from primary_backup.proc import (
    TICKS_PER_SECOND,
    boot_id,
    boot_seconds,
    born,
    look,
    running,
    runs,
)
from tests.fake.node import until


@contextmanager
def living(*words: str | Path, executable: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs until it is no longer needed; it has begun when this returns."""
    with subprocess.Popen([*words, "100"], executable=executable) as process:
        try:
            yield process
        finally:
            process.kill()


def program(path: Path) -> Path:
    """A program of that name, which does nothing for a while."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    return Path(shutil.copy(sleep, path))


# -- births -------------------------------------------------------------------------------------


def test_this_boot_has_one_name() -> None:
    """The same for every process, and in one line."""
    told = subprocess.check_output(["cat", "/proc/sys/kernel/random/boot_id"], text=True)
    assert f"{boot_id()}\n" == told


def test_births_and_words_are_told_by_the_same_clock() -> None:
    """A process is born between two looks at the clock, to the tick that proc(5) rounds down."""
    before = boot_seconds()
    with living("sleep") as process:
        after = boot_seconds()
        seen = look(process.pid)
        assert seen is not None
        assert before - 1 / TICKS_PER_SECOND <= seen.birth.seconds <= after


def test_a_process_knows_its_own_birth() -> None:
    """It is what others see of it, and earlier than that of its children."""
    with living("sleep") as child:
        ours, theirs = look(os.getpid()), look(child.pid)
        assert ours is not None
        assert theirs is not None
        assert born() == ours.birth < theirs.birth


# -- the living ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "a) Z 1 (b", "two\nlines", "\udcff"])
def test_a_process_may_have_any_name(tmp_path: Path, name: str) -> None:
    """proc(5) puts the name in the middle of the line, parentheses and all."""
    with living(program(tmp_path / name)) as process:
        seen = look(process.pid)
        assert seen is not None
        assert (seen.birth.pid, seen.parent, seen.stopped) == (process.pid, os.getpid(), False)
        assert process.pid in running(name)


def test_one_that_is_stopped_is_known() -> None:
    """It lives, does nothing, and may go on at any time."""
    with living("sleep") as process:

        def stopped() -> bool:
            seen = look(process.pid)
            return seen is not None and seen.stopped

        process.send_signal(signal.SIGSTOP)
        until(stopped, "it is stopped")
        process.send_signal(signal.SIGCONT)
        until(lambda: not stopped(), "it goes on")


def test_the_dead_are_not_looked_at(tmp_path: Path) -> None:
    """Neither a zombie, whose status nobody has asked for, nor one that is gone lives or runs."""
    with living(program(tmp_path / "mortal")) as process:
        assert runs(process.pid, "mortal")
        process.kill()
        until(lambda: look(process.pid) is None, "it is a zombie")
        assert Path(f"/proc/{process.pid}").exists()
        assert not runs(process.pid, "mortal")
        process.wait()
        assert look(process.pid) is None
        assert not runs(process.pid, "mortal")


# -- who runs a program -------------------------------------------------------------------------


def test_a_program_is_known_by_its_file(tmp_path: Path) -> None:
    """Neither what a process calls itself counts nor where the file is."""
    path, another = program(tmp_path / "known"), program(tmp_path / "known-less")
    with (
        living(path) as known,
        living("another", executable=path) as denies,
        living(another) as resembles,
        living("known", executable=another) as claims,
    ):
        found = set(running("known"))
        assert {known.pid, denies.pid} <= found
        assert not {resembles.pid, claims.pid} & found


def test_one_whose_file_was_replaced_still_runs(tmp_path: Path) -> None:
    """A package upgrade unlinks the program of a daemon that goes on."""
    path = program(tmp_path / "upgraded")
    with living(path) as process:
        path.unlink()
        assert process.pid in running("upgraded")


def test_one_in_another_network_does_not_run_here(tmp_path: Path, namespaces: None) -> None:
    """A keepalived in a container says nothing of this node."""
    path = program(tmp_path / "elsewhere")
    with living("unshare", "--net", path) as process:
        until(lambda: Path(f"/proc/{process.pid}/exe").resolve() == path, "it is started")
        assert process.pid not in running("elsewhere")
