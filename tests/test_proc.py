"""proc.py: who runs, since when, and in which network namespace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from primary_backup.system.identity import Identity, Program, Suspect, daemons, identify
from primary_backup.system.proc import (
    TICKS_PER_SECOND,
    boot_id,
    boot_seconds,
    find_process,
    own_start,
)
from tests.waiting import until


@contextmanager
def living(
    *arguments: str | Path, executable: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs until it is no longer needed; it has begun when this returns."""
    with subprocess.Popen([*arguments, "100"], executable=executable) as process:
        try:
            yield process
        finally:
            process.kill()


def program(path: Path) -> Path:
    """A program of that name, which does nothing for a while."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    return Path(shutil.copy(sleep, path))


# -- starts -------------------------------------------------------------------------------------


def test_this_boot_has_one_name() -> None:
    """The same for every process, and in one line."""
    reported = subprocess.check_output(["cat", "/proc/sys/kernel/random/boot_id"], text=True)
    assert f"{boot_id()}\n" == reported


def test_births_and_notifications_are_reported_by_the_same_clock() -> None:
    """A process is started between two looks at the clock, to the tick that proc(5) rounds down."""
    before = boot_seconds()
    with living("sleep") as process:
        after = boot_seconds()
        seen = find_process(process.pid)
        assert seen is not None
        assert before - 1 / TICKS_PER_SECOND <= seen.issued.seconds <= after


def test_a_process_knows_its_own_birth() -> None:
    """It is what others see of it, and earlier than that of its children."""
    with living("sleep") as child:
        ours, theirs = find_process(os.getpid()), find_process(child.pid)
        assert ours is not None
        assert theirs is not None
        assert own_start() == ours.issued < theirs.issued


# -- the living ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "a) Z 1 (b", "two\nlines", "\udcff"])
def test_a_process_may_have_any_name(tmp_path: Path, name: str) -> None:
    """proc(5) puts the name in the middle of the line, parentheses and all."""
    with living(program(tmp_path / name)) as process:
        seen = find_process(process.pid)
        assert seen is not None
        assert (seen.issued.pid, seen.parent, seen.stopped) == (process.pid, os.getpid(), False)


def test_one_that_is_stopped_is_known() -> None:
    """It lives, does nothing, and may go on at any time."""
    with living("sleep") as process:

        def stopped() -> bool:
            seen = find_process(process.pid)
            return seen is not None and seen.stopped

        process.send_signal(signal.SIGSTOP)
        until(stopped, "it is stopped")
        process.send_signal(signal.SIGCONT)
        until(lambda: not stopped(), "it goes on")


# -- who is the daemon of this node -------------------------------------------------------------

NAME = f"daemon{os.getpid()}"
"""Of the tests' daemon: those of another worker run at the same time, in the same network."""
USER = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A program of root's, in a directory that every user may enter."""
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    return program(tmp_path / NAME)


def identity(process: subprocess.Popen[Any], path: Path) -> Identity:
    """What a process is, once it runs a program of that name, or has executed what it was to."""
    until(lambda: "100" in command(process.pid), "the program has been started")
    return identify(process.pid, Program.at(str(path), path.name))


def command(pid: int) -> list[str]:
    """The last arguments of a process; [] while it only prepares to execute its program."""
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    return [] if "--" in arguments else arguments


def test_a_daemon_is_known_by_its_file(installed: Path) -> None:
    """Neither what a process calls itself counts nor through which path it was executed."""
    another = program(installed.with_name("other"))
    link = installed.with_name("link")
    link.symlink_to(installed)
    with (
        living(installed) as daemon,
        living("another", executable=link) as renamed,
        living(NAME, executable=another) as claims,
    ):
        assert identity(daemon, installed) is Identity.INSTALLED
        assert identity(renamed, installed) is Identity.INSTALLED
        assert identity(daemon, link) is Identity.INSTALLED
        assert identity(claims, installed) is Identity.OTHER


