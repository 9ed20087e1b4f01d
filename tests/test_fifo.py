"""fifo.py: whole lines and nothing else, from a FIFO of our own that nobody else follows."""

from __future__ import annotations

import fcntl
import os
import re
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primary_backup.keepalived.fifo import Fifo, NoFifo
from primary_backup.keepalived.notify import Followed

MASTER = b'GROUP "G1" MASTER 0'
FOLLOWS = """
import sys, time
from primary_backup.keepalived.fifo import Fifo
sys.addaudithook(lambda event, _: event == "fcntl.flock" and print("tries", flush=True))
fifo = Fifo(sys.argv[1])
print("follows", flush=True)
time.sleep(100)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fifo"


@pytest.fixture
def fifo(path: Path) -> Iterator[Fifo]:
    with closing(Fifo(str(path))) as fifo:
        yield fifo


@pytest.fixture
def writer(fifo: Fifo) -> Iterator[int]:
    """keepalived's end, as it opens it."""
    opened = os.open(fifo.path, os.O_RDWR | os.O_NONBLOCK)
    yield opened
    os.close(opened)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """For a while, another umask."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def another(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reports when it tries to follow that FIFO, and when it does."""
    arguments = [sys.executable, "-c", FOLLOWS, str(path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def reports(process: subprocess.Popen[bytes]) -> bytes:
    """The next line of that process, or none where it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip()


def fill(writer: int, line: bytes) -> None:
    """Write lines as keepalived does, until one is refused."""
    with suppress(BlockingIOError):
        while True:
            os.write(writer, line + b"\n")


# -- whose it is --------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o177, 0o777])
def test_it_is_made_for_its_owner_alone(path: Path, mask: int) -> None:
    """0600 under any umask, so that nobody else takes notifications away or puts some in."""
    with umask(mask):
        Fifo(str(path)).close()
    assert path.is_fifo()
    assert path.stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o644, 0o755])
def test_one_that_is_there_is_followed_and_closed_to_others(path: Path, mode: int) -> None:
    """keepalived makes it as well, and whoever can read it takes notifications away."""
    os.mkfifo(path)
    path.chmod(mode)
    with closing(Fifo(str(path))) as fifo:
        path.write_bytes(MASTER + b"\n")
        assert fifo.lines() == [MASTER]
    assert path.stat().st_mode & 0o7777 == 0o600


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _link(path: Path) -> None:
    os.mkfifo(path.with_name("elsewhere"), 0o600)
    path.symlink_to("elsewhere")


def _fifo(mode: int, owner: int = 0) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        os.mkfifo(path)
        path.chmod(mode)
        os.chown(path, owner, owner)

    return make


@pytest.mark.parametrize(
    ("make", "why"),
    [
        pytest.param(Path.touch, "name another path", id="file"),
        pytest.param(Path.mkdir, "name another path", id="directory"),
        pytest.param(_link, "name another path", id="link"),
        pytest.param(_socket, "name another path", id="socket"),
        pytest.param(lambda path: os.mknod(path, 0o020600, os.makedev(1, 3)), "name another path",
                     id="device"),
        pytest.param(_fifo(0o620), "others: remove it", id="group can write"),
        pytest.param(_fifo(0o602), "others: remove it", id="others can write"),
        pytest.param(_fifo(0o600, owner=65534), "uid 65534: remove it", id="another's"),
    ],
)  # fmt: skip
def test_what_cannot_be_trusted_is_refused_and_left_alone(
    path: Path, make: Callable[[Path], None], why: str
) -> None:
    """One line names the reason; the file is not touched, and no descriptor stays open."""
    make(path)
    before = path.lstat(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(NoFifo, match=f"{re.escape(str(path))}.*{why}") as refused:
        Fifo(str(path))
    assert len(str(refused.value).splitlines()) == 1
    assert (path.lstat(), len(os.listdir("/proc/self/fd"))) == before


@pytest.mark.parametrize("name", ["missing/fifo", "x" * 300])
def test_where_none_can_be_made_it_is_reported(tmp_path: Path, name: str) -> None:
    """One error for all of them, with the path in it."""
    with pytest.raises(NoFifo, match=str(tmp_path / name)):
        Fifo(str(tmp_path / name))


def test_no_program_that_is_started_inherits_it(fifo: Fifo) -> None:
    """A daemon that a follower starts must not keep the next follower away."""
    assert not os.get_inheritable(fifo.fileno())


# -- one follower -------------------------------------------------------------------------------


def test_a_second_follower_is_refused(fifo: Fifo) -> None:
    """Two would each get some of the lines; the second reports it, and leaves nothing open."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NoFifo, match="followed by another process"):
        Fifo(fifo.path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_second_follower_that_waits_gets_it_when_the_first_one_ends(path: Path) -> None:
    """After a reload keepalived starts a new follower before it has ended the old one."""
    first = Fifo(str(path))
    with another(path) as second:
        assert [reports(second), reports(second)] == [b"tries"] * 2  # the first time in vain
        first.close()
        while (reported := reports(second)) == b"tries":
            pass
        assert reported == b"follows"


def test_a_follower_that_was_killed_keeps_nobody_away(path: Path) -> None:
    """SIGKILL: the kernel frees it, and what it had not read is there for the next one."""
    with another(path) as first:
        assert [reports(first), reports(first)] == [b"tries", b"follows"]
        with path.open("wb", buffering=0) as writer:
            writer.write(MASTER + b"\n")
            first.kill()
            first.wait()
            with closing(Fifo(str(path))) as fifo:
                assert fifo.lines() == [MASTER]


# -- lines --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    lines=st.lists(st.binary(max_size=300).map(lambda line: line.replace(b"\n", b""))),
    cuts=st.lists(st.integers(0, 10_000)),
)
def test_any_chunks_of_any_lines_are_those_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], cuts: list[int]
) -> None:
    """However they are written, and whenever they are read, no byte is lost or added."""
    text = b"".join(line + b"\n" for line in lines)
    places = [0, *sorted(cuts), len(text)]
    path = tmp_path_factory.mktemp("lines") / "fifo"
    with closing(Fifo(str(path))) as fifo, path.open("wb", buffering=0) as writer:
        read = []
        for start, end in pairwise(places):
            writer.write(text[start:end])
            read += fifo.lines()
    assert read == lines


