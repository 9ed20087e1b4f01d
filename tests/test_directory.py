"""rundir/directory.py: a directory that can be trusted, one lock, and files that are whole."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings

from primary_backup.memory import Last, Memory, Promotion
from primary_backup.plan import State
from primary_backup.proof import Left
from primary_backup.rundir import tickets
from primary_backup.rundir.directory import CONF, Holder, RunDir, Unusable
from primary_backup.rundir.tickets import Ticket
from primary_backup.system.proc import boot_id, own_start
from tests.fake.processes import issued_of, running
from tests.test_printable import ANY
from tests.waiting import until

MINE = os.getpid(), "backup"
BACKUP = Memory(last=Last("one", own_start(), State.BACKUP, 0.0))
PROMOTED = Memory(
    last=Last("two", own_start(), State.PRIMARY, 0.0), promotion=Promotion("two", committed=True)
)
LOCKS = """
import os, sys, time
from primary_backup.plan import State
from primary_backup.system.proc import own_start
from primary_backup.rundir.directory import RunDir
from primary_backup.rundir.tickets import Ticket, show
run_dir = RunDir(sys.argv[1])
show(run_dir, Ticket(own_start(), State.PRIMARY))
assert run_dir.try_lock(os.getpid(), "primary")
print("locked", flush=True)
time.sleep(100)
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run"))


# -- the directory ------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o177, 0o777])
def test_it_is_made_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    """0700 under any umask: keepalived's 0177 would leave it without x."""
    before = os.umask(umask)
    try:
        RunDir(str(tmp_path / "run"))
    finally:
        os.umask(before)
    assert (tmp_path / "run").stat().st_mode & 0o7777 == 0o700


def test_one_that_others_can_read_is_closed(tmp_path: Path) -> None:
    """A directory made by another tool's mkdir is made 0700."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    RunDir(str(tmp_path / "run"))
    assert (tmp_path / "run").stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o1777, 0o702])
def test_one_that_others_can_write_is_not_trusted(tmp_path: Path, mode: int) -> None:
    """What lies in there may be anybody's."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    with pytest.raises(Unusable, match="remove it"):
        RunDir(str(tmp_path / "run"))


def test_one_of_another_user_is_not_trusted(tmp_path: Path) -> None:
    """It may write there at any time."""
    (tmp_path / "run").mkdir(mode=0o700)
    os.chown(tmp_path / "run", 65534, 65534)
    with pytest.raises(Unusable, match="belongs to uid 65534: remove it"):
        RunDir(str(tmp_path / "run"))


def _of_another_user(path: Path) -> None:
    os.chown(path, 65534, 65534)


def _writable(path: Path) -> None:
    path.chmod(0o602)


def _another_name_of_a_file(path: Path) -> None:
    os.link(path, path.with_name(f"another-{path.name}"))


