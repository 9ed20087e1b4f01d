"""keepalived.py: what is asked of a keepalived that does not, or must not, answer.

keepalived is the real one, in a node of its own. Where it cannot show a fault, something is done to
it, or to the directory of its dump.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from primary_backup.follower.inbox import Inbox
from primary_backup.follower.reconcile import Reconciler
from primary_backup.keepalived.dump import Unknown
from primary_backup.keepalived.fifo import Fifo
from primary_backup.keepalived.notify import Followed
from primary_backup.keepalived.state import Keepalived, NotRunning, VrrpState
from primary_backup.plan import State
from primary_backup.proof import Outcome
from primary_backup.settings import Settings
from primary_backup.system.identity import Daemons, Suspect
from tests.lab.node import Node, until

GROUP = Followed("GROUP", "G1")
VI_1 = Followed("INSTANCE", "VI_1")
VI_2 = Followed("INSTANCE", "VI_2")
MASTER = {"VI_1": State.PRIMARY}
BACKUP = {"VI_1": State.BACKUP}
WITHIN = 10
"""Seconds for what takes a tenth of one on a machine with nothing else to do."""

# Priority 255 is master at once, and a backup that awaits a word every 40 s stays one.
_INSTANCE = """
vrrp_instance {name} {{
    interface {device}
    version 3
    virtual_router_id {number}
    priority {priority}
    advert_int 40
    virtual_ipaddress {{
        10.9.0.{number}/32
    }}
}}
"""
DUMP = """[{
    "data": {"iname": "VI_1", "state": 2, "last_transition": 1700000000.5},
    "stats": {"become_master": 1}
}]"""
"""What would make a backup a master, if it were believed."""

INSTALLED = Keepalived("/usr/sbin/keepalived")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Place(Node):
    """A node with two networks, one of them up, and a /run of its own."""

    def __init__(self, name: str, workdir: Path) -> None:
        super().__init__(name, workdir)
        self.run("mount", "-t", "tmpfs", "none", "/run")
        self.run("mkdir", "/run/tmp")
        self.ip(
            "link add up0 type veth peer name up1",
            "link set up0 up",
            "link set up1 up",
            "address add 10.9.0.254/24 dev up0",
            "link add down0 type veth peer name down1",
        )
        self.files = Path(f"/proc/{self.pid}/root/run")
        self._keepaliveds = 0

    def keepalived(
        self,
        instances: Mapping[str, State],
        program: str | Path = "keepalived",
        *,
        tmpdir: str | None = "/run/tmp",
    ) -> subprocess.Popen[str]:
        """Start one whose instances will be in these states."""
        self._keepaliveds += 1
        name = f"keepalived-{self._keepaliveds}"
        text = "".join(
            _INSTANCE.format(
                name=instance,
                device="down0" if state is State.FAULT else "up0",
                number=10 * self._keepaliveds + number,
                priority=255 if state is State.PRIMARY else 100,
            )
            for number, (instance, state) in enumerate(instances.items())
        )
        (self.files / f"{name}.conf").write_text(text)
        return self.start(
            program, "--dont-fork", "--vrrp", "--log-console", "--no-syslog",
            "--use-file", f"/run/{name}.conf",
            "--pid", f"/run/{name}.pid", "--vrrp_pid", f"/run/{name}-vrrp.pid",
            env={} if tmpdir is None else {"TMPDIR": tmpdir},
        )  # fmt: skip

    def is_master(self) -> bool:
        """Whether the first address of the first keepalived is held."""
        return bool(self.run("ip", "-o", "address", "show", "to", "10.9.0.10").stdout)

    def master(self) -> subprocess.Popen[str]:
        """Start one, and wait until it is master."""
        process = self.keepalived(MASTER)
        self.until(self.is_master, WITHIN, "is master")
        return process

    @contextmanager
    def network(self) -> Iterator[None]:
        """Be in this node's network; the files are those of the test."""
        with (
            open("/proc/self/ns/net", "rb") as before,
            open(f"/proc/{self.pid}/ns/net", "rb") as there,
        ):
            assert _libc.setns(there.fileno(), _CLONE_NEWNET) == 0
            try:
                yield
            finally:
                assert _libc.setns(before.fileno(), _CLONE_NEWNET) == 0

    def awaits(self, fact: Callable[[], bool]) -> None:
        """Wait until keepalived reports so."""

        def said() -> bool:
            with self.network(), suppress(Unknown):
                return fact()
            return False

        self.until(said, WITHIN, "keepalived is what it was to be")

    def asked(self, followed: Followed = GROUP, *, keepalived: Keepalived = INSTALLED) -> VrrpState:
        """What keepalived reports; on a busy machine it may not answer in time: asked again."""
        for _ in range(20):
            with suppress(SilenceError):
                return self.asked_once(followed, keepalived=keepalived)
        raise SilenceError

    def asked_once(
        self, followed: Followed = GROUP, *, keepalived: Keepalived = INSTALLED
    ) -> VrrpState:
        """What keepalived reports, if it answers."""
        try:
            with self.network():
                return keepalived.vrrp_state(followed)
        except Unknown as error:
            if "wrote no dump" in str(error):
                raise SilenceError from error
            raise

    def objection(self, keepalived: Keepalived = INSTALLED) -> str | None:
        """Why nothing may be purged."""
        with self.network():
            verdict = keepalived.objection()
        assert verdict is None or (verdict.outcome is Outcome.DEGRADED and verdict.advice)
        return verdict.reason if verdict else None

    def answer(self, keepalived: Keepalived = INSTALLED) -> str | None:
        """The same, once keepalived answers: on a busy machine it is asked again."""
        for _ in range(20):
            said = self.objection(keepalived)
            if said is None or "wrote no dump" not in said:
                return said
        raise SilenceError

    @contextmanager
    def stopped(self, *processes: int) -> Iterator[None]:
        """For a while, these do nothing."""
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        until(lambda: {*map(state, processes)} == {"T"}, within=WITHIN, what="they are stopped")
        try:
            yield
        finally:
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @contextmanager
    def held_up(self, *command: str, env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
        """A program that cannot go on, because it writes into a FIFO that is full."""
        fifo = self.files / "full"
        os.mkfifo(fifo)
        full = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while True:
                os.write(full, bytes(4096))
        arguments = ["sh", "-c", 'exec "$@" >/run/full 2>&1', "sh", *command]
        process = self.start(*arguments, env=env)
        until(lambda: program(process) == "keepalived", within=WITHIN, what="it is started")
        until(lambda: state(process.pid) == "S", within=WITHIN, what="it waits")
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            os.close(full)


class NewerError(Exception):
    """There is something newer to do."""


class SilenceError(Exception):
    """keepalived does not answer in time."""


@pytest.fixture
def place(namespaces: None, tmp_path: Path) -> Iterator[Place]:
    with Place("place", tmp_path) as place:
        yield place


def state(pid: int) -> str:
    """The state of a process, a letter of proc(5)'s."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def program(process: subprocess.Popen[str]) -> str:
    """The name of the program that a process runs."""
    return Path(f"/proc/{process.pid}/exe").readlink().name


def child(process: subprocess.Popen[str]) -> int:
    """The process of keepalived that does the work."""

    def found() -> str:
        return subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
        ).stdout

    return int(until(found, within=WITHIN, what="keepalived works"))


# -- what it says -------------------------------------------------------------------------------


def test_no_keepalived_is_known_for_none(place: Place) -> None:
    """It is another thing than one that does not answer: nobody objects to anything."""
    with pytest.raises(NotRunning):
        place.asked()
    assert place.objection() is None


def test_one_that_was_killed_is_known_for_none(place: Place) -> None:
    """Whatever it has left in its directory."""
    process = place.master()
    pids = process.pid, child(process)
    with place.stopped(*pids):
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    process.wait()
    (place.files / "tmp/keepalived.json").write_text(DUMP)
    until(lambda: not place.pids("keepalived"), within=WITHIN, what="its processes are gone")
    with pytest.raises(NotRunning):
        place.asked()


def test_one_in_another_network_is_not_asked(place: Place, tmp_path: Path) -> None:
    """A keepalived in a container says nothing of this node."""
    place.master()
    with Place("elsewhere", tmp_path) as elsewhere, pytest.raises(NotRunning):
        elsewhere.asked()


def test_instances_that_disagree_are_no_state_of_their_group(place: Place) -> None:
    """A dump names no groups; each instance has its own state, and one that is none has none."""
    place.keepalived({"VI_1": State.PRIMARY, "VI_2": State.FAULT})
    place.awaits(lambda: INSTALLED.vrrp_state(VI_1).state is State.PRIMARY)
    with pytest.raises(Unknown, match=r"do not agree: VI_1 primary, VI_2 fault$"):
        place.asked(GROUP)
    assert place.asked(VI_2).state is State.FAULT
    with pytest.raises(Unknown, match="reports no state of VI_9"):
        place.asked(Followed("INSTANCE", "VI_9"))


def test_every_keepalived_is_asked_and_one_master_is_enough(place: Place) -> None:
    """A purge takes the connections of all of them."""
    place.keepalived(BACKUP)
    place.awaits(lambda: INSTALLED.vrrp_state(GROUP).state is State.BACKUP)
    assert place.answer() is None
    place.keepalived({"VI_2": State.PRIMARY})
    place.awaits(lambda: INSTALLED.vrrp_state(VI_2).state is State.PRIMARY)
    assert place.asked(VI_1).state is State.BACKUP
    assert place.answer() == "keepalived reports that this node is master of VI_2"


@pytest.mark.parametrize(
    "tmpdir",
    [
        "/run/tmp",
        "/run/tmp/../tmp/",
        pytest.param(None, id="not set"),
        "",
        "run/tmp",
    ],
)
def test_the_dump_is_read_where_keepalived_writes_it(place: Place, tmpdir: str | None) -> None:
    """In its TMPDIR or /tmp, among the files that it sees: a service may have its own /tmp."""
    place.run("mount", "-t", "tmpfs", "none", "/tmp")
    place.keepalived(MASTER, tmpdir=tmpdir)
    place.until(place.is_master, WITHIN, "is master")
    assert place.answer() == "keepalived reports that this node is master of VI_1"


@pytest.mark.parametrize("tmpdir", ["/run/missing", "/sys", "/run/keepalived-1.conf"])
def test_one_that_cannot_write_its_dump_is_not_known(place: Place, tmpdir: str) -> None:
    """Its state is unknown: it may be master, so that nothing may be purged."""
    process = place.keepalived(MASTER, tmpdir=tmpdir)
    child(process)
    with pytest.raises((Unknown, SilenceError)):
        place.asked_once()
    said = place.objection()
    assert said is not None
    assert said.startswith("keepalived does not answer (")


def test_one_that_has_respawned_a_crashed_child_is_told_from_before(place: Place) -> None:
    """It counts its promotions anew: the same number is another tenure."""
    process = place.master()
    before = place.asked()
    os.kill(child(process), signal.SIGKILL)
    place.awaits(
        lambda: (
            (now := INSTALLED.vrrp_state(GROUP)).state is State.PRIMARY
            and now.starts != before.starts
        )
    )
    assert place.asked().promotions == before.promotions
    assert process.poll() is None


# -- what it does not say -----------------------------------------------------------------------


@pytest.mark.parametrize("which", ["parent", "child"])
def test_one_that_is_stopped_keeps_nobody_waiting(place: Place, which: str) -> None:
    """A few tens of milliseconds; what it said earlier is not taken for its answer."""
    process = place.master()
    dump = place.files / "tmp/keepalived.json"
    dump.write_text(DUMP)
    with place.stopped(process.pid if which == "parent" else child(process)):
        begun = time.monotonic()
        with pytest.raises(SilenceError):
            place.asked_once()
        assert time.monotonic() - begun < 5
        said = place.objection()
        assert said is not None
        assert said.startswith("keepalived does not answer (")
        assert not dump.exists()
    assert place.asked().state is State.PRIMARY


def test_one_that_takes_no_signal_yet_is_not_sent_any(place: Place) -> None:
    """A real-time signal ends a process that does not know it."""
    # The dynamic loader's account of itself comes before keepalived's first instruction.
    with place.held_up("keepalived", "--vrrp", env={"LD_DEBUG": "libs"}) as process:
        with pytest.raises(Unknown, match="does not take the signal yet"):
            place.asked()
        assert process.poll() is None


def test_one_without_a_dump_is_not_sent_any_signal(place: Place, tmp_path: Path) -> None:
    """One that was built without JSON refuses --signum=JSON, and the signal would end it."""
    sleep = shutil.which("sleep")  # refuses it as well, and would be ended as well
    assert sleep is not None
    other = Keepalived(str(shutil.copy(sleep, tmp_path / "keepalived")))
    process = place.start(other.program, "100")
    until(lambda: program(process) == "keepalived", within=WITHIN, what="it is started")
    with pytest.raises(Unknown, match="no JSON dump"):
        place.asked(keepalived=other)
    assert place.objection(other) == (
        f"keepalived does not answer ({other.program} has no JSON dump)"
    )
    assert process.poll() is None


def test_one_whose_program_was_upgraded_is_asked(place: Place, tmp_path: Path) -> None:
    """A package replaces the program of a keepalived that goes on running."""
    own = Keepalived(str(shutil.copy(INSTALLED.program, tmp_path / "keepalived")))
    place.keepalived(MASTER, own.program)
    place.until(place.is_master, WITHIN, "is master")
    shutil.copy(INSTALLED.program, tmp_path / "new")
    (tmp_path / "new").replace(own.program)
    assert place.answer(own) == "keepalived reports that this node is master of VI_1"


def test_a_master_objects_whatever_else_runs_its_program(place: Place) -> None:
    """A `keepalived --config-test` runs for a moment, and takes no signal."""
    place.master()
    with place.held_up("keepalived", "--config-test", env={"LD_DEBUG": "libs"}):
        assert place.answer() == "keepalived reports that this node is master of VI_1"


def test_one_that_ends_while_it_is_asked_is_left_out(place: Place) -> None:
    """A `keepalived --config-test` comes and goes: a backup's purge does not depend on it."""
    place.keepalived(BACKUP)
    place.awaits(lambda: INSTALLED.vrrp_state(GROUP).state is State.BACKUP)
    starts = place.asked().starts
    tests = place.start(
        "sh", "-c", "while :; do keepalived --config-test --use-file /run/keepalived-1.conf; done"
    )
    try:
        said = [place.answer() for _ in range(30)]
        # A busy machine may keep one from its end for as long as an answer is awaited.
        assert said.count(None) > 25
        place.awaits(lambda: INSTALLED.vrrp_state(GROUP).starts == starts)
    finally:
        tests.kill()
        tests.wait()


def test_a_wrong_path_of_the_program_purges_no_master(place: Place) -> None:
    """A typing error in --keepalived: what runs under keepalived's name is not that program."""
    place.master()
    for path in ("/usr/sbin/keepalivd", "/bin/true", "/nonexistent"):
        said = place.objection(Keepalived(path)) or ""
        assert "runs /usr/sbin/keepalived, which is not the installed" in said
        with pytest.raises(Unknown) as unknown:
            place.asked(keepalived=Keepalived(path))
        assert not isinstance(unknown.value, NotRunning)


def test_no_more_than_a_few_of_a_container_s_programs_are_reported() -> None:
    """It may start any number of them: each is named once, whatever its pid is."""
    found = Daemons(foreign=tuple(Suspect(pid, f"/x/{pid % 5}/keepalived") for pid in range(50)))
    said = INSTALLED.unasked(found)
    assert len(said) == 3
    assert all(what in sentence for what, sentence in said.items())


def test_a_container_s_program_is_never_to_be_named() -> None:
    """What is named with --keepalived is executed, and the container's root can change it."""
    found = Daemons(foreign=(Suspect(7, "/usr/sbin/keepalived", contained=True),))
    (said,) = INSTALLED.unasked(found).values()
    assert "of a container: give that a network namespace of its own" in said
    assert "--keepalived" not in said


def test_a_question_ends_when_there_is_something_newer(place: Place) -> None:
    """A promotion does not wait for an answer that only a purge, or a starting follower, needs."""
    process = place.master()
    calls = itertools.count(1)

    def interrupt() -> None:
        if next(calls) == 3:
            raise NewerError

    with (
        place.network(),
        place.stopped(process.pid, child(process)),
        pytest.raises(NewerError),
    ):
        Keepalived(INSTALLED.program, interrupt).objection()


def test_a_notification_that_ends_a_question_of_lost_ones_is_a_first_one(
    place: Place, tmp_path: Path
) -> None:
    """What was lost before it may have been a BACKUP: the promotion commits, whatever it finds."""
    process = place.master()
    inbox = Inbox(Fifo(str(tmp_path / "notify.fifo")), GROUP)
    paths = (str(tmp_path / "conf"), str(tmp_path / "client"), str(tmp_path / "run"))

    def master_is_written() -> None:
        os.write(inbox.fifo.fileno(), b'GROUP "G1" MASTER 0\n')

    reconciler = Reconciler(
        inbox, GROUP, Settings(*paths, INSTALLED.program), lambda *_: None, master_is_written
    )
    with place.network(), place.stopped(process.pid, child(process)):
        assert not reconciler.ask("the FIFO was full")

    assert inbox.waiting is not None
    assert inbox.waiting.intent.state is State.PRIMARY
    assert inbox.waiting.intent.stepped_down


def test_a_program_that_does_not_say_its_signal_keeps_no_one_waiting(
    place: Place, tmp_path: Path
) -> None:
    """The wait for `--signum=JSON` is interrupted as well."""
    slow = tmp_path / "keepalived"
    slow.write_text("#!/bin/sh\nexec sleep 100\n")
    slow.chmod(0o755)

    def interrupt() -> None:
        raise NewerError

    with pytest.raises(NewerError):
        Keepalived(str(slow), interrupt)._signal_number()


# -- whose answer counts ------------------------------------------------------------------------


def start_as(place: Place, *setpriv: str, path: Path) -> subprocess.Popen[str]:
    """Start a program that does nothing, with less than root's rights."""
    process = place.start("setpriv", *setpriv, "--", path, "100")
    until(lambda: program(process) == path.name, within=WITHIN, what="it is started")
    return process


USER = ("--reuid", "65534", "--regid", "65534", "--clear-groups")


@pytest.mark.parametrize("mode", [0o755, 0o711])
def test_a_process_of_another_user_is_neither_asked_nor_counted(
    place: Place, tmp_path: Path, mode: int
) -> None:
    """Whatever it runs, and however many there are: any user can name a program keepalived."""
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    sleep = shutil.which("sleep")
    assert sleep is not None
    path = Path(shutil.copy(sleep, tmp_path / "keepalived"))
    path.chmod(mode)
    processes = [start_as(place, *USER, path=path) for _ in range(30)]

    with pytest.raises(NotRunning):
        place.asked()
    assert place.objection() is None
    place.master()
    assert place.asked().state is State.PRIMARY
    assert place.answer() == "keepalived reports that this node is master of VI_1"
    assert [process.poll() for process in processes] == [None] * 30


def test_a_root_of_a_container_is_named_and_neither_run_nor_believed(
    place: Place, tmp_path: Path
) -> None:
    """It has the host's network, mounts of its own and no capability; its program may be anything.

    While it runs nothing is purged: it may be a keepalived, and master.
    """
    sleep = shutil.which("sleep")
    assert sleep is not None
    path = Path(shutil.copy(sleep, tmp_path / "keepalived"))
    process = place.start(
        "unshare", "--mount", "--", "setpriv", "--bounding-set", "-all", "--", path, "100"
    )
    until(lambda: program(process) == "keepalived", within=WITHIN, what="it is started")
    named = (
        rf"keepalived \(pid {process.pid}\) runs {path}, which is not the installed "
        r"/usr/sbin/keepalived: .* --keepalived"
    )

    with pytest.raises(Unknown, match=named) as unknown:
        place.asked()
    assert not isinstance(unknown.value, NotRunning)
    assert re.search(named, place.objection() or "")

    assert place.answer(Keepalived(str(path))) == (
        f"keepalived does not answer ({path} has no JSON dump)"
    )

    place.keepalived(BACKUP)
    place.awaits(lambda: INSTALLED.vrrp_state(GROUP).state is State.BACKUP)
    assert re.search(named, place.answer() or "")
    assert process.poll() is None


ASK = "from primary_backup.keepalived.state import *; print(Keepalived('/usr/sbin/keepalived').{})"


def test_one_that_cannot_be_identified_is_not_taken_for_none(place: Place) -> None:
    """A confinement without CAP_SYS_PTRACE: a live master must not be purged for want of a look."""
    process = place.master()
    may_not = ("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", "--")

    said = place.run(
        *may_not, sys.executable, "-c", ASK.format("objection().reason"),
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    ).stdout  # fmt: skip

    assert said.startswith("keepalived does not answer (keepalived (pid ")
    assert "its executable cannot be read, for which CAP_SYS_PTRACE is needed" in said
    assert process.poll() is None


# -- what it has not said -----------------------------------------------------------------------


def _file(path: Path) -> None:
    path.write_text(DUMP)


def _link(path: Path) -> None:
    _file(path.with_name("target"))
    path.symlink_to("target")


def _of_another_user(path: Path) -> None:
    _file(path)
    os.chown(path, 65534, 65534)


def _writable(path: Path) -> None:
    _file(path)
    path.chmod(0o602)


@contextmanager
def planted(dump: Path, make: Callable[[Path], object]) -> Iterator[None]:
    """Something lies in place of the dump, again as soon as it was removed."""
    side = dump.with_name("side")
    make(side)
    done = threading.Event()

    def plant() -> None:
        while not done.wait(0.0005):
            with suppress(FileExistsError):
                os.link(side, dump, follow_symlinks=False)

    planter = threading.Thread(target=plant)
    planter.start()
    try:
        yield
    finally:
        done.set()
        planter.join()


@pytest.mark.parametrize("make", [_link, _of_another_user, _writable, os.mkfifo],
                         ids=["a link", "another user's", "writable", "a FIFO"])  # fmt: skip
def test_what_anybody_can_put_in_place_of_the_dump_is_not_believed(
    place: Place, make: Callable[[Path], object]
) -> None:
    """Anybody may write into /tmp: only root's own plain file is keepalived's word."""
    process = place.keepalived(BACKUP)
    place.awaits(lambda: INSTALLED.vrrp_state(VI_1).state is State.BACKUP)
    dump = place.files / "tmp/keepalived.json"
    with place.stopped(process.pid):
        with planted(dump, make), pytest.raises(Unknown, match="cannot be asked"):
            place.asked()
        dump.unlink()
        dump.with_name("side").unlink()
        # What shows that the test would see it believed: root's own file is.
        with planted(dump, _file):
            assert place.asked().state is State.PRIMARY


@pytest.fixture
def shared(place: Place) -> Path:
    """A directory where every user may write, as /tmp is."""
    directory = place.files / "tmp"
    directory.chmod(0o1777)
    return directory


def test_a_dump_in_a_directory_that_all_may_write_is_read(place: Place, shared: Path) -> None:
    """keepalived is asked there too, as long as it can write: without a TMPDIR that is /tmp."""
    process = place.master()
    for _ in range(3):
        assert place.answer() == "keepalived reports that this node is master of VI_1"
    with place.stopped(process.pid, child(process)):
        # What it said before is no answer, though it is root's.
        dump = shared / "keepalived.json"
        assert dump.exists()
        assert "wrote no dump" in (place.objection() or "")
        # However short a time ago: files are dated by a clock that stands still for some ms.
        dump.touch()
        assert "wrote no dump" in (place.objection() or "")
        # Nor is what it wrote before the clock was set back.
        dump.write_text(DUMP.replace('"state": 2', '"state": 1'))
        tomorrow = time.time() + 86400
        os.utime(dump, (tomorrow, tomorrow))
        assert "wrote no dump" in (place.objection() or "")


@pytest.mark.parametrize("make", [Path.mkdir, _link, _of_another_user, os.mkfifo],
                         ids=["a directory", "a link", "another user's", "a FIFO"])  # fmt: skip
def test_what_lies_in_a_directory_that_all_may_write_is_neither_believed_nor_removed(
    place: Place, shared: Path, make: Callable[[Path], object]
) -> None:
    """What keeps a master from answering keeps it from being purged."""
    process = place.master()
    dump = shared / "keepalived.json"
    with place.stopped(process.pid, child(process)):
        make(dump)
        os.chown(dump, 65534, 65534, follow_symlinks=False)
        before = dump.lstat()

        assert (place.objection() or "").startswith("keepalived does not answer (")
        with pytest.raises((Unknown, SilenceError)):
            place.asked_once()
        assert dump.lstat() == before

    # Whether keepalived itself can replace it or not: a master is not purged.
    assert (place.objection() or "").startswith("keepalived ")


def test_one_that_is_in_no_state_yet_is_not_known(place: Place) -> None:
    """Between its start and its first state it answers that no instance has any."""
    process = place.master()
    text = DUMP.replace('"state": 2', '"state": 0')
    # Stopped once for both: in between it would write the dump that the first question asked for.
    with (
        place.stopped(process.pid),
        planted(place.files / "tmp/keepalived.json", lambda path: path.write_text(text)),
    ):
        with pytest.raises(Unknown, match="reports no state of G1 yet"):
            place.asked()
        assert place.answer() == "keepalived does not answer (it reports no state of VI_1 yet)"


@pytest.mark.parametrize("text", ["", "[", DUMP[:-1], "[]x", "{}", "null", "\udcff"])
def test_half_a_dump_is_no_answer(place: Place, text: str) -> None:
    """keepalived does not write it at once: whoever reads meanwhile reads again."""
    process = place.master()
    with place.stopped(process.pid):
        half = text.encode(errors="surrogateescape")
        with (
            planted(place.files / "tmp/keepalived.json", lambda path: path.write_bytes(half)),
            pytest.raises(SilenceError),
        ):
            place.asked_once()