@pytest.mark.parametrize(
    "user",
    [
        pytest.param(USER, id="another user"),
        pytest.param(
            ("setpriv", "--ruid", "65534", "--"), id="started by another user, set-user-ID"
        ),
        pytest.param(("setpriv", "--euid", "65534", "--"), id="effectively another user"),
    ],
)
@pytest.mark.parametrize("mode", [0o755, 0o711])
def test_another_users_process_is_no_daemon(
    namespaces: None, installed: Path, user: tuple[str, ...], mode: int
) -> None:
    """Though it runs the very program; one that it may not even read, so that /proc shows root."""
    installed.chmod(mode)
    with living(*user, installed) as process:
        assert identity(process, installed) is Identity.OTHER


def test_a_process_in_another_network_is_no_daemon_of_this_node(
    namespaces: None, installed: Path
) -> None:
    """Such as that of a container."""
    with living("unshare", "--net", "--", installed) as process:
        assert identity(process, installed) is Identity.OTHER


def test_the_root_of_another_user_namespace_is_not_root(namespaces: None, installed: Path) -> None:
    """Its ids are 0 in its own namespace only."""
    with living("unshare", "--user", "--map-root-user", "--", installed) as process:
        assert identity(process, installed) is Identity.OTHER


def test_a_program_of_the_same_name_is_another_one(installed: Path) -> None:
    """A second build, or a container's: it may be a daemon, but is not the installed one."""
    (installed.parent / "elsewhere").mkdir()
    another = program(installed.parent / "elsewhere" / NAME)
    with living(another) as process:
        assert identity(process, installed) is Identity.FOREIGN
        found = daemons(str(installed), installed.name)
        assert found.foreign == (Suspect(process.pid, str(another)),)
        assert found.installed == ()
        assert not found.none


def test_what_was_upgraded_is_still_the_daemon(installed: Path) -> None:
    """A package unlinks the program of a daemon that goes on running."""
    with living(installed) as process:
        program(installed.with_name("new")).replace(installed)
        assert identity(process, installed) is Identity.INSTALLED
        installed.unlink()
        assert identity(process, installed) is Identity.INSTALLED


def test_what_was_deleted_elsewhere_is_not_the_daemon(installed: Path) -> None:
    """Only the path of the installed program has been upgraded."""
    (installed.parent / "elsewhere").mkdir()
    another = program(installed.parent / "elsewhere" / NAME)
    with living(another) as process:
        another.unlink()
        assert identity(process, installed) is Identity.FOREIGN


@pytest.mark.parametrize("deleted", [False, True])
def test_a_container_s_file_at_the_same_path_is_not_the_installed_one(
    namespaces: None, installed: Path, tmp_path: Path, deleted: bool
) -> None:
    """It has that path, on the same device; a container can delete it too, as an upgrade does."""
    inside = tmp_path / "root" / installed.relative_to("/")
    inside.parent.mkdir(parents=True)
    program(inside)
    enter = (
        'mount --bind "$1" "$1"; mkdir -p "$1/usr" "$1/old"; mount --rbind /usr "$1/usr"; '
        'for each in bin lib lib64; do [ ! -L /$each ] || cp -a /$each "$1"; done; '
        'cd "$1"; pivot_root . old; exec setpriv --bounding-set -all -- "$2" 100'
    )
    with living(
        "unshare", "--mount", "--", "sh", "-ec", enter, "sh", tmp_path / "root", installed
    ) as process:
        until(lambda: command(process.pid) == [str(installed), "100"], "it is in the container")
        if deleted:
            inside.unlink()
        expected = f"{installed} (deleted)" if deleted else str(installed)
        assert os.readlink(f"/proc/{process.pid}/exe") == expected
        assert identity(process, installed) is Identity.FOREIGN
        (found,) = daemons(str(installed), installed.name).foreign
        assert found == Suspect(process.pid, expected, contained=True)


def test_one_that_has_ended_is_no_daemon(installed: Path) -> None:
    """Neither a zombie, whose status its parent has not asked for, nor one that is gone."""
    with living(installed) as process:
        assert identity(process, installed) is Identity.INSTALLED
        process.kill()
        until(lambda: find_process(process.pid) is None, "it is a zombie")
        assert Path(f"/proc/{process.pid}").exists()
        assert find_process(process.pid) is None
        assert identify(process.pid, Program.at(str(installed), installed.name)) is Identity.OTHER
        process.wait()
        assert find_process(process.pid) is None
        assert identify(process.pid, Program.at(str(installed), installed.name)) is Identity.OTHER