@pytest.mark.parametrize("damage", [_of_another_user, _writable, _another_name_of_a_file])
def test_what_another_user_may_have_left_in_it_counts_for_nothing(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """The directory may have been open to all for a while: it is root's alone now, too late."""
    path = tmp_path / "run"
    with running() as process:
        _leaves_nothing(path, Ticket(issued_of(process), State.PRIMARY), damage)


def _leaves_nothing(path: Path, ticket: Ticket, damage: Callable[[Path], None]) -> None:
    left = RunDir(str(path))
    tickets.show(left, ticket)
    left.memorise(PROMOTED, promotes=True)
    left.store_continuity({"state": "primary"})
    left.write(CONF, b"Sync { }")
    assert tickets.under_way(left) == [ticket]
    left.close()
    for name in [ticket.name, "memory.json", "promotion", "continuity.json", CONF]:
        damage(path / name)

    with closing(RunDir(str(path))) as run_dir:
        assert tickets.under_way(run_dir) == []
        assert run_dir.recall() == Memory()
        assert run_dir.continuity() is None
        with pytest.raises(OSError, match="remove it"):
            run_dir.read(CONF)
        # What is written takes its place.
        run_dir.memorise(PROMOTED)
        assert run_dir.recall() == PROMOTED._replace(promotion=None)

    damage(path / "lock")
    with pytest.raises(Unusable, match=rf"{path}: lock may be another user's: remove it"):
        RunDir(str(path))


def test_no_fifo_in_it_keeps_anyone_waiting(tmp_path: Path) -> None:
    """Opening one to read would wait for a writer."""
    path = tmp_path / "run"
    RunDir(str(path)).close()
    os.mkfifo(path / "memory.json", 0o600)
    with closing(RunDir(str(path))) as run_dir:
        assert run_dir.recall() == Memory()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A link may lead anywhere."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to("elsewhere")
    with pytest.raises(Unusable):
        RunDir(str(tmp_path / "run"))


@pytest.mark.parametrize("kind", ["a file", "of a missing parent", "over-long"])
def test_what_is_no_directory_is_unusable(tmp_path: Path, kind: str) -> None:
    """One error for all of them, with the path in it."""
    path = tmp_path / "run"
    if kind == "a file":
        path.write_text("")
    elif kind == "of a missing parent":
        path = path / "deeper"
    else:
        path = tmp_path / ("x" * 300)
    with pytest.raises(Unusable, match=str(path)):
        RunDir(str(path))


def test_no_program_that_is_started_inherits_it(tmp_path: Path, run_dir: RunDir) -> None:
    """A daemon that a hook starts must not keep its lock."""
    assert run_dir.try_lock(*MINE)
    ours = [
        descriptor
        for descriptor in map(int, os.listdir("/proc/self/fd"))
        if os.path.exists(f"/proc/self/fd/{descriptor}")
        and os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(tmp_path))
    ]
    assert len(ours) == 2
    assert not any(map(os.get_inheritable, ours))


# -- the lock -----------------------------------------------------------------------------------


def test_one_at_a_time_holds_the_lock(tmp_path: Path, run_dir: RunDir) -> None:
    """Whoever comes second does not get it."""
    assert run_dir.try_lock(*MINE)
    assert not RunDir(str(tmp_path / "run")).try_lock(*MINE)


def test_a_lock_that_was_let_go_is_free(tmp_path: Path, run_dir: RunDir) -> None:
    """Whoever waited gets it."""
    assert run_dir.try_lock(*MINE)
    run_dir.close()
    assert RunDir(str(tmp_path / "run")).try_lock(*MINE)


def test_a_hook_that_was_killed_leaves_no_lock(tmp_path: Path, run_dir: RunDir) -> None:
    """SIGKILL: the kernel frees the lock, and the ticket is nobody's."""
    arguments = [sys.executable, "-c", LOCKS, str(tmp_path / "run")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        assert not run_dir.try_lock(*MINE)
        process.kill()
    assert run_dir.try_lock(*MINE)
    assert tickets.under_way(run_dir) == []


def test_the_lock_names_who_holds_it(tmp_path: Path, run_dir: RunDir) -> None:
    """So that whoever waits can say for whom."""
    run_dir.try_lock(*MINE)
    other = RunDir(str(tmp_path / "run"))
    assert other.holder() == Holder(os.getpid(), "backup", stopped=False)


def test_a_holder_that_is_stopped_is_known(tmp_path: Path, run_dir: RunDir) -> None:
    """A stopped process lets go of nothing by itself."""
    with running() as process:
        run_dir.try_lock(process.pid, "fault")
        process.send_signal(signal.SIGSTOP)
        other = RunDir(str(tmp_path / "run"))
        expected = Holder(process.pid, "fault", stopped=True)
        until(lambda: other.holder() == expected, "it is stopped")


@pytest.mark.parametrize("text", [b"", b"x", b"1 2 3", b"nobody primary", b"\xff\xff primary"])
def test_a_lock_that_names_nobody_names_nobody(
    tmp_path: Path, run_dir: RunDir, text: bytes
) -> None:
    """Whatever stands in the file, only the lock itself counts."""
    (tmp_path / "run" / "lock").write_bytes(text)
    assert run_dir.holder() is None


# -- memory -------------------------------------------------------------------------------------


def test_nothing_is_recalled_of_another_boot(tmp_path: Path, run_dir: RunDir) -> None:
    """Pids, starts and daemons of another boot mean nothing."""
    run_dir.memorise(Memory(left=Left(copies=3)))
    path = tmp_path / "run" / "memory.json"
    path.write_text(path.read_text().replace(boot_id(), "another"))
    assert run_dir.recall() == Memory()


def test_a_memory_is_read_again_once_another_process_has_stored_one(
    tmp_path: Path, run_dir: RunDir
) -> None:
    """And only then: a promotion reads it once before its commit."""
    run_dir.memorise(BACKUP)
    first = run_dir.recall()
    assert run_dir.recall() is first
    RunDir(str(tmp_path / "run")).memorise(PROMOTED, promotes=True)
    assert run_dir.recall() == PROMOTED


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "[1]", '"x"', '{"unknown": 1}', "\0"])
def test_nothing_is_recalled_from_a_broken_file(tmp_path: Path, run_dir: RunDir, text: str) -> None:
    """A torn or foreign file is as good as none."""
    (tmp_path / "run" / "memory.json").write_text(text)
    assert run_dir.recall() == Memory()


