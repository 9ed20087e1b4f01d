"""rundir.py: a directory that can be trusted, one lock, tickets of the living, and a memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from primary_backup.plan import State
from primary_backup.rundir.directory import CONF, Holder, Memory, RunDir, Ticket, Unusable
from primary_backup.system.proc import Issued, boot_id, own_start
from tests.fake.node import later, until
from tests.test_printable import ANY

MINE = Ticket(own_start(), State.BACKUP)
LOCKS = """
import sys, time
from primary_backup.plan import State
from primary_backup.system.proc import own_start
from primary_backup.rundir.directory import RunDir, Ticket
ticket = Ticket(own_start(), State.PRIMARY)
run_dir = RunDir(sys.argv[1])
run_dir.show(ticket)
assert run_dir.try_lock(ticket)
print("locked", flush=True)
time.sleep(100)
"""


def issued_of(pid: int) -> Issued:
    """When a process was born, as proc(5) tells it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Issued(int(fields[19]), pid)


@contextmanager
def living(program: str = "sleep") -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is no longer needed."""
    process = subprocess.Popen([program, "100"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


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


@pytest.mark.parametrize("spoil", [_of_another_user, _writable, _another_name_of_a_file])
def test_what_another_user_may_have_left_in_it_counts_for_nothing(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """The directory may have been open to all for a while: it is root's alone now, too late."""
    path = tmp_path / "run"
    with living() as process:
        _leaves_nothing(path, Ticket(issued_of(process.pid), State.PRIMARY), spoil)


def _leaves_nothing(path: Path, ticket: Ticket, spoil: Callable[[Path], None]) -> None:
    left = RunDir(str(path))
    left.show(ticket)
    left.memorise(Memory(boot=boot_id(), ticks=1, state="primary"))
    left.promote("transition")
    left.keep_tenure({"state": "primary"})
    left.keep_conf(b"Sync { }")
    assert left.tickets() == [ticket]
    left.close()
    for name in [ticket.name, "memory.json", "promotion", "tenure.json", CONF]:
        spoil(path / name)

    with closing(RunDir(str(path))) as run_dir:
        assert run_dir.tickets() == []
        assert run_dir.recall() == Memory()
        assert run_dir.promotion() == ""
        assert run_dir.tenure() is None
        with pytest.raises(OSError, match="remove it"):
            run_dir.kept_conf()
        # What is written takes its place.
        run_dir.memorise(Memory(boot=boot_id(), state="backup"))
        assert run_dir.recall().state == "backup"

    spoil(path / "lock")
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
    assert run_dir.try_lock(MINE)
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
    assert run_dir.try_lock(MINE)
    assert not RunDir(str(tmp_path / "run")).try_lock(MINE)


def test_a_lock_that_was_let_go_is_free(tmp_path: Path, run_dir: RunDir) -> None:
    """Whoever waited gets it."""
    assert run_dir.try_lock(MINE)
    run_dir.withdraw()
    assert RunDir(str(tmp_path / "run")).try_lock(MINE)