UNREADABLE = "its executable cannot be read, for which CAP_SYS_PTRACE is needed"
HIDDEN = "/proc hides processes from one without CAP_SYS_PTRACE"
ASK = """
import sys
from primary_backup.system.identity import daemons
found = daemons(*sys.argv[1:])
print(found.none, *(f"{each.pid} {each.what}" for each in found.unknown), found.hidden, sep="\\n")
"""


def without_ptrace(path: Path, *before: str) -> list[str]:
    """What a process that may not look at others finds."""
    may_not = ("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", "--")
    return subprocess.check_output(
        [*before, *may_not, sys.executable, "-c", ASK, str(path), NAME],
        text=True, cwd=Path(__file__).parents[1],
    ).splitlines()  # fmt: skip


def test_one_that_cannot_be_identified_is_unknown(installed: Path) -> None:
    """A confinement may forbid to read it: that it does not run is not shown."""
    assert without_ptrace(installed) == ["True", ""]
    with living(installed) as process, living("renamed", executable=installed) as renamed:
        none, *unknown = without_ptrace(installed)
        assert none == "False"
        assert sorted(unknown) == sorted(
            ["", *(f"{pid} {UNREADABLE}" for pid in (process.pid, renamed.pid))]
        )


def test_a_program_behind_a_link_is_unknown_by_either_name(installed: Path) -> None:
    """Such as keepalived-2.3, which the link keepalived leads to."""
    link = installed.with_name("link")
    link.symlink_to(installed)
    with living(link) as process:
        until(lambda: "100" in command(process.pid), "the program has been started")
        assert without_ptrace(link)[1:] == [f"{process.pid} {UNREADABLE}", ""]


def test_a_zombie_that_cannot_be_identified_is_no_daemon(installed: Path) -> None:
    """In a container there may be no process that asks for its status."""
    with living(installed) as process:
        process.kill()
        until(lambda: find_process(process.pid) is None, "it is a zombie")
        assert without_ptrace(installed) == ["True", ""]


@pytest.mark.parametrize("option", ["noaccess,gid=10", "invisible,gid=10", "ptraceable"])
def test_where_processes_are_hidden_there_may_be_others(
    namespaces: None, installed: Path, option: str
) -> None:
    """hidepid hides others from a root without CAP_SYS_PTRACE: that none runs is not shown."""
    hide = f'mount -t proc -o hidepid={option} proc /proc; "$@"'
    none, *unknown = without_ptrace(
        installed, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
        "sh", "-ec", hide, "sh",
    )  # fmt: skip
    assert none == "False"
    assert unknown == [HIDDEN]


DEEP = """
import os, shutil, sys
for _ in range(18):
    os.mkdir("d" * 250)
    os.chdir("d" * 250)
shutil.copy(sys.argv[1], sys.argv[2])
os.execv(sys.argv[2], [sys.argv[2], "100"])
"""


@pytest.mark.parametrize("named", [False, True])
def test_an_executable_whose_path_is_too_long_to_be_read_ends_nothing(
    installed: Path, named: bool
) -> None:
    """readlink(2) fails in its own way then; a container's root can make such a path."""
    top = installed.with_name("deep")
    top.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", DEEP, installed, NAME if named else "x"], cwd=top
    ) as process:
        try:
            until(lambda: command(process.pid)[-1:] == ["100"], "it is started")
            with pytest.raises(OSError, match="too long"):
                os.readlink(f"/proc/{process.pid}/exe")
            assert identity(process, installed) is (Identity.UNKNOWN if named else Identity.OTHER)
            assert daemons(str(installed), installed.name).installed == ()
        finally:
            process.kill()
            subprocess.run(["rm", "-rf", top], check=True)


def test_a_daemon_whose_program_was_renamed_is_not_taken_for_none(installed: Path) -> None:
    """`mv` and `cp` leave it running from another file: its own name still gives it away."""
    with living(installed) as process:
        installed.rename(installed.with_name("saved"))
        program(installed)
        assert identity(process, installed) is Identity.FOREIGN
        found = daemons(str(installed), installed.name)
        assert found.foreign == (Suspect(process.pid, str(installed.with_name("saved"))),)
