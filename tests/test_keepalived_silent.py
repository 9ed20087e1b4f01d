"""keepalived/state.py where keepalived does not answer, or something else does."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from primary_backup.follower.inbox import Inbox
from primary_backup.follower.reconcile import Reconciler
from primary_backup.keepalived.dump import Unknown
from primary_backup.keepalived.fifo import Fifo
from primary_backup.keepalived.guard import objection
from primary_backup.keepalived.state import Keepalived, NotRunning
from primary_backup.plan import State
from primary_backup.settings import Settings
from primary_backup.system.identity import Daemons, Suspect
from tests.fake.keepalived import (
    BACKUP,
    DUMP,
    GROUP,
    INSTALLED,
    MASTER,
    VI_1,
    WITHIN,
    Place,
    SilenceError,
    child,
    program,
)
from tests.waiting import until


class NewerError(Exception):
    """There is something newer to do."""


# -- what it does not say -----------------------------------------------------------------------


@pytest.mark.parametrize("which", ["parent", "child"])
def test_one_that_is_stopped_keeps_nobody_waiting(place: Place, which: str) -> None:
    """A few tens of milliseconds; what it reported earlier is not taken for its answer."""
    process = place.master()
    dump = place.files / "tmp/keepalived.json"
    dump.write_text(DUMP)
    with place.stopped(process.pid if which == "parent" else child(process)):
        begun = time.monotonic()
        with pytest.raises(SilenceError):
            place.asked_once()
        assert time.monotonic() - begun < 5
        reported = place.objection()
        assert reported is not None
        assert reported.startswith("keepalived does not answer (")
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
        reported = [place.answer() for _ in range(30)]
        # A busy machine may keep one from its end for as long as an answer is awaited.
        assert reported.count(None) > 25
        place.awaits(lambda: INSTALLED.vrrp_state(GROUP).starts == starts)
    finally:
        tests.kill()
        tests.wait()


def test_a_wrong_path_of_the_program_purges_no_master(place: Place) -> None:
    """A typing error in --keepalived: what runs under keepalived's name is not that program."""
    place.master()
    for path in ("/usr/sbin/keepalivd", "/bin/true", "/nonexistent"):
        reported = place.objection(Keepalived(path)) or ""
        assert "runs /usr/sbin/keepalived, which is not the installed" in reported
        with pytest.raises(Unknown) as unknown:
            place.asked(keepalived=Keepalived(path))
        assert not isinstance(unknown.value, NotRunning)


def test_no_more_than_a_few_of_a_container_s_programs_are_reported() -> None:
    """It may start any number of them: each is named once, whatever its pid is."""
    found = Daemons(foreign=tuple(Suspect(pid, f"/x/{pid % 5}/keepalived") for pid in range(50)))
    reported = INSTALLED.unasked(found)
    assert len(reported) == 3
    assert all(what in sentence for what, sentence in reported.items())


def test_a_container_s_program_is_never_to_be_named() -> None:
    """What is named with --keepalived is executed, and the container's root can change it."""
    found = Daemons(foreign=(Suspect(7, "/usr/sbin/keepalived", contained=True),))
    (reported,) = INSTALLED.unasked(found).values()
    assert "of a container: give that a network namespace of its own" in reported
    assert "--keepalived" not in reported


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
        objection(Keepalived(INSTALLED.program, interrupt))


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


# -- what it has not reported ------------------------------------------------------------------


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
    """Anybody may write into /tmp: only root's own plain file is keepalived's notification."""
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
        # What it reported before is no answer, though it is root's.
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
