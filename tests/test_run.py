"""run.py: other programs, run to their end or to their deadline, with nothing left behind."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from primary_backup.system.run import Finished, NotInstalled, run
from tests.fake.node import is_running
from tests.waiting import until

SHORT = 0.3
"""A deadline, in seconds, that a test waits for."""


def sh(script: str, seconds: float = 5.0) -> Finished:
    """Run a script."""
    return run("/bin/sh", "-c", script, seconds=seconds)


def test_output_and_errors_are_left_apart() -> None:
    """What a program printed to either is returned, byte for byte."""
    assert sh("printf 'out\\n\\377'; printf err >&2") == Finished(0, b"out\n\xff", b"err")


@pytest.mark.parametrize("status", [0, 1, 2, 77, 255])
def test_an_exit_status_is_returned_and_never_raised(status: int) -> None:
    """Whether a status is an error, the caller knows."""
    assert sh(f"exit {status}").code == status


def test_a_program_that_was_killed_has_a_negative_code() -> None:
    """A death by signal is no exit status."""
    assert sh("kill -9 $$").code == -9


def test_arguments_arrive_as_they_are() -> None:
    """No shell stands between."""
    arguments = ("a b", "$HOME", "*", "", "--", "'", "ü")
    finished = run("/usr/bin/printf", "%s\\n", *arguments, seconds=5)
    assert finished.output.decode().splitlines() == list(arguments)


def test_a_program_of_the_caller_s_path_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is looked up in the directories of the system alone, and by its children too."""
    for name in ("systemctl", "uname"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho run >>{tmp_path}/{name}.run\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(NotInstalled):  # not every machine has it
        run("systemctl", "--version", seconds=5)
    assert run("uname", seconds=5) == sh("uname") == Finished(0, b"Linux\n", b"")
    assert list(tmp_path.glob("*.run")) == []


@pytest.mark.parametrize("path", ["", ":", "."])
def test_a_program_is_found_whatever_the_caller_s_path_is(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A hook's environment may have none at all."""
    monkeypatch.setenv("PATH", path)
    assert run("uname", seconds=5).output == b"Linux\n"


def test_a_program_has_no_input() -> None:
    """A program that reads its input finds its end, and waits for nobody."""
    assert run("/bin/cat", seconds=5) == Finished(0, b"", b"")


@pytest.mark.parametrize("kind", ["missing", "a directory", "not executable", "no program"])
def test_what_cannot_be_run_is_named(tmp_path: Path, kind: str) -> None:
    """One error for all of them, with the path in it."""
    program = tmp_path / "program"
    if kind == "a directory":
        program.mkdir()
    elif kind == "not executable":
        program.write_text("#!/bin/sh\n")
    elif kind == "no program":
        program.write_bytes(b"\x7fELF")
        program.chmod(0o755)
    with pytest.raises(NotInstalled, match=str(program)):
        run(str(program), seconds=5)


def test_a_short_program_takes_no_longer_than_it_takes() -> None:
    """No call lasts as long as somebody's look at the clock, as sh's own _timeout does: 100 ms."""
    seconds = []
    for _ in range(10):
        began = time.monotonic()
        run("/bin/true", seconds=5)
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.09


def test_a_program_past_its_deadline_is_killed() -> None:
    """It has no code then, and what it reported until then is kept."""
    began = time.monotonic()
    assert sh("echo begun; exec sleep 100", SHORT) == Finished(None, b"begun\n", b"")
    assert SHORT <= time.monotonic() - began < SHORT + 3


@pytest.mark.parametrize(
    "script",
    [
        "echo $$; exec sleep 100",
        "trap '' TERM INT HUP; echo $$; while :; do sleep 1; done",
        "sleep 100 & echo $!; wait",
        "sleep 100 & echo $!",
        "echo $$; kill -STOP $$",
    ],
    ids=["hangs", "ignores SIGTERM", "has a child", "left a child", "is stopped"],
)
def test_nothing_is_left_behind(script: str) -> None:
    """Past the deadline the program and all that it started are gone, whatever they do."""
    finished = sh(script, SHORT)
    assert finished.code is None
    pid = int(finished.output)
    until(lambda: not is_running(pid), "it has ended", within=2)


def test_a_program_that_closed_its_output_has_a_deadline_too() -> None:
    """The end of its output is not its end."""
    began = time.monotonic()
    finished = sh("exec >&- 2>&-; exec sleep 3", SHORT)
    assert finished.code is None
    assert time.monotonic() - began < SHORT + 2


def test_a_program_that_has_reported_all_is_waited_for(tmp_path: Path) -> None:
    """A signal of ours in that moment does not cost the answer."""
    closed = tmp_path / "closed"
    looks: list[bool] = []

    def look() -> bool:
        looks.append(closed.exists())
        return False

    script = f"exec >&- 2>&-; : >{closed}; exec sleep 0.2"
    assert run("/bin/sh", "-c", script, seconds=5, working=look).code == 0
    assert looks.count(True) <= 1  # it may just have closed it


def test_a_program_that_works_gets_more_time() -> None:
    """The deadline counts from when it was last seen working."""
    looks = iter([True] * 100)
    finished = run(
        "/bin/sh", "-c", "sleep 0.8; echo done",
        seconds=SHORT,
        working=lambda: next(looks, False),
    )  # fmt: skip
    assert finished == Finished(0, b"done\n", b"")


def test_a_program_that_stopped_working_gets_no_more_time() -> None:
    """Working once is no licence to hang."""
    looks = iter([True] * 3)
    began = time.monotonic()
    finished = run("/bin/sleep", "100", seconds=SHORT, working=lambda: next(looks, False))
    assert finished.code is None
    assert time.monotonic() - began < 3


def test_a_flood_of_output_neither_blocks_nor_fills_the_memory() -> None:
    """A program that prints without end is read to its end, and the first MiB is kept."""
    finished = sh("head -c 5000000 /dev/zero; echo end >&2")
    assert (finished.code, finished.errors) == (0, b"end\n")
    assert len(finished.output) == 1 << 20


def test_no_descriptor_stays_open() -> None:
    """A hundred requests need no more descriptors than one."""

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    sh("exit 0")
    before = count()
    for _ in range(5):
        sh("exit 0")
        sh("exec sleep 100", 0.01)
        with pytest.raises(NotInstalled):
            run("/nowhere", seconds=1)
    until(lambda: count() <= before, "they are closed", within=2)


def test_an_exception_while_waiting_leaves_no_program_behind(tmp_path: Path) -> None:
    """Where the look at the work itself fails, the program does not outlive the request."""
    pidfile = tmp_path / "pid"

    def fail() -> bool:
        if pidfile.exists() and pidfile.read_text().endswith("\n"):
            raise ZeroDivisionError
        return True

    with pytest.raises(ZeroDivisionError):
        run("/bin/sh", "-c", f"echo $$ >{pidfile}; exec sleep 5", seconds=5, working=fail)
    pid = int(pidfile.read_text())
    until(lambda: not is_running(pid), "it has ended", within=2)
