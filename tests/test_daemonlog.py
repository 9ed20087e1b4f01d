"""daemonlog.py: only what a start has logged is why it failed."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from primary_backup.conntrackd.conf import Conntrackd
from primary_backup.conntrackd.daemonlog import DaemonLog, message
from primary_backup.plan import Mode

CONF = Conntrackd(mode=Mode.FTFW, stats=False, socket=None)
OLD = "[Thu Nov 26 01:06:17 2026] (pid=1) [ERROR] can't open channel socket: No such device\n"
NEW = "[Thu Nov 26 01:06:18 2026] (pid=2) [ERROR] lockfile exists\n"


def log_of(path: Path) -> DaemonLog:
    """What a conntrackd logs into that file from now on."""
    lock = path.with_name("lock")
    lock.touch()
    return DaemonLog(dataclasses.replace(CONF, log_file=str(path), lock_file=str(lock)), None)


def test_what_an_earlier_start_has_logged_is_not_quoted(tmp_path: Path) -> None:
    """The file has a history; a start that logs nothing has no reason in it."""
    path = tmp_path / "conntrackd.log"
    path.write_text(OLD)
    log = log_of(path)
    assert log.last_error() == ""
    assert log.where == f"see {path}"
    with path.open("a") as file:
        file.write(NEW)
    assert log.last_error() == "lockfile exists"


def test_a_log_that_was_rotated_meanwhile_is_read_from_its_beginning(tmp_path: Path) -> None:
    """It is shorter than it was."""
    path = tmp_path / "conntrackd.log"
    path.write_text(10 * OLD)
    log = log_of(path)
    path.write_text(NEW)
    assert log.last_error() == "lockfile exists"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_no_log_file_keeps_no_one_waiting(tmp_path: Path, make: object) -> None:
    """conntrackd.conf may name anything; nothing of it stays open."""
    path = tmp_path / "conntrackd.log"
    assert callable(make)
    make(path)
    before = len(os.listdir("/proc/self/fd"))
    assert log_of(path).last_error() == ""
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lock_that_cannot_be_made_is_distinguished_from_one_that_is_there(tmp_path: Path) -> None:
    """conntrackd reports a read-only directory as a lock file that exists."""
    path, lock = tmp_path / "conntrackd.log", tmp_path / "lock"
    log = DaemonLog(dataclasses.replace(CONF, log_file=str(path), lock_file=str(lock)), None)
    path.write_text(NEW)
    assert log.last_error() == (
        f"lockfile exists; there is no {lock}: conntrackd may not write there (ReadWritePaths=)"
    )
    lock.touch()
    assert log.last_error() == "lockfile exists"


def test_a_huge_log_is_read_from_its_end(tmp_path: Path) -> None:
    """A daemon that logs without end has a last error too."""
    path = tmp_path / "conntrackd.log"
    log = log_of(path)
    path.write_text(OLD * 10_000 + NEW)
    assert log.last_error().endswith("; lockfile exists")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", ""),
        (b"\n \n", ""),
        (b"Usage: conntrackd\nread the manual\n", "read the manual"),
        (f"{OLD}{NEW}something else\n".encode(), "lockfile exists"),
        (b"[ERROR] \xff\n", "\ufffd"),
        (
            b"ERROR: can't open logfile /srv/x.log: Read-only file system\nsomething else\n",
            "can't open logfile /srv/x.log: Read-only file system",
        ),
    ],
)
def test_the_last_error_of_a_program_is_one_line_without_its_stamp(text: bytes, error: str) -> None:
    """Or its last line, where none is marked as an error."""
    assert message(text) == error