def test_half_a_line_waits_for_its_other_half(fifo: Fifo, writer: int) -> None:
    """A writer may be interrupted in the middle of a line, whose beginning may be another one."""
    read = []
    for half in (b'GROUP "G1" MASTER_RX_LOWER_PRI 0\nGROUP "G1" MAS', b"TER 0", b"\n"):
        os.write(writer, half)
        read.append(fifo.lines())
    assert read == [[b'GROUP "G1" MASTER_RX_LOWER_PRI 0'], [], [MASTER]]


def test_all_that_is_there_is_read_at_once(fifo: Fifo, writer: int) -> None:
    """The newest notification is the last one of a pipe that is as large and as full as can be."""
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    fill(writer, MASTER)
    lines = fifo.lines()
    assert set(lines) == {MASTER}
    assert len(lines) > 0.9 * size / len(MASTER + b"\n")
    assert fifo.lines() == []


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_line_without_end_is_neither_fatal_nor_left(fifo: Fifo, writer: int, pieces: int) -> None:
    """What is longer than any line of keepalived's is thrown away; the next line is a line."""
    for _ in range(pieces):
        os.write(writer, b"x" * 60_000)
        assert fifo.lines() == []
    os.write(writer, b"\n" + MASTER + b"\n")
    garbage, *lines = fifo.lines()
    assert len(garbage) <= 4096
    assert lines == [MASTER]


def test_a_line_that_was_cut_is_no_notification(fifo: Fifo, writer: int) -> None:
    """What was thrown away may have made garbage of it."""
    os.write(writer, MASTER.ljust(4096, b"0") + b"garbage")
    assert fifo.lines() == []
    os.write(writer, b"\n")
    (line,) = fifo.lines()
    assert Followed("GROUP", "G1").read_line(line) is None


def test_a_writer_that_goes_is_no_end(fifo: Fifo) -> None:
    """Between keepalived's end and its next start there is nothing to read, and no busy loop."""
    for _ in range(2):
        Path(fifo.path).write_bytes(MASTER + b"\n")
        assert select.select([fifo], [], [], 0)[0]
        assert fifo.lines() == [MASTER]
        assert not select.select([fifo], [], [], 0)[0]
        assert fifo.lines() == []


# -- lines that were lost ------------------------------------------------------------------------


@pytest.mark.parametrize("length", [len(MASTER), 100, 300])
@pytest.mark.parametrize("size", [4096, 65536])
def test_one_that_was_full_may_have_refused_notifications(
    fifo: Fifo, writer: int, length: int, size: int
) -> None:
    """keepalived drops a line that does not fit, and shows nobody; the next look is another one."""
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
    fill(writer, b"x" * length)
    seen = []
    for _ in range(2):
        fifo.lines()
        seen.append(fifo.overflowed)
    assert seen == [True, False]


def test_one_that_was_half_full_has_refused_nothing(fifo: Fifo, writer: int) -> None:
    """Whoever reads in time need not ask keepalived anything."""
    for _ in range(3):
        os.write(writer, (MASTER + b"\n") * 1600)
        fifo.lines()
        assert not fifo.overflowed


# -- where it went ------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True], ids=["unlinked", "and made again"])
def test_one_that_keepalived_has_unlinked_is_replaced(path: Path, fifo: Fifo, again: bool) -> None:
    """On stop and on reload keepalived unlinks a FIFO of its own: what is open is nobody's."""
    assert not fifo.is_replaced()
    path.unlink()
    if again:
        os.mkfifo(path, 0o600)
    assert fifo.is_replaced()
    with closing(Fifo(str(path))) as anew:
        assert not anew.is_replaced()