def test_nothing_is_recalled_from_bytes_that_are_no_text(tmp_path: Path, run_dir: RunDir) -> None:
    """A disk that lost a block gives anything."""
    (tmp_path / "run" / "memory.json").write_bytes(bytes(range(128, 256)))
    assert run_dir.recall() == Memory()


def test_a_write_that_fails_leaves_the_old_memory_whole(tmp_path: Path, run_dir: RunDir) -> None:
    """A full disk: the new one is not written, the old one stays, and nothing lies around."""
    run_dir.memorise(BACKUP)
    files = sorted(os.listdir(tmp_path / "run"))
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
    try:
        with pytest.raises(OSError, match="too large"):
            run_dir.memorise(PROMOTED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert run_dir.recall() == BACKUP
    assert sorted(os.listdir(tmp_path / "run")) == files


def test_the_last_event_is_left_as_it_was_logged(tmp_path: Path, run_dir: RunDir) -> None:
    """One line, byte for byte."""
    line = json.dumps({"reason": "500 → 0"}, ensure_ascii=False)
    run_dir.remember(line)
    assert (tmp_path / "run" / "last.json").read_text(encoding="utf-8") == line + "\n"


def test_a_file_of_ours_is_nobody_else_s(tmp_path: Path, run_dir: RunDir) -> None:
    """0600, whatever the umask."""
    before = os.umask(0)
    try:
        tickets.show(run_dir, Ticket(own_start(), State.BACKUP))
        run_dir.memorise(PROMOTED, promotes=True)
        run_dir.remember("{}")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o7777 for path in (tmp_path / "run").iterdir()}
    assert modes == {0o600}


# -- the promotion that holds ----------------------------------------------------------------------


def test_a_promotion_holds_until_it_is_forgotten(run_dir: RunDir) -> None:
    """What makes a primary a second one is a fact that any backup, fault or stop can destroy."""
    held = [run_dir.recall().promotion]
    run_dir.memorise(PROMOTED, promotes=True)
    held.append(run_dir.recall().promotion)
    run_dir.memorise(BACKUP._replace(promotion=Promotion("three")), promotes=True)
    held.append(run_dir.recall().promotion)
    run_dir.forget_promotion()
    run_dir.forget_promotion()
    held.append(run_dir.recall().promotion)

    assert held == [None, PROMOTED.promotion, Promotion("three"), None]


def test_a_promotion_that_was_forgotten_is_not_brought_back(run_dir: RunDir) -> None:
    """A step of the same promotion is stored after a stop."""
    run_dir.memorise(PROMOTED, promotes=True)
    run_dir.forget_promotion()
    run_dir.memorise(PROMOTED)
    assert run_dir.recall().promotion is None


# -- reading alone --------------------------------------------------------------------------------


def test_without_changes_nothing_is_made(tmp_path: Path) -> None:
    """A dry run makes no directory and no lock, and does not change a mode."""
    path = tmp_path / "run"
    with pytest.raises(Unusable):
        RunDir(str(path), changes=False)
    path.mkdir(mode=0o755)
    RunDir(str(path), changes=False).close()
    assert (list(path.iterdir()), path.stat().st_mode & 0o777) == ([], 0o755)


@given(ANY)
@example("\udcff")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_remembered(run_dir: RunDir, text: str) -> None:
    """What was carried out is on record, whatever the name in it, and any reader can decode it."""
    run_dir.remember(text)
    assert run_dir.read("last.json").decode().endswith("\n")
