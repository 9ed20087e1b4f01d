"""keepalived/state.py against real keepalived: what it reports, and which answers count."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from primary_backup.keepalived.dump import Unknown
from primary_backup.keepalived.notify import Followed
from primary_backup.keepalived.state import Keepalived, NotRunning
from primary_backup.plan import State
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

VI_2 = Followed("INSTANCE", "VI_2")


# -- what it reports -------------------------------------------------------------------------------


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
    """A keepalived in a container reports nothing of this node."""
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
    reported = place.objection()
    assert reported is not None
    assert reported.startswith("keepalived does not answer (")


def test_one_that_has_respawned_a_crashed_child_is_reported_from_before(place: Place) -> None:
    """It counts its promotions again: the same number is another tenure."""
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


ASK = (
    "from primary_backup.keepalived.guard import *\n"
    "print(objection(Keepalived('/usr/sbin/keepalived')).reason)"
)


def test_one_that_cannot_be_identified_is_not_taken_for_none(place: Place) -> None:
    """A confinement without CAP_SYS_PTRACE: a live master must not be purged for want of a look."""
    process = place.master()
    may_not = ("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", "--")

    reported = place.run(
        *may_not, sys.executable, "-c", ASK,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    ).stdout  # fmt: skip

    assert reported.startswith("keepalived does not answer (keepalived (pid ")
    assert "its executable cannot be read, for which CAP_SYS_PTRACE is needed" in reported
    assert process.poll() is None