def test_a_hook_that_was_killed_leaves_no_lock(tmp_path: Path, run_dir: RunDir) -> None:
    """SIGKILL: the kernel frees the lock, and the ticket is nobody's."""
    arguments = [sys.executable, "-c", LOCKS, str(tmp_path / "run")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        assert not run_dir.try_lock(MINE)
        process.kill()
    assert run_dir.try_lock(MINE)
    assert run_dir.youngest() is None


def test_the_lock_names_who_holds_it(tmp_path: Path, run_dir: RunDir) -> None:
    """So that whoever waits can say for whom."""
    run_dir.try_lock(MINE)
    other = RunDir(str(tmp_path / "run"))
    assert other.holder() == Holder(os.getpid(), "backup", stopped=False)


def test_a_holder_that_is_stopped_is_known(tmp_path: Path, run_dir: RunDir) -> None:
    """A stopped process lets go of nothing by itself."""
    with living() as process:
        run_dir.try_lock(Ticket(issued_of(process.pid), State.FAULT))
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


# -- tickets ------------------------------------------------------------------------------------


def test_nobody_is_the_youngest_of_none(run_dir: RunDir) -> None:
    """An empty directory has no tickets."""
    assert run_dir.youngest() is None


def test_the_youngest_is_the_one_born_last(tmp_path: Path, run_dir: RunDir) -> None:
    """By issued, whatever the order in which they were shown."""
    with ExitStack() as stack:
        older = stack.enter_context(living())
        later()
        younger = stack.enter_context(living())
        tickets = [
            Ticket(issued_of(younger.pid), State.PRIMARY),
            Ticket(issued_of(older.pid), State.FAULT),
            MINE,
        ]
        for ticket in tickets:
            RunDir(str(tmp_path / "run")).show(ticket)
        assert run_dir.youngest() == tickets[0]


def test_a_dead_process_s_ticket_is_cleared_away(tmp_path: Path, run_dir: RunDir) -> None:
    """One that was killed supersedes nobody."""
    with living() as process:
        run_dir.show(Ticket(issued_of(process.pid), State.PRIMARY))
    assert run_dir.youngest() is None
    assert not list((tmp_path / "run").glob("ticket.*"))


def test_a_zombie_s_ticket_does_not_count(run_dir: RunDir) -> None:
    """It has died, although nobody has asked for its status yet."""
    with living() as process:
        run_dir.show(Ticket(issued_of(process.pid), State.PRIMARY))
        process.kill()
        until(
            lambda: (
                Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            ),
            "it is a zombie",
        )
        assert run_dir.youngest() is None


def test_another_process_with_the_same_pid_is_another(run_dir: RunDir) -> None:
    """Process ids are used again: the issued tells."""
    issued = own_start()
    run_dir.show(Ticket(Issued(issued.ticks - 1, issued.pid), State.PRIMARY))
    assert run_dir.youngest() is None


def test_a_process_may_have_any_name(tmp_path: Path, run_dir: RunDir) -> None:
    """proc(5) puts the name in the middle of the line, parentheses and blanks included."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    program = shutil.copy(sleep, tmp_path / "a) Z 1 (b")
    with living(str(program)) as process:
        until(lambda: "Z 1" in Path(f"/proc/{process.pid}/comm").read_text(), "it has its name")
        ticket = Ticket(issued_of(process.pid), State.PRIMARY)
        run_dir.show(ticket)
        assert run_dir.youngest() == ticket


def test_a_ticket_that_was_withdrawn_is_gone(run_dir: RunDir) -> None:
    """Its invocation waits for nothing any more."""
    run_dir.show(MINE)
    assert run_dir.youngest() == MINE
    run_dir.withdraw()
    assert run_dir.youngest() is None


@pytest.mark.parametrize("name", ["ticket", "ticket.", "ticket.1.2.other", "ticket.a.b.primary"])
def test_a_file_that_is_no_ticket_is_passed_over(
    tmp_path: Path, run_dir: RunDir, name: str
) -> None:
    """What another version or a person left is no reason to stop."""
    (tmp_path / "run" / name).touch()
    run_dir.show(MINE)
    assert run_dir.youngest() == MINE


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 2**22)), min_size=2, max_size=2))
def test_births_are_ordered_by_start_and_then_by_pid(starts: list[tuple[int, int]]) -> None:
    """keepalived forks its hooks from one thread: within a tick, pids rise."""
    first, second = (Issued(*issued) for issued in starts)
    assert (first < second) == (
        first.ticks < second.ticks or (first.ticks == second.ticks and first.pid < second.pid)
    )


# -- memory -------------------------------------------------------------------------------------

MEMORIES = st.builds(
    Memory,
    boot=st.just(boot_id()),
    daemon=st.none() | st.tuples(*[st.integers(0, 2**63)] * 3),
    ticks=st.integers(0, 2**40),
    pid=st.integers(0, 2**22),
    state=st.sampled_from([state.value for state in State]),
    transition=st.text(st.characters(codec="utf-8")),
    kept=st.booleans(),
    purge_due=st.floats(0, 1e9),
    done=st.floats(0, 1e9),
    began=st.floats(0, 1e10),
)


@settings(deadline=None, max_examples=30)
@given(memory=MEMORIES)
def test_what_was_memorised_is_recalled(
    tmp_path_factory: pytest.TempPathFactory, memory: Memory
) -> None:
    """Whatever it is, the next transition knows it."""
    path = str(tmp_path_factory.mktemp("memory") / "run")
    RunDir(path).memorise(memory)
    recalled = RunDir(path).recall()
    assert recalled._replace(daemon=None) == memory._replace(daemon=None)
    assert tuple(recalled.daemon or ()) == tuple(memory.daemon or ())


def test_nothing_is_recalled_of_another_boot(run_dir: RunDir) -> None:
    """Pids, starts and daemons of another boot mean nothing."""
    run_dir.memorise(Memory(boot="another", kept=True))
    assert run_dir.recall() == Memory()


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
    old = Memory(boot=boot_id(), state="backup")
    run_dir.memorise(old)
    files = sorted(os.listdir(tmp_path / "run"))
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
    try:
        with pytest.raises(OSError, match="too large"):
            run_dir.memorise(old._replace(state="primary"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert run_dir.recall() == old
    assert sorted(os.listdir(tmp_path / "run")) == files


def test_the_last_event_is_kept_as_it_was_logged(tmp_path: Path, run_dir: RunDir) -> None:
    """One line, byte for byte."""
    line = json.dumps({"reason": "500 → 0"}, ensure_ascii=False)
    run_dir.remember(line)
    assert (tmp_path / "run" / "last.json").read_text(encoding="utf-8") == line + "\n"


def test_a_file_of_ours_is_nobody_else_s(tmp_path: Path, run_dir: RunDir) -> None:
    """0600, whatever the umask."""
    before = os.umask(0)
    try:
        run_dir.show(MINE)
        run_dir.memorise(Memory())
        run_dir.remember("{}")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o7777 for path in (tmp_path / "run").iterdir()}
    assert modes == {0o600}


# -- who made this node primary -------------------------------------------------------------------


def test_a_promotion_holds_until_somebody_steps_down(run_dir: RunDir) -> None:
    """What makes a primary a second one is a fact that any backup, fault or stop can destroy."""
    seen = [run_dir.promotion()]
    run_dir.promote("one")
    run_dir.promote("two")
    seen.append(run_dir.promotion())
    run_dir.step_down()
    run_dir.step_down()
    seen.append(run_dir.promotion())

    assert seen == ["", "two", ""]


@given(ANY)
@example("\udcff")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_remembered(run_dir: RunDir, text: str) -> None:
    """What was carried out is on record, whatever the name in it, and any reader can decode it."""
    run_dir.remember(text)
    assert run_dir._read("last.json").endswith("\n")
